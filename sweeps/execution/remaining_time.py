"""Estimates how long the trials of a launch still take.

The remaining time is the forecast, corrected by measurements. If trials took 1.2 times their
forecast, so will the remaining ones of their block, with workers or without: these depend on the
same measured costs. A trial that has completed epochs is extrapolated from them. A trial without a
forecast is expected to take as long as the other trials of its block.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.config.plan import TrialSpec


@dataclass
class RunningTrial:
    """A running trial. Its moments are values of time.monotonic()."""

    spec: TrialSpec
    began: float
    epochs: int = 0  # completed
    skipped: int = 0  # of these, those completed by an interrupted attempt
    latest: float = 0.0  # end of the last epoch

    def remaining_s(self, forecast_s: float | None, now: float) -> float | None:
        """Returns the remaining seconds, extrapolated from completed epochs, or from the forecast
        while none has completed.
        """
        if trained := self.epochs - self.skipped:
            epoch_s = (self.latest - self.began) / trained
            return max(
                0.0, epoch_s * (self.spec.config.sgdr.epochs - self.epochs) - (now - self.latest)
            )
        return None if forecast_s is None else max(0.0, forecast_s - (now - self.began))


@dataclass
class RemainingTime:
    """Estimates how long trials take, from forecasts and measurements."""

    expected_s: Mapping[str, float | None]
    # Of completed trials, by trial id: the trial, and seconds from start to end
    took_s: dict[str, tuple[TrialSpec, float]] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """Ratio of measured to forecast duration over all completed trials with a forecast; 1.0
        without any.
        """
        return self._ratio(list(self.took_s.values())) or 1.0

    def _ratio(self, completed: list[tuple[TrialSpec, float]]) -> float | None:
        """Returns the ratio of measured to forecast duration; None without a forecast."""
        pairs = [
            (took_s, expected_s)
            for spec, took_s in completed
            if (expected_s := self.expected_s.get(spec.trial_id))
        ]
        if not pairs:
            return None
        return sum(took_s for took_s, _ in pairs) / sum(expected_s for _, expected_s in pairs)

    def remaining_s(
        self, waiting: Sequence[TrialSpec], running: Sequence[RunningTrial], now: float
    ) -> tuple[float, int]:
        """Returns the remaining seconds of all trials, with as many at once as run now.

        Also returns the number of trials without an estimate, whose time is not included.
        """
        completed = list(self.took_s.values())  # copied, since another thread adds to it
        overall, by_block = self.factor, defaultdict[str, list[float]](list)
        similar = defaultdict[tuple[str, bool], list[tuple[TrialSpec, float]]](list)
        for spec, took_s in completed:
            by_block[spec.block].append(took_s)
            similar[_group(spec)].append((spec, took_s))
        block_median_s = {
            block: statistics.median(durations) for block, durations in by_block.items()
        }
        factors = {group: self._ratio(trials) for group, trials in similar.items()}

        def total_s(spec: TrialSpec) -> float | None:
            """Returns the duration of a whole trial; None without a forecast and without a
            completed trial of its block.
            """
            expected_s = self.expected_s.get(spec.trial_id)
            if expected_s is None:
                return block_median_s.get(spec.block)
            return (factors.get(_group(spec)) or overall) * expected_s

        estimates = [total_s(spec) for spec in waiting] + [
            trial.remaining_s(total_s(trial.spec), now) for trial in running
        ]
        known = [seconds for seconds in estimates if seconds is not None]
        return sum(known) / max(1, len(running)), len(estimates) - len(known)


def _group(spec: TrialSpec) -> tuple[str, bool]:
    """Returns what trials have in common that are wrongly forecast by the same factor."""
    return spec.block, spec.config.loader.num_workers > 0
