"""Three intervals, all at 95 %: a mean, a ratio of paired times, a share of clips. And how far trials of one point lie apart.

Pairs are trials of the same repeat: they share their seed and their block of the shuffled order, so what disturbs both cancels. Below
three pairs there is no interval, because two points say next to nothing about their own spread: the answer is None. Two points whose
interval holds no difference are not told apart. Of twenty comparisons of a point with itself one is told apart all the same, by chance.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

FEWEST_PAIRS = 3
WIDE = 0.10  # a spread above this part of the median says that something else was timed too (the habit of torch.utils.benchmark)


class Interval(NamedTuple):
    """An estimate with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def tells_apart(self) -> bool:
        """Whether the interval of a difference or change lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Mean and Student's t-interval of independent values; None below three of them."""
    if len(values) < FEWEST_PAIRS:
        return None
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def paired_difference(values: pd.Series, baseline: pd.Series) -> Interval | None:
    """Mean of value - baseline over the repeats that have both. Both series are indexed by repeat."""
    return mean_interval(_differences(values, baseline))


def paired_change(times: pd.Series, baseline: pd.Series) -> Interval | None:
    """Relative change of times against a baseline, -0.25 for a quarter less: exp of the mean log-ratio over repeats, minus 1.

    Ratios of times are symmetric on the log scale, so the t-interval is taken there and carried back.
    """
    interval = mean_interval(_differences(np.log(times), np.log(baseline)))
    return None if interval is None else Interval(*np.expm1(interval).tolist())


def relative_spread(times: pd.Series) -> float:
    """Slowest - fastest over the median; NaN below two times."""
    return float((times.max() - times.min()) / times.median()) if len(times) > 1 else math.nan


def wilson(share: float, n: int) -> Interval:
    """Interval of an accuracy measured on n clips (Wilson, JASA 1927): what another draw of as many clips could have given."""
    low, high = stats.binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return Interval(share, float(low), float(high))


def _differences(values: pd.Series, baseline: pd.Series) -> list[float]:
    return (values.groupby(level=0).mean() - baseline.groupby(level=0).mean()).dropna().tolist()
