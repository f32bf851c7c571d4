"""Records what the preparation of every batch took, in the process that prepared it.

These records are the basis of prefetch_hit_rate, of CPU seconds and of a trial's trace. All
processes of a trial map one file, which has a slot for every step. A loader worker writes 40 bytes
into the slot of a batch's step once the batch has been collated and is ready for the training loop.
The loop reads the slots after every epoch. No process waits for another, every start method is
supported, and no private part of the DataLoader is used. A worker's batch costs a single system
call, for its CPU time. time.perf_counter counts from the same moment in all processes of a machine.
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

MAIN = -1  # number of the training process, which prepares batches at 0 workers
UNCOUNTED = -1  # bytes of the training process's batches
_SLOT = struct.Struct("=iidddq")  # written or not, worker, begin, end, CPU seconds, bytes read
_WRITTEN = 1
COLUMNS = ("step", "worker", "begin_s", "end_s", "cpu_s", "read_bytes")

Fetches = dict[str, list[Any]]  # column -> a value a batch, ordered by the batches' end


class FetchLog:
    """Holds one file that every worker of a loader and the training process map.

    It can be sent to workers of every start method.
    """

    def __init__(self, path: Path):
        self._path = path
        self._slots: mmap.mmap | None = None  # mapped at first use; forked workers inherit it
        self._pid = 0  # of the process that writes
        self._step, self._begin_s, self._cpu_s, self._read_bytes = 0, 0.0, 0.0, 0
        self._thread_s = 0.0  # CPU seconds of this thread when the batch was begun

    def allocate(self, steps: int) -> None:
        """Allocates a slot for every step of an epoch.

        Call it before the first worker starts. Raises OSError if the disk is full. Without
        allocation the process would receive a SIGBUS during the epoch.
        """
        with self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, steps * _SLOT.size)

    def begin(self, step: int) -> None:
        """Records that this process begins to prepare the batch of a step."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._cpu_s, self._read_bytes = 0.0, 0  # a worker's start counts for its first batch
        self._step, self._begin_s = step, time.perf_counter()
        if get_worker_info() is None:
            self._thread_s = time.thread_time()

    def end(self) -> None:
        """Records that the batch is ready.

        A worker's CPU time and bytes count from the end of its previous batch, and thus include the
        sending of that batch. Without workers the CPU time is that of the thread that prepares the
        batch; the bytes are UNCOUNTED, since the counters of the epoch include them.
        """
        worker_info, end_s = get_worker_info(), time.perf_counter()
        worker, batch_cpu_s, batch_read_bytes = MAIN, 0.0, UNCOUNTED
        if worker_info is None:
            batch_cpu_s = time.thread_time() - self._thread_s
        else:
            cpu_s, read_bytes = usage.read_own_counters()
            worker, batch_cpu_s, batch_read_bytes = (
                worker_info.id,
                cpu_s - self._cpu_s,
                read_bytes - self._read_bytes,
            )
            self._cpu_s, self._read_bytes = cpu_s, read_bytes
        _SLOT.pack_into(
            self._map(),
            self._step * _SLOT.size,
            _WRITTEN,
            worker,
            self._begin_s,
            end_s,
            batch_cpu_s,
            batch_read_bytes,
        )

    def take(self, epoch_began: float) -> Fetches:
        """Returns the batches that were finished since the last call, and clears their slots.

        Times are in seconds since `epoch_began`, a moment of time.perf_counter.
        """
        slots = self._map()
        lines = [
            (step, *line)
            for step, (written, *line) in enumerate(_SLOT.iter_unpack(slots[:]))
            if written
        ]
        slots[:] = bytes(len(slots))
        lines.sort(key=lambda line: line[COLUMNS.index("end_s")])
        columns = zip(*lines, strict=True) if lines else [()] * len(COLUMNS)
        fetches: Fetches = dict(zip(COLUMNS, map(list, columns), strict=True))
        for name in ("begin_s", "end_s"):
            fetches[name] = [moment - epoch_began for moment in fetches[name]]
        return fetches

    def _map(self) -> mmap.mmap:
        """Returns the mapping of the file; maps it on the first call."""
        if self._slots is None:
            with self._path.open("r+b") as file:
                self._slots = mmap.mmap(file.fileno(), 0)
        return self._slots

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_slots": None}  # an unforked worker maps the file itself


class Collate:
    """Collates a batch with torch's default_collate, and records that the batch is ready.

    default_collate allocates a worker's batch in /dev/shm.
    """

    def __init__(self, log: FetchLog):
        self._log = log

    def __call__(self, samples: list[Any]) -> Any:
        batch = default_collate(samples)
        self._log.end()
        return batch


def prefetch_hit_rate(fetches: Fetches, request_s: Sequence[float]) -> float | None:
    """Returns the share of steps whose batch was ready when the loop requested it.

    `request_s` holds the moment of every step's request. Returns None at 0 workers, where no batch
    is prepared in advance.
    """
    pairs = [
        (step, end_s)
        for step, worker, end_s in zip(
            *(fetches[name] for name in ("step", "worker", "end_s")), strict=True
        )
        if worker != MAIN
    ]
    return sum(end_s <= request_s[step] for step, end_s in pairs) / len(pairs) if pairs else None


def later_batches_cpu_s(fetches: Fetches) -> list[float]:
    """Returns the CPU seconds of each batch but the first ones of the workers.

    A worker's first batch of an epoch includes its start. If no worker has prepared a second one,
    the result is empty.
    """
    started: set[int] = {MAIN}
    later = []
    for worker, cpu_s in zip(fetches["worker"], fetches["cpu_s"], strict=True):
        if worker in started:
            later.append(cpu_s)
        started.add(worker)
    return later


def worker_values(fetches: Fetches, column: str) -> list[Any]:
    """Returns the column's values of the batches that a worker prepared."""
    return [
        value
        for worker, value in zip(fetches["worker"], fetches[column], strict=True)
        if worker != MAIN
    ]
