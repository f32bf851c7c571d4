"""Models the resources of a simulated epoch that have a state: a CPU quota and an accelerator."""

import itertools
import math

from sweeps.forecast.simulation_types import STALL_S, Epoch

ROUNDING_S = 1e-12  # rounding error of sums of seconds


class Quota:
    """Remaining CPU seconds of the current period. Every period starts with the full quota."""

    def __init__(self, epoch: Epoch):
        self.per_period_s, self.period_s = epoch.cores * epoch.period_s, epoch.period_s
        self.period_began, self.remaining_s = 0.0, self.per_period_s

    def next_change(self, now: float, used_cores: float) -> float:
        """Returns when `used_cores` busy cores use up the quota, or when the period ends if sooner.

        Starts a new period first if `now` lies beyond the current one.
        """
        passed = math.floor((now - self.period_began) / self.period_s + 1e-9)
        if passed > 0:
            self.period_began += passed * self.period_s
            self.remaining_s = self.per_period_s
        period_end = self.period_began + self.period_s
        if used_cores and self.remaining_s:
            return min(period_end, now + self.remaining_s / used_cores)
        return period_end

    def use(self, seconds: float, until_change: bool) -> None:
        """Subtracts used CPU seconds.

        `until_change` means that they were used until `next_change`. A remainder below the clock's
        last digit is then dropped.
        """
        self.remaining_s = max(self.remaining_s - seconds, 0.0)
        if until_change and self.remaining_s < 1e-9 * self.per_period_s:
            self.remaining_s = 0.0

    def compute(self, now: float, seconds: float, used_cores: float) -> float:
        """Returns when `used_cores` busy cores have computed for `seconds` beginning at `now`.

        They compute only while the quota lasts.
        """
        while seconds > ROUNDING_S:
            change = self.next_change(now, used_cores)
            if not self.remaining_s:
                now = change
                continue
            span_s = min(seconds, change - now)
            self.use(span_s * used_cores, span_s < seconds)
            now = change if span_s < seconds else now + span_s
            seconds -= span_s
        return now


class AcceleratorQueue:
    """Queue of the steps of an epoch, of which an accelerator runs one after the other."""

    def __init__(self, epoch: Epoch):
        self.step_s, self.run_ahead = epoch.step_wait_s, epoch.run_ahead
        self.launch_overlaps = epoch.launch_overlaps
        self.busy: list[tuple[float, float]] = []  # begin and end of the work, a step each

    def queue(self, began: float, now: float) -> float:
        """Queues a step that the loop began at `began` and has launched by `now`.

        Returns the time until which the loop waits. If there is no accelerator, the loop itself has
        executed the step, and does not wait.
        """
        if not self.step_s:
            self.busy.append((began, now))
            return now
        begin = max(began if self.launch_overlaps else now, self.last_end)
        self.busy.append((begin, max(begin + self.step_s, now)))
        return self.busy[-1 - self.run_ahead][1] if len(self.busy) > self.run_ahead else now

    @property
    def last_end(self) -> float:
        """End of the last step, or 0."""
        return self.busy[-1][1] if self.busy else 0.0

    def gaps(self) -> tuple[int, float]:
        """Returns the number of steps that began after a stall, and the longest gap in seconds."""
        gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(self.busy)]
        return sum(gap > STALL_S for gap in gaps), max(gaps, default=0.0)
