"""MLflow: a sweep is a parent run, a trial is a child of it, and an attempt at the same trial is one more child with the same key.

The one idea is that MLflow holds everything the tables need, so that a table can be rebuilt next month from the tracker alone. What is
logged under which name, and in which unit, stands in metrics.py; other names are refused.

`Tracking` speaks to MLflow by explicit run ids and never through the active run of `mlflow.start_run`, so the driver and the Ray
actors can write at the same time, each with a `Tracking` of its own. MLflow is imported when one is made: two seconds.

What a trial writes may be written twice and is there once, as its outbox (sweeps/outbox.py) needs it: a run is known by its attempt, and
a figure by the time `at` which it was measured, in milliseconds since 1970.
"""

import json
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import notes
from sweeps.metrics import check_name
from sweeps.names import flatten, run_name, written
from sweeps.tracker import connect, database_file, plan_rows, resolve_uri, search_all

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATUS = {  # how a trial ended -> MLflow's word for it. An overflow of /dev/shm is a result, a cell of the table.
    "completed": "FINISHED",
    "stopped_early": "FINISHED",
    "shm_exhausted": "FINISHED",
    "oom": "FAILED",
    "timeout": "FAILED",
    "data_error": "FAILED",
    "crashed": "FAILED",
    "interrupted": "KILLED",
}
SETTLED = ("completed", "stopped_early", "shm_exhausted")  # these trials are not run again

PARENT = "mlflow.parentRunId"
_LONGEST = {"param": 6000, "tag": 8000}  # characters; MLflow would cut longer ones too, with a warning in the terminal


def children(client: "MlflowClient", parent: "Run") -> "list[Run]":
    """The trials of a sweep, every attempt, newest first."""
    query = f"tags.kind = 'trial' and tags.`{PARENT}` = '{parent.info.run_id}'"
    return search_all(client, parent.info.experiment_id, query)


def settled_of(runs: "Iterable[Run]") -> dict[str, str]:
    """key -> outcome of the latest settled run with that key. `runs`: trials, newest first."""
    settled: dict[str, str] = {}
    for run in runs:
        outcome = run.data.tags.get("outcome")
        if outcome in SETTLED and run.info.status != "RUNNING":
            settled.setdefault(run.data.tags["key"], outcome)
    return settled


def disturbed_of(runs: "Iterable[Run]") -> set[str]:
    """Keys of trials that were disturbed from outside and have not been run again; a second run that failed was one all the same.
    `runs`: trials, newest first."""
    latest: dict[str, Mapping[str, str]] = {}  # key -> tags
    settled: Counter[str] = Counter()
    for run in runs:
        tags = run.data.tags
        if run.info.status != "RUNNING" and tags.get("outcome") != "interrupted":
            latest.setdefault(tags["key"], tags)
            settled[tags["key"]] += tags.get("outcome") in SETTLED
    return {key for key, tags in latest.items() if "disturbed" in tags and tags.get("outcome") in SETTLED and settled[key] == 1}


class Tracking:
    """Writes one experiment. `uri` as in the YAML; `self.uri` is its absolute form, which other processes are to be given."""

    def __init__(self, uri: str, experiment: str):
        self.uri = resolve_uri(uri)
        file = database_file(self.uri)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        self.client = connect(self.uri)
        artifacts = str(file.parent / "mlartifacts" / experiment) if file else None
        self.experiment = experiment
        self.experiment_id = _experiment_id(self.client, experiment, artifacts)

    def start_sweep(self, name: str, yaml_text: str, plan: list[dict[str, Any]], rebuild: str) -> str:
        """Opens the sweep's parent run, the same one at every launch, and returns its id.

        `plan`: a row a trial, each with its `key`; the tables show the trials whose key is in the latest plan. `rebuild`: the command
        that prints the tables again, for the run's note.
        """
        sweeps = search_all(self.client, self.experiment_id, "tags.kind = 'sweep'")
        parent = next((run.info.run_id for run in sweeps if run.data.tags["sweep"] == name), None)
        if parent is None:
            tags = {"kind": "sweep", "sweep": name}
            parent = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        self.client.update_run(parent, status="RUNNING")
        self.client.set_tag(parent, notes.NOTE, notes.of_sweep(name, plan, written, rebuild, self.experiment_id))
        self.client.set_experiment_tag(self.experiment_id, notes.VIEW + name, notes.view(name, plan, now_ms()))
        self.client.log_text(parent, yaml_text, "sweep.yaml")
        self.log_plan(parent, plan)
        return parent

    def log_plan(self, parent: str, plan: list[dict[str, Any]]) -> None:
        """The plan as known by now: a row may hold its `forecast`; one that isn't measured has `measured: false` and its `config`."""
        self.client.log_text(parent, json.dumps(plan, indent=1, ensure_ascii=False), "plan.json")

    def log_calibrations(self, parent: str, calibrations: Mapping[str, Mapping[str, Any]]) -> None:
        """What the forecasts of a sweep were made of, by name."""
        self.client.log_text(parent, json.dumps(calibrations, indent=1), "calibrations.json")

    def finish_sweep(self, parent: str, status: str, tables: str | None = None, report: str | None = None) -> None:
        """Closes the parent run. status: FINISHED, FAILED or KILLED; `tables`: the Markdown of tables.md; `report`: report.html."""
        for text, place in ((tables, "tables.md"), (report, "report.html")):
            if text is not None:
                self.client.log_text(parent, text, place)
        run = self.client.get_run(parent)
        ended = {trial.data.tags["key"]: trial.data.tags.get("outcome", "running") for trial in reversed(self.trials(parent))}
        ended |= self.settled_keys(parent)
        outcomes = [ended[row["key"]] for row in plan_rows(self.client, run) if row["key"] in ended]
        self.client.set_tag(parent, notes.NOTE, notes.of_ended_sweep(run.data.tags.get(notes.NOTE, ""), outcomes))
        self.client.set_terminated(parent, status)

    def trials(self, parent: str) -> "list[Run]":
        """The child runs of a sweep, every attempt, newest first."""
        return children(self.client, self.client.get_run(parent))

    def settled_keys(self, parent: str) -> dict[str, str]:
        """key -> outcome of the latest settled run with that key."""
        return settled_of(self.trials(parent))

    def attempts(self, parent: str) -> Counter[str]:
        """key -> how many runs there are with that key."""
        return Counter(run.data.tags["key"] for run in self.trials(parent))

    def disturbed_once(self, parent: str) -> set[str]:
        """Keys of trials that were disturbed from outside and have not been run again. A second run that failed was one all the same."""
        return disturbed_of(self.trials(parent))

    def close_orphans(self, parent: str, folder: Path, node: str | None = None) -> list[str]:
        """Marks trials that a dead launch or relay left open as interrupted, with what lies in <folder>/<key>; returns their names.

        `node`: those that ran there, by their tag; None: all.
        """
        running = [run for run in self.trials(parent) if run.info.status == "RUNNING"]
        orphans = [run for run in running if node in (None, run.data.tags.get("node"))]
        for run in orphans:
            left = folder / run.data.tags["key"]
            files = {name: left / name for name in ("records.jsonl", "stderr.log") if (left / name).is_file()}
            self.finish_trial(
                run.info.run_id,
                "interrupted",
                "its launch, or the Ray process that relayed it, ended before the trial did",
                {},
                artifacts=files,
            )
            shutil.rmtree(left, ignore_errors=True)
        return [run.info.run_name for run in orphans]

    def best_ensemble_so_far(self, parent: str, block: str, planned: Collection[str]) -> float | None:
        """Highest ensemble_accuracy among the block's completed trials whose key is `planned`; None while there is none."""
        query = f"tags.kind = 'trial' and tags.`{PARENT}` = '{parent}' and tags.outcome = 'completed' and tags.block = '{block}'"
        token = None
        while True:  # best first, so a page of a few is all that is read, however long the sweep
            page = self.client.search_runs([self.experiment_id], query, 1, 10, ["metrics.ensemble_accuracy DESC"], token)
            for run in page:
                value = run.data.metrics.get("ensemble_accuracy", math.nan)
                if math.isnan(value):
                    return None
                if run.data.tags["key"] in planned:
                    return value
            if not (token := page.token):
                return None

    def start_trial(
        self,
        parent: str,
        *,
        key: str,
        block: str,
        repeat: int,
        seed: int,
        swept: Mapping[str, Any],
        config: Mapping[str, Any],
        tags: Mapping[str, Any],
        attempt_id: str | None = None,
        at: int | None = None,
    ) -> str:
        """Opens a trial's run and returns its id. swept: dotted path -> value; config: the resolved parameters, nested, sizes in bytes.

        tags: what is known of its surroundings (device, device_name, node, threads, precision, versions, git_commit ...). attempt_id:
        names this attempt at the trial, of which there is one run; where an earlier call has opened it, that is the one.
        """
        columns = {path: written(path, value) for path, value in swept.items()}
        own = {"kind": "trial", "key": key, "block": block, "repeat": repeat, "swept": dict(swept), PARENT: parent}
        own |= {"attempt_id": attempt_id, notes.NOTE: notes.of_trial(block, repeat, columns)}
        run = next(iter(self._of_attempt(attempt_id)), None) or self.client.create_run(
            self.experiment_id, start_time=at, tags=texts({**tags, **columns, **own}, "tag"), run_name=run_name(block, swept, repeat)
        )
        self._log(run.info.run_id, params=texts({**flatten(config), "seed": seed, "repeat": repeat}, "param"))
        return run.info.run_id

    def log_epoch(self, run_id: str, epoch: int, metrics: Mapping[str, float | None], at: int | None = None) -> None:
        """Adds an epoch to the trial's series, in one call. A value that is None was not measured and stays absent."""
        self._log(run_id, metrics=metrics, step=epoch, at=at)

    def log_snapshot(self, run_id: str, cycle: int, metrics: Mapping[str, float | None], at: int | None = None) -> None:
        """Adds a cycle's snapshot to the trial's series."""
        self._log(run_id, metrics=metrics, step=cycle, at=at)

    def log_summary(self, run_id: str, metrics: Mapping[str, float | None], at: int | None = None) -> None:
        """Adds figures that a trial has one of: what was foreseen before it runs, what the test split gave after it."""
        self._log(run_id, metrics=metrics, at=at)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Writes what became known of a trial after its start, such as the /dev/shm read back inside it."""
        self._log(run_id, tags=texts(tags, "tag"))

    def finish_trial(
        self,
        run_id: str,
        outcome: str,
        evidence: str,
        summary: Mapping[str, float | None],
        tags: Mapping[str, Any] | None = None,
        artifacts: Mapping[str, Path] | None = None,
    ) -> None:
        """Writes how a trial ended, its summary and its files, and closes its run last: what is cut short here stays open, an orphan.

        artifacts: path in the run, as 'snapshots/cycle-1.pt' -> local file.
        """
        self.log_ending(run_id, outcome, evidence, summary, tags or {})
        for place, file in (artifacts or {}).items():
            self.upload(run_id, place, file)
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
        """The first part of `finish_trial`: everything but its files and closing the run."""
        if outcome not in STATUS:
            raise ValueError(f"outcome {outcome!r} is none of {', '.join(STATUS)}")
        self._log(run_id, metrics=summary, tags=texts({**tags, "outcome": outcome, "evidence": evidence}, "tag"), at=at)

    def close_trial(self, run_id: str, outcome: str, attempt_id: str | None = None, at: int | None = None) -> None:
        """The last part of `finish_trial`. attempt_id: a second run of it, opened by a request that was given up as lost, is deleted."""
        for run in self._of_attempt(attempt_id):
            if run.info.run_id != run_id:
                self.client.delete_run(run.info.run_id)
        self.client.set_terminated(run_id, STATUS[outcome], at)

    def _of_attempt(self, attempt_id: str | None) -> "list[Run]":
        return search_all(self.client, self.experiment_id, f"tags.attempt_id = '{attempt_id}'") if attempt_id else []

    def upload(self, run_id: str, place: str, file: Path) -> None:
        """Makes a local file an artifact of a run: `place` is its path there, as 'snapshots/cycle-1.pt'."""
        folder, _, name = place.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:  # MLflow names an artifact after the local file
            named = Path(scratch, name)
            named.symlink_to(file.resolve())
            self.client.log_artifact(run_id, str(named), folder or None)

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float | None] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
        at: int | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        at = at or now_ms()
        values = {check_name(name): value for name, value in (metrics or {}).items() if value is not None}
        numbers = [Metric(name, _number(value), at, step) for name, value in values.items()]
        settings = [Param(*pair) for pair in (params or {}).items()]
        labels = [RunTag(*pair) for pair in (tags or {}).items()]
        while numbers or settings or labels:  # one call, but for a record beyond MLflow's limits
            self.client.log_batch(run_id, numbers[:1000], settings[:100], labels[:100])
            numbers, settings, labels = numbers[1000:], settings[100:], labels[100:]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _number(value: float) -> float:
    """MLflow stores an infinity as 1.8e308, a number like any other to whoever reads it back; a diverged loss is not a number."""
    return float(value) if math.isfinite(value) else math.nan


def texts(values: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Values as MLflow stores them: text, and JSON for all that is not text, cut to MLflow's limit; None is absent."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
        if value is not None
    }
    return {key: text if len(text) <= _LONGEST[kind] else text[: _LONGEST[kind] - 3] + "..." for key, text in texts.items()}


def _experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """The experiment's id; it is made where it is missing, with its artifacts in the folder given."""
    from mlflow.exceptions import MlflowException

    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, artifact_location=artifacts, tags=notes.OF_EXPERIMENT)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process made it in between
                raise
    found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise ValueError(f"experiment {name!r} was deleted in MLflow. Restore it there, or set tracking.experiment to another name.")
    return found.experiment_id
