"""Times a training step that an accelerator executes while the loop goes on.

A call queues the step and returns; the accelerator then works for seconds of its own. A synchronous
timing would measure their sum, which an epoch takes only if the loop waits for every step. Three
measurements tell them apart: one step on an idle accelerator until its call returns, the same step
until it has ended, and a row of steps, with how many had not ended whenever a call returned.
Nothing synchronises within the row.

The copy of a batch to the accelerator is part of the call. From memory that is not pinned, a CUDA
copy may wait for the steps before it; the loop then gets at most one step ahead.

The timings have run on the simulated accelerator, and not on CUDA yet.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from speech.calibration.costs import StepCosts
from speech.calibration.loader_timings import medians
from speech.calibration.undisturbed_rounds import measure_rounds

PARTS = 5
ALONE = 3  # steps of a part on an idle accelerator
ROW = 24  # steps of a row; the second half is counted, when the queue is as long as it gets


class QueuedSteps(Protocol):
    """Describes a training step whose call may return before the step has ended."""

    def run_step(self) -> object:
        """Queues one step."""

    def synchronise(self) -> None:
        """Waits until all queued steps have ended."""

    def unfinished_steps(self) -> int:
        """Returns how many queued steps have not ended."""

    def last_step_s(self) -> float:
        """Returns the seconds that the accelerator worked on the last step, which has ended."""


class CudaSteps:
    """Runs any training step on CUDA, and watches which of its calls have ended there."""

    def __init__(self, step: Callable[[], Any]):
        """Watches `step`, which queues its work on the current stream."""
        self._step = step
        self._ends: list[torch.cuda.Event] = []
        self._begin = self._end = torch.cuda.Event(enable_timing=True)  # of the last step

    def run_step(self) -> None:
        """Queues one step."""
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record()
        self._step()
        self._end.record()
        self._ends.append(self._end)

    def synchronise(self) -> None:
        """Waits until all queued steps have ended."""
        torch.cuda.synchronize()
        self._ends.clear()

    def unfinished_steps(self) -> int:
        """Returns how many queued steps have not ended."""
        return sum(not end.query() for end in self._ends)

    def last_step_s(self) -> float:
        """Returns the seconds from the moment at which the host began the last step, which an idle
        GPU reaches at once, until its last kernel ended.
        """
        return self._begin.elapsed_time(self._end) / 1000


class _Part(NamedTuple):
    """Holds the figures of one part of the measurement; seconds are those of one step."""

    call_s: float  # until the call returns, on an idle accelerator
    whole_s: float  # until the step has ended, on an idle accelerator
    busy_s: float  # for which the accelerator worked on it
    row_s: float  # in a row of steps
    ahead: float  # steps that had not ended when a call of the row returned


def measure_queued_step(steps: QueuedSteps) -> StepCosts:
    """Measures the costs of a step: the host's, the accelerator's, and how far the loop gets ahead.

    Raises MachineBusy.
    """
    steps.run_step()  # allocates memory and chooses kernels
    steps.synchronise()
    parts = measure_rounds({"step": lambda _: _measure_part(steps)}, PARTS)["step"]
    part = medians(_Part, parts)
    rows_s = [one.row_s for one in parts]
    spread = (max(rows_s) - min(rows_s)) / 2 / part.row_s
    run_ahead = round(part.ahead)
    if not run_ahead:
        # On CUDA all of it is the accelerator's. This process's CPU time would not tell them apart:
        # a loop that waits for a GPU spins on its core, and sharing that core delays no kernel
        wait_s = min(part.busy_s, part.whole_s)
        return StepCosts(cpu_s=part.whole_s - wait_s, wait_s=wait_s, spread=spread)
    # The sum of both if the accelerator begins when the call returns, the longer one if it begins
    # with the call
    launch_s, step_s = part.call_s, part.row_s
    overlap_s = launch_s + step_s - part.whole_s
    return StepCosts(
        cpu_s=launch_s,
        wait_s=step_s,
        run_ahead=run_ahead,
        launch_overlaps=overlap_s > min(launch_s, step_s) / 2,
        spread=spread,
    )


def _measure_part(steps: QueuedSteps) -> _Part:
    """Measures some steps on an idle accelerator, and a row of them."""
    calls_s, wholes_s, busy_s = list[float](), list[float](), list[float]()
    for _ in range(ALONE):
        steps.synchronise()
        began = time.perf_counter()
        steps.run_step()
        calls_s.append(time.perf_counter() - began)
        steps.synchronise()
        wholes_s.append(time.perf_counter() - began)
        busy_s.append(steps.last_step_s())
    ahead = []
    began = time.perf_counter()
    for _ in range(ROW):
        steps.run_step()
        ahead.append(steps.unfinished_steps())
    steps.synchronise()
    row_s = (time.perf_counter() - began) / ROW
    return _Part(
        call_s=statistics.median(calls_s),
        whole_s=statistics.median(wholes_s),
        busy_s=statistics.median(busy_s),
        row_s=row_s,
        ahead=statistics.median(ahead[ROW // 2 :]),
    )


def measure_pinning(batch: list[torch.Tensor]) -> float:
    """Measures the CPU seconds to copy a batch to pinned memory, as the loader's thread does.

    That thread copies on one core. Pinned memory is kept for later batches, so the first copy does
    not count.
    """
    seconds, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(1 + PARTS):
        began = time.thread_time()
        pinned = [tensor.pin_memory() for tensor in batch]
        seconds.append(time.thread_time() - began)
        del pinned
    torch.set_num_threads(threads)
    return statistics.median(seconds[1:])
