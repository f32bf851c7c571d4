"""Measures what preparation and a training step do to each other if both use the host's cores.

Training empties the CPU caches. A batch that is prepared between two steps, or in a worker during a
step, therefore takes more CPU time than one of a process that prepares all the time. A worker that
wakes up during a step also delays the step for longer than it computes. Both are measured with the
step at its usual pace: one batch for every step.
"""

import functools
import statistics
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from speech.calibration.costs import LoaderCosts, StepCosts
from speech.calibration.loader_timings import MAX_ROUNDS_S, Make, medians
from speech.calibration.undisturbed_rounds import Measure, Values, measure_rounds
from speech.loading import choose_fetch

ROUNDS = 3
STEPS = 5  # counted steps of a round
SKIPPED = 2  # steps before them: a worker starts, and its first batches are ready already


class _Interplay(NamedTuple):
    """Holds the medians of one round, in seconds a batch and a step."""

    batch_cpu_s: float
    step_s: float


def add_interplay(
    step_costs: StepCosts,
    loader_costs: LoaderCosts,
    step: Callable[[], None],
    make: Make,
    refresh: Callable[[], None],
) -> StepCosts:
    """Returns `step_costs` with what `step` and the preparation of its batches do to each other.

    `make` builds the loader, and `refresh` is called before every pass over its data. If its epochs
    are too short to see it, `step_costs` are returned unchanged. Raises MachineBusy.
    """
    plain = make(0, None, False)
    if len(plain) <= SKIPPED:
        return step_costs
    figures: dict[Hashable, Measure] = {
        0: functools.partial(_alternate, plain, step, refresh),
        1: functools.partial(_train_beside_worker, make, step, refresh),
    }
    values = measure_rounds(figures, ROUNDS, MAX_ROUNDS_S)
    alone, beside = (medians(_Interplay, values[workers]) for workers in (0, 1))
    costs = step_costs.model_copy(
        update={"inline_s": alone.batch_cpu_s, "worker_cpu_s": beside.batch_cpu_s}
    )
    shared_s = costs.delay_by_sharing_s(loader_costs.cores, loader_costs.prepare_s)
    delay_s = max(beside.step_s - alone.step_s - shared_s, 0.0)
    return costs.model_copy(update={"resume_s": delay_s})


def _alternate(
    plain: DataLoader, step: Callable[[], None], refresh: Callable[[], None], values: Values
) -> _Interplay:
    """Measures batches that this process prepares itself, and the steps between them."""
    fetch, batches_cpu_s, steps_s = choose_fetch(plain), list[float](), list[float]()
    refresh()
    batches = iter(plain)
    for _ in range(min(SKIPPED + STEPS, len(plain))):
        cpu_began = time.thread_time()
        batch = fetch(batches)
        began = time.perf_counter()
        batches_cpu_s.append(time.thread_time() - cpu_began)
        step()
        steps_s.append(time.perf_counter() - began)
        del batch
    return _summarise(batches_cpu_s, steps_s)


def _train_beside_worker(
    make: Make, step: Callable[[], None], refresh: Callable[[], None], values: Values
) -> _Interplay:
    """Measures the batches of a loader's only worker, and the steps while it prepares them."""
    loader = make(1, 1, False)
    loader.collate_fn = functools.partial(_add_cpu_time, loader.collate_fn)
    refresh()
    batches_cpu_s, steps_s, used_s = list[float](), list[float](), 0.0
    batches = iter(loader)
    for _ in range(min(SKIPPED + STEPS, len(loader))):
        batch, worker_cpu_s = next(batches)
        batches_cpu_s.append(worker_cpu_s - used_s)  # with the sending of the batch before
        used_s = worker_cpu_s
        began = time.perf_counter()
        step()
        steps_s.append(time.perf_counter() - began)
        del batch
    return _summarise(batches_cpu_s, steps_s)


def _add_cpu_time(collate: Callable[[Any], Any], samples: Any) -> tuple[Any, float]:
    """Collates a batch; also returns the CPU seconds that this process has used so far."""
    return collate(samples), time.process_time()


def _summarise(batches_cpu_s: list[float], steps_s: list[float]) -> _Interplay:
    """Returns the medians of the counted steps."""
    return _Interplay(
        statistics.median(batches_cpu_s[SKIPPED:]), statistics.median(steps_s[SKIPPED:])
    )
