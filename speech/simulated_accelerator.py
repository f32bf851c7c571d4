"""Models an accelerator: a queue of steps, each of which takes a fixed time on the host's clock.

Only the accelerator's work is replaced. Clips are read, transformed and sent as usual, so an
epoch's timing is that of the loader. A simulated trial does not learn.

The loop queues a step and goes on, as on a GPU, where a call returns before its kernels have run.
The accelerator begins a step when it is queued and the step before it has ended. `run_ahead` limits
how many steps may be queued or running when the loop goes on; with 0 the loop waits for every step,
as a loop does that reads the loss of each.

The accelerators of several ranks exchange gradients in every step, so they begin it together, when
the last rank has queued it.
"""

import time

from speech.ranks import Member, single_rank
from speech.timing import Interval
from speech.training_config import Device


class SimulatedAccelerator:
    """Runs steps one after the other, each for `step_s` seconds."""

    skips_steps = False  # see speech.epoch.Accelerator

    def __init__(self, device_config: Device, member: Member | None = None):
        """Models the accelerator of a rank, as `device_config` describes it; nothing is queued."""
        self.config, self.member = device_config, member or single_rank()
        # Of the steps since the last take, on time.perf_counter: when each was queued here, and
        # when those ran whose begin is known
        self._queued: list[float] = []
        self._busy: list[Interval] = []

    def run_step(self) -> None:
        """Queues one step, then waits until no more than `run_ahead` steps have not ended.

        It first uses the CPU for `host_cpu_s`, as launching kernels and copying the batch would.
        """
        until = time.thread_time() + self.config.host_cpu_s
        while time.thread_time() < until:
            pass
        self._queued.append(time.perf_counter())
        self.member.send_moment(self._queued[-1])
        awaited = len(self._queued) - 1 - self.config.run_ahead
        if awaited >= 0:
            _sleep_until(self._find_interval(awaited)[1])

    def _find_interval(self, step: int) -> Interval:
        """Returns when a queued step runs; waits until all ranks have queued it."""
        while len(self._busy) <= step:
            queued = max([self._queued[len(self._busy)], *self.member.receive_moments()])
            begin = max(queued, self._busy[-1][1]) if self._busy else queued
            self._busy.append((begin, begin + self.config.step_s))
        return self._busy[step]

    def unfinished_steps(self) -> int:
        """Returns how many of the queued steps have not ended."""
        now = time.perf_counter()
        return sum(self._find_interval(step)[1] > now for step in range(len(self._queued)))

    def last_step_s(self) -> float:
        """Returns the seconds that the accelerator works on a step."""
        return self.config.step_s

    def synchronise(self) -> None:
        """Waits until all queued steps have ended."""
        if self._queued:
            _sleep_until(self._find_interval(len(self._queued) - 1)[1])

    def take_busy_intervals(self) -> list[Interval]:
        """Returns the intervals in which a step ran since the last call, on time.perf_counter.

        Call `synchronise` before.
        """
        self._queued, busy, self._busy = [], self._busy, []
        return busy


def _sleep_until(moment: float) -> None:
    """Sleeps until a moment of time.perf_counter; returns at once if it has passed."""
    seconds = moment - time.perf_counter()
    if seconds > 0:
        time.sleep(seconds)
