"""Reads the lines at which the processes of a tree are, to report where a hang occurs.

Each process of a stage (speech/calibration/stages.py) writes the stacks of its threads to the
tree's log when it receives a signal, whatever it is doing at that moment.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from speech.calibration.stages import FRAMES_SIGNAL
from sweeps.environment import ROOT

WRITE_TIMEOUT_S = 0.5  # longest wait for a process to write its stacks
MAX_FORMATTED_FRAMES = 4  # frames of a stack that are reported
FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
PROJECT_FOLDERS = (f"{ROOT}/sweeps", f"{ROOT}/speech")
# Parts of the paths of the code between this project and the external code
LOADER_MACHINERY = ("/torch/utils/data/", "/torch/_utils.py", "/multiprocessing/")


class Frame(NamedTuple):
    """Line of code at which a thread is."""

    file: str
    line: int
    name: str

    @property
    def is_external(self) -> bool:
        """Returns whether the code is neither this project's nor the loader machinery's."""
        return not self.file.startswith((*PROJECT_FOLDERS, "<frozen ", "<string>")) and not any(
            part in self.file for part in LOADER_MACHINERY
        )


def find_frames(pid: int, log: Path) -> list[Frame]:
    """Returns the external frames of a descendant of `pid`, innermost first.

    It is the youngest descendant that has an external frame. The list is empty if there is none.
    """
    with contextlib.suppress(psutil.Error):
        for process in reversed(psutil.Process(pid).children(recursive=True)):
            stacks = [_external_frames(stack) for stack in _read_stacks(process.pid, log)]
            # The main thread is written last
            if frames := next(filter(None, reversed(stacks)), None):
                return frames
    return []


def format_frames(frames: list[Frame]) -> str:
    """Returns lines like those of a traceback, outermost first."""
    return "\n".join(
        f'  File "{frame.file}", line {frame.line}, in {frame.name}'
        for frame in reversed(frames[:MAX_FORMATTED_FRAMES])
    )


def _external_frames(stack: list[Frame]) -> list[Frame]:
    """Returns the external frames up to the outermost one that is in no Python library.

    They include libraries that the external code has called.
    """
    outermost = max(
        (
            index
            for index, frame in enumerate(stack)
            if frame.is_external and "/lib/python" not in frame.file
        ),
        default=-1,
    )
    return [frame for frame in stack[: outermost + 1] if frame.is_external]


def _read_stacks(pid: int, log: Path) -> list[list[Frame]]:
    """Makes a process write the stacks of its threads to the log; returns these stacks."""
    if not _catches_signal(pid):
        return []
    begin = log.stat().st_size
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, FRAMES_SIGNAL)
    deadline, size = time.monotonic() + WRITE_TIMEOUT_S, begin
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if log.stat().st_size > begin and log.stat().st_size == size:
            break  # the log has grown and grows no longer: the stacks are complete
        size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    parts = re.split(r"^(?:Current thread|Thread) .*$", text, flags=re.MULTILINE)[1:]
    return [
        [Frame(match["file"], int(match["line"]), match["name"]) for match in FRAME.finditer(part)]
        for part in parts
    ]


def _catches_signal(pid: int) -> bool:
    """Returns whether the process catches the signal, which would end any other process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (FRAMES_SIGNAL - 1) & 1)


class TimedCalls:
    """Calls `callback` from a thread at each of `moments`, until the context ends.

    `moments` are seconds after the context begins; the callback receives its moment.
    """

    def __init__(self, moments: list[float], callback: Callable[[float], None]) -> None:
        self._moments, self._callback = sorted(moments), callback
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "TimedCalls":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        for moment in self._moments:
            if self._ended.wait(max(moment - (time.monotonic() - began), 0)):
                return
            self._callback(moment)
