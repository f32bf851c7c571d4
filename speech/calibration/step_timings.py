"""Times a training step: on the host's cores, beside competing processes, or on an accelerator."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from speech.calibration import batch_workers
from speech.calibration.batch_workers import BatchWorkers
from speech.calibration.costs import LoaderCosts, StepCosts

MIN_STEPS = 2
STEP_ROUNDS = 2  # a step with threads that wait for each other takes seconds beside other processes
STEP_S, STEPS = 2.0, 5  # another project's step is timed for at least this many seconds and runs
HOST_BUSY = 0.5  # cores that a step keeps busy; with fewer the host waits for an accelerator


def measure_step(
    step: Callable[[Any], Any], batches: list[Any], costs: LoaderCosts, plain: DataLoader
) -> StepCosts:
    """Measures step(batch) on real batches.

    The costs are those of the host's cores if the step computes on them. Otherwise they are a wait
    for the accelerator.
    """
    repeated = itertools.cycle(batches)

    def run_step() -> None:
        step(next(repeated))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    run_step()  # allocates memory, compiles, selects kernels
    step_seconds: list[float] = []
    cpu_began = time.process_time()
    until = time.perf_counter() + STEP_S
    while time.perf_counter() < until or len(step_seconds) < STEPS:
        began = time.perf_counter()
        run_step()
        step_seconds.append(time.perf_counter() - began)
    step_s, cpu_s = (
        statistics.median(step_seconds),
        (time.process_time() - cpu_began) / len(step_seconds),
    )
    # A host that waits for a GPU may spin, and its CPU time then does not count
    if cpu_s / step_s >= HOST_BUSY and not torch.cuda.is_initialized():
        return calibrate_step(run_step, max(1, round(cpu_s / step_s)), costs, plain)
    fifth = len(step_seconds) // 5
    means = [
        statistics.mean(step_seconds[first : first + fifth]) for first in range(0, 5 * fifth, fifth)
    ]
    return StepCosts(
        cpu_s=cpu_s, wait_s=max(step_s - cpu_s, 0.0), spread=(max(means) - min(means)) / 2 / step_s
    )


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
    alone: list[list[float]] = []
    steps: dict[int, list[float]] = {count: [] for count in counts}
    paces: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(STEP_ROUNDS):
        alone.append(_time_steps(step))
        for count in counts:
            with BatchWorkers(loader, count, batch_workers.WINDOW_S, refresh) as processes:
                steps[count] += _time_steps(step, processes.all_reported)
                pace = processes.mean_pace()
            paces[count].append(max(pace.wall_s - beside.read_s, pace.cpu_s))
    # Threads that wait for each other occasionally take ten times as long
    step_s = statistics.median(itertools.chain(*alone))
    cpu_s = step_s / max(1.0, threads / beside.cores)
    prepare_s = beside.prepare_s * (1 - beside.sending)  # these processes do not send their batches
    slower, preparing = [], []
    for count in counts:
        even = max(1.0, (threads + count) / beside.cores)
        slower.append((count, statistics.median(steps[count]) / (cpu_s * even)))
        preparing.append((count, statistics.mean(paces[count]) / (prepare_s * even)))
    round_medians = [statistics.median(seconds) for seconds in alone]
    spread = (max(round_medians) - min(round_medians)) / 2 / step_s
    return StepCosts(
        cpu_s=cpu_s, threads=threads, beside=slower, prepare_beside=preparing, spread=spread
    )


def _time_steps(step: Callable[[], None], enough: Callable[[], bool] = lambda: True) -> list[float]:
    """Measures the seconds of every step during the window.

    It continues for at least MIN_STEPS steps, and until `enough` returns true.
    """
    seconds: list[float] = []
    began = time.perf_counter()
    while (
        len(seconds) < MIN_STEPS
        or time.perf_counter() - began < batch_workers.WINDOW_S
        or not enough()
    ):
        began_step = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began_step)
    return seconds
