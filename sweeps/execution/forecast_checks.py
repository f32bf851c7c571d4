"""Forecasts a trial anew from what it reports, and notices a wrong calibration.

At the trial's start the forecast is scaled by the speed that the trial has probed, and corrected by
what earlier trials have shown. Afterwards it is scaled by the speed that the timed epochs met, as
the CPU seconds of their batches tell it.
"""

from typing import Any

from speech.calibration.costs import Slowdown, Speed
from speech.config import TrialConfig
from sweeps.execution.launch_context import TrialPlan
from sweeps.forecast.corrections import Corrections, is_wrong
from sweeps.forecast.forecast import Forecast
from sweeps.forecast.speed_check import SCALABLE


def forecast_at_start(
    config: TrialConfig, plan: TrialPlan, setup: dict[str, Any], corrections: Corrections
) -> Forecast | None:
    """Returns the forecast at the speed in the trial's setup record, corrected by earlier trials.

    Without a probe the planned forecast is corrected. Returns None without a planned forecast, and
    for a trial that continues: epochs of the interrupted attempt met the speed of another hour.
    """
    if not (plan.forecast and plan.calibration) or "continued_epoch" in setup:
        return None
    forecast = plan.forecast
    if setup.get("speed") and plan.calibration.speed:
        slowdown = Speed.model_validate(setup["speed"]).slowdown(plan.calibration.speed)
        forecast = plan.forecast_at(config, slowdown)
    return corrections.correct(forecast, plan.calibration, config.loader.num_workers)


def forecast_at_speed(
    config: TrialConfig, plan: TrialPlan, summary: dict[str, float]
) -> Forecast | None:
    """Returns the forecast at the speed that the epochs of a trial's summary met.

    Returns None without a planned forecast or where the speed is unknown.
    """
    slowdown = _met_slowdown(plan, summary)
    return plan.forecast_at(config, slowdown) if slowdown else None


def check_forecast(
    config: TrialConfig,
    plan: TrialPlan,
    setup: dict[str, Any],
    summary: dict[str, float],
    corrections: Corrections,
) -> str | None:
    """Returns a sentence if the trial shows that its calibration is wrong, and notes the factor.

    The calibration is not wrong if the speed that the trial met explains its time, and is a speed
    that the cores of one machine can have.
    """
    forecast = forecast_at_start(config, plan, setup, corrections)
    if forecast is None or plan.calibration is None or "epoch_s" not in summary:
        return None
    met = _met_slowdown(plan, summary)
    if (
        met
        and 1 / SCALABLE <= met.prepare <= SCALABLE
        and not is_wrong(plan.forecast_at(config, met), summary["epoch_s"])
    ):
        return None
    return corrections.learn(
        forecast, plan.calibration, config.loader.num_workers, summary["epoch_s"]
    )


def _met_slowdown(plan: TrialPlan, summary: dict[str, float]) -> Slowdown | None:
    """Returns by how much slower the epochs' batches were than planned; None if it is unknown."""
    if not (plan.forecast and plan.calibration):
        return None
    met_s, planned_s = summary.get("batch_cpu_s", 0.0), plan.forecast.batch_cpu_s
    if min(met_s, planned_s) <= 0:  # without a batch, or one below the clock's resolution
        return None
    factor = met_s / planned_s
    return Slowdown(prepare=factor, step=factor)
