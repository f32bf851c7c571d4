"""Finds the best ensemble of a sweep, and downloads the snapshots that its trial's run stores.

sweeps/commands/test_split.py evaluates the ensemble on the test split, and
sweeps/commands/predict.py predicts words with it.
"""

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking import artifacts
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.run_queries import PARENT_TAG
from sweeps.trial_states import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tag of a run: JSON list of the cycles, from 0, without a member in its ensemble
DIVERGED_CYCLES = "diverged_cycles"


def best_run(runs: "Iterable[Run]", planned: Collection[str]) -> "Run":
    """Returns the run with the highest ensemble accuracy on validation, among the `planned` ids.

    Of runs with equal accuracy it returns the first that ended, whose snapshots are stored. Raises
    LookupError if no completed run of these ids has an ensemble accuracy.
    """
    planned_runs = [run for run in runs if run.data.tags["trial_id"] in planned]
    # An interrupted run may lack snapshots
    completed = [run for run in planned_runs if run.data.tags.get("outcome") == Outcome.COMPLETED]
    # NaN fails the test
    learned = [run for run in completed if run.data.metrics.get("ensemble_accuracy", -1.0) >= 0]
    if not learned:
        diverged = sum(run.data.tags.get("outcome") == Outcome.DIVERGED for run in planned_runs)
        why = f" ({diverged} diverged)" if diverged else ""
        raise LookupError(f"no trial of this sweep has completed with an ensemble yet{why}")
    return max(learned, key=lambda run: (run.data.metrics["ensemble_accuracy"], -run.info.end_time))


def best_accuracy_so_far(
    tracking: RunLogger, parent: str, block: str, planned: Collection[str]
) -> float | None:
    """Returns the highest ensemble_accuracy among a block's completed trials of the plan.

    `planned` holds the ids of the plan. Returns None while no such trial has an accuracy.
    """
    query = (
        f"tags.kind = 'trial' and tags.`{PARENT_TAG}` = '{parent}' and tags.outcome ="
        f" '{Outcome.COMPLETED}' and tags.block = '{block}'"
    )
    token = None
    while True:  # best first: one small page suffices, however long the sweep
        page = tracking.client.search_runs(
            [tracking.experiment_id], query, 1, 10, ["metrics.ensemble_accuracy DESC"], token
        )
        for run in page:
            value = run.data.metrics.get("ensemble_accuracy", math.nan)
            if math.isnan(value):
                return None
            if run.data.tags["trial_id"] in planned:
                return value
        if not (token := page.token):
            return None


def member_cycles(run: "Run", cycles: int) -> list[int]:
    """Returns the cycles, from 0, whose snapshots are members of the run's ensemble.

    Of the schedule's `cycles` these are all that have not diverged.
    """
    diverged = json.loads(run.data.tags.get(DIVERGED_CYCLES, "[]"))
    return [cycle for cycle in range(cycles) if cycle not in diverged]


def download_snapshots(client: "MlflowClient", run: "Run", cycles: int, folder: Path) -> Path:
    """Downloads the snapshots of all members into a new folder in `folder`, and returns its path.

    Raises LookupError if the run does not store all of them.
    """
    stored, expected = (
        artifacts.list_names(client, run.info.run_id, "snapshots"),
        len(member_cycles(run, cycles)),
    )
    if len(stored) < expected:
        raise LookupError(f"{run.info.run_name} stores {len(stored)} of its {expected} snapshots")
    return artifacts.fetch(client, run.info.run_id, "snapshots", folder)
