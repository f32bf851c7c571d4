"""Tests the forecast of a sweep before it runs: rows of plan.json, and the expected duration."""

import re

import pytest

from speech.calibration.costs import StepCosts
from speech.config import RuntimeSettings
from sweeps.config.sweep_file import load
from sweeps.forecast.trial_forecasts import format_rough_duration, prepare_forecasts
from sweeps.host.node import Node
from tests.planted_calibrations import planted

SWEEP = """
name: planted
method: forecast
order: listed
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  loader: {{format: png, batch_size: 4, num_workers: {{values: [0, 1, 2]}}, shm_size: {{values: [2M, 64M]}}}}
  device: {{prefer: [simulated], step_s: 0.05}}
  sgdr: {{epochs: 2}}
"""
NODE = Node((), (0, 1))


@pytest.fixture
def made(tones, tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones))
    return prepare_forecasts(load(tmp_path / "sweep.yaml"), lambda line: None)


def foresee(made, settled=()) -> None:
    needs = made.required_calibrations(
        {trial.trial_id: RuntimeSettings(threads=2) for trial in made.plan.trials}, NODE
    )
    assert len({each.name for each in needs.values()}) == 1
    made.add_forecasts(
        needs, {each.name: planted(StepCosts(wait_s=0.05)) for each in needs.values()}, settled
    )


def numbers(line: str) -> list[int]:
    """Returns the whole numbers of a line in order."""
    return [int(number) for number in re.findall(r"\d+", line)]


def test_before_anything_is_calibrated_a_row_is_a_trial_and_nothing_is_left_out(made) -> None:
    rows = made.rows()
    assert [row.keys() for row in rows] == [{"trial_id", "block", "repeat", "swept"}] * 6
    outline = made.outline({}, made.pending([])).splitlines()
    assert outline[0].startswith("planted: ")
    assert numbers(outline[0]) == [6, 6, 6, 6]
    assert "6 new" in outline[0]
    assert "calibrated" in outline[1]
    assert len(outline) == 2


def test_the_row_of_an_unmeasured_trial_is_marked_and_has_its_parameters(made) -> None:
    """Plants 3 batches on 2 cores, which take 3 x 130 ms without workers, 3 x 80 ms and a step with
    one, and 80 ms and 3 steps with two. A size of 2M is too small."""
    foresee(made)
    rows = {
        (row["swept"]["loader.num_workers"], row["swept"]["loader.shm_size"] >> 20): row
        for row in made.rows()
    }
    assert rows[1, 64]["forecast"]["forecast_epoch_s"] == pytest.approx(3 * 0.08 + 0.05)
    assert rows[2, 64]["forecast"]["forecast_epoch_s"] == pytest.approx(0.08 + 3 * 0.05)
    assert [cell for cell, row in rows.items() if row.get("measured", True)] == [(2, 64)]
    left_out = rows[1, 2]
    assert left_out["measured"] is False
    assert left_out["config"]["loader.num_workers"] == 1
    assert left_out["config"]["loader.shm_size"] == 2 << 20
    assert [trial.trial_id for trial in made.pending([])] == [rows[2, 64]["trial_id"]]


def test_what_is_settled_has_been_measured(made) -> None:
    slow = made.plan.trials[0].trial_id
    foresee(made, {slow: "completed"})
    assert "measured" not in next(row for row in made.rows() if row["trial_id"] == slow)
    said = made.outline({slow: "completed"}, made.pending([slow]))
    first = said.splitlines()[0]
    assert numbers(first) == [6, 6, 1, 1, 4, 1, 0]
    assert "1 settled, 1 new" in first


def test_the_time_it_will_take_is_that_of_the_epochs_that_are_left(made) -> None:
    """Plants 2 epochs each of 390, 290 and 230 ms. A trial that overflows ends at once, so leaving
    it out saves nothing."""
    foresee(made)
    first, second = made.outline({}, made.pending([])).splitlines()
    assert numbers(first) == [6, 6, 1, 5, 1, 0]
    assert "1 new" in first
    assert numbers(second) == [1, 6, 5, 2]
    assert second.endswith("2 s saved")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (89, "89 s"), (400, "7 min"), (5300, "88 min"), (9000, "2.5 h")],
)
def test_a_duration_is_written_in_a_suitable_unit(seconds: float, said: str) -> None:
    assert format_rough_duration(seconds) == said
