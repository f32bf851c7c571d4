"""Measures the first batches of a loader in a worker: their size, their time and their reads."""

import time
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from speech import usage
from speech.calibration.batch_workers import Prepare, count_samples, run_in_worker
from speech.calibration.loader_source import shared_bytes
from speech.calibration.worker_memory import Growth, MemoryWatch

SAMPLE_BATCHES, SAMPLE_S = 5, 3.0  # sampled batches, and about how many seconds they may take
# A worker of this many reads every fourth batch. If samples are in memory order, it copies more
# pages that way than the only worker of a loader
STRIDE = 4


class LoaderSample(NamedTuple):
    """Holds measurements of the first batches that a worker prepared."""

    batch_bytes: int  # of /dev/shm, for the largest batch
    varies: bool  # whether batches differ in size
    prepare_s: float  # per batch
    wait_s: float  # part of prepare_s without a core, on the first reading
    read_bytes: int  # from storage, per batch
    growth: Growth | None  # of the worker's memory; None if the kernel does not report it


def sample_batches(loader: DataLoader, batches: list[Any]) -> LoaderSample:
    """Measures the first batches of an epoch in a worker.

    The first batch is not timed, since it opens files and imports modules. The worker then reads
    further batches for its memory, without those that other workers would read.
    """
    batches = batches[:SAMPLE_BATCHES] + batches[SAMPLE_BATCHES::STRIDE]
    batch_samples = [count_samples(loader, batch) for batch in batches]

    def measure(prepare: Prepare) -> tuple[Any, ...]:
        sampling = _Sampling(batch_samples)
        prepare(sampling.take)
        return sampling.figures()

    sample = LoaderSample(*run_in_worker(loader, batches, measure))
    return sample._replace(growth=Growth(*sample.growth) if sample.growth else None)


class _Sampling:
    """Measures batches in the worker that prepares them.

    `batch_samples` holds the number of samples of every batch that the worker will prepare.
    """

    def __init__(self, batch_samples: list[int]):
        self._batch_samples = batch_samples
        self._watch = MemoryWatch(sum(batch_samples))
        self._sampled: list[Any] = []
        self._sizes: list[int] = []  # bytes of every sampled batch, once all of them are sampled
        self._taken = 0
        self._began, self._wall_s, self._cpu_s, self._read_bytes = 0.0, 0.0, 0.0, 0

    def take(self, batch: Any) -> bool:
        """Takes the next batch; returns whether to continue."""
        samples = self._batch_samples[self._taken]
        self._taken += 1
        if self._sizes:
            return self._watch.count(samples)
        self._sampled.append(batch)
        if len(self._sampled) == 1:
            self._watch.count(samples)
            self._began = time.perf_counter()
            self._cpu_s, self._read_bytes = usage.read_own_counters()
        elif (
            len(self._sampled) == min(SAMPLE_BATCHES, len(self._batch_samples))
            or time.perf_counter() - self._began > SAMPLE_S
        ):
            cpu_s, read_bytes = usage.read_own_counters()
            self._wall_s = time.perf_counter() - self._began
            self._cpu_s, self._read_bytes = cpu_s - self._cpu_s, read_bytes - self._read_bytes
            self._sizes = [shared_bytes(data) for data in self._sampled]
            self._sampled.clear()
            del batch
            self._watch.restart(sum(self._batch_samples[1 : self._taken]))
        return True

    def figures(self) -> tuple[Any, ...]:
        """Returns the fields of a LoaderSample as builtin types, which a worker can send."""
        timed = len(self._sizes) - 1
        growth = self._watch.growth()
        return (
            max(self._sizes),
            len(set(self._sizes)) > 1,
            self._wall_s / timed,
            max(self._wall_s - self._cpu_s, 0.0) / timed,
            self._read_bytes // timed,
            growth and tuple(growth),
        )
