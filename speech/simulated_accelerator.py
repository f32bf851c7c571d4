"""Models an accelerator: a queue of steps, each of which takes a fixed time on the host's clock.

Only the accelerator's work is replaced. Clips are read, transformed and sent as usual, so an
epoch's timing is that of the loader. A simulated trial does not learn.

The loop queues a step and goes on, as on a GPU, where a call returns before its kernels have run.
The accelerator begins a step when it is queued and the step before it has ended. `run_ahead` limits
how many steps may be queued or running when the loop goes on; with 0 the loop waits for every step,
as a loop does that reads the loss of each.
"""

import time

from speech.timing import Interval
from speech.training_config import Device


class SimulatedAccelerator:
    """Runs steps one after the other, each for `step_s` seconds."""

    skips_steps = False  # see speech.epoch.Accelerator

    def __init__(self, device_config: Device):
        """Models the accelerator that `device_config` describes; nothing is queued on it."""
        self.config = device_config
        self._busy: list[Interval] = []  # of the steps since the last take, on time.perf_counter
        self._first_step_began = 0.0  # when the loop began to queue the first of them

    def run_step(self) -> None:
        """Queues one step, then waits until no more than `run_ahead` steps have not ended.

        It first uses the CPU for `host_cpu_s`, as launching kernels and copying the batch would.
        """
        until = time.thread_time() + self.config.host_cpu_s
        if not self._busy:
            self._first_step_began = time.perf_counter()
        while time.thread_time() < until:
            pass
        queued = time.perf_counter()
        begin = max(queued, self._busy[-1][1]) if self._busy else queued
        self._busy.append((begin, begin + self.config.step_s))
        if len(self._busy) > self.config.run_ahead:
            _sleep_until(self._busy[-1 - self.config.run_ahead][1])

    def unfinished_steps(self) -> int:
        """Returns how many of the queued steps have not ended."""
        now = time.perf_counter()
        return sum(end > now for _, end in self._busy)

    def synchronise(self) -> None:
        """Waits until all queued steps have ended."""
        if self._busy:
            _sleep_until(self._busy[-1][1])

    def take_busy_intervals(self) -> list[Interval]:
        """Returns the intervals in which a step ran since the last call.

        They are in seconds since the loop began to queue the first of them. Call `synchronise`
        before.
        """
        busy, self._busy = self._busy, []
        return [
            (begin - self._first_step_began, end - self._first_step_began) for begin, end in busy
        ]


def _sleep_until(moment: float) -> None:
    """Sleeps until a moment of time.perf_counter; returns at once if it has passed."""
    seconds = moment - time.perf_counter()
    if seconds > 0:
        time.sleep(seconds)
