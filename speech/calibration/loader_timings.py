"""Times a loader on this host, with no loader of more than one worker.

A round measures every figure at most once; speech/calibration/undisturbed_rounds.py runs the
rounds. Competing processes show how preparation slows down when cores are shared. The only worker
of a loader shows its start and its pace. With competing processes beside it, the loop shows the
handover of a batch. The training process's own preparation is timed separately."""

import functools
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader

from speech.calibration import batch_workers
from speech.calibration.batch_workers import MIN_BATCHES, BatchWorkers, Pace, measure_pace
from speech.calibration.undisturbed_rounds import Measure, Values, measure_rounds

Figures = TypeVar("Figures", bound=tuple[float, ...])  # a NamedTuple of figures
# num_workers, prefetch_factor, persistent_workers -> loader
Make = Callable[[int, int | None, bool], DataLoader]

# Names of the figures of a round
WORKER, PACE, HANDOVER, DELIVERY = "worker", "pace", "handover", "delivery"
PREFETCHED = 4  # batches that are ready when receiving them is timed
PAUSE_S = 0.005  # replaces a training step
PASSES = 5
MAX_ROUNDS_S = 25.0  # after this time fewer rounds suffice, as batches may take seconds
MIN_INLINE = 2  # batches of a pass without workers
LATER_EPOCHS = 1  # first batches of later epochs in a round
FLUSH_BYTES = 1 << 26  # more than the CPU caches hold


class WorkerTimings(NamedTuple):
    """Holds timings in seconds of a loader's only worker, on an otherwise idle host."""

    fork_s: float  # to start the worker
    first_s: float  # from the start to the first batch
    batch_s: float  # for a later batch
    later_epoch_s: float  # from the request for the first batch of a later epoch to its receipt


class Handover(NamedTuple):
    """Holds the costs of a batch that is ready, in seconds of the loop."""

    receive_s: float  # to receive it
    release_s: float  # to release it
    wake_s: float  # by which the loop wakes late after a short wait


def loader_figures(
    make: Make,
    plain: DataLoader,
    counts: list[int],
    cores: float,
    refresh: Callable[[], None],
    watch: Callable[[int], None],
) -> dict[Hashable, Measure]:
    """Returns the measurements of a round by figure; `counts` are the numbers of competing
    processes.

    `plain` is the loader of 0 workers. speech.calibration.calibrate.calibrate_loader describes the
    other arguments. The figures are WORKER, and (PACE, count), (HANDOVER, others) and (DELIVERY,
    others) for numbers of competing processes.
    """

    def worker(values: Values) -> WorkerTimings:
        return _measure_worker(make, refresh, watch)

    def pace(count: int, values: Values) -> Pace:
        return measure_pace(plain, count, batch_workers.WINDOW_S, refresh)

    def handover(others: int, values: Values) -> Handover:
        batch_s = values[WORKER][-1].batch_s
        return _measure_handover(make, plain, batch_s, others, cores)

    def delivery(others: int, values: Values) -> float:
        return _measure_delivery(make, plain, others)

    competing = sorted({0, math.ceil(cores) - 1, counts[-1] - 1})
    figures: dict[Hashable, Measure] = {WORKER: worker}
    figures |= {(PACE, count): functools.partial(pace, count) for count in counts}
    figures |= {(HANDOVER, others): functools.partial(handover, others) for others in competing}
    return figures | {
        (DELIVERY, others): functools.partial(delivery, others) for others in competing
    }


def medians(kind: Callable[..., Figures], measured: list[Figures]) -> Figures:
    """Returns the median of every figure of a NamedTuple over its rounds."""
    return kind(*(statistics.median(column) for column in zip(*measured, strict=True)))


def _mean(kind: Callable[..., Figures], measured: list[Figures]) -> Figures:
    """Returns the mean of every figure of a NamedTuple."""
    return kind(*(statistics.mean(column) for column in zip(*measured, strict=True)))


def measure_inline(plain: DataLoader) -> float:
    """Measures the seconds that the training process itself takes for a batch.

    The result is the median over several passes, since the speed of a pass depends on the placement
    of its memory. Raises MachineBusy.
    """

    def run_pass(values: Values) -> float:
        return time_inline_pass(plain, lambda: None, next)

    run_pass({})  # not counted: memory is allocated faster later
    return statistics.median(measure_rounds({"inline": run_pass}, PASSES, MAX_ROUNDS_S)["inline"])


def time_inline_pass(
    plain: DataLoader, refresh: Callable[[], None], fetch: Callable[[Iterator[Any]], Any]
) -> float:
    """Returns the mean seconds of a batch of a pass, which lasts a window or two batches at least.

    Between batches the process does something else, and its threads and caches cool down.
    """
    seconds: list[float] = []
    refresh()
    batches = iter(plain)
    until = time.perf_counter() + batch_workers.WINDOW_S
    for _ in range(len(plain)):
        requested = time.perf_counter()
        batch = fetch(batches)
        seconds.append(time.perf_counter() - requested)
        del batch  # which costs `release_s`
        if time.perf_counter() > until and len(seconds) >= MIN_INLINE:
            break
        time.sleep(PAUSE_S)
    return statistics.mean(seconds)


def _measure_worker(
    make: Make, refresh: Callable[[], None], watch: Callable[[int], None]
) -> WorkerTimings:
    """Measures the only worker of a new loader."""
    loader = make(1, PREFETCHED, True)
    refresh()
    began = time.perf_counter()
    batches = iter(loader)
    forked = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    for _ in batches:  # not timed, as a new worker copies the memory pages that it touches
        if time.perf_counter() - first > batch_workers.WINDOW_S / 2:
            break
    batch_s = statistics.mean(_measure_intervals(loader, refresh))
    watch(loader._iterator._workers[0].pid)  # type: ignore[union-attr]  # it persists
    later_epoch_s = statistics.mean(
        _measure_later_epoch(loader, batch_s, refresh) for _ in range(LATER_EPOCHS)
    )
    return WorkerTimings(forked - began, first - forked, batch_s, later_epoch_s)


def _measure_later_epoch(loader: DataLoader, batch_s: float, refresh: Callable[[], None]) -> float:
    """Measures the wait for the first batch of a later epoch.

    Before it the worker idles and the process computes something else, as it validates between
    epochs.
    """
    time.sleep(1.2 * PREFETCHED * batch_s)  # until the worker has finished the last pass
    refresh()
    torch.ones(FLUSH_BYTES // 4)
    time.sleep(PAUSE_S)
    batches = iter(loader)
    requested = time.perf_counter()
    next(batches)
    return time.perf_counter() - requested


class _SentAsSource:
    """Wraps a function that is sent to a worker as the source text of an expression.

    A process that was started by spawn or forkserver imports a function by the name of its module.
    Names of this project's modules may belong to the other project's own modules there.
    """

    def __init__(self, source: str):
        self._source, self._function = source, eval(source)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return eval, (self._source,)


# A batch, and the moment at which it was finished
_COLLATE_TIMED = "lambda collate, samples: (collate(samples), __import__('time').perf_counter())"


def add_timestamp(collate: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, float]]:
    """Returns a collate function that also returns the moment at which the batch was finished.

    It can be sent to workers that can't import this project's modules.
    """
    return functools.partial(_SentAsSource(_COLLATE_TIMED), collate)


def _measure_delivery(make: Make, plain: DataLoader, others: int) -> float:
    """Measures the mean delivery latency in seconds, with `others` competing processes.

    It lasts from the moment the only worker has finished a batch until the waiting loop receives
    it.
    """
    loader = make(1, PREFETCHED, True)
    loader.collate_fn = add_timestamp(loader.collate_fn)
    next(iter(loader))  # the first batch starts the thread that sends the others
    latencies: list[float] = []
    with BatchWorkers(plain, others):
        until = time.perf_counter() + batch_workers.WINDOW_S / 2
        while time.perf_counter() < until or len(latencies) < MIN_BATCHES:
            for _, finished in loader:
                latencies.append(time.perf_counter() - finished)
                if time.perf_counter() > until and len(latencies) >= MIN_BATCHES:
                    break
    return statistics.mean(latencies)


def _measure_handover(
    make: Make, plain: DataLoader, batch_s: float, others: int, cores: float
) -> Handover:
    """Measures the handover of ready batches by one worker, with `others` competing processes.

    The loop is slower than the worker.
    """
    loader = make(1, PREFETCHED, True)
    slowed_batch_s = batch_s * max(1.0, (others + 1) / cores)
    next(iter(loader))  # otherwise the first batches would wait for the worker's start
    handovers: list[Handover] = []
    with BatchWorkers(plain, others):
        until = time.perf_counter() + batch_workers.WINDOW_S
        while time.perf_counter() < until or not handovers:
            batches = iter(loader)
            time.sleep(1.2 * slowed_batch_s * PREFETCHED)  # until the batches are ready
            for _ in range(min(PREFETCHED, len(loader))):
                began = time.perf_counter()
                batch = next(batches)
                received = time.perf_counter()
                del batch
                released = time.perf_counter()
                pause_s = random.random() * slowed_batch_s / 2
                time.sleep(pause_s)  # the worker prepares the next one
                handovers.append(
                    Handover(
                        received - began,
                        released - received,
                        time.perf_counter() - released - pause_s,
                    )
                )
    return _mean(Handover, handovers)


def _measure_intervals(loader: DataLoader, refresh: Callable[[], None]) -> list[float]:
    """Measures the seconds between consecutive batches of a pass, which are released at once.

    For a pass of a single batch it is the wait for that batch.
    """
    intervals: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < batch_workers.WINDOW_S or len(intervals) < MIN_BATCHES:
        moments = _run_pass(loader, refresh)
        intervals += [
            later - earlier
            for earlier, later in itertools.pairwise(moments if len(moments) < 3 else moments[1:])
        ]
    return intervals


def _run_pass(loader: DataLoader, refresh: Callable[[], None]) -> list[float]:
    """Runs one pass; returns the moments of its first request and of every receipt.

    The pass ends with the data or after the window.
    """
    refresh()
    batches = iter(loader)
    moments = [time.perf_counter()]
    for batch in batches:
        moments.append(time.perf_counter())
        del batch
        if moments[-1] - moments[0] > batch_workers.WINDOW_S:
            break
    return moments
