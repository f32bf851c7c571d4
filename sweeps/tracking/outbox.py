"""Stores a trial's writes to the tracker in a file until they are sent.

An unavailable tracker therefore costs nothing but time.

Every write is an operation, and becomes a line of the trial's outbox.jsonl before it is sent.
Sending an operation twice leaves one copy. A run is identified by its attempt, and a figure by its
run, name, step, time and value. All other values are set, not added. One mark for every operation
that was sent, a line of the file `sent`, is therefore sufficient. After a kill or a lost answer the
last mark may be missing; that operation is then sent again.

The trial's folder exists until everything is sent, because it also holds the files to upload. The
process that has an outbox open holds its lock. outbox_recovery.py sends the operations that remain
after a trial's end.
"""

import fcntl
import json
import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO

from sweeps.tracking.database import database_file
from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from sweeps.tracking.mlflow_values import now_ms
from sweeps.trial_states import Outcome

FILE, MARKS = "outbox.jsonl", "sent"
UNSENT = "unsent"  # subfolder of the sweep's folder, for ended trials with unsent operations
OPENS, ENDS, UPLOADS, CLOSES = "start_trial", "log_ending", "upload", "close_trial"
# Methods of RunLogger
CALLS = (OPENS, "log_epoch", "log_snapshot", "log_summary", ENDS, UPLOADS, CLOSES)


class Outbox:
    """Holds the operations of one attempt at a trial, in order, and the number of those sent.

    One thread may add operations while another sends them.
    """

    def __init__(self, folder: Path, file: BinaryIO | None = None) -> None:
        """Opens the outbox of a folder, and drops a last line that a kill has truncated.

        `file` is the outbox's file if `open_locked` has opened it already. Raises BlockingIOError
        if another process has the outbox open, and FileNotFoundError if it does not exist.
        """
        self.folder = folder
        self._file = file or open_locked(folder / FILE)
        self._marks = (folder / MARKS).open("a+b")
        head, *lines = _read_and_repair(self._file) or [b"{}"]
        self.head: dict[str, Any] = json.loads(head)  # uri, experiment, attempt_id, began
        # Of this project, relative to the sweep's folder
        if path := self.head.pop("database", None):
            self.head["uri"] = f"sqlite:///{os.path.normpath(_sweep_folder(folder) / path)}"
        self._operations: list[dict[str, Any]] = [json.loads(line) for line in lines]
        run_ids = _read_and_repair(self._marks)
        # The run id is empty until the run is opened
        self._sent, self.run_id = len(run_ids), run_ids[0].decode() if run_ids else ""

    @property
    def is_interrupted(self) -> bool:
        """Returns whether the attempt ended as interrupted.

        With such an outbox only the attempt's log would be lost.
        """
        endings = [
            operation["arguments"] for operation in self._operations if operation["call"] == ENDS
        ]
        return bool(endings) and endings[-1]["outcome"] == Outcome.INTERRUPTED

    @classmethod
    def create(cls, folder: Path, uri: str, experiment: str) -> "Outbox":
        """Creates the outbox of a new attempt at a trial, and replaces an earlier one."""
        head = _tracker_entry(uri, folder) | {
            "experiment": experiment,
            "attempt_id": uuid.uuid4().hex,
            "began": now_ms(),
        }
        (folder / MARKS).unlink(missing_ok=True)
        new_file = folder / f"{FILE}.new"  # locked before another process can find it
        new_file.write_text(json.dumps(head) + "\n")
        file = open_locked(new_file)
        new_file.rename(folder / FILE)
        return cls(folder, file)

    def put(self, call: str, **arguments: Any) -> None:
        """Adds an operation with the present time.

        `call` is a method of RunLogger; `arguments` are its arguments as JSON values, without the
        run id. Raises ValueError if `call` is not in CALLS.
        """
        if call not in CALLS:
            raise ValueError(f"{call} is not one of {', '.join(CALLS)}")
        line = json.dumps({"call": call, "at": now_ms(), "arguments": arguments}).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._operations.append(json.loads(line))

    def start(self, parent: str, trial: TrialDescription) -> None:
        """Adds the start of the trial; `parent` is the id of the sweep's run."""
        self.put(OPENS, parent=parent, attempt_id=self.head["attempt_id"], **trial._asdict())

    def finish(
        self,
        outcome: str,
        evidence: str,
        summary: dict[str, float],
        tags: dict[str, Any],
        artifacts: dict[str, Path],
    ) -> None:
        """Adds the operations of RunLogger.finish_trial, with files of the trial's folder."""
        self.put(ENDS, outcome=outcome, evidence=evidence, summary=summary, tags=tags)
        for place, file in artifacts.items():
            self.put(UPLOADS, place=place, file=str(file.relative_to(self.folder)))
        self.put(CLOSES, outcome=outcome, attempt_id=self.head["attempt_id"])

    @property
    def parent(self) -> str | None:
        """Id of the sweep's run to which the attempt belongs; None before the first operation."""
        return self._operations[0]["arguments"].get("parent") if self._operations else None

    @property
    def pending_count(self) -> int:
        """Number of operations that have not been sent."""
        return len(self._operations) - self._sent

    @property
    def is_complete(self) -> bool:
        """Returns whether the trial has ended and everything is sent, or the outbox is empty."""
        return not self._operations or (self.ended and not self.pending_count)

    @property
    def ended(self) -> bool:
        """Returns whether the trial has ended, with or without unsent operations."""
        return bool(self._operations) and self._operations[-1]["call"] == CLOSES

    def send_next(self, tracking: RunLogger) -> None:
        """Sends the first pending operation, and marks it as sent."""
        operation = self._operations[self._sent]
        call, at, arguments = operation["call"], operation["at"], operation["arguments"]
        if call == OPENS:
            trial = TrialDescription(*(arguments[name] for name in TrialDescription._fields))
            self.run_id = tracking.start_trial(
                arguments["parent"], trial, arguments["attempt_id"], at
            )
        elif call == UPLOADS:
            tracking.upload(self.run_id, arguments["place"], self.folder / arguments["file"])
        else:
            getattr(tracking, call)(self.run_id, **arguments, at=at)
        self._marks.write(f"{self.run_id}\n".encode())
        self._marks.flush()
        self._sent += 1

    def close(self) -> None:
        """Closes the files and thereby releases the lock."""
        self._marks.close()
        self._file.close()


def _sweep_folder(folder: Path) -> Path:
    """Returns the sweep's folder for a trial's folder, which may also be quarantined in UNSENT."""
    return (
        folder.parent.parent.absolute()
        if folder.parent.name == UNSENT
        else folder.parent.absolute()
    )


def _tracker_entry(uri: str, folder: Path) -> dict[str, str]:
    """Returns the entry for the tracker in the head of an outbox.

    A database of the project is identified by its path relative to the sweep's folder. In a copy of
    the project the outbox then belongs to the copy's database.
    """
    file, sweep = database_file(uri), _sweep_folder(folder)
    if file and file.is_relative_to(sweep.parent.parent):
        return {"database": os.path.relpath(file, sweep)}
    return {"uri": uri}


def open_locked(path: Path, wait: bool = False) -> BinaryIO:
    """Opens a file and locks it; with `wait` it waits for the lock.

    Raises BlockingIOError if another process holds the lock. Raises FileNotFoundError if the file
    does not exist, or if the previous holder has removed or moved it meanwhile.
    """
    file = path.open("r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        file.close()
        raise
    return file


def _read_and_repair(file: BinaryIO) -> list[bytes]:
    """Returns the complete lines of a file, and truncates an incomplete last line.

    The next write then begins a new line.
    """
    file.seek(0)
    text = file.read()
    lines = complete_lines(text)
    if excess := len(text.rpartition(b"\n")[2]):
        file.truncate(len(text) - excess)
    file.seek(0, 2)
    return lines


def remaining_files(folder: Path) -> dict[str, Path]:
    """Returns the files in the folder of a killed trial that are to be uploaded, by name."""
    files = {name: folder / name for name in ("records.jsonl", "stderr.log")}
    return {name: file for name, file in files.items() if file.is_file()}


def complete_lines(text: bytes) -> list[bytes]:
    """Returns the complete lines of a text, without their line ends."""
    return text.split(b"\n")[:-1]
