"""Recommends a cycle length: the fewest snapshots not distinguishable from the best ensemble.

The one idea is that of the worker recommendation: an additional cost needs a proven benefit. All
schedules train for the same budget of epochs, so more snapshots cost storage and as many
predictions. The comparison starts from the best mean ensemble of table 4. Candidates are the
schedules that the paired interval over repeats does not separate from it, and that are at most
POINT worse by the mean difference. The candidate with the fewest snapshots is chosen.
"""

import math
import textwrap
from collections import Counter
from typing import Any, NamedTuple

import pandas as pd

from analysis.comparable_groups import Comparable
from analysis.cycles import accuracy_note, completed_trials, groups, schedule_of, schedule_text
from analysis.number_text import count_text
from analysis.prices import price_sentence
from analysis.runs import SweepRuns
from analysis.statistics import FEWEST_PAIRS, Interval, paired_difference
from analysis.text_tables import WIDTH

POINT = 0.01  # of accuracy


class Schedule(NamedTuple):
    """A row of table 4 with completed trials."""

    lengths: tuple[int, ...]  # epochs of each cycle
    ensemble: pd.Series  # accuracy by repeat

    @property
    def mean(self) -> float:
        """Mean accuracy of the ensemble over repeats."""
        return float(self.ensemble.mean())

    @property
    def name(self) -> str:
        """Name of the schedule in words."""
        if len(self.lengths) == 1:
            return f"one long cosine of {self.lengths[0]} epochs"
        return f"cycles of {schedule_text(self.lengths)} epochs, {len(self.lengths)} snapshots"


class CycleAdvice(NamedTuple):
    """The advice that follows from a group of comparable trials.

    `chosen` is None if there is not enough data.
    """

    chosen: Schedule | None
    best: Schedule
    difference: Interval | None  # chosen ensemble against the best; None if it is the best
    # Chosen ensemble against one long cosine; None if it is that one or there are too few pairs.
    gain: Interval | None


def advise_cycles(group: Comparable) -> CycleAdvice | None:
    """Returns the schedule to choose for a group of table 4.

    Returns None if fewer than two schedules have completed trials.
    """
    trials = completed_trials(group.trials)
    trials = trials.assign(lengths=[schedule_of(trial) for _, trial in trials.iterrows()])
    schedules = [
        Schedule(lengths, same.set_index("repeat")["ensemble_accuracy"])
        for lengths, same in trials.groupby("lengths")
    ]
    if len(schedules) < 2:
        return None
    best = max(schedules, key=lambda schedule: (schedule.mean, -len(schedule.lengths)))
    if len(best.ensemble) < FEWEST_PAIRS:
        return CycleAdvice(None, best, None, None)
    fewer = [schedule for schedule in schedules if len(schedule.lengths) < len(best.lengths)]
    differences = [
        (schedule, interval)
        for schedule in fewer
        if (interval := paired_difference(schedule.ensemble, best.ensemble))
    ]
    equals = [
        (schedule, interval)
        for schedule, interval in differences
        if interval.high >= 0 and interval.value >= -POINT
    ]
    chosen, difference = min(equals, key=lambda pair: len(pair[0].lengths), default=(best, None))
    cosine = next((schedule for schedule in schedules if len(schedule.lengths) == 1), None)
    gain = (
        paired_difference(chosen.ensemble, cosine.ensemble)
        if cosine and chosen is not cosine
        else None
    )
    return CycleAdvice(chosen, best, difference, gain)


def sentences(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns a recommendation in words for each group of trials that varies the schedule."""
    advised = [(group, advice) for group in groups(runs) if (advice := advise_cycles(group))]
    name_counts = Counter((group.block, group.varied) for group, _ in advised)
    texts = [
        _sentence(group, advice, several=name_counts[group.block, group.varied] > 1)
        + _price_of_chosen(runs, group, advice)
        for group, advice in advised
    ]
    return texts if markdown else [textwrap.fill(text, WIDTH) for text in texts]


def cycle_recommendations(runs: SweepRuns) -> pd.DataFrame:
    """Returns the recommendations as a tidy frame, a row a group that varies the schedule.

    Columns:
        sweep, block, varied, surroundings   str; the table that the recommendation follows from
        schedule                  str, epochs of each cycle; '' if there is not enough data
        snapshots                 Int64
        ensemble                  float, mean accuracy
        best_schedule             str
        best_ensemble             float
        difference, difference_low, difference_high   float: its ensemble against the best one; NaN
                                  if it is the best
        gain, gain_low, gain_high   float: against one long cosine; NaN if it is that one or there
                                  are too few pairs
        text                      str, the sentence
    """
    rows = pd.DataFrame(
        [
            _tidy_row(runs, group, advice)
            for group in groups(runs)
            if (advice := advise_cycles(group))
        ]
    )
    return rows.astype({"snapshots": "Int64"}) if len(rows) else rows


def _tidy_row(runs: SweepRuns, group: Comparable, advice: CycleAdvice) -> dict[str, Any]:
    """Returns the row of `cycle_recommendations` for one group."""
    chosen = advice.chosen
    intervals = {
        name: interval or Interval(math.nan, math.nan, math.nan)
        for name, interval in (("difference", advice.difference), ("gain", advice.gain))
    }
    return {
        **group.labels,
        "schedule": schedule_text(chosen.lengths) if chosen else "",
        "snapshots": len(chosen.lengths) if chosen else None,
        "ensemble": chosen.mean if chosen else math.nan,
        "best_schedule": schedule_text(advice.best.lengths),
        "best_ensemble": advice.best.mean,
        **{
            f"{name}{end}": value
            for name, interval in intervals.items()
            for end, value in zip(("", "_low", "_high"), interval, strict=True)
        },
        "text": _sentence(group, advice, several=False) + _price_of_chosen(runs, group, advice),
    }


def _sentence(group: Comparable, advice: CycleAdvice, several: bool) -> str:
    """Returns the recommendation for one group in words.

    With `several`, the surroundings are named as well.
    """
    where = ", ".join(
        [
            f"block {group.block}",
            *filter(None, [group.varied, group.surroundings if several else ""]),
        ]
    )
    note = accuracy_note(group.trials)
    if advice.chosen is None:
        repeats = count_text(len(advice.best.ensemble), "repeat")
        best = f"{advice.best.name}, {100 * advice.best.mean:.1f} %{note}"
        reason = f"The best ensemble, {best}, has {repeats}"
        return (
            f"No recommendation for {where}: not enough data. {reason}; an interval needs"
            f" {FEWEST_PAIRS}."
        )
    text = (
        f"Recommended for {where}: {advice.chosen.name}, ensemble {100 * advice.chosen.mean:.1f}"
        f" %{note}"
    )
    if advice.difference:
        text += (
            f", not distinguishable from the best, {advice.best.name},"
            f" {100 * advice.best.mean:.1f} %: {_points_text(advice.difference)}."
        )
    else:
        text += ", the best."
    if advice.gain:
        certainty = "" if advice.gain.excludes_zero else ", not distinguishable"
        text += f" Against one long cosine: {_points_text(advice.gain)}{certainty}."
    return text


def _price_of_chosen(runs: SweepRuns, group: Comparable, advice: CycleAdvice) -> str:
    """Returns a sentence on the price of the recommended schedule; '' without either."""
    if not advice.chosen:
        return ""
    trials = completed_trials(group.trials)
    chosen = [schedule_of(trial) == advice.chosen.lengths for _, trial in trials.iterrows()]
    return price_sentence(runs, trials[chosen])


def _points_text(difference: Interval) -> str:
    """Returns a difference of accuracies in percentage points, with its interval."""
    value, low, high = (100 * number for number in difference)
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
