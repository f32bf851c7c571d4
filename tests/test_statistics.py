"""Intervals against numbers worked out by hand, and against the interval scipy gives for the same question."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.statistics import mean_interval, paired_change, paired_difference, wilson


def test_paired_change_is_the_geometric_mean_ratio_with_its_t_interval():
    times = pd.Series([5.0, 4.8, 8.8], index=[1, 2, 3])
    baseline = pd.Series([11.0, 10.0, 12.0], index=[3, 1, 2])  # pairs are by repeat, not by position: ratios 0.5, 0.4, 0.8
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


def test_wilson_interval_is_the_formula_of_the_paper():
    p, n, z = 0.9, 300, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(p, n) == pytest.approx((p, centre - half, centre + half))
