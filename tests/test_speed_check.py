"""Tests the check of cached calibrations against the machine's present speed."""

import os
from pathlib import Path

import pytest

from speech.config import RuntimeSettings
from sweeps.forecast.calibration import CalibrationRequest
from sweeps.forecast.speed_check import check_calibrations
from sweeps.sandbox.isolation import ForkServer
from tests.planted_calibrations import PACE_S, planted
from tests.trees import ROOT, can_isolate

SIMULATED = {"prefer": ["simulated"], "step_s": 0.01}


@pytest.fixture(scope="module")
def server():
    """Returns a fork server whose probe finds the slowdown that model.weights states."""
    made = ForkServer(ROOT, tasks="tests.planted_calibrations")
    yield made
    made.close()


def check(server, tone_trial, folder: Path, way: str, cached):
    """Returns what remains of `cached` at this slowdown, and the lines."""
    config = tone_trial(device=SIMULATED, model={"weights": way})
    runtime = RuntimeSettings(threads=1, cpus=[min(os.sched_getaffinity(0))])
    request, lines = CalibrationRequest("abc", config, runtime), list[str]()
    checked = check_calibrations(
        server, [request], cached, can_isolate(), folder / "log", lines.append
    )
    return checked, lines


@pytest.mark.parametrize(
    ("way", "factor"), [("1.05", 1.0), ("0.95", 1.0), ("1.4", 1.4), ("0.7", 0.7)]
)
def test_costs_are_scaled_by_the_slowdown_unless_it_is_small(
    server, tone_trial, tmp_path, way: str, factor: float
) -> None:
    other = planted(inline_s=0.5)
    checked, lines = check(server, tone_trial, tmp_path, way, {"abc": planted(), "other": other})
    assert checked["abc"].loader.inline_s == pytest.approx(0.08 * factor)
    assert checked["abc"].speed.prepare_s == pytest.approx(PACE_S * factor)
    assert checked["other"] == other
    # It has shown two speeds, and may change back while the trials run
    spread = planted().loader.spread if factor == 1.0 else abs(float(way) - 1)
    assert checked["abc"].loader.spread == pytest.approx(spread)
    assert len(lines) == (factor != 1.0)


@pytest.mark.parametrize("way", ["2.5", "0.4"])
def test_costs_of_another_machine_are_dropped(server, tone_trial, tmp_path, way: str) -> None:
    checked, (line,) = check(server, tone_trial, tmp_path, way, {"abc": planted()})
    assert checked == {}
    assert way in line


def test_on_a_busy_machine_the_cached_costs_hold_and_a_line_tells(
    server, tone_trial, tmp_path
) -> None:
    checked, lines = check(server, tone_trial, tmp_path, "busy", {"abc": planted()})
    assert checked == {"abc": planted()}
    assert len(lines) == 1


def test_nothing_is_probed_without_a_cached_calibration(tone_trial, tmp_path) -> None:
    assert check(None, tone_trial, tmp_path, "1.0", {}) == ({}, [])
