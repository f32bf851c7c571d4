"""Tests that figures which contradict each other are found, with planted costs."""

import pytest

from speech.calibration.agreement import find_disagreement
from tests.planted_calibrations import planted

# A real launch beside a busy process measured 815 ms inline for such batches
PLAUSIBLE = {"inline_s": 0.046, "prepare_s": 0.05, "sending": 0.08, "receive_s": [(0, 0.0004)]}


def test_plausible_costs_agree() -> None:
    assert find_disagreement(planted(**PLAUSIBLE).loader) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"inline_s": 0.815},
        {"inline_s": 0.015},
        {"prepare_s": 0.3, "sending": 0.85},
        {"receive_s": [(0, 0.027)]},
    ],
)
def test_a_wrong_cost_is_found(wrong: dict) -> None:
    assert find_disagreement(planted(**PLAUSIBLE | wrong).loader)


def test_tiny_batches_may_differ_by_the_clocks_noise() -> None:
    tiny = {"inline_s": 0.0002, "prepare_s": 0.0015, "sending": 0.2}
    assert find_disagreement(planted(**tiny).loader) is None


def test_large_batches_may_take_long_to_copy() -> None:
    large = {"batch_bytes": 400 << 20, "prepare_s": 0.7, "sending": 0.8, "inline_s": 0.14}
    assert find_disagreement(planted(**large, receive_s=[(0, 0.3)]).loader) is None
