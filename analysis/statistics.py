"""Computes 95 % intervals for a mean, a ratio of paired times and a share of clips, and the spread.

Pairs are trials of the same repeat. They share their seed and their block of the shuffled order, so
a disturbance of both cancels. Below three pairs the result is None, since two points say next to
nothing about their own spread. Two points are distinguishable if the interval of their difference
excludes zero. By chance, one of twenty comparisons of a point with itself does so too.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

FEWEST_PAIRS = 3
# A spread above this part of the median suggests that something else was timed too. The threshold
# is the one of torch.utils.benchmark.
WIDE = 0.10


class Interval(NamedTuple):
    """An estimate with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Returns whether the interval of a difference or change lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Returns the mean and Student's t-interval of independent values; None below three."""
    if len(values) < FEWEST_PAIRS:
        return None
    from scipy.special import stdtrit  # its import takes 0.3 s

    mean = float(np.mean(values))
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def paired_difference(values: pd.Series, baseline: pd.Series) -> Interval | None:
    """Returns the mean of value - baseline over the repeats that have both.

    Both series are indexed by repeat. Returns None below three pairs.
    """
    return mean_interval(_differences(values, baseline))


def paired_change(times: pd.Series, baseline: pd.Series) -> Interval | None:
    """Returns the relative change of times against a baseline; -0.25 is a quarter less.

    It is exp of the mean log-ratio over repeats, minus 1. Ratios of times are symmetric on the log
    scale, so the t-interval is computed there and transformed back. Returns None below three pairs.
    """
    logarithms = (np.log(series.where(series > 0)) for series in (times, baseline))
    interval = mean_interval(_differences(*logarithms))
    return None if interval is None else Interval(*np.expm1(interval).tolist())


def relative_spread(times: pd.Series) -> float:
    """Returns slowest - fastest over the median; NaN below two times."""
    return float((times.max() - times.min()) / times.median()) if len(times) > 1 else math.nan


def wilson(share: float, n: int) -> Interval:
    """Returns the interval of an accuracy measured on n clips (Wilson, JASA 1927, equation 4).

    It covers the accuracies that another draw of as many clips could have given.
    """
    observed, z = round(share * n) / n, NormalDist().inv_cdf(0.975)
    centre, scale = observed + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(observed * (1 - observed) / n + (z / (2 * n)) ** 2)
    return Interval(share, max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0))


def _differences(values: pd.Series, baseline: pd.Series) -> list[float]:
    """Returns the differences of the repeats that have both values.

    A value that is not finite, such as the logarithm of a time of 0, forms no pair.
    """
    differences = values.groupby(level=0).mean() - baseline.groupby(level=0).mean()
    return differences[np.isfinite(differences)].tolist()
