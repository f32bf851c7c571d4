"""Draws an epoch of each selected trial into a folder: `python -m analysis timeline`.

The one idea is that one trial without a picture stops no other. A trial that overflowed in its
first epoch has no picture; stderr says so, and the others are drawn.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.filters import filter_trials
from analysis.runs import sweep_runs
from analysis.series import trial_records
from sweeps.names import format_parameter
from sweeps.tracking.mlflow_client import connect, resolve_uri, translate_tracker_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "name", help="name of the sweep, as in its YAML, or the run id of one trial"
    )
    parser.add_argument(
        "filters",
        nargs="*",
        metavar="KEY=VALUE",
        help="selects trials: num_workers=8 shm_size=1G repeat=1",
    )
    parser.add_argument(
        "--epoch", type=int, help="epoch number, from 0 (default: the warm epoch of median time)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="folder for the pictures (default: the current one)",
    )


def draw_epochs(flags: argparse.Namespace) -> int:
    """Draws the epochs and prints the files; returns the exit code: 2 if no picture was drawn.

    Raises LookupError if the sweep or trial does not exist, and TrackerUnavailable if the tracker
    does not answer.
    """
    with translate_tracker_errors(flags.uri):
        run_ids = _selected_runs(flags)
        client = connect(resolve_uri(flags.uri), read_only=True)
    picture_count = 0
    for run_id in run_ids:
        with translate_tracker_errors(flags.uri):
            title, records = _fetch_trial(client, run_id)
        try:
            print(_save_epoch(title, records, flags.out, flags.epoch))
            picture_count += 1
        except LookupError as error:
            print(f"{title}: {error.args[0]}", file=sys.stderr)
    return 0 if picture_count else 2


def _selected_runs(flags: argparse.Namespace) -> list[str]:
    """Returns the run ids of the planned trials that have ended and that the filters select."""
    if re.fullmatch("[0-9a-f]{32}", flags.name):
        return [flags.name]
    runs = sweep_runs(flags.name, flags.uri, flags.experiment)
    trials = runs.trials
    ended = runs.select(trials["planned"].astype(bool) & (trials["outcome"] != "running"))
    return filter_trials(ended, flags.filters).trials["run_id"].tolist()


def _fetch_trial(client: "MlflowClient", run_id: str) -> tuple[str, list[dict[str, Any]]]:
    """Returns the title of a trial's picture, and its records."""
    run = client.get_run(run_id)
    title = run.info.run_name
    for path in ("loader.num_workers", "loader.shm_size"):
        value = run.data.params.get(path)
        shown = format_parameter(path, None if value is None else int(value))
        setting = f"{path.removeprefix('loader.')}={shown}"
        title += "" if setting in title else f" · {setting}"
    return title, trial_records(client, run_id)


def _save_epoch(title: str, records: list[dict[str, Any]], folder: Path, epoch: int | None) -> Path:
    """Saves the picture of an epoch in `folder` and returns the file.

    Raises LookupError if there is nothing to draw.
    """
    from analysis.epoch_timeline import draw_epoch  # with matplotlib, which tables do without

    if not records:
        raise LookupError("the tracker has no records of it")
    figure = draw_epoch(records, title, epoch)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (
        re.sub(r"[^\w.=-]+", "_", title) + ("" if epoch is None else f"_epoch={epoch}") + ".png"
    )
    figure.savefig(file)
    return file
