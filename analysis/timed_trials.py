"""Decides which trials' epoch seconds count in the tables.

The one idea is that a trial whose every timed epoch was disturbed from outside has a time that says
little about its point. Where a point has too few trials for an interval, such a time is left out
beside an undisturbed one: the median of two does not bear a wrong time. From three trials on it
counts. Their median bears it, and the interval, which is then wider, says so. Durations play no
part in this decision.
"""

import pandas as pd

from analysis.statistics import FEWEST_PAIRS
from analysis.trial_rows import SURROUNDINGS, distinct_values

# The trial trained its schedule, or until it diverged: a step takes as long with numbers that are
# not finite. One cut short by an overflow may have completed an epoch or two, which do not count.
RAN_THROUGH = ("completed", "diverged")


def find_timed(trials: pd.DataFrame) -> pd.Series:
    """Returns a mask of the trials of a sweep whose time counts, for the column `timed`."""
    has_time = trials["outcome"].isin(RAN_THROUGH) & trials["epoch_s"].notna()
    undisturbed = has_time & trials["disturbed"].isna()
    if (undisturbed == has_time).all():
        return has_time
    point = [
        trials[column]
        for column in ("block", "planned", *SURROUNDINGS, *(name for name in trials if "." in name))
        if len(distinct_values(trials, column)) > 1
    ]
    has_time_count, undisturbed_count = (
        mask.groupby(point, dropna=False).transform("sum") if point else mask.sum()
        for mask in (has_time, undisturbed)
    )
    few = (undisturbed_count > 0) & (has_time_count < FEWEST_PAIRS)
    return undisturbed | (has_time & ~few)


def timed_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the trials whose time counts."""
    return trials[trials["timed"].astype(bool)]


def epoch_seconds(trials: pd.DataFrame) -> pd.Series:
    """Returns the epoch seconds by repeat, of the trials whose time counts."""
    return timed_trials(trials).set_index("repeat")["epoch_s"]


def reasons_without_time(trials: pd.DataFrame) -> pd.Series:
    """Returns why a trial's time does not count, for those whose does not.

    It is the trial's outcome, or 'disturbed' if the time was left out.
    """
    others = trials[~trials["timed"].astype(bool)]
    left_out = others["outcome"].isin(RAN_THROUGH) & others["epoch_s"].notna()
    return others["outcome"].mask(left_out, "disturbed")
