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


class CudaSteps:
    """Runs any training step on CUDA, and watches which of its calls have ended there."""

    def __init__(self, step: Callable[[], Any]):
        """Watches `step`, which queues its work on the current stream."""
        self._step = step
        self._ends: list[torch.cuda.Event] = []

    def run_step(self) -> None:
        """Queues one step."""
        self._step()
        end = torch.cuda.Event()
        end.record()
        self._ends.append(end)

    def synchronise(self) -> None:
        """Waits until all queued steps have ended."""
        torch.cuda.synchronize()
        self._ends.clear()

    def unfinished_steps(self) -> int:
        """Returns how many queued steps have not ended."""
        return sum(not end.query() for end in self._ends)


class _Part(NamedTuple):
    """Holds the figures of one part of the measurement; seconds are those of one step."""

    call_s: float  # until the call returns, on an idle accelerator
    call_cpu_s: float  # CPU seconds of this process in the call
    whole_s: float  # until the step has ended, on an idle accelerator
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
        return StepCosts(
            cpu_s=min(part.call_cpu_s, part.whole_s),
            wait_s=max(part.whole_s - part.call_cpu_s, 0.0),
            spread=spread,
        )
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
    calls_s, calls_cpu_s, wholes_s = list[float](), list[float](), list[float]()
    for _ in range(ALONE):
        steps.synchronise()
        # The backward pass launches its kernels in a thread of its own
        began, cpu_began = time.perf_counter(), time.process_time()
        steps.run_step()
        calls_s.append(time.perf_counter() - began)
        calls_cpu_s.append(time.process_time() - cpu_began)
        steps.synchronise()
        wholes_s.append(time.perf_counter() - began)
    ahead = []
    began = time.perf_counter()
    for _ in range(ROW):
        steps.run_step()
        ahead.append(steps.unfinished_steps())
    steps.synchronise()
    row_s = (time.perf_counter() - began) / ROW
    return _Part(
        call_s=statistics.median(calls_s),
        call_cpu_s=statistics.median(calls_cpu_s),
        whole_s=statistics.median(wholes_s),
        row_s=row_s,
        ahead=statistics.median(ahead[ROW // 2 :]),
    )


def measure_pinning(batch: list[torch.Tensor]) -> float:
    """Measures the CPU seconds to copy a batch to pinned memory, as the loader's thread does.

    Pinned memory is kept for later batches, so the first copy does not count.
    """
    seconds = []
    for _ in range(1 + PARTS):
        began = time.thread_time()
        pinned = [tensor.pin_memory() for tensor in batch]
        seconds.append(time.thread_time() - began)
        del pinned
    return statistics.median(seconds[1:])
