"""A trial's course from MLflow: a row an epoch, a row a snapshot, a row a pair of snapshots.

The one idea is to ask for what is looked at and no more. MLflow's public API gives the last value of every series with a search, a
thousand runs at a time, but a whole series only by itself: a call for each run and each name. So these frames are made from the frame of
`runs.sweep_runs`, of the trials and the series that a picture needs. What else was recorded, raw step times with it, is in the file
records.jsonl of each trial, which `trial_records` fetches.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.cycles import schedule_of
from sweeps.metrics import SERIES
from sweeps.tracker import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

OF_TRIAL = ("sweep", "block", "run_id", "run_name", "key", "repeat", "outcome")  # columns of `runs.sweep_runs` that every row begins with
OF_SNAPSHOT = (*(name for name in SERIES if name.startswith("snapshot/")), "time/snapshot_s")
OF_EPOCH = tuple(name for name in SERIES if name not in OF_SNAPSHOT)


def epoch_rows(frame: pd.DataFrame, series: Sequence[str] = OF_EPOCH) -> pd.DataFrame:
    """A row an epoch of every trial in `frame`, failed ones with the epochs that they ended, in the order of the frame and of time.

    Columns: those of OF_TRIAL as in the frame, epoch (int64, from 0), warmup (bool: the clock ignores it), and each of `series` under its
    name, as time/epoch_s (float64, in its unit of sweeps.metrics, NaN where not measured). One call of the tracker for each trial and name:
    all of them for the default sweep take seconds, for a thousand trials minutes.
    """
    rows = _by_step(frame, series, "epoch")
    rows.insert(len(OF_TRIAL) + 1, "warmup", rows["epoch"] < rows.pop("warmup_epochs").fillna(0))
    return rows


def snapshot_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a snapshot of every trial in `frame`, in the order of the frame and of time.

    Columns: those of OF_TRIAL as in the frame, cycle (int64, from 0), snapshots (int64: members of the ensemble so far), epochs (int64:
    trained by then), and each name of OF_SNAPSHOT (float64, in its unit of sweeps.metrics; the disagreement of a single one is NaN). Four
    calls of the tracker for each trial.
    """
    rows = _by_step(frame, OF_SNAPSHOT, "cycle").drop(columns="warmup_epochs")
    ends = {trial["run_id"]: pd.Series(schedule_of(trial)).cumsum() for _, trial in frame.iterrows()}
    epochs = [ends[run_id].get(cycle) for run_id, cycle in zip(rows["run_id"], rows["cycle"], strict=True)]
    rows.insert(len(OF_TRIAL) + 1, "snapshots", rows["cycle"] + 1)
    rows.insert(len(OF_TRIAL) + 2, "epochs", pd.array(epochs, dtype="Int64"))
    return rows


def disagreements(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a pair of snapshots of every trial in `frame` whose records hold them: all but runs that are older than this figure.

    Columns: those of OF_TRIAL as in the frame, cycle and other (int64, from 0, other < cycle), share (float64: of validation clips on which
    the two name different words). One file for each trial.
    """
    client, found = connect(frame.attrs["uri"]), []
    for trial in frame.reindex(columns=list(OF_TRIAL)).to_dict("records"):
        for record in trial_records(client, trial["run_id"]):
            shares = record.get("disagreements", []) if record["kind"] == "snapshot" else []
            found += [trial | {"cycle": record["cycle"], "other": other, "share": share} for other, share in enumerate(shares)]
    return pd.DataFrame(found, columns=[*OF_TRIAL, "cycle", "other", "share"]).astype({"cycle": int, "other": int, "share": float})


def trial_records(client: "MlflowClient", run_id: str) -> list[dict[str, Any]]:
    """All that a trial told, in order; nothing where its run holds no records."""
    if "records.jsonl" not in {file.path for file in client.list_artifacts(run_id)}:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(client.download_artifacts(run_id, "records.jsonl", scratch)).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _by_step(frame: pd.DataFrame, series: Sequence[str], step: str) -> pd.DataFrame:
    """OF_TRIAL, `step`, `series` and the trial's warmup_epochs; of a step that was written twice the later value."""
    client = connect(frame.attrs["uri"])
    trials = frame.reindex(columns=[*OF_TRIAL, "warmup_epochs"])  # a frame without rows has few columns
    run_ids = trials["run_id"].tolist()
    values = {
        (run_id, metric.step, name): metric.value
        for run_id in run_ids
        for name in series
        for metric in client.get_metric_history(run_id, name)
    }
    steps: dict[str, set[int]] = {run_id: set() for run_id in run_ids}
    for run_id, at, _ in values:
        steps[run_id].add(at)
    rows = [
        {**trial, step: at, **{name: values.get((trial["run_id"], at, name), float("nan")) for name in series}}
        for trial in trials.to_dict("records")
        for at in sorted(steps[trial["run_id"]])
    ]
    found = pd.DataFrame(rows, columns=[*OF_TRIAL, "warmup_epochs", step, *series])
    return found.astype({step: int, **dict.fromkeys(series, float)})
