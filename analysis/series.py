"""Reads a trial's course from MLflow: a row an epoch, a snapshot or a pair of snapshots.

The one idea is to fetch only the series that are needed. MLflow's public API returns the last value
of every series with a search, a thousand runs at a time. A whole series costs a call for each run
and each name. These frames are therefore built for the trials and the series that a picture needs.
Everything else that was recorded, including raw step times, is in the file records.jsonl of each
trial, which `trial_records` fetches.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.cycles import schedule_of
from analysis.runs import SweepRuns
from sweeps.metrics import SERIES
from sweeps.tracking.mlflow_client import artifact_names, artifact_text, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

# columns of `SweepRuns.trials` that every row begins with
TRIAL_COLUMNS = ("sweep", "block", "run_id", "run_name", "trial_id", "repeat", "outcome")
SNAPSHOT_SERIES = (*(name for name in SERIES if name.startswith("snapshot/")), "time/snapshot_s")
EPOCH_SERIES = tuple(name for name in SERIES if name not in SNAPSHOT_SERIES)


def epoch_rows(runs: SweepRuns, series: Sequence[str] = EPOCH_SERIES) -> pd.DataFrame:
    """Returns a row an epoch of every trial, in the order of `runs.trials` and of time.

    Failed trials have rows for the epochs that they ended. Columns: TRIAL_COLUMNS as there, epoch
    (int64, from 0), warmup (bool: excluded from timing), and each of `series` under its name, as
    time/epoch_s (float64, in its unit of sweeps.metrics, NaN where not measured). Each trial and
    name costs one call of the tracker. All names of the default sweep take seconds, a thousand
    trials minutes.
    """
    rows = _metric_rows(runs, series, "epoch")
    rows.insert(
        len(TRIAL_COLUMNS) + 1, "warmup", rows["epoch"] < rows.pop("warmup_epochs").fillna(0)
    )
    return rows


def snapshot_rows(runs: SweepRuns) -> pd.DataFrame:
    """Returns a row a snapshot of every trial, in the order of `runs.trials` and of time.

    Columns: TRIAL_COLUMNS as there, cycle (int64, from 0), snapshots (int64: members of the
    ensemble so far), epochs (int64: trained by then), and each name of SNAPSHOT_SERIES (float64, in
    its unit of sweeps.metrics; the disagreement of a single one is NaN). Each trial costs four
    calls of the tracker.
    """
    rows = _metric_rows(runs, SNAPSHOT_SERIES, "cycle").drop(columns="warmup_epochs")
    ends = {
        trial["run_id"]: pd.Series(schedule_of(trial)).cumsum()
        for _, trial in runs.trials.iterrows()
    }
    epochs = [
        ends[run_id].get(cycle) for run_id, cycle in zip(rows["run_id"], rows["cycle"], strict=True)
    ]
    rows.insert(len(TRIAL_COLUMNS) + 1, "snapshots", rows["cycle"] + 1)
    rows.insert(len(TRIAL_COLUMNS) + 2, "epochs", pd.array(epochs, dtype="Int64"))
    return rows


def disagreements(runs: SweepRuns) -> pd.DataFrame:
    """Returns a row a pair of snapshots of every trial whose records hold them.

    Runs older than this figure have no rows. Columns: TRIAL_COLUMNS as in `runs.trials`, cycle and
    other (int64, from 0, other < cycle), share (float64: of validation clips on which the two name
    different words). Each trial costs the download of one file.
    """
    client, pairs = connect(runs.uri, read_only=True), []
    for trial in runs.trials.reindex(columns=list(TRIAL_COLUMNS)).to_dict("records"):
        for record in trial_records(client, trial["run_id"]):
            shares = record.get("disagreements", []) if record["kind"] == "snapshot" else []
            pairs += [
                trial | {"cycle": record["cycle"], "other": other, "share": share}
                for other, share in enumerate(shares)
            ]
    return pd.DataFrame(pairs, columns=[*TRIAL_COLUMNS, "cycle", "other", "share"]).astype(
        {"cycle": int, "other": int, "share": float}
    )


def trial_records(client: "MlflowClient", run_id: str) -> list[dict[str, Any]]:
    """Returns all records of a trial, in order; an empty list if its run holds none."""
    if "records.jsonl" not in artifact_names(client, run_id):
        return []
    return [
        json.loads(line) for line in artifact_text(client, run_id, "records.jsonl").splitlines()
    ]


def _metric_rows(runs: SweepRuns, series: Sequence[str], step: str) -> pd.DataFrame:
    """Returns a frame with TRIAL_COLUMNS, warmup_epochs, `step` and `series`, a row a step.

    Of a step that was written twice, the later value counts.
    """
    client = connect(runs.uri, read_only=True)
    # A frame without rows has few columns.
    trials = runs.trials.reindex(columns=[*TRIAL_COLUMNS, "warmup_epochs"])
    run_ids = trials["run_id"].tolist()
    values = {
        (run_id, metric.step, name): metric.value
        for run_id in run_ids
        for name in series
        for metric in client.get_metric_history(run_id, name)
    }
    steps: dict[str, set[int]] = {run_id: set() for run_id in run_ids}
    for run_id, step_number, _ in values:
        steps[run_id].add(step_number)
    rows = [
        {
            **trial,
            step: step_number,
            **{
                name: values.get((trial["run_id"], step_number, name), float("nan"))
                for name in series
            },
        }
        for trial in trials.to_dict("records")
        for step_number in sorted(steps[trial["run_id"]])
    ]
    table = pd.DataFrame(rows, columns=[*TRIAL_COLUMNS, "warmup_epochs", step, *series])
    return table.astype({step: int, **dict.fromkeys(series, float)})
