"""Measures and extrapolates a worker's memory: its own, and its copies of the training process's.

A forked worker shares all memory with the training process until either of them writes to a page.
Reading a Python object writes to its reference count. A dataset of many small objects is therefore
copied page by page as its samples are read; arrays and tensors are not. A worker that was started
by spawn or forkserver has a copy of everything from the beginning.

A part of an epoch is read, and its copies are measured. The rest is extrapolated. If a page holds m
samples, a worker that reads the share s of all samples copies it with probability 1 - (1 - s)^m.
The total for all samples follows from samples that are adjacent in memory. Their copies are
multiplied by the ratio of an epoch's samples to their number.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import DataLoader

from speech.calibration.batch_workers import count_samples, first_batches, run_in_worker
from speech.calibration.loader_source import start_method

GROW_S = 0.6  # time for which a worker's growth is measured, in both orders
LIST_S = 1.0  # time limit for listing the batches of an epoch, from the first one on
MIN_LISTED = 16  # batches that are listed in any case
READINGS = 4  # readings of the memory within GROW_S
MATERIAL_BYTES = 16 << 20  # copies or growth in an epoch; less is ignored
STEADY_BATCHES = 8  # with fewer, steady growth can't be distinguished from filling buffers


class WorkerMemory(BaseModel):
    """Holds the memory of one worker in bytes, and its growth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    own_bytes: int = Field(description="own memory of an active worker")
    growth_bytes: float = Field(
        0.0, description="growth a sample if the memory grows steadily, as a cache does"
    )
    copied: list[tuple[int, int]] = Field(
        [],
        description=(
            "pairs: samples read, bytes of the training process that a forked worker has copied"
        ),
    )
    most_copied_bytes: int = Field(0, description="bytes copied after reading every sample")
    samples: int = Field(description="samples of an epoch")
    read_samples: int = Field(description="samples that were read for these figures")
    main_bytes: int = Field(
        description="memory of the training process before it has read any sample"
    )

    def worker_bytes(self, read: int) -> int:
        """Returns the memory of a worker that has read `read` samples of an epoch."""
        read = min(read, self.samples)
        return round(self.own_bytes + self.growth_bytes * read + self.copied_bytes(read))

    def copied_bytes(self, read: int) -> float:
        """Returns the bytes that a worker has copied after reading `read` samples.

        They are measured up to the last reading. Beyond it they are extrapolated from the last two.
        """
        if not self.copied:
            return 0.0
        (samples, copied), total = self.copied[-1], self.most_copied_bytes
        if read <= samples:
            return interpolate([(0, 0), *self.copied], read)
        before, copied_before = self.copied[-2] if len(self.copied) > 1 else (0, 0)
        if copied >= total or samples >= self.samples or copied <= copied_before:
            return copied
        page_samples = math.log((total - copied) / (total - copied_before)) / math.log(
            (self.samples - samples) / (self.samples - before)
        )
        return (
            total
            - (total - copied) * ((self.samples - read) / (self.samples - samples)) ** page_samples
        )


def interpolate(points: list[tuple[int, int]], x: int) -> float:
    """Returns the linear interpolation of `points` at `x`."""
    for (x_low, low), (x_high, high) in itertools.pairwise(points):
        if x <= x_high:
            return low + (high - low) * (x - x_low) / (x_high - x_low)
    return points[-1][1]


class Pages(NamedTuple):
    """Holds the memory of one process."""

    anonymous: int  # bytes not backed by a file, both own and shared since a fork
    private: int  # bytes that it has written and does not share


def read_pages(process: int | str = "self") -> Pages | None:
    """Reads the kernel's counts of a process's memory; returns None if they are unavailable."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        counts = {line.split()[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
        return Pages(counts["Anonymous:"], counts["Private_Dirty:"])
    except (OSError, KeyError, ValueError, IndexError):
        return None


def list_batches(batches: Iterator[Any]) -> tuple[list[Any], bool]:
    """Lists at least MIN_LISTED batches of an epoch, and further ones for LIST_S.

    Returns them, and whether the list is complete. The time before the first batch does not count:
    a sampler that sorts or shuffles does so then.
    """
    until, listed = math.inf, []
    for batch in batches:
        listed.append(batch)
        if len(listed) == 1:
            until = time.perf_counter() + LIST_S
        if time.perf_counter() > until and len(listed) >= MIN_LISTED:
            return listed, False
    return listed, True


class Growth(NamedTuple):
    """Holds readings of a worker's memory while it reads samples."""

    samples: list[int]  # number read so far, at every reading
    own: list[int]  # bytes of its own
    copied: list[int]  # bytes that it has copied
    shared: int  # bytes shared at the start


class MemoryWatch:
    """Reads this process's memory at intervals while it prepares batches, for GROW_S at most."""

    def __init__(self, samples: int) -> None:
        """Takes the first reading; `samples` is the number of samples to be read."""
        self._start, self._step = read_pages(), samples / (READINGS + 2)
        self._points: list[tuple[int, Pages]] = []
        self._samples, self._next, self._until = 0, 0.0, 0.0

    def count(self, samples: int) -> bool:
        """Counts `samples` further samples; returns whether to continue."""
        if self._start is None:
            return False
        now = time.perf_counter()
        self._samples += samples
        if not self._points:
            self._read()
            self._begin()
        elif now >= self._next or self._samples >= self._points[-1][0] + self._step:
            self._read()
            self._next = now + GROW_S / READINGS
        return now < self._until

    def restart(self, samples: int) -> None:
        """Counts `samples` samples that were read meanwhile, and restarts the GROW_S period."""
        self._samples += samples
        self._read()
        self._begin()

    def _begin(self) -> None:
        """Starts the GROW_S period."""
        self._next, self._until = (
            time.perf_counter() + seconds for seconds in (GROW_S / READINGS, GROW_S)
        )

    def _read(self) -> None:
        """Takes a reading if samples were read since the last one."""
        pages = read_pages()
        if pages and (not self._points or self._samples > self._points[-1][0]):
            self._points.append((self._samples, pages))

    def growth(self) -> Growth | None:
        """Returns all readings, including one at this moment; None if there are none."""
        self._read()
        if self._start is None or not self._points:
            return None
        own = [
            pages.anonymous - self._start.anonymous + self._start.private
            for _, pages in self._points
        ]
        copied = [
            pages.private - self._start.private - (pages.anonymous - self._start.anonymous)
            for _, pages in self._points
        ]
        shared = self._start.anonymous - self._start.private
        return Growth(
            [samples for samples, _ in self._points],
            own,
            [min(max(bytes_copied, 0), shared) for bytes_copied in copied],
            shared,
        )


def steady_growth(growth: Growth) -> float:
    """Returns the steady growth of a worker's own memory in bytes a sample.

    It is 0 if growth has ceased or was observed too briefly. The first reading does not count,
    since the sampled batches are still in memory then.
    """
    points = list(zip(growth.samples, growth.own, strict=True))[1:]
    if len(points) < READINGS or points[-1][0] - points[0][0] < STEADY_BATCHES * growth.samples[0]:
        return 0.0
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    # Memory that was freed before hides some of the growth for a while
    return statistics.median(rates) if min(rates) > 0 else 0.0


def extrapolate(
    epoch: Growth, in_order: Growth | None, samples: int, main_bytes: int
) -> WorkerMemory:
    """Returns a worker's memory, extrapolated from its growth in two orders of reading.

    `epoch` is the growth in the epoch's order, and `in_order` that for adjacent samples, if known.
    """
    rate = steady_growth(epoch)
    rate = rate if rate * samples > MATERIAL_BYTES else 0.0
    # Includes what any batch copies, most of which the first one does
    base = max(epoch.own[-1] - rate * epoch.samples[-1], 0) + epoch.copied[0]
    common = {
        "growth_bytes": rate,
        "samples": samples,
        "read_samples": epoch.samples[-1],
        "main_bytes": main_bytes,
    }
    points = [
        (read, copied - epoch.copied[0])
        for read, copied in zip(epoch.samples[1:], epoch.copied[1:], strict=True)
    ]
    read, copied = points[-1] if points else (0, 0)
    if not read or min(copied / read * samples, epoch.shared) < MATERIAL_BYTES:
        return WorkerMemory(own_bytes=round(base + max(copied, 0)), **common)
    most = epoch.shared
    if in_order and in_order.samples[-1] > in_order.samples[0]:
        bytes_per_sample = (in_order.copied[-1] - in_order.copied[0]) / (
            in_order.samples[-1] - in_order.samples[0]
        )
        most = min(most, round(bytes_per_sample * samples))
    rising = list(
        itertools.accumulate(points, lambda last, point: (point[0], max(point[1], last[1])))
    )
    return WorkerMemory(
        own_bytes=round(base), copied=rising, most_copied_bytes=max(most, rising[-1][1]), **common
    )


def watch_in_order(loader: DataLoader, batches: list[Any]) -> Growth | None:
    """Returns the growth of a new worker that reads the samples of `batches` in index order.

    Returns None if the indices can't be ordered, or if the loader has no automatic batching: its
    dataset then receives single indices, which need not be numbers.
    """
    if not loader._auto_collation:
        return None
    try:
        indices = sorted(itertools.chain(*batches))
    except TypeError:
        return None
    size = len(batches[0])
    ordered = (indices[first : first + size] for first in range(0, len(indices), size))

    def measure(prepare: Callable[[Callable[[Any], bool]], None]) -> Any:
        watch = MemoryWatch(len(indices))
        prepare(lambda batch: watch.count(size))
        growth = watch.growth()
        return growth and tuple(growth)

    growth = run_in_worker(loader, ordered, measure)
    return Growth(*growth) if growth else None


def measure_memory(
    loader: DataLoader, growth: Growth, epoch: list[Any] | None, main_bytes: int, loader_bytes: int
) -> WorkerMemory:
    """Returns a worker's memory, extrapolated from its measured growth.

    `epoch` holds all batches if they were listed, else None. `main_bytes` is the memory of the
    training process; `loader_bytes` is the part of it that the project's import and loader added.
    """
    batch_samples = [count_samples(loader, batch) for batch in epoch] if epoch else []
    samples = sum(batch_samples) or len(loader) * count_samples(loader, first_batches(loader, 1)[0])
    shared = growth._replace(shared=max(min(growth.shared, loader_bytes), 0))
    estimate = extrapolate(shared, None, samples, main_bytes)
    if not estimate.copied or epoch is None or start_method(loader) != "fork":
        return estimate
    return extrapolate(shared, watch_in_order(loader, epoch), samples, main_bytes)


def replace_copies(memory: WorkerMemory, workers: list[Pages | None]) -> WorkerMemory | None:
    """Returns the memory of a worker of spawn or forkserver, which copies nothing later.

    `workers` are readings of such workers; None stands for a failed one. Returns None without any.
    """
    own = max((pages.anonymous for pages in workers if pages), default=0)
    return (
        memory.model_copy(update={"own_bytes": own, "copied": [], "most_copied_bytes": 0})
        if own
        else None
    )
