"""Tests when a trial shows that its calibration is wrong, and when the machine's speed explains
it."""

from dataclasses import replace

import pytest

from speech.calibration.costs import Slowdown
from speech.config import RuntimeSettings
from sweeps.execution.forecast_checks import (
    check_forecast,
    forecast_at_speed,
    forecast_at_start,
)
from sweeps.execution.launch_context import TrialPlan
from sweeps.forecast.corrections import Corrections
from sweeps.forecast.forecast import forecast_trial
from sweeps.forecast.shm_fit import shm_requirement
from tests.planted_calibrations import PACE_S, planted

CLIPS = 400


@pytest.fixture
def planned(tone_trial):
    """Returns a trial without workers, and its plan with a forecast from round costs."""
    config = tone_trial(device={"prefer": ["simulated"], "step_s": 0.001})
    requirement, calibration = shm_requirement(config, CLIPS, 6, 1 << 30), planted()
    forecast = forecast_trial(config, calibration, CLIPS, requirement)
    plan = TrialPlan(RuntimeSettings(), requirement, forecast, calibration, CLIPS)
    return config, plan


def slower(plan: TrialPlan, config, factor: float) -> dict[str, float]:
    """Returns the summary of a trial on cores that are slower than calibrated."""
    forecast = plan.forecast_at(config, Slowdown(prepare=factor, step=factor))
    return {"epoch_s": forecast.epoch_s, "batch_cpu_s": factor * plan.forecast.batch_cpu_s}


def setup_at(factor: float) -> dict:
    """Returns the setup record of a trial that probed cores slower by this factor."""
    return {"speed": {"prepare_s": factor * PACE_S, "step_s": None}}


def test_the_forecast_at_start_follows_the_probe_and_earlier_trials(planned) -> None:
    config, plan = planned
    at_start = forecast_at_start(config, plan, setup_at(1.4), Corrections())
    assert at_start.epoch_s == pytest.approx(slower(plan, config, 1.4)["epoch_s"])
    corrections = Corrections()
    corrections.learn(plan.forecast, plan.calibration, 0, 10 * plan.forecast.epoch_s)
    corrected = forecast_at_start(config, plan, {}, corrections)
    assert corrected.epoch_s == pytest.approx(10 * plan.forecast.epoch_s)
    assert forecast_at_start(config, plan, {"continued_epoch": 2}, corrections) is None
    assert forecast_at_start(config, replace(plan, forecast=None), {}, corrections) is None


def test_the_forecast_at_the_met_speed_follows_the_batches(planned) -> None:
    config, plan = planned
    summary = slower(plan, config, 0.6)
    assert forecast_at_speed(config, plan, summary).epoch_s == pytest.approx(summary["epoch_s"])
    assert forecast_at_speed(config, plan, {"epoch_s": 1.0}) is None


def test_a_time_that_the_met_speed_explains_corrects_nothing(planned) -> None:
    """The probe found fast cores, and the epochs met slow ones."""
    config, plan = planned
    corrections = Corrections()
    summary = slower(plan, config, 1.6)
    assert check_forecast(config, plan, setup_at(0.7), summary, corrections) is None
    assert corrections.factor(plan.calibration, 0) == 1.0


def test_a_time_that_the_met_speed_does_not_explain_shows_a_wrong_calibration(planned) -> None:
    config, plan = planned
    corrections = Corrections()
    summary = slower(plan, config, 1.0) | {"epoch_s": 3 * plan.forecast.epoch_s}
    assert check_forecast(config, plan, {}, summary, corrections)
    assert corrections.factor(plan.calibration, 0) == pytest.approx(3.0)


def test_a_speed_that_no_core_has_is_a_wrong_calibration(planned) -> None:
    """Expects batches of 46 ms, calibrated at 815 ms, to be no faster cores."""
    config, plan = planned
    corrections = Corrections()
    summary = slower(plan, config, 46 / 815)
    assert check_forecast(config, plan, {}, summary, corrections)
    assert corrections.factor(plan.calibration, 0) == pytest.approx(
        summary["epoch_s"] / plan.forecast.epoch_s
    )


def test_a_trial_without_a_time_or_without_a_forecast_shows_nothing(planned) -> None:
    config, plan = planned
    assert check_forecast(config, plan, {}, {}, Corrections()) is None
    bare = replace(plan, forecast=None, calibration=None)
    assert check_forecast(config, bare, {}, {"epoch_s": 9.0}, Corrections()) is None
