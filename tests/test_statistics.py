"""Intervals against numbers worked out by hand, and against the interval scipy gives for the same
question."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.statistics import (
    Interval,
    mean_interval,
    paired_change,
    paired_difference,
    relative_spread,
    wilson,
)


def test_paired_change_is_the_geometric_mean_ratio_with_its_t_interval():
    times = pd.Series([5.0, 4.8, 8.8], index=[1, 2, 3])
    # pairs are by repeat, not by position: ratios 0.5, 0.4, 0.8
    baseline = pd.Series([11.0, 10.0, 12.0], index=[3, 1, 2])
    change = paired_change(times, baseline)
    # logs -0.693147 -0.916291 -0.223144: mean -0.610860, sd 0.353824; t(0.975, 2) = 4.302653
    assert change == pytest.approx((0.16 ** (1 / 3) - 1, -0.774584, 0.307462), abs=1e-5)


def test_repeats_that_only_one_side_has_are_no_pairs():
    times = pd.Series([5.0, 4.8, 8.8], index=[1, 2, 3])
    baseline = pd.Series([10.0, 12.0, 11.0], index=[1, 2, 4])
    assert paired_change(times, baseline) is None
    assert paired_difference(times, baseline) is None


def test_mean_interval_agrees_with_scipy():
    values = [0.2, -0.1, 0.4, 0.15]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((np.mean(values), expected.low, expected.high))


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "apart"),
    [(-0.1, 0.2, False), (0.0, 0.2, False), (0.01, 0.2, True), (-0.2, -0.01, True)],
)
def test_an_interval_that_holds_zero_tells_nothing_apart(low, high, apart):
    assert Interval((low + high) / 2, low, high).excludes_zero is apart


def test_spread_is_slowest_less_fastest_over_the_median():
    assert relative_spread(pd.Series([1.1, 1.0, 0.9])) == pytest.approx(0.2)
    assert np.isnan(relative_spread(pd.Series([1.0])))


@pytest.mark.parametrize("repeats", [3, 6])
def test_a_point_compared_with_itself_is_told_apart_once_in_twenty(repeats):
    rng = np.random.default_rng(repeats)
    comparisons = 4000
    intervals = [
        mean_interval(differences) for differences in rng.normal(0, 0.03, (comparisons, repeats))
    ]
    false = sum(interval.excludes_zero for interval in intervals)
    # the share is the nominal one: neither above it nor timidly below
    assert stats.binomtest(false, comparisons, 0.05).pvalue > 0.001


def test_a_slow_trial_now_and_then_makes_it_cautious_rather_than_wrong():
    rng = np.random.default_rng(2)
    # one in ten takes a third longer
    logs = rng.normal(0, 0.01, (2, 4000, 3)) + 0.3 * (rng.random((2, 4000, 3)) < 0.1)
    false = sum(mean_interval(differences).excludes_zero for differences in logs[0] - logs[1])
    assert stats.binomtest(false, 4000, 0.05, "greater").pvalue > 0.5


def test_pairing_takes_out_what_a_repeat_s_trials_share():
    rng = np.random.default_rng(1)
    told_apart = {"same": 0, "a tenth slower": 0}
    for _ in range(200):
        # the machine differs by a third from repeat to repeat
        drift = np.exp(rng.normal(0, 0.3, 5))
        one, other = (pd.Series(drift * np.exp(rng.normal(0, 0.01, 5))) for _ in range(2))
        told_apart["same"] += paired_change(one, other).excludes_zero
        told_apart["a tenth slower"] += paired_change(1.1 * one, other).excludes_zero
    assert stats.binomtest(told_apart["same"], 200, 0.05, "greater").pvalue > 0.01
    assert told_apart["a tenth slower"] == 200


def test_wilson_interval_is_the_formula_of_the_paper():
    p, n, z = 0.9, 300, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(p, n) == pytest.approx((p, centre - half, centre + half))


def test_a_pair_without_a_logarithm_is_no_pair() -> None:
    times, baseline = pd.Series([0.0, 2.0, 2.0, 2.0]), pd.Series([1.0, 4.0, 4.0, 4.0])
    assert paired_change(times, baseline).value == pytest.approx(-0.5)
    assert paired_change(times[:3], baseline[:3]) is None
