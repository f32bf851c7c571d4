"""Measures the host's timeline of an epoch, and the accelerator's busy intervals.

Laps divide the host's wall-clock time. A lap adds all time since the previous one to a named span.
The spans therefore partition the epoch, and `other` is a span like the rest. The accelerator's time
is a separate list of busy intervals. They come from CUDA events on a GPU, from the model's clock if
the accelerator is simulated, and from the host's clock if the host is the accelerator (cpu). Raw
spans are stored for the record.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T", covariant=True)
Interval = tuple[float, float]  # (begin, end) in seconds of one clock


class Batches(Protocol[T]):
    """Describes the loader that the loop needs: an iterable with a known number of batches."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T]: ...


SPANS = ("start", "first_batch", "data_wait", "step", "other")
STALL_S = 1e-3  # an accelerator stalls if it is idle for longer between two steps


class Timeline:
    """Records the laps of one epoch.

    The spans are start (creating the iterator), first_batch (waiting for the first batch),
    data_wait (for the later batches), step (training) and other (the rest).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.began = self._last = clock()
        self.laps: dict[str, list[float]] = {span: [] for span in SPANS}

    def lap(self, span: str) -> tuple[float, float]:
        """Adds the time since the last lap to `span`; returns its begin and end on the clock."""
        began, self._last = self._last, self._clock()
        self.laps[span].append(self._last - began)
        return began, self._last

    def metrics(self) -> dict[str, float]:
        """Returns the seconds of every span and of the epoch, which is their sum."""
        spans = {f"time/{span}_s": sum(laps) for span, laps in self.laps.items()}
        return {"time/epoch_s": sum(spans.values())} | spans


def accelerator_metrics(busy: Sequence[Interval], epoch_s: float) -> dict[str, float]:
    """Returns the accelerator's busy share of the epoch, its late steps and its longest pause.

    `busy` holds intervals (begin, end) in seconds.
    """
    gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(busy)]
    return {
        "accelerator/busy_fraction": sum(end - begin for begin, end in busy) / epoch_s,
        "stall/steps": sum(gap > STALL_S for gap in gaps),
        "stall/max_gap_s": max(gaps, default=0.0),
    }


class Gauge:
    """Passes a trial's progress to the process around it, and the usage of /dev/shm to the trial.

    This class does nothing; it serves a trial that runs without such a process.
    """

    def of_rank(self, rank: int) -> "Gauge":
        """Returns the gauge of another rank than 0, which runs in another process."""
        return self

    def set_batch_bytes(self, batch_bytes: int) -> None:
        """Sets the number of bytes of the batches that pass through /dev/shm."""

    def begin_wait(self) -> None:
        """Records that the training process begins to wait for a batch."""

    def end_wait(self) -> None:
        """Records that the training process has received the batch."""

    def take_shm_peak_bytes(self) -> int | None:
        """Returns the peak usage of the trial's /dev/shm in bytes since the last call.

        Returns None if it is not measured.
        """
        return None


def watch_batches(
    loader: Batches[T], gauge: Gauge, fetch: Callable[[Iterator[T]], T] = next
) -> Iterator[T]:
    """Yields the batches of `loader`, and reports to `gauge` when the loop waits for one.

    `fetch` returns the next batch of the loader's iterator.
    """
    batches = iter(loader)
    for _ in range(len(loader)):
        gauge.begin_wait()
        batch = fetch(batches)
        gauge.end_wait()
        yield batch
        del batch  # as in training, no batch is held while the loop waits for the next
