"""The best ensemble of a sweep: which of its trials has it, and what that trial's run keeps of it.

The test split is read with it (sweeps/holdout.py) and words are said with it (sweeps/predict.py).
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def best(runs: "Iterable[Run]", planned: Collection[str]) -> "Run":
    """Of the trials whose key is `planned` the one with the highest validation accuracy of its ensemble; of equals the first that ended,
    whose snapshots are kept. LookupError: none has learned anything."""
    # Completed ones: an interrupted one may lack snapshots
    done = [run for run in runs if run.data.tags["key"] in planned and run.data.tags.get("outcome") == "completed"]
    learned = [run for run in done if run.data.metrics.get("ensemble_accuracy", -1.0) >= 0]  # NaN is none
    if not learned:
        raise LookupError("no trial of this sweep has learned anything yet, so there is no ensemble")
    return max(learned, key=lambda run: (run.data.metrics["ensemble_accuracy"], -run.info.end_time))


def download(client: "MlflowClient", run: "Run", cycles: int, folder: Path) -> Path:
    """The snapshots of all cycles, into a new folder in `folder`. LookupError: the run does not keep all of them."""
    kept = client.list_artifacts(run.info.run_id, "snapshots")
    if len(kept) < cycles:
        raise LookupError(f"{run.info.run_name} keeps {len(kept)} of its {cycles} snapshots")
    return Path(client.download_artifacts(run.info.run_id, "snapshots", str(folder)))
