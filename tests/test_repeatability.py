"""Tests what the repeatability benchmark counts, with planted sweeps.

How it launches a sweep is covered by test_launch.py.
"""

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.repeatability import (
    FEWEST_PAIRS,
    by_chance,
    choices,
    compare,
    false_share,
    name_against_name,
    told,
)
from tests.simulated import simulated_sweep


def sweep(seconds, seed=1, repeats=3, tables=1):
    return simulated_sweep(seconds, tables, repeats, drift=0.0, noise=0.001, seed=seed)


def test_cells_of_two_sweeps_are_compared_and_flagged_beyond_a_twentieth():
    second = sweep({0: 2.0, 2: 1.1, 4: 1.0}, seed=2)
    overflowed = second.trials["loader.num_workers"] == 4
    second.trials.loc[overflowed, ["outcome", "epoch_s"]] = ["shm_exhausted", float("nan")]
    second.trials.loc[overflowed, "timed"] = False
    rows = {row["workers"]: row for row in compare(sweep({0: 2.0, 2: 1.0, 4: 1.0}), second)}
    flags = [rows[workers]["flag"] for workers in (0, 2, 4)]
    assert [bool(flag) for flag in flags] == [False, True, True]
    assert ["5 %" in flag for flag in flags] == [False, True, False], "4 workers have one time"
    assert rows[2]["ratio"] == pytest.approx(1.1, rel=0.01)
    assert (rows[4]["n"], rows[4]["second s"], rows[4]["second, else"]) == (
        "3, 0",
        None,
        "3 of 3 overflowed",
    )


def test_equal_recommendations_compare_as_equal():
    assert (
        choices(sweep({0: 2.0, 2: 1.0}))
        == choices(sweep({0: 2.1, 2: 1.2}, seed=2))
        == [(2, float("inf"))]
    )
    assert choices(sweep({0: 2.0, 2: 1.0}, repeats=2)) == [None]


def named(*ratios):
    """Returns the trials of a point under two names; true takes `ratios` times as long as false,
    repeat by repeat."""
    one = sweep({2: 1.0}, repeats=len(ratios)).trials.assign(**{"loader.pin_memory": False})
    other = one.assign(**{"loader.pin_memory": True, "epoch_s": one["epoch_s"] * np.array(ratios)})
    return pd.concat([one, other], ignore_index=True)


def test_only_a_name_that_changes_the_time_is_distinguishable():
    slower = told(name_against_name(named(1.1, 1.1, 1.1), 2))
    assert (slower["change"], slower[""], slower["pairs"]) == (
        "+10.0% (+10.0% to +10.0%)",
        "FALSELY DISTINGUISHED",
        3,
    )
    assert (
        told(name_against_name(named(1.01, 1 / 1.01, 1.02, 1 / 1.02), 2))[""]
        == "not distinguishable"
    )
    assert told(name_against_name(named(1.0, 1.0), 2))["change"] == "not enough data"


def test_tables_drawn_from_equals_hold_the_nominal_share_of_false_differences():
    rng = np.random.default_rng(3)
    ratios = rng.normal(0, 0.02, (2, 500))
    # of 400 comparisons: 3 standard errors
    assert false_share(ratios, rng) == pytest.approx(0.05, abs=0.033)
    assert np.isnan(false_share([ratios[0][: FEWEST_PAIRS - 1]], rng))


def test_few_pairs_give_a_wide_interval_of_the_share(monkeypatch):
    monkeypatch.setattr("tests.benchmarks.repeatability.EXPERIMENTS", 20)
    low, high = by_chance([10, 10])
    assert 0 <= low < 0.05 < high < 0.2
