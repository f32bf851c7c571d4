"""What trials have left for a tracker that was away: outboxes in the folder of a sweep, sent by whoever comes next.

A trial that ends with some of its outbox unsent moves out of the way of the next attempt, to unsent/ in the sweep's folder. The next
trial that gets through, the end of the launch and the next launch deliver it; a dry run reads it as it lies.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.away import is_away, reason
from sweeps.outbox import CLOSES, ENDS, FILE, MARKS, OPENS, Outbox, locked, whole_lines
from sweeps.tracking import STATUS, Tracking, texts

if TYPE_CHECKING:
    from mlflow.entities import Run

UNSENT = "unsent"
TRY_EVERY_S = 1.0


class Unsent(NamedTuple):
    """An outbox that has not got through."""

    folder: Path  # of the trial
    uri: str
    why: str
    away: bool  # its tracker can't be reached; otherwise it refuses


def set_aside(folder: Path) -> None:
    """Moves the folder of a trial whose records wait out of the way of the next attempt. One whose relay died is ended as interrupted.

    Waits where another relay is just sending it.
    """
    try:
        file = locked(folder / FILE, wait=True)
    except FileNotFoundError:
        return
    with contextlib.closing(Outbox(folder, file)) as outbox:
        if outbox.done:
            return
        if not outbox.ended:
            files = {name: folder / name for name in ("records.jsonl", "stderr.log") if (folder / name).is_file()}
            outbox.finish("interrupted", "the Ray process that relayed it ended before the trial did", {}, {}, files)
        place = folder.parent / UNSENT / f"{folder.name}-{outbox.head['attempt_id'][:8]}"
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)


def remove(folder: Path) -> None:
    """Of a trial whose records are sent. The outbox goes first: what is left of the rest by a kill tells nobody to send it again."""
    (folder / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def left_in(sweep_folder: Path) -> list[Path]:
    """Trials' folders with an outbox, whether anything in it waits or not, the one first that was last written to longest ago."""
    files = [*sweep_folder.glob(f"*/{FILE}"), *sweep_folder.glob(f"{UNSENT}/*/{FILE}")]
    written: dict[Path, float] = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # another relay has just sent and removed it
            written[file.parent] = file.stat().st_mtime
    return sorted(written, key=lambda folder: written[folder])


def attempts_in(sweep_folder: Path, parent: str) -> "list[Run]":
    """Attempts at trials of the sweep whose run is `parent` that the tracker doesn't know all of, as the runs that they will be, or, not
    ended, as running ones; newest first. Holds and changes nothing."""
    runs = []
    for folder in left_in(sweep_folder):
        with contextlib.suppress(FileNotFoundError):  # sent and removed meanwhile
            _, *operations = whole_lines((folder / FILE).read_bytes()) or [b""]
            calls = {each["call"]: each for each in map(json.loads, operations)}
            sent = whole_lines((folder / MARKS).read_bytes()) if (folder / MARKS).exists() else []
            if OPENS in calls and calls[OPENS]["arguments"]["parent"] == parent and len(sent) < len(operations):
                runs.append(_as_run(calls))
    return sorted(runs, key=lambda run: run.info.start_time, reverse=True)


def _as_run(calls: Mapping[str, Mapping[str, Any]]) -> "Run":
    """`calls`: of an attempt's operations, the last of each kind."""
    from mlflow.entities import Run, RunData, RunInfo, RunTag

    opens = calls[OPENS]["arguments"]
    ending = calls[ENDS]["arguments"] if CLOSES in calls else {"outcome": None, "tags": {}}
    own = {"key": opens["key"], "attempt_id": opens["attempt_id"], "outcome": ending["outcome"]}
    tags = texts({**opens["tags"], **ending["tags"], **own}, "tag")
    status = STATUS.get(ending["outcome"], "RUNNING")
    info = RunInfo(opens["attempt_id"], "", "", status, calls[OPENS]["at"], None, "active")
    return Run(info, RunData(tags=[RunTag(*pair) for pair in tags.items()]))


def deliver(sweep_folder: Path, patience_s: float = 0.0) -> list[Unsent]:
    """Sends what trials of this folder have left, oldest first, and returns what did not get through.

    A tracker that is away is tried again for `patience_s` seconds. The folder of a trial that has ended goes once all is sent; one that
    nobody has ended stays, for Tracking.close_orphans.
    """
    end = time.monotonic() + patience_s
    while True:
        unsent = _deliver(sweep_folder)
        if not any(each.away for each in unsent) or time.monotonic() >= end:
            return unsent
        time.sleep(TRY_EVERY_S)


def _deliver(sweep_folder: Path) -> list[Unsent]:
    unsent: dict[Path, Unsent] = {}
    trackers: dict[str, Tracking] = {}
    for outbox in _opened(sweep_folder):
        with contextlib.closing(outbox):
            uri = outbox.head.get("uri", "")
            known = next((each for each in unsent.values() if each.uri == uri and each.away), None)
            failed = known or (_send_all(outbox, trackers) if outbox.waiting else None)
            if failed and outbox.waiting:
                unsent[outbox.folder] = failed._replace(folder=outbox.folder)
            elif outbox.ended:
                remove(outbox.folder)
    with contextlib.suppress(OSError):  # there is none, or something in it waits
        (sweep_folder / UNSENT).rmdir()
    return list(unsent.values())


def _opened(sweep_folder: Path) -> Iterator[Outbox]:
    """Outboxes that no relay has open, oldest first."""
    for folder in left_in(sweep_folder):
        try:
            yield Outbox(folder)
        except (BlockingIOError, FileNotFoundError):  # somebody else sends it, or has just done so
            continue


def _send_all(outbox: Outbox, trackers: dict[str, Tracking]) -> Unsent | None:
    """Sends until something goes wrong, and says what. `trackers`: those that have been reached, by URI and experiment."""
    uri, experiment = outbox.head["uri"], outbox.head["experiment"]
    try:
        tracking = trackers.get(f"{uri} {experiment}") or Tracking(uri, experiment)
        trackers[f"{uri} {experiment}"] = tracking
        while outbox.waiting:
            outbox.send_next(tracking)
    except Exception as error:  # whatever it is, the records stay; but for those of an interrupted attempt whose run there is no more
        if outbox.given_up and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        return Unsent(outbox.folder, uri, reason(error), is_away(error))
    return None


def told(unsent: list[Unsent]) -> str:
    """What waits, where, and what to do about it."""
    lines = []
    for uri in dict.fromkeys(each.uri for each in unsent):
        away = [each for each in unsent if each.uri == uri and each.away]
        if away:
            trials = f"The records of {len(away)} trials wait" if len(away) > 1 else "The records of 1 trial wait"
            lines.append(
                f"The tracker at {uri} can't be reached: {away[0].why}\n{trials} in {_place(away)}; no such trial is run again. "
                "When the tracker is back, the same command sends them, and goes on."
            )
        for each in unsent:
            if each.uri == uri and not each.away:
                lines.append(
                    f"The tracker at {uri} refuses what a trial has recorded: {each.why}\nIt stays in {_place([each])}, and the same "
                    "command tries again. To give it up, and to have the trial run again, remove that folder."
                )
    return "\n".join(lines)


def _place(unsent: list[Unsent]) -> Path:
    folder = Path(os.path.commonpath([each.folder for each in unsent]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
