"""A trial's outbox filled and sent, and all that the tracker then holds of it."""

import sqlite3
from pathlib import Path

from mlflow.exceptions import MlflowException

from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from sweeps.tracking.outbox import Outbox

ABOUT = {
    "trial_id": "k",
    "block": "workers",
    "repeat": 1,
    "seed": 42,
    "swept": {"loader.num_workers": 4},
    "config": {"sgdr": {"epochs": 3}},
}


def filled(
    sweep_folder: Path,
    tracking: RunLogger,
    parent: str,
    key: str = "k",
    ended: bool = True,
    attempt: int = 1,
) -> Path:
    """A trial's folder with its outbox: nothing of it is sent yet."""
    folder = sweep_folder / key
    folder.mkdir(parents=True)
    outbox = Outbox.create(folder, tracking.uri, "speech")
    tags = {"node": "box", "attempt": attempt}
    outbox.start(parent, TrialDescription(**ABOUT | {"trial_id": key, "tags": tags}))
    outbox.put("log_summary", metrics={"forecast_epoch_s": 2.0})
    for epoch in range(3):
        metrics = {
            "time/epoch_s": 2.0 + epoch,
            "loss/training": float("nan"),
            "lr": 0.1,
            "shm/peak_bytes": None,
        }
        outbox.put("log_epoch", epoch=epoch, metrics=metrics)
    outbox.put("log_snapshot", cycle=0, metrics={"snapshot/accuracy": 0.75})
    (folder / "records.jsonl").write_text('{"kind": "end"}\n')
    if ended:
        outbox.finish(
            "completed",
            "ran to its end",
            {"epoch_s": 3.0},
            {"status": 0},
            {"files/records.jsonl": folder / "records.jsonl"},
        )
    outbox.close()
    return folder


def rows(tracking: RunLogger) -> dict[str, list]:
    """All that the database holds of trials' runs, as it is; ids and times of its own left out."""
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:
        trials = "run_uuid in (select run_uuid from tags where key = 'kind' and value = 'trial')"
        queries = {
            "runs": (
                "select name, status, lifecycle_stage, start_time, end_time from runs where"
                f" {trials}"
            ),
            "metrics": (
                f"select key, step, value, is_nan, timestamp from metrics where {trials} order by"
                " 1, 2"
            ),
            "latest": (
                f"select key, step, value, is_nan, timestamp from latest_metrics where {trials}"
                " order by 1"
            ),
            "params": f"select key, value from params where {trials} order by 1",
            "tags": (
                f"select key, value from tags where {trials} and key not like 'mlflow.%' order by 1"
            ),
        }
        return {name: database.execute(query).fetchall() for name, query in queries.items()}


def artifacts(tracking: RunLogger) -> list[tuple[str, str]]:
    place = Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    return [(file.name, file.read_text()) for file in place.rglob("records.jsonl")]


def drain(folder: Path, tracking) -> int:
    """Sends all of an outbox, opening it anew after each failure, as after a kill; returns how
    often it failed."""
    failures = 0
    while True:
        outbox = Outbox(folder)
        try:
            while outbox.pending_count:
                outbox.send_next(tracking)
            return failures
        except MlflowException:
            failures += 1
        finally:
            outbox.close()
