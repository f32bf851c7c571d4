"""Tests which trials method: forecast leaves out, on grids whose answer is plain."""

from dataclasses import replace

import pytest

from speech.config import TrialConfig
from sweeps.config.config import Metric
from sweeps.config.plan import TrialSpec
from sweeps.forecast.forecast import Forecast
from sweeps.forecast.shm_fit import ShmRequirement
from sweeps.forecast.trial_selection import NO_SLOWER, RELATIVE_ERROR, skippable_trials

EPOCH_S = Metric(name="epoch_s", goal="minimize")
MIB = 1 << 20


class Grid:
    """Holds cells that are planted one by one: the forecast epoch seconds, None for an uncalibrated
    trial, and how it fits."""

    def __init__(self) -> None:
        self.trials: list[TrialSpec] = []
        self.forecasts: dict[str, Forecast] = {}
        self.fits: dict[str, ShmRequirement] = {}

    def cell(
        self,
        name,
        workers,
        epoch_s,
        fits="fits",
        block="b",
        metric=EPOCH_S,
        repeat=1,
        shm=64,
        **loader,
    ) -> None:
        config = TrialConfig.model_validate(
            {
                "corpus": {"name": "synthetic", "words": ["yes", "no"]},
                "loader": {"num_workers": workers, "shm_size": shm * MIB} | loader,
                "device": {"prefer": ["simulated"], "step_s": 0.1},
            }
        )
        self.trials.append(TrialSpec(name, block, repeat, 1, config, {}, metric, 0, 60.0))
        if epoch_s:
            self.forecasts[name] = Forecast(epoch_s, *[0.0] * 8, 0, 0.0, 0.0)
        self.fits[name] = {
            "fits": ShmRequirement(1, 2, 3, 4, 9),
            "depends": ShmRequirement(1, 2, 3, 4, 3),
            "overflows": ShmRequirement(1, 2, 3, 4, 1),
        }[fits]

    def left_out(self) -> set[str]:
        return set(skippable_trials(self.trials, self.forecasts, self.fits))


@pytest.fixture
def grid() -> Grid:
    return Grid()


def test_what_can_not_be_told_from_the_fastest_is_measured_and_the_rest_is_not(grid) -> None:
    for name, workers, epoch_s in [
        ("0", 0, 10),
        ("1", 1, 5.5),
        ("2", 2, 4.15),
        ("4", 4, 3.8),
        ("8", 8, 4.35),
    ]:
        grid.cell(name, workers, epoch_s)
    assert grid.left_out() == {"0", "1", "8"}, "3.8 / 0.94 * 1.06 = 4.29"


def test_a_trial_is_left_out_if_an_error_in_both_forecasts_could_not_make_it_the_fastest(
    grid,
) -> None:
    fastest_s = 3.0
    limit_s = fastest_s * (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
    grid.cell("fast", 2, fastest_s)
    grid.cell("near", 1, limit_s - 0.01)
    grid.cell("far", 0, limit_s + 0.01)
    assert grid.left_out() == {"far"}


def test_more_workers_are_measured_only_if_they_promise_to_be_no_slower(grid) -> None:
    grid.cell("0", 0, 3.10)
    grid.cell("1", 1, 3.00)
    grid.cell("2", 2, 3.00 * (1 + NO_SLOWER) - 0.001)
    grid.cell("4", 4, 3.00 * (1 + NO_SLOWER) + 0.001)
    grid.cell("8", 8, 2.95)
    assert grid.left_out() == {"4"}


def test_fewer_workers_that_may_overflow_rule_nothing_out(grid) -> None:
    grid.cell("1", 1, 3.0, "depends")
    grid.cell("2", 2, 3.2)
    assert grid.left_out() == set()


def test_a_trial_that_is_sure_to_overflow_is_left_out_and_puts_nothing_out_of_reach(grid) -> None:
    grid.cell("overflows", 8, 1.5, "overflows")
    grid.cell("fits", 2, 3.5)
    grid.cell("slow", 0, 6.5)
    assert grid.left_out() == {"overflows", "slow"}


def test_a_trial_that_may_overflow_is_measured_and_puts_nothing_out_of_reach(grid) -> None:
    grid.cell("depends", 8, 1.5, "depends")
    grid.cell("fits", 2, 3.5)
    grid.cell("slow", 0, 6.5)
    assert grid.left_out() == {"slow"}


def test_where_none_is_sure_to_fit_all_that_may_are_measured(grid) -> None:
    grid.cell("depends", 8, 1.5, "depends")
    grid.cell("also", 4, 6.5, "depends")
    assert grid.left_out() == set()


def test_an_uncalibrated_trial_is_measured_whatever_its_dev_shm(grid) -> None:
    grid.cell("fast", 2, 3.5)
    grid.cell("unknown", 1, None)
    grid.cell("unknown and too small", 4, None, "overflows")
    assert grid.left_out() == set()


def test_every_repeat_of_a_cell_goes_the_same_way(grid) -> None:
    for repeat in (1, 2, 3):
        grid.cell(f"fast {repeat}", 2, 3.5, repeat=repeat)
        grid.cell(f"slow {repeat}", 0, 6.5, repeat=repeat)
    assert grid.left_out() == {"slow 1", "slow 2", "slow 3"}


def test_each_size_of_dev_shm_competes_and_each_block_and_form_is_a_question_of_its_own(
    grid,
) -> None:
    grid.cell("small", 2, 3.5, shm=64)
    grid.cell("large", 4, 4.75, shm=1024)
    grid.cell("another block", 4, 8.5, block="c")
    grid.cell("another form", 4, 8.5, format="packed")
    grid.cell("another form, slower", 0, 10.5, format="packed")
    assert grid.left_out() == {"large", "another form, slower"}


def test_the_trial_without_workers_belongs_to_each_prefetch_it_could_have_had(grid) -> None:
    """Planned once, it is the fastest of the slow prefetch alone, so it is measured."""
    grid.cell("0", 0, 5.5, prefetch_factor=2)
    grid.cell("2 of 2", 2, 3.5, prefetch_factor=2)
    grid.cell("2 of 1", 2, 6, prefetch_factor=1)
    grid.cell("4 of 1", 4, 7.5, prefetch_factor=1)
    assert grid.left_out() == {"2 of 1", "4 of 1"}
    grid.trials = [trial for trial in grid.trials if trial.config.loader.prefetch_factor == 2]
    assert grid.left_out() == {"0"}


@pytest.mark.parametrize("name", ["accuracy", "shm_peak_bytes", "first_batch_s"])
def test_a_block_that_compares_something_else_is_measured_whole(grid, name: str) -> None:
    metric = Metric(name=name, goal="maximize" if name == "accuracy" else "minimize")
    grid.cell("fast", 2, 3.5, metric=metric)
    grid.cell("slow", 0, 6.5, metric=metric)
    grid.cell("overflows", 8, 6.5, "overflows", metric=metric)
    assert grid.left_out() == set()


def test_rates_rank_as_times_do(grid) -> None:
    metric = Metric(name="clips_per_s", goal="maximize")
    grid.cell("fast", 2, 3.5, metric=metric)
    grid.cell("slow", 0, 6.5, metric=metric)
    assert grid.left_out() == {"slow"}


def test_the_order_of_the_plan_does_not_matter(grid) -> None:
    grid.cell("slow", 0, 6.5)
    grid.cell("fast", 2, 3.5)
    before = grid.left_out()
    grid.trials = [replace(trial) for trial in reversed(grid.trials)]
    assert grid.left_out() == before == {"slow"}
