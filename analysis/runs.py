"""Reads the trials of a sweep from the tracker, with the facts about them that no row holds.

The one idea is that every table starts from the same `SweepRuns`, and it from the tracker alone.
Failed trials are rows like the others: they have an outcome and no time. The attempt at a trial
that counts is chosen without regard to how long it took.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.timed_trials import find_timed
from analysis.trial_rows import (
    attempt_rank,
    disturbance,
    forecast_row,
    is_settled,
    not_run_rows,
    run_row,
)
from sweeps.tracking.mlflow_client import artifact_text, resolve_uri
from sweeps.tracking.run_queries import find_sweep, plan_rows, trial_runs

if TYPE_CHECKING:
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "speech"
# Parameters that were introduced after some runs, with the values that those runs had.
VALUES_IN_OLDER_RUNS = {"corpus.cache": "warm", "corpus.read_latency_s": 0.0}

Rows = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, eq=False)
class SweepRuns:
    """The trials of one or several sweeps, and the facts about them that no row holds.

    `trials` has a row a trial, oldest first. The row is the latest settled attempt that nothing
    disturbed, else the latest settled one, else the latest. Before the first trial there is no row,
    and there are few columns.

    Columns of `trials`, where an absent value is NaN, None or NA:
        sweep, run_id, run_name, trial_id, block, evidence   str
        repeat             Int64
        outcome            str: an Outcome of sweeps.trial_states, or 'running'
        settled, planned   bool: will not be run again; belongs to the latest plan of the sweep
        attempts           int64, runs with this trial id
        disturbed          str: what disturbed this attempt from outside; None if nothing did
        disturbances       int64: settled runs with this trial id that were disturbed
        timed              bool: its epoch_s counts in the tables; see timed_trials.py
        started            datetime64, UTC
        device, device_name, cpu_name, cores, cpu_quota, threads, precision, channels_last
                           str: the hardware, the kernel's limits on it, and the runtime settings.
                           cores: as many as the CPU time amounts to, '1.5'; cpu_quota: 'none' or
                           the same
        node, git_commit, versions   str: the machine's name, the commit that ran, and libraries as
                           JSON text {"torch": "2.14.1", ...}
        validation_clips, warmup_epochs   float64
        batch_bytes        float64: of /dev/shm; NaN until a trial has ended
        forecast_fit       str: fits, depends or overflows, forecast before the trial; None in runs
                           older than the forecast
        epoch_s, accuracy ...   float64: every name of sweeps.metrics.SUMMARY, in its unit there
        loader.num_workers, sgdr.lr ...   every resolved parameter under its dotted name: numbers if
                           all values are, otherwise str; sizes in bytes, lists as JSON text. A run
                           older than a parameter of VALUES_IN_OLDER_RUNS has the value given there.
    """

    name: str  # of several sweeps joined by ' + '
    trials: pd.DataFrame
    planned_count: int  # trials of the latest plan that are to be measured
    # A row for each planned trial that `method: forecast` does not measure: sweep, trial_id, block,
    # repeat, its forecast_... as far as the plan has them, and its parameters as in `trials`
    forecast_only: Rows = ()
    # A row for each trial that is to be measured and has no run yet: sweep, trial_id, block,
    # repeat, and its parameters as far as the plan has them or the trials of its block agree on
    # them
    not_run: Rows = ()
    uri: str = ""  # of the tracker, absolute
    # Lines on the clips in the corpora, those used and those excluded; none for a sweep older than
    # these lines
    corpora: tuple[str, ...] = ()
    price_per_hour: float | None = None  # of a node, as of the latest launch

    @property
    def planned(self) -> pd.DataFrame:
        """The trials that belong to the latest plan."""
        return self.trials[self.trials["planned"].astype(bool)]  # without rows there are no dtypes

    def with_trials(self, trials: pd.DataFrame) -> "SweepRuns":
        """Returns the same facts with other trials."""
        return replace(self, trials=trials)

    def select(self, mask: pd.Series) -> "SweepRuns":
        """Returns the trials for which `mask` is true, with the same facts."""
        return self.with_trials(self.trials[mask])

    def blocks(self) -> Iterator[tuple[str, "SweepRuns"]]:
        """Yields each block's name and its trials, with the same facts, in order."""
        for block, trials in self.trials.groupby("block", sort=False):
            yield str(block), self.with_trials(trials)


def sweep_runs(
    name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT
) -> SweepRuns:
    """Returns the trials of a sweep.

    Raises LookupError, which lists the existing sweeps, if there is no such sweep.
    """
    client, parent = find_sweep(name, uri, experiment)
    attempts = trial_runs(client, parent)
    return build_sweep_runs(
        name,
        attempts,
        plan_rows(client, parent) if attempts else [],
        resolve_uri(uri),
        json.loads(parent.data.tags.get("corpora", "[]")),
        float(parent.data.tags.get("price_per_hour") or "nan"),
    )


def build_sweep_runs(
    name: str,
    attempts: "Sequence[Run]",
    rows_of_plan: Sequence[Mapping[str, Any]],
    uri: str,
    corpora: Sequence[str] = (),
    price_per_hour: float = math.nan,
) -> SweepRuns:
    """Returns the trials of a sweep whose runs and plan were read from the tracker.

    `attempts` are the sweep's runs, newest first, and `rows_of_plan` the rows of its plan.json.
    `price_per_hour` is NaN if there is none.
    """
    # A launch that was killed while it opened a run leaves a run without parameters.
    attempts = [run for run in attempts if run.data.params]
    settled = {run.data.tags["trial_id"] for run in attempts if is_settled(run)}
    unmeasured = [
        row
        for row in rows_of_plan
        if not row.get("measured", True) and row["trial_id"] not in settled
    ]
    plan = {row["trial_id"] for row in rows_of_plan} - {row["trial_id"] for row in unmeasured}
    trials = _trial_frame(name, attempts, plan)
    missing = plan - {run.data.tags["trial_id"] for run in attempts}
    return SweepRuns(
        name,
        trials,
        len(plan),
        tuple({"sweep": name} | forecast_row(row) for row in unmeasured),
        tuple({"sweep": name} | row for row in not_run_rows(rows_of_plan, missing, trials)),
        uri,
        tuple(corpora),
        None if math.isnan(price_per_hour) else price_per_hour,
    )


def _trial_frame(name: str, attempts: "Sequence[Run]", plan: set[str]) -> pd.DataFrame:
    """Returns `SweepRuns.trials` of a sweep; `plan` are the ids of the trials to be measured."""
    counts = Counter(run.data.tags["trial_id"] for run in attempts)
    disturbances = Counter(
        run.data.tags["trial_id"] for run in attempts if is_settled(run) and disturbance(run)
    )
    chosen_runs: dict[str, Run] = {}
    # The sort is stable: newest first among equal ranks.
    for run in sorted(attempts, key=attempt_rank, reverse=True):
        chosen_runs.setdefault(run.data.tags["trial_id"], run)
    status_by_id = {
        trial_id: {
            "planned": trial_id in plan,
            "attempts": counts[trial_id],
            "disturbances": disturbances[trial_id],
        }
        for trial_id in chosen_runs
    }
    rows = [
        {"sweep": name} | run_row(run) | status_by_id[trial_id]
        for trial_id, run in chosen_runs.items()
    ]
    if not rows:
        return pd.DataFrame(
            [], columns=["sweep", "run_name", "block", "outcome", "evidence", "planned", "timed"]
        )
    frame = pd.DataFrame(rows).sort_values("started", kind="stable", ignore_index=True)
    converted = ["repeat", *(column for column in frame if "." in column)]
    frame = _fill_older(frame)
    frame[converted] = frame[converted].convert_dtypes()
    return frame.assign(timed=find_timed(frame))


def _fill_older(trials: pd.DataFrame) -> pd.DataFrame:
    """Fills in the parameters that were introduced after some of the trials."""
    return trials.fillna(
        {name: value for name, value in VALUES_IN_OLDER_RUNS.items() if name in trials}
    )


def join_sweep_runs(
    names: Sequence[str], uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT
) -> SweepRuns:
    """Returns the trials of several sweeps of one experiment.

    The sweeps follow one another. Column `sweep` names their sweep, and no table pools across it.
    Raises LookupError as `sweep_runs` does.
    """
    sweeps = [sweep_runs(name, uri, experiment) for name in dict.fromkeys(names)]
    if len(sweeps) == 1:
        return sweeps[0]
    frames = [sweep.trials for sweep in sweeps]
    joined = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
    return SweepRuns(
        " + ".join(sweep.name for sweep in sweeps),
        _fill_older(joined),  # one sweep may be older than the other
        sum(sweep.planned_count for sweep in sweeps),
        tuple(row for sweep in sweeps for row in sweep.forecast_only),
        tuple(row for sweep in sweeps for row in sweep.not_run),
        sweeps[0].uri,
        tuple(line for lines in dict.fromkeys(sweep.corpora for sweep in sweeps) for line in lines),
        # Sweeps with different prices are not compared by their price
        sweeps[0].price_per_hour if len({sweep.price_per_hour for sweep in sweeps}) == 1 else None,
    )


def sweep_yaml(name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT) -> str:
    """Returns the sweep file of the latest launch. Raises LookupError as `sweep_runs` does."""
    client, parent = find_sweep(name, uri, experiment)
    return artifact_text(client, parent.info.run_id, "sweep.yaml")
