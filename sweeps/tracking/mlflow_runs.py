"""Writes sweeps and trials to MLflow.

MLflow holds everything that the tables need. A table can therefore be rebuilt next month from the
tracker alone. metrics.py defines the names of all metrics with their units; other names are
rejected.

`RunLogger` addresses runs by explicit ids, never by the active run of `mlflow.start_run`. The
driver and the Ray actors can therefore write at the same time, each with its own `RunLogger`.
Creating a `RunLogger` imports MLflow, which takes two seconds.

All writes of a trial are idempotent, as its outbox (sweeps/tracking/outbox.py) requires. A run is
identified by its attempt. A figure is identified by the time `at` of its measurement, in
milliseconds since 1970.
"""

import hashlib
import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.metrics import check_name
from sweeps.names import flatten, format_parameter, run_name
from sweeps.tracking import artifacts, notes
from sweeps.tracking.database import check_writable, database_file, resolve_uri
from sweeps.tracking.mlflow_client import connect, get_or_create_experiment
from sweeps.tracking.mlflow_values import MAX_LENGTH, finite_or_nan, format_values, now_ms
from sweeps.tracking.run_queries import (
    PARENT_TAG,
    is_abandoned,
    plan_rows,
    runs_of_attempt,
    settled_outcomes,
    sweeps_by_name,
    trial_runs,
)
from sweeps.trial_states import Outcome, TrialState

if TYPE_CHECKING:
    from mlflow.entities import Run

# An overflow of /dev/shm is a result, a cell of the table, and so is a diverged training
MLFLOW_STATUS: dict[str, str] = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.SHM_EXHAUSTED: "FINISHED",
    Outcome.DIVERGED: "FINISHED",
    Outcome.OOM: "FAILED",
    Outcome.TIMEOUT: "FAILED",
    Outcome.DATA_ERROR: "FAILED",
    Outcome.CRASHED: "FAILED",
    Outcome.INTERRUPTED: "KILLED",
}


REPORT_TAG = "report_digest"  # of what the report of a sweep's run shows


class Report(NamedTuple):
    """Holds the report of a sweep."""

    html: str
    digest: str  # of what it shows


def digest(tables: str, sweep_file: str) -> str:
    """Returns a hash of what the report of a sweep shows: its tables and its file."""
    return hashlib.sha256(json.dumps([tables, sweep_file]).encode()).hexdigest()[:16]


class TrialDescription(NamedTuple):
    """Describes an attempt at a trial when its run is opened."""

    trial_id: str
    block: str
    repeat: int
    seed: int
    swept: Mapping[str, Any]  # dotted path -> value
    config: Mapping[str, Any]  # resolved parameters, nested, with sizes in bytes
    # The trial's surroundings: device, device_name, node, threads, precision, versions,
    # git_commit ...
    tags: Mapping[str, Any]


class RunLogger:
    """Writes the runs of one experiment.

    `uri` is the URI of the YAML file; `self.uri` is its absolute form, for use in other processes.
    """

    def __init__(self, uri: str, experiment: str):
        self.uri = resolve_uri(uri)
        file = database_file(self.uri)
        if file:
            check_writable(file)
            file.parent.mkdir(parents=True, exist_ok=True)
        self.client = connect(self.uri)
        self.experiment = experiment
        self.experiment_id = get_or_create_experiment(
            self.client, experiment, artifacts.new_location(file, experiment) if file else None
        )

    def start_sweep(
        self, name: str, yaml_text: str, plan: list[dict[str, Any]], rebuild: str
    ) -> str:
        """Opens the sweep's parent run, the same one at every launch, and returns its id.

        `plan` has one row a trial, with its `trial_id`; the tables show the trials whose id is in
        the latest plan. `rebuild` is the command that prints the tables again, for the run's note.
        """
        run = sweeps_by_name(self.client, self.experiment_id).get(name) or self.client.create_run(
            self.experiment_id, tags={"kind": "sweep", "sweep": name}, run_name=name
        )
        parent = run.info.run_id
        self.client.update_run(parent, status="RUNNING")
        self.client.set_tag(
            parent,
            notes.NOTE_TAG,
            notes.sweep_note(name, plan, format_parameter, rebuild, self.experiment_id),
        )
        self.client.set_experiment_tag(
            self.experiment_id, notes.VIEW_TAG_PREFIX + name, notes.runs_view(name, plan, now_ms())
        )
        artifacts.write_text(self.client, parent, "sweep.yaml", yaml_text)
        self.log_plan(parent, plan)
        return parent

    def log_plan(self, parent: str, plan: list[dict[str, Any]]) -> None:
        """Writes the current plan.

        A row may hold the trial's `forecast`. The row of a trial that is not measured has
        `measured: false` and the trial's `config`.
        """
        artifacts.write_text(
            self.client, parent, "plan.json", json.dumps(plan, indent=1, ensure_ascii=False)
        )

    def log_corpora(
        self, parent: str, corpora: Sequence[Mapping[str, Any]], lines: Sequence[str]
    ) -> None:
        """Writes the available, used and excluded clips of every corpus.

        corpora.json holds all details, and a tag holds the `lines` for the tables.
        """
        artifacts.write_text(self.client, parent, "corpora.json", json.dumps(corpora, indent=1))
        short = [
            (
                textwrap.shorten(line, 400, placeholder=" ...", drop_whitespace=False)
                if len(line) > 400
                else line
            )
            for line in lines
        ]
        while len(json.dumps(short)) > MAX_LENGTH["tag"]:
            short = [*short[:-2], f"  all {len(lines)} lines are in corpora.json of the run"]
        self.client.set_tag(parent, "corpora", json.dumps(short))

    def log_calibrations(self, parent: str, calibrations: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the calibrations on which the forecasts of a sweep are based, by name."""
        artifacts.write_text(
            self.client, parent, "calibrations.json", json.dumps(calibrations, indent=1)
        )

    def finish_sweep(
        self, parent: str, status: str, tables: str | None = None, report: Report | None = None
    ) -> None:
        """Closes the parent run with `status`, which is FINISHED, FAILED or KILLED.

        `tables` is the Markdown of tables.md.
        """
        if tables is not None:
            artifacts.write_text(self.client, parent, "tables.md", tables)
        if report is not None:
            artifacts.write_text(self.client, parent, "report.html", report.html)
            self.client.set_tag(parent, REPORT_TAG, report.digest)
        run = self.client.get_run(parent)
        trials = self.trials(parent)
        known_outcomes = {
            trial.data.tags["trial_id"]: trial.data.tags.get("outcome", TrialState.RUNNING)
            for trial in reversed(trials)
        }
        known_outcomes |= settled_outcomes(trials)
        outcomes = [
            known_outcomes[row["trial_id"]]
            for row in plan_rows(self.client, run)
            if row["trial_id"] in known_outcomes
        ]
        self.client.set_tag(
            parent,
            notes.NOTE_TAG,
            notes.ended_sweep_note(run.data.tags.get(notes.NOTE_TAG, ""), outcomes),
        )
        self.client.set_terminated(parent, status)

    def has_report(self, parent: str, digest: str) -> bool:
        """Returns whether a sweep's run holds a report that shows what `digest` identifies."""
        return self.client.get_run(parent).data.tags.get(REPORT_TAG) == digest

    def trials(self, parent: str) -> "list[Run]":
        """Returns the child runs of a sweep, all attempts, newest first."""
        return trial_runs(self.client, self.client.get_run(parent))

    def attempts(self, parent: str) -> Counter[str]:
        """Returns, by trial id, the number of runs of a sweep's trial."""
        return Counter(run.data.tags["trial_id"] for run in self.trials(parent))

    def start_trial(
        self,
        parent: str,
        trial: TrialDescription,
        attempt_id: str | None = None,
        at: int | None = None,
    ) -> str:
        """Opens a trial's run and returns its id.

        `attempt_id` identifies this attempt, which has exactly one run: if an earlier call has
        opened that run, its id is returned.
        """
        columns = {path: format_parameter(path, value) for path, value in trial.swept.items()}
        own_tags = {
            "kind": "trial",
            "trial_id": trial.trial_id,
            "block": trial.block,
            "repeat": trial.repeat,
            "swept": dict(trial.swept),
            PARENT_TAG: parent,
            "attempt_id": attempt_id,
            notes.NOTE_TAG: notes.trial_note(
                notes.TrialHeading(trial.block, trial.repeat, columns)
            ),
        }
        opened = runs_of_attempt(self.client, self.experiment_id, attempt_id)
        run = next(iter(opened), None) or self.client.create_run(
            self.experiment_id,
            start_time=at,
            tags=format_values({**trial.tags, **columns, **own_tags}, "tag"),
            run_name=run_name(trial.block, trial.swept, trial.repeat),
        )
        own_params = {"seed": trial.seed, "repeat": trial.repeat}
        self._log(
            run.info.run_id, params=format_values({**flatten(trial.config), **own_params}, "param")
        )
        return run.info.run_id

    def log_epoch(
        self, run_id: str, epoch: int, metrics: Mapping[str, float | None], at: int | None = None
    ) -> None:
        """Adds an epoch to the trial's series, in one call.

        A value of None was not measured and stays absent.
        """
        self._log(run_id, metrics=metrics, step=epoch, at=at)

    def log_snapshot(
        self, run_id: str, cycle: int, metrics: Mapping[str, float | None], at: int | None = None
    ) -> None:
        """Adds a cycle's snapshot to the trial's series."""
        self._log(run_id, metrics=metrics, step=cycle, at=at)

    def log_summary(
        self, run_id: str, metrics: Mapping[str, float | None], at: int | None = None
    ) -> None:
        """Adds figures that exist once a trial.

        Examples are the forecast before it runs, and the results on the test split after it.
        """
        self._log(run_id, metrics=metrics, at=at)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Writes tags that become known after a trial's start, such as the size of its /dev/shm."""
        self._log(run_id, tags=format_values(tags, "tag"))

    def finish_trial(
        self,
        run_id: str,
        outcome: str,
        evidence: str,
        summary: Mapping[str, float | None],
        tags: Mapping[str, Any] | None = None,
        artifacts: Mapping[str, Path] | None = None,
    ) -> None:
        """Writes a trial's outcome, summary and files, and then closes its run.

        If this is interrupted, the run stays open as an orphan. `artifacts` maps the path in the
        run, such as 'snapshots/cycle-1.pt', to the local file.
        """
        self.log_ending(run_id, outcome, evidence, summary, tags or {})
        for artifact_path, file in (artifacts or {}).items():
            self.upload(run_id, artifact_path, file)
        self.close_trial(run_id, outcome)

    def log_ending(
        self,
        run_id: str,
        outcome: str,
        evidence: str,
        summary: Mapping[str, float | None],
        tags: Mapping[str, Any],
        at: int | None = None,
    ) -> None:
        """Writes a trial's outcome and summary: the first part of `finish_trial`.

        It neither uploads files nor closes the run. An ending with a time `at` comes from an
        outbox. If the launch has meanwhile abandoned the attempt, the outcome is written as
        'interrupted'. Raises ValueError for an unknown outcome.
        """
        if outcome not in MLFLOW_STATUS:
            raise ValueError(f"outcome {outcome!r} is not one of {', '.join(MLFLOW_STATUS)}")
        if at is not None and self._is_abandoned(run_id, outcome):
            evidence = (
                "the launch had abandoned this trial's machine and runs the trial again; this"
                f" attempt ended as {outcome}: {evidence}"
            )
            outcome = Outcome.INTERRUPTED
        self._log(
            run_id,
            metrics=summary,
            tags=format_values({**tags, "outcome": outcome, "evidence": evidence}, "tag"),
            at=at,
        )

    def close_trial(
        self, run_id: str, outcome: str, attempt_id: str | None = None, at: int | None = None
    ) -> None:
        """Closes a trial's run: the last part of `finish_trial`.

        Any second run with the same `attempt_id` is deleted. Such a run results from a request
        that was repeated because its answer was lost.
        """
        for run in runs_of_attempt(self.client, self.experiment_id, attempt_id):
            if run.info.run_id != run_id:
                self.client.delete_run(run.info.run_id)
        if at is not None and self._is_abandoned(run_id, outcome):
            outcome = Outcome.INTERRUPTED
            self.client.set_tag(run_id, "outcome", outcome.value)
        self.client.set_terminated(run_id, MLFLOW_STATUS[outcome], at)

    def _is_abandoned(self, run_id: str, outcome: str) -> bool:
        """Returns whether the launch abandoned this attempt; False for an interrupted one."""
        return outcome != Outcome.INTERRUPTED and is_abandoned(self.client, run_id)

    def upload(self, run_id: str, artifact_path: str, file: Path) -> None:
        """Uploads a local file to a run.

        `artifact_path` is the path in the run, such as 'snapshots/cycle-1.pt'.
        """
        artifacts.upload(self.client, run_id, artifact_path, file)

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float | None] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
        at: int | None = None,
    ) -> None:
        """Writes metrics, parameters and tags of a run; `at` defaults to the present time."""
        from mlflow.entities import Metric, Param, RunTag

        at = at or now_ms()
        values = {
            check_name(name): value for name, value in (metrics or {}).items() if value is not None
        }
        numbers = [Metric(name, finite_or_nan(value), at, step) for name, value in values.items()]
        settings = [Param(*pair) for pair in (params or {}).items()]
        labels = [RunTag(*pair) for pair in (tags or {}).items()]
        while numbers or settings or labels:  # one call, unless a record exceeds MLflow's limits
            self.client.log_batch(run_id, numbers[:1000], settings[:100], labels[:100])
            numbers, settings, labels = numbers[1000:], settings[100:], labels[100:]
