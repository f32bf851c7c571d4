"""What a trial has to tell the tracker, in a file of its own until it is told: a tracker that is away costs nothing but time.

The one idea is that each write is an operation, a line of the trial's outbox.jsonl before it is sent, and that sending it twice leaves one
copy: a run is known by its attempt, a figure by its run, name, step, time and value, and all else is set, not added. So a mark that is
written after each operation has got through, a line of `sent`, is all that has to be kept; where a kill or a lost answer leaves it behind
by one, that one is sent again.

The trial's folder stays until all of it is sent: beside the records lie the files that are to be uploaded. Whoever has an outbox open
holds its lock. What becomes of one that a trial leaves unsent stands in unsent.py.
"""

import fcntl
import json
import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO

from sweeps.tracking import Tracking, now_ms

FILE, MARKS = "outbox.jsonl", "sent"
OPENS, ENDS, UPLOADS, CLOSES = "start_trial", "log_ending", "upload", "close_trial"
CALLS = (OPENS, "log_epoch", "log_snapshot", "log_summary", ENDS, UPLOADS, CLOSES)  # methods of Tracking


class Outbox:
    """The operations of one attempt at a trial, in order, and how far they have got through. One thread may put while another sends."""

    def __init__(self, folder: Path, file: BinaryIO | None = None) -> None:
        """Opens what is in the folder; a line cut short by a kill is dropped. BlockingIOError where another process has it open,
        FileNotFoundError where there is none. `file`: what `locked` has opened."""
        self.folder = folder
        self._file = file or locked(folder / FILE)
        self._marks = (folder / MARKS).open("a+b")
        head, *lines = _mended(self._file) or [b"{}"]
        self.head: dict[str, Any] = json.loads(head)  # uri, experiment, attempt_id, began
        self._operations: list[dict[str, Any]] = [json.loads(line) for line in lines]
        runs = _mended(self._marks)
        self._sent, self.run_id = len(runs), runs[0].decode() if runs else ""  # empty until the run is opened

    @property
    def given_up(self) -> bool:
        """Whether it tells of an attempt that ended as interrupted: nothing but its log would be missed."""
        endings = [each["arguments"] for each in self._operations if each["call"] == ENDS]
        return bool(endings) and endings[-1]["outcome"] == "interrupted"

    @classmethod
    def new(cls, folder: Path, uri: str, experiment: str) -> "Outbox":
        """A new attempt at the trial of this folder; what an earlier attempt has told is forgotten."""
        head = {"uri": uri, "experiment": experiment, "attempt_id": uuid.uuid4().hex, "began": now_ms()}
        (folder / MARKS).unlink(missing_ok=True)
        made = folder / f"{FILE}.new"  # locked before another process can find it
        made.write_text(json.dumps(head) + "\n")
        file = locked(made)
        made.rename(folder / FILE)
        return cls(folder, file)

    def put(self, call: str, **arguments: Any) -> None:
        """Adds an operation: a method of Tracking and its arguments as JSON has them, without the run. Its time is now."""
        if call not in CALLS:
            raise ValueError(f"{call} is none of {', '.join(CALLS)}")
        line = json.dumps({"call": call, "at": now_ms(), "arguments": arguments}).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._operations.append(json.loads(line))

    def start(self, parent: str, **about: Any) -> None:
        """The arguments of Tracking.start_trial."""
        self.put(OPENS, parent=parent, attempt_id=self.head["attempt_id"], **about)

    def finish(self, outcome: str, evidence: str, summary: dict[str, float], tags: dict[str, Any], artifacts: dict[str, Path]) -> None:
        """As Tracking.finish_trial, with files of the trial's folder."""
        self.put(ENDS, outcome=outcome, evidence=evidence, summary=summary, tags=tags)
        for place, file in artifacts.items():
            self.put(UPLOADS, place=place, file=str(file.relative_to(self.folder)))
        self.put(CLOSES, outcome=outcome, attempt_id=self.head["attempt_id"])

    @property
    def waiting(self) -> int:
        """How many operations have not got through."""
        return len(self._operations) - self._sent

    @property
    def done(self) -> bool:
        """Whether it tells of a trial's end and all is sent, or holds nothing at all."""
        return not self._operations or (self.ended and not self.waiting)

    @property
    def ended(self) -> bool:
        """Whether the trial has ended, sent or not."""
        return bool(self._operations) and self._operations[-1]["call"] == CLOSES

    def send_next(self, tracking: Tracking) -> None:
        """Sends the first operation that waits, and marks it."""
        operation = self._operations[self._sent]
        call, at, arguments = operation["call"], operation["at"], operation["arguments"]
        if call == OPENS:
            self.run_id = tracking.start_trial(**arguments, at=at)
        elif call == UPLOADS:
            tracking.upload(self.run_id, arguments["place"], self.folder / arguments["file"])
        else:
            getattr(tracking, call)(self.run_id, **arguments, at=at)
        self._marks.write(f"{self.run_id}\n".encode())
        self._marks.flush()
        self._sent += 1

    def close(self) -> None:
        self._marks.close()
        self._file.close()


def locked(path: Path, wait: bool = False) -> BinaryIO:
    """Opens the file and locks it. FileNotFoundError also where whoever held it has removed or moved it meanwhile."""
    file = path.open("r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        file.close()
        raise
    return file


def _mended(file: BinaryIO) -> list[bytes]:
    """The lines of a file, without one that has no end, which is cut off: what is written next begins a line."""
    file.seek(0)
    text = file.read()
    lines = whole_lines(text)
    if cut := len(text.rpartition(b"\n")[2]):
        file.truncate(len(text) - cut)
    file.seek(0, 2)
    return lines


def whole_lines(text: bytes) -> list[bytes]:
    """Its lines, without their ends and without one that has none."""
    return text.split(b"\n")[:-1]
