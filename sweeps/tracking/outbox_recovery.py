"""Sends the outboxes in a sweep's folder that could not be sent while the tracker was unavailable.

If a trial ends with unsent operations, its folder moves to unsent/ in the sweep's folder, so that
the next attempt can start. The next trial that reaches the tracker, the end of the launch and the
next launch send these outboxes. A dry run only reads them.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.output import mask_passwords
from sweeps.tracking.mlflow_runs import MLFLOW_STATUS, RunLogger
from sweeps.tracking.mlflow_values import format_values
from sweeps.tracking.outbox import (
    CLOSES,
    ENDS,
    FILE,
    MARKS,
    OPENS,
    UNSENT,
    Outbox,
    complete_lines,
    open_locked,
    remaining_files,
)
from sweeps.tracking.tracker_errors import is_unavailable, reason
from sweeps.trial_states import Outcome

if TYPE_CHECKING:
    from mlflow.entities import Run

RETRY_INTERVAL_S = 1.0
ENDING_S = 15.0  # Ray needs some seconds to end the workers of a killed launch


class Unsent(NamedTuple):
    """Describes an outbox that could not be sent completely."""

    folder: Path  # of the trial
    uri: str  # of the tracker
    reason: str  # one line
    unavailable: bool  # True: the tracker can't be reached; False: it rejects the operation


def quarantine(folder: Path) -> None:
    """Moves a trial's folder with unsent records to unsent/, so that the next attempt can start.

    A trial whose relay has died is ended as interrupted first. While another relay sends the
    outbox, this waits for it.
    """
    try:
        file = open_locked(folder / FILE, wait=True)
    except FileNotFoundError:
        return
    with contextlib.closing(Outbox(folder, file)) as outbox:
        if outbox.is_complete:
            return
        if not outbox.ended:
            outbox.finish(
                Outcome.INTERRUPTED,
                "its Ray process ended before the trial did",
                {},
                {},
                remaining_files(folder),
            )
        target = folder.parent / UNSENT / f"{folder.name}-{outbox.head['attempt_id'][:8]}"
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)


def end_and_flush_all(sweep_folder: Path, patience_s: float) -> list[Unsent]:
    """Ends the trials of dead relays as interrupted, and sends all outboxes of a sweep's folder.

    It retries an unavailable tracker for `patience_s` seconds, and returns the unsent outboxes. A
    relay ends moments after its trial. While a relay still holds its outbox, this waits for it, at
    most ENDING_S.
    """
    end = time.monotonic() + ENDING_S
    # sum(), unlike any(), tries all folders in every pass
    while (
        sum(not _quarantine_unlocked(folder) for folder in _attempt_folders(sweep_folder))
        and time.monotonic() < end
    ):
        time.sleep(0.1)
    return flush_all(sweep_folder, patience_s)


def _attempt_folders(sweep_folder: Path) -> list[Path]:
    """Returns the trials' folders with an outbox that are not quarantined."""
    return [file.parent for file in sweep_folder.glob(f"*/{FILE}")]


def _quarantine_unlocked(folder: Path) -> bool:
    """Quarantines a folder unless a relay holds its outbox; returns whether no relay holds it."""
    try:
        open_locked(folder / FILE).close()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    quarantine(folder)
    return True


def remove_folder(folder: Path) -> None:
    """Removes the folder of a trial whose records are sent.

    The outbox is removed first. After a kill in between, the remaining files cause no second send.
    """
    (folder / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def outbox_folders(sweep_folder: Path) -> list[Path]:
    """Returns all trials' folders with an outbox, also with a completely sent one.

    The folder whose outbox has the oldest last write comes first.
    """
    files = [*sweep_folder.glob(f"*/{FILE}"), *sweep_folder.glob(f"{UNSENT}/*/{FILE}")]
    written: dict[Path, float] = {}
    for file in files:
        # Another relay has sent and removed it meanwhile
        with contextlib.suppress(FileNotFoundError):
            written[file.parent] = file.stat().st_mtime
    return sorted(written, key=lambda folder: written[folder])


def unsent_attempts(sweep_folder: Path, parent: str) -> "list[Run]":
    """Returns the attempts with unsent operations, in the form of MLflow runs, newest first.

    Only attempts at trials of the sweep with the run id `parent` are included. An ended attempt has
    the outcome and status that its run will have; any other one has the status RUNNING. This locks
    and changes nothing.
    """
    runs = []
    for folder in outbox_folders(sweep_folder):
        with contextlib.suppress(FileNotFoundError):  # sent and removed meanwhile
            _, *operations = complete_lines((folder / FILE).read_bytes()) or [b""]
            calls = {operation["call"]: operation for operation in map(json.loads, operations)}
            sent = (
                complete_lines((folder / MARKS).read_bytes()) if (folder / MARKS).exists() else []
            )
            if (
                OPENS in calls
                and calls[OPENS]["arguments"]["parent"] == parent
                and len(sent) < len(operations)
            ):
                runs.append(_as_run(calls))
    return sorted(runs, key=lambda run: run.info.start_time, reverse=True)


def _as_run(calls: Mapping[str, Mapping[str, Any]]) -> "Run":
    """Returns an attempt as an MLflow run; `calls`: its last operation by name of the call."""
    from mlflow.entities import Run, RunData, RunInfo, RunTag

    opens = calls[OPENS]["arguments"]
    ending = calls[ENDS]["arguments"] if CLOSES in calls else {"outcome": None, "tags": {}}
    own_tags = {
        "trial_id": opens["trial_id"],
        "attempt_id": opens["attempt_id"],
        "outcome": ending["outcome"],
    }
    tags = format_values({**opens["tags"], **ending["tags"], **own_tags}, "tag")
    status = MLFLOW_STATUS.get(ending["outcome"], "RUNNING")
    info = RunInfo(opens["attempt_id"], "", "", status, calls[OPENS]["at"], None, "active")
    return Run(info, RunData(tags=[RunTag(*pair) for pair in tags.items()]))


def flush_all(sweep_folder: Path, patience_s: float = 0.0) -> list[Unsent]:
    """Sends the outboxes of a sweep's folder, oldest first, and returns those not sent completely.

    It retries an unavailable tracker for `patience_s` seconds. The folder of an ended trial is
    removed when everything is sent. The folder of a trial without an end stays, for
    orphans.close_orphans.
    """
    end = time.monotonic() + patience_s
    while True:
        unsent = _flush_once(sweep_folder)
        if not any(outbox.unavailable for outbox in unsent) or time.monotonic() >= end:
            return unsent
        time.sleep(RETRY_INTERVAL_S)


def _flush_once(sweep_folder: Path) -> list[Unsent]:
    """Tries once to send all unlocked outboxes, and returns those not sent completely."""
    unsent: dict[Path, Unsent] = {}
    trackers: dict[str, RunLogger] = {}
    for outbox in _open_outboxes(sweep_folder):
        with contextlib.closing(outbox):
            uri = outbox.head.get("uri", "")
            known_failure = next(
                (
                    failure
                    for failure in unsent.values()
                    if failure.uri == uri and failure.unavailable
                ),
                None,
            )
            failure = known_failure or (
                _send_all(outbox, trackers) if outbox.pending_count else None
            )
            if failure and outbox.pending_count:
                unsent[outbox.folder] = failure._replace(folder=outbox.folder)
            elif outbox.ended:
                remove_folder(outbox.folder)
    with contextlib.suppress(OSError):  # it does not exist, or is not empty
        (sweep_folder / UNSENT).rmdir()
    return list(unsent.values())


def _open_outboxes(sweep_folder: Path) -> Iterator[Outbox]:
    """Opens and yields the outboxes that no relay has open, oldest first."""
    for folder in outbox_folders(sweep_folder):
        try:
            yield Outbox(folder)
        except (BlockingIOError, FileNotFoundError):
            # Another process is sending it, or has just sent it
            continue


def _send_all(outbox: Outbox, trackers: dict[str, RunLogger]) -> Unsent | None:
    """Sends an outbox, and returns the failure that stopped it, or None.

    `trackers` caches the loggers of reachable trackers, by URI and experiment.
    """
    uri, experiment = outbox.head["uri"], outbox.head["experiment"]
    try:
        tracking = trackers.get(f"{uri} {experiment}") or RunLogger(uri, experiment)
        trackers[f"{uri} {experiment}"] = tracking
        if not outbox.run_id and outbox.parent:
            # Raises if the sweep's run is missing, as in a replaced database. Without this check
            # MLflow would create a trial without a sweep
            tracking.client.get_run(outbox.parent)
        while outbox.pending_count:
            outbox.send_next(tracking)
    except Exception as error:
        # After any error the records stay, except those of an interrupted attempt whose run no
        # longer exists
        if outbox.is_interrupted and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        return Unsent(outbox.folder, uri, reason(error), is_unavailable(error))
    return None


def format_message(unsent: list[Unsent]) -> str:
    """Returns a message that names the unsent records, their folder, and the remedy."""
    lines = []
    for uri in dict.fromkeys(outbox.uri for outbox in unsent):
        tracker = mask_passwords(uri)
        waiting = [outbox for outbox in unsent if outbox.uri == uri and outbox.unavailable]
        if waiting:
            trials = (
                f"Unsent records of {len(waiting)} trials are"
                if len(waiting) > 1
                else "Unsent records of 1 trial are"
            )
            lines.append(
                f"The tracker at {tracker} can't be reached: {waiting[0].reason}\n{trials} in"
                f" {_common_folder(waiting)}; these trials do not run again. When the tracker is"
                " back, the same command sends the records and continues."
            )
        for outbox in unsent:
            if outbox.uri == uri and not outbox.unavailable:
                lines.append(
                    f"The tracker at {tracker} refuses the records of a trial:"
                    f" {outbox.reason}\nThey stay in {_common_folder([outbox])}, and the same"
                    " command sends them again. To discard them and run the trial again, remove"
                    " that folder."
                )
    return "\n".join(lines)


def _common_folder(unsent: list[Unsent]) -> Path:
    """Returns the innermost folder that holds all outboxes.

    The path is relative if the folder is inside the current one.
    """
    folder = Path(os.path.commonpath([outbox.folder for outbox in unsent]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
