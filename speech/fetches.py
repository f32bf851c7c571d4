"""What each batch's preparation took, told by whoever prepared it: the raw material of occupancy, of CPU seconds and of a trial's trace.

A loader worker appends a line of 56 bytes to one file for every batch, when it lies collated where the training loop will find it. The loop
reads the file after each epoch, so nothing waits for anybody, any start method will do, and no private part of the DataLoader is touched.
time.perf_counter counts from the same moment in all processes of a machine.
"""

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate, get_worker_info

from speech import usage

MAIN = -1  # the training process prepares batches itself, at 0 workers
_LINE = struct.Struct("=iidddqq")  # step, worker, begin, end, CPU seconds, bytes read, bytes in use on /dev/shm
COLUMNS = ("step", "worker", "begin_s", "end_s", "cpu_s", "read_bytes", "shm_bytes")

Fetches = dict[str, list[Any]]  # COLUMNS -> a value a batch, in the order in which they were finished


def shm_used_bytes() -> int:
    """Bytes in use on /dev/shm, segments that torch has unlinked included."""
    stat = os.statvfs("/dev/shm")
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


class FetchLog:
    """One file, written by every worker of a loader and read by the training process. It travels to workers of any start method."""

    def __init__(self, path: Path):
        self._path = path
        self._read_to = 0
        self._pid, self._file = 0, -1  # of the process that writes now
        self._step, self._begin_s, self._cpu_s, self._read_bytes = 0, 0.0, 0.0, 0

    def begin(self, step: int) -> None:
        """This process starts on the batch of a step."""
        own = get_worker_info()
        if self._pid != os.getpid():
            self._pid, self._file = os.getpid(), os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._cpu_s, self._read_bytes = 0.0, 0  # a worker's start is part of its first batch
        if own is None:
            self._cpu_s, self._read_bytes = usage.own()
        self._step, self._begin_s = step, time.perf_counter()

    def end(self) -> None:
        """The batch is ready. CPU time and bytes count since the process's last batch, so that sending that one is not lost."""
        own, end_s, (cpu_s, read_bytes) = get_worker_info(), time.perf_counter(), usage.own()
        worker, fresh_s, fresh_bytes = MAIN if own is None else own.id, cpu_s - self._cpu_s, read_bytes - self._read_bytes
        line = _LINE.pack(self._step, worker, self._begin_s, end_s, fresh_s, fresh_bytes, shm_used_bytes())
        os.write(self._file, line)  # appended whole: far below what a file system splits
        self._cpu_s, self._read_bytes = cpu_s, read_bytes

    def take(self, epoch_began: float) -> Fetches:
        """The batches finished since the last call. Times in seconds from `epoch_began`, a moment of time.perf_counter."""
        lines = []
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read_to)
                lines = list(_LINE.iter_unpack(file.read()))
                self._read_to = file.tell()
        columns = zip(*lines, strict=True) if lines else [()] * len(COLUMNS)
        fetches: Fetches = dict(zip(COLUMNS, map(list, columns), strict=True))
        for name in ("begin_s", "end_s"):
            fetches[name] = [moment - epoch_began for moment in fetches[name]]
        return fetches


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
