"""What a trial has to tell the tracker, in a file of its own until it is told: a tracker that is away costs nothing but time.

The one idea is that each write is an operation, a line of the trial's outbox.jsonl before it is sent, and that sending it twice leaves one
copy: a run is known by its attempt, a figure by its run, name, step, time and value, and all else is set, not added. So a mark that is
written after each operation has got through, a line of `sent`, is all that has to be kept; where a kill or a lost answer leaves it behind
by one, that one is sent again.

The trial's folder stays until all of it is sent: beside the records lie the files that are to be uploaded. A trial that has ended with
some of it unsent moves out of the way of the next attempt, to unsent/ in the sweep's folder. Whoever has an outbox open holds its lock.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from sweeps.away import is_away, reason
from sweeps.tracking import STATUS, Tracking, now_ms, texts

if TYPE_CHECKING:
    from mlflow.entities import Run

FILE, MARKS, UNSENT = "outbox.jsonl", "sent", "unsent"
OPENS, UPLOADS, CLOSES = "start_trial", "upload", "close_trial"
CALLS = (OPENS, "log_epoch", "log_snapshot", "log_summary", "log_ending", UPLOADS, CLOSES)  # methods of Tracking
TRY_EVERY_S = 1.0


class Outbox:
    """The operations of one attempt at a trial, in order, and how far they have got through. One thread may put while another sends."""

    def __init__(self, folder: Path, file: BinaryIO | None = None) -> None:
        """Opens what is in the folder; a line cut short by a kill is dropped. BlockingIOError where another process has it open,
        FileNotFoundError where there is none. `file`: what `_locked` has opened."""
        self.folder = folder
        self._file = file or _locked(folder / FILE)
        self._marks = (folder / MARKS).open("a+b")
        head, *lines = _whole_lines(self._file) or [b"{}"]
        self.head: dict[str, Any] = json.loads(head)  # uri, experiment, attempt_id, began
        self._operations: list[dict[str, Any]] = [json.loads(line) for line in lines]
        runs = _whole_lines(self._marks)
        self._sent, self.run_id = len(runs), runs[0].decode() if runs else ""  # empty until the run is opened

    @property
    def given_up(self) -> bool:
        """Whether it tells of an attempt that ended as interrupted: nothing but its log would be missed."""
        endings = [each["arguments"] for each in self._operations if each["call"] == "log_ending"]
        return bool(endings) and endings[-1]["outcome"] == "interrupted"

    @classmethod
    def new(cls, folder: Path, uri: str, experiment: str) -> "Outbox":
        """A new attempt at the trial of this folder; what an earlier attempt has told is forgotten."""
        head = {"uri": uri, "experiment": experiment, "attempt_id": uuid.uuid4().hex, "began": now_ms()}
        (folder / MARKS).unlink(missing_ok=True)
        made = folder / f"{FILE}.new"  # locked before another process can find it
        made.write_text(json.dumps(head) + "\n")
        file = _locked(made)
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
        self.put("log_ending", outcome=outcome, evidence=evidence, summary=summary, tags=tags)
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


def _locked(path: Path, wait: bool = False) -> BinaryIO:
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


def _whole_lines(file: BinaryIO) -> list[bytes]:
    """The lines of a file, without one that has no end, which is cut off: what is written next begins a line."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.truncate(sum(map(len, lines[:-1])))
        lines = lines[:-1]
    file.seek(0, 2)
    return [line.rstrip(b"\n") for line in lines]


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
        file = _locked(folder / FILE, wait=True)
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


def ended_in(sweep_folder: Path) -> "list[Run]":
    """Attempts that have ended and whose records wait, as the runs that they will be, newest first. Holds and changes nothing."""
    from mlflow.entities import Run, RunData, RunInfo, RunTag

    runs = []
    for folder in left_in(sweep_folder):
        with contextlib.suppress(FileNotFoundError), (folder / FILE).open("rb") as file:  # sent and removed meanwhile
            told = [json.loads(line) for line in file if line.endswith(b"\n")]
            calls = {each["call"]: each["arguments"] for each in told[1:]}
            if CLOSES in calls and OPENS in calls:
                opens, ending = calls[OPENS], calls["log_ending"]
                about = {**opens["tags"], **ending["tags"], "key": opens["key"], "attempt_id": opens["attempt_id"]}
                tags = texts(about | {"outcome": ending["outcome"]}, "tag")
                info = RunInfo(opens["attempt_id"], "", "", STATUS[ending["outcome"]], told[0]["began"], None, "active")
                runs.append(Run(info, RunData(tags=[RunTag(*pair) for pair in tags.items()])))
    return sorted(runs, key=lambda run: run.info.start_time, reverse=True)


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
