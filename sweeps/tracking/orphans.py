"""Closes the runs of trials whose launch, or the Ray process that relayed them, was killed."""

import shutil
from pathlib import Path

from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.outbox import remaining_files
from sweeps.trial_states import Outcome


def close_orphans(
    tracking: RunLogger, parent: str, folder: Path, node: str | None = None
) -> list[str]:
    """Closes the open runs of a dead launch or relay as interrupted, and returns their names.

    It uploads the files in <folder>/<trial_id> first. `node` restricts this to trials that ran on
    that node, by their tag; None selects all.
    """
    running = [run for run in tracking.trials(parent) if run.info.status == "RUNNING"]
    orphans = [run for run in running if node in (None, run.data.tags.get("node"))]
    for run in orphans:
        trial_folder = folder / run.data.tags["trial_id"]
        tracking.finish_trial(
            run.info.run_id,
            Outcome.INTERRUPTED,
            "its launch, or its Ray process, ended before the trial did",
            {},
            artifacts=remaining_files(trial_folder),
        )
        shutil.rmtree(trial_folder, ignore_errors=True)
    return [run.info.run_name for run in orphans]
