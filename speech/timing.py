"""The host's timeline of an epoch, and the accelerator's beside it.

The host's wall clock is cut by laps: each lap gives all time since the last one to a named span, so the spans partition the epoch by
construction and `other` is a span like the rest. The accelerator has an axis of its own, a list of busy intervals: from CUDA events on
a GPU, from the host's clock where the host is the accelerator (cpu) or models one (paced). Raw spans are kept for the record.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T", covariant=True)


class Batches(Protocol[T]):
    """What a DataLoader is to the loop: a known number of batches."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T]: ...


SPANS = ("start", "fill", "wait", "step", "other")
STALL_S = 1e-3  # an accelerator idle for longer than this between two steps has stalled


class Timeline:
    """Laps of one epoch. start: making the iterator; fill: the first batch; wait: the later ones; step: training; other: the rest."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.began = self._last = clock()
        self.laps: dict[str, list[float]] = {span: [] for span in SPANS}

    def lap(self, span: str) -> tuple[float, float]:
        """Gives the time since the last lap to `span`; returns when it began and ended, in seconds of the clock."""
        began, self._last = self._last, self._clock()
        self.laps[span].append(self._last - began)
        return began, self._last

    def metrics(self) -> dict[str, float]:
        """Seconds of every span and of the epoch, which is their sum."""
        spans = {f"time/{span}_s": sum(laps) for span, laps in self.laps.items()}
        return {"time/epoch_s": sum(spans.values())} | spans


def accelerator_metrics(busy: Sequence[tuple[float, float]], epoch_s: float) -> dict[str, float]:
    """Share of the epoch the accelerator worked, steps it came to late, and its largest pause. `busy`: (begin, end) in seconds."""
    gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(busy)]
    return {
        "accelerator/busy_fraction": sum(end - begin for begin, end in busy) / epoch_s,
        "stall/steps": sum(gap > STALL_S for gap in gaps),
        "stall/max_gap_s": max(gaps, default=0.0),
    }


class Gauge:
    """What the trial's surroundings see of its progress, and tell it of /dev/shm. This one, for a trial in plain surroundings, is blind."""

    def expect(self, batch_bytes: int) -> None:
        """From now on batches of this many bytes travel through /dev/shm."""

    def waiting(self) -> None:
        """The training process asks the loader for a batch."""

    def beat(self) -> None:
        """It has received the batch."""

    def take_shm_peak_bytes(self) -> int | None:
        """Most bytes in use on the trial's /dev/shm since the last call; None where nobody measures."""
        return None


def watched(loader: Batches[T], gauge: Gauge) -> Iterator[T]:
    """The batches of `loader`, `gauge` knowing when the loop waits for one."""
    batches = iter(loader)
    for _ in range(len(loader)):
        gauge.waiting()
        batch = next(batches)
        gauge.beat()
        yield batch
        del batch  # as in training: no batch is held while the next is waited for
