"""What each batch's preparation took, told by whoever prepared it: the raw material of occupancy, of CPU seconds and of a trial's trace.

A loader worker writes 40 bytes into a file that all processes of the trial have mapped, in the slot of the step that the batch is for, when
the batch lies collated where the training loop will find it. The loop reads the slots after each epoch, so nothing waits for anybody, any
start method will do, no private part of the DataLoader is touched, and a worker's batch costs no system call but the one for its CPU time.
time.perf_counter counts from the same moment in all processes of a machine.
"""

import mmap
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate, get_worker_info

from speech import usage

MAIN = -1  # the training process prepares batches itself, at 0 workers
UNTOLD = -1  # CPU seconds and bytes of its batches
_SLOT = struct.Struct("=iidddq")  # whether it was written, worker, begin, end, CPU seconds, bytes read
_WRITTEN = 1
COLUMNS = ("step", "worker", "begin_s", "end_s", "cpu_s", "read_bytes")

Fetches = dict[str, list[Any]]  # COLUMNS -> a value a batch, in the order in which they were finished


def shm_used_bytes() -> int:
    """Bytes in use on /dev/shm, segments that torch has unlinked included."""
    stat = os.statvfs("/dev/shm")
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


class FetchLog:
    """One file, mapped by every worker of a loader and by the training process. It travels to workers of any start method."""

    def __init__(self, path: Path):
        self._path = path
        self._slots: mmap.mmap | None = None  # mapped at first use; workers that are forked have it already
        self._pid = 0  # of the process that writes now
        self._step, self._begin_s, self._cpu_s, self._read_bytes = 0, 0.0, 0.0, 0

    def make_room(self, steps: int) -> None:
        """Before the first worker starts: an epoch has so many. OSError: the disk is full, which in the middle of an epoch is a SIGBUS."""
        with self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, steps * _SLOT.size)

    def begin(self, step: int) -> None:
        """This process starts on the batch of a step."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._cpu_s, self._read_bytes = 0.0, 0  # a worker's start is part of its first batch
        self._step, self._begin_s = step, time.perf_counter()

    def end(self) -> None:
        """The batch is ready. CPU time and bytes count since the process's last batch, so that sending that one is not lost.

        Without workers they are UNTOLD: the training process's counters for the epoch hold them, and asking takes a microsecond or fifteen.
        """
        own, end_s = get_worker_info(), time.perf_counter()
        worker, fresh_s, fresh_bytes = MAIN, float(UNTOLD), UNTOLD
        if own is not None:
            cpu_s, read_bytes = usage.own()
            worker, fresh_s, fresh_bytes = own.id, cpu_s - self._cpu_s, read_bytes - self._read_bytes
            self._cpu_s, self._read_bytes = cpu_s, read_bytes
        _SLOT.pack_into(self._mapped(), self._step * _SLOT.size, _WRITTEN, worker, self._begin_s, end_s, fresh_s, fresh_bytes)

    def take(self, epoch_began: float) -> Fetches:
        """The batches finished since the last call. Times in seconds from `epoch_began`, a moment of time.perf_counter."""
        slots = self._mapped()
        lines = [(step, *line) for step, (written, *line) in enumerate(_SLOT.iter_unpack(slots[:])) if written]
        slots[:] = bytes(len(slots))
        lines.sort(key=lambda line: line[COLUMNS.index("end_s")])
        columns = zip(*lines, strict=True) if lines else [()] * len(COLUMNS)
        fetches: Fetches = dict(zip(COLUMNS, map(list, columns), strict=True))
        for name in ("begin_s", "end_s"):
            fetches[name] = [moment - epoch_began for moment in fetches[name]]
        return fetches

    def _mapped(self) -> mmap.mmap:
        if self._slots is None:
            with self._path.open("r+b") as file:
                self._slots = mmap.mmap(file.fileno(), 0)
        return self._slots

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_slots": None}  # a worker that is not forked maps the file itself


class Collate:
    """torch's default_collate, which makes a worker's batch in /dev/shm, and the note that the batch is there."""

    def __init__(self, log: FetchLog):
        self._log = log

    def __call__(self, samples: list[Any]) -> Any:
        batch = default_collate(samples)
        self._log.end()
        return batch


def occupancy(fetches: Fetches, ask_s: Sequence[float]) -> float | None:
    """Share of the steps whose batch was ready when the loop asked for it at `ask_s`; None at 0 workers, where none ever is."""
    pairs = [
        (step, end_s)
        for step, worker, end_s in zip(*(fetches[name] for name in ("step", "worker", "end_s")), strict=True)
        if worker != MAIN
    ]
    return sum(end_s <= ask_s[step] for step, end_s in pairs) / len(pairs) if pairs else None


def of_workers(fetches: Fetches, column: str) -> list[Any]:
    """The column's values of batches that a worker prepared."""
    return [value for worker, value in zip(fetches["worker"], fetches[column], strict=True) if worker != MAIN]
