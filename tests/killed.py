"""Trials that are killed at a chosen moment: Template(tasks="tests.killed"). The file `kill` in a
trial's folder names the moment.

A moment is a record, "epoch 4" or "snapshot 1" or "end 0", before which its process kills itself;
or one of the writes at a cycle end, "learned 1" when the snapshot of cycle 1 is written and nothing
else, "progress 1" when only progress.json is missing.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from speech import continuation
from speech.tasks import TASKS as TRAINING
from speech.tasks import Arguments, Emit
from speech.timing import Gauge

NUMBERS = {"epoch": "epoch", "snapshot": "cycle"}  # of a record: what counts its kind
open_atomically, save_atomically = continuation.open_atomically, continuation.save_atomically


def train(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    file = Path(arguments["folder"], "kill")
    moment = file.read_text() if file.exists() else ""
    cycle = -1

    def reach(name: str) -> None:
        if name == moment:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def told(record: dict[str, Any]) -> None:
        nonlocal cycle
        if not record.get("replayed"):
            reach(f"{record['kind']} {record.get(NUMBERS.get(record['kind'], ''), 0)}")
        cycle = record.get("cycle", cycle)
        emit(record)

    def save(tensors: dict[str, Any], path: Path) -> None:
        reach(f"learned {cycle}")
        save_atomically(tensors, path)

    @contextmanager
    def write(path: Path) -> Iterator[BinaryIO]:
        reach(f"progress {cycle}")
        with open_atomically(path) as out:
            yield out

    # in this process, which is the trial's own
    continuation.save_atomically, continuation.open_atomically = save, write
    TRAINING["train"](arguments, told, gauge)


TASKS = TRAINING | {"train": train}
