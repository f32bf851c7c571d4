"""Times a training step: on the host's cores, beside competing processes, or on an accelerator."""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from speech.calibration import batch_workers
from speech.calibration.batch_workers import BatchWorkers, Pace
from speech.calibration.costs import LoaderCosts, StepCosts
from speech.calibration.loader_timings import MAX_ROUNDS_S, medians
from speech.calibration.queued_steps import CudaSteps, measure_queued_step
from speech.calibration.undisturbed_rounds import Measure, Values, measure_rounds

MIN_STEPS = 2
STEP_ROUNDS = 3
STEP_S, STEP_PARTS = 2.0, 5  # another project's step is timed in this many parts
HOST_BUSY = 0.5  # cores that a step keeps busy; with fewer the host waits for an accelerator


def measure_step(
    step: Callable[[Any], Any], batches: list[Any], costs: LoaderCosts, plain: DataLoader
) -> StepCosts:
    """Measures step(batch) on real batches.

    The costs are those of the host's cores if the step computes on them, and those of a queued step
    if it uses CUDA. Otherwise they are a wait for the accelerator.
    """
    repeated = itertools.cycle(batches)

    def run_step() -> None:
        step(next(repeated))

    run_step()  # allocates memory, compiles, selects kernels
    if torch.cuda.is_initialized():
        return measure_queued_step(CudaSteps(run_step))

    def time_steps(values: Values) -> Pace:
        began, cpu_began, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < STEP_S / STEP_PARTS or not steps:
            run_step()
            steps += 1
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        return Pace(wall_s / steps, cpu_s / steps)

    parts = measure_rounds({"step": time_steps}, STEP_PARTS)["step"]
    step_s, cpu_s = medians(Pace, parts)
    if cpu_s / step_s >= HOST_BUSY:
        return calibrate_step(run_step, max(1, round(cpu_s / step_s)), costs, plain)
    wall = [part.wall_s for part in parts]
    return StepCosts(
        cpu_s=cpu_s, wait_s=max(step_s - cpu_s, 0.0), spread=(max(wall) - min(wall)) / 2 / step_s
    )


class _Shared(NamedTuple):
    """Holds measurements of a step and of competing processes beside it."""

    step_s: list[float]  # one a step
    prepare_s: float  # of a batch of a competing process, without waits for reads


def calibrate_step(
    step: Callable[[], None],
    threads: int,
    beside: LoaderCosts,
    loader: DataLoader,
    refresh: Callable[[], None] = lambda: None,
) -> StepCosts:
    """Measures a training step that computes on `threads` threads of the host.

    It is measured alone and beside competing processes that prepare batches of `loader`. `step`
    runs one step to its end. `beside` holds the costs of preparation without a step. `refresh` is
    called before every pass over the data.
    """
    step()
    counts = sorted({1, math.ceil(beside.cores)})

    def alone(values: Values) -> list[float]:
        return time_steps(step, batch_workers.WINDOW_S)

    def shared(count: int, values: Values) -> _Shared:
        with BatchWorkers(loader, count, batch_workers.WINDOW_S, refresh) as processes:
            seconds = time_steps(step, batch_workers.WINDOW_S, processes.all_reported)
            pace = processes.mean_pace()
        return _Shared(seconds, max(pace.wall_s - beside.read_s, pace.cpu_s))

    figures: dict[Hashable, Measure] = {"alone": alone}
    figures |= {count: functools.partial(shared, count) for count in counts}
    values = measure_rounds(figures, STEP_ROUNDS, MAX_ROUNDS_S)
    # Threads that wait for each other occasionally take ten times as long
    step_s = statistics.median(itertools.chain(*values["alone"]))
    cpu_s = step_s / max(1.0, threads / beside.cores)
    prepare_s = beside.prepare_s * (1 - beside.sending)  # these processes do not send their batches
    slower, preparing = [], []
    for count in counts:
        even = max(1.0, (threads + count) / beside.cores)
        steps_s = statistics.median(itertools.chain(*(one.step_s for one in values[count])))
        pace_s = statistics.median(one.prepare_s for one in values[count])
        slower.append((count, steps_s / (cpu_s * even)))
        preparing.append((count, pace_s / (prepare_s * even)))
    round_medians = [statistics.median(seconds) for seconds in values["alone"]]
    spread = (max(round_medians) - min(round_medians)) / 2 / step_s
    return StepCosts(
        cpu_s=cpu_s,
        threads=threads,
        beside=slower,
        prepare_beside=preparing,
        spread=spread,
    )


def time_steps(
    step: Callable[[], None], window_s: float, enough: Callable[[], bool] = lambda: True
) -> list[float]:
    """Measures the seconds of every step during `window_s`.

    It continues for at least MIN_STEPS steps, and until `enough` returns true.
    """
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < MIN_STEPS or time.perf_counter() - began < window_s or not enough():
        began_step = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began_step)
    return seconds
