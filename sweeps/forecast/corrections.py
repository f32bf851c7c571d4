"""Corrects forecasts after a trial has shown that its calibration is wrong.

A trial that lies outside its interval by more than the interval's width is no chance: a cost in its
calibration is wrong. The further trials of the same calibration, with workers or without, are then
corrected by the factor that this trial was off. The two are corrected apart, since they depend on
different costs.
"""

from dataclasses import dataclass, field, replace

from speech.calibration.costs import Calibration
from sweeps.forecast.forecast import Forecast


def is_wrong(forecast: Forecast, measured_s: float) -> bool:
    """Returns whether a time lies outside an interval by more than the interval's width."""
    width_s = forecast.high_s - forecast.low_s
    return not forecast.low_s - width_s <= measured_s <= forecast.high_s + width_s


@dataclass
class Corrections:
    """Holds the factors by which the forecasts of the trials of one Ray actor turned out wrong."""

    _factors: list[tuple[Calibration, bool, float]] = field(default_factory=list)

    def factor(self, calibration: Calibration, workers: int) -> float:
        """Returns by which factor forecasts of a calibration are to be multiplied."""
        return next(
            (
                factor
                for wrong, with_workers, factor in self._factors
                if wrong == calibration and with_workers == (workers > 0)
            ),
            1.0,
        )

    def correct(self, forecast: Forecast, calibration: Calibration, workers: int) -> Forecast:
        """Returns the forecast with its epoch multiplied by the factor."""
        factor = self.factor(calibration, workers)
        return replace(
            forecast,
            epoch_s=factor * forecast.epoch_s,
            low_s=factor * forecast.low_s,
            high_s=factor * forecast.high_s,
        )

    def learn(
        self, forecast: Forecast, calibration: Calibration, workers: int, measured_s: float
    ) -> str | None:
        """Notes a trial's time; returns a sentence if its forecast was wrong.

        `forecast` is the corrected one.
        """
        if not is_wrong(forecast, measured_s):
            return None
        factor = self.factor(calibration, workers) * measured_s / forecast.epoch_s
        self._factors.insert(0, (calibration, workers > 0, factor))
        which = "with workers" if workers else "without workers"
        return (
            f"its epochs took {measured_s:.2f} s; the forecast was {forecast.epoch_s:.2f} s"
            f" ({forecast.low_s:.2f} to {forecast.high_s:.2f}). Its calibration is wrong:"
            f" forecasts {which} are multiplied by {factor:.2f} from here on"
        )
