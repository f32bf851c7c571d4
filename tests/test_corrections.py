"""Tests how a wrong forecast is noticed, and what it corrects."""

from dataclasses import replace

import pytest

from sweeps.forecast.corrections import Corrections, is_wrong
from sweeps.forecast.forecast import EpochSettings, Forecast, forecast_epoch
from tests.planted_calibrations import planted

PNG, WAV = planted(inline_s=0.8), planted(inline_s=0.02)


def forecast(epoch_s: float, low_s: float, high_s: float) -> Forecast:
    any_forecast = forecast_epoch(PNG, EpochSettings(4, 0, 2, True), max_bytes=0)
    return replace(any_forecast, epoch_s=epoch_s, low_s=low_s, high_s=high_s)


@pytest.mark.parametrize(
    ("measured_s", "wrong"), [(2.0, False), (2.7, False), (3.1, True), (1.3, False), (0.9, True)]
)
def test_wrong_is_outside_by_more_than_the_width(measured_s: float, wrong: bool) -> None:
    assert is_wrong(forecast(2.0, 1.7, 2.3), measured_s) == wrong


def test_a_wrong_forecast_corrects_those_of_its_calibration_and_its_kind_alone() -> None:
    corrections = Corrections()
    planned = forecast(32.9, 29.5, 36.3)
    sentence = corrections.learn(planned, PNG, 0, 2.7)
    assert sentence
    for figure in ("2.70 s", "32.90 s", "29.50", "36.30", "0.08"):
        assert figure in sentence
    factor = 2.7 / 32.9
    assert corrections.factor(PNG, 0) == pytest.approx(factor)
    assert [corrections.factor(*other) for other in ((PNG, 1), (PNG, 8), (WAV, 0))] == [1.0] * 3
    corrected = corrections.correct(planned, PNG, 0)
    assert (corrected.low_s, corrected.epoch_s, corrected.high_s) == pytest.approx(
        (29.5 * factor, 2.7, 36.3 * factor)
    )
    assert corrections.correct(planned, WAV, 0) == planned


def test_a_corrected_forecast_that_is_right_says_nothing_and_a_wrong_one_corrects_again() -> None:
    corrections = Corrections()
    planned = forecast(32.9, 29.5, 36.3)
    corrections.learn(planned, PNG, 0, 2.7)
    assert corrections.learn(corrections.correct(planned, PNG, 0), PNG, 0, 2.75) is None
    assert corrections.learn(corrections.correct(planned, PNG, 0), PNG, 0, 5.4)
    assert corrections.factor(PNG, 0) == pytest.approx(5.4 / 32.9)
