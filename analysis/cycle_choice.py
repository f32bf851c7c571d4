"""The cycle length to choose: the fewest snapshots whose ensemble can't be told from the best one's, at one budget of epochs.

The one idea is the recommendation's: more has to earn its place. All schedules train as long, so what a longer list of snapshots costs is
room and as many predictions. The best mean ensemble of table 4 is where the comparison starts; of all that the paired interval over
repeats can't tell from it the one with fewest snapshots is taken, unless it looks more than POINT worse.
"""

import math
import textwrap
from collections import Counter
from typing import Any, NamedTuple

import pandas as pd

from analysis.cycles import completed, groups, schedule_of, schedule_text
from analysis.page import WIDTH
from analysis.runs import Comparable
from analysis.statistics import FEWEST_PAIRS, Interval, paired_difference

POINT = 0.01  # of accuracy


class Schedule(NamedTuple):
    """A row of table 4 with completed trials."""

    lengths: tuple[int, ...]  # epochs of each cycle
    ensemble: pd.Series  # accuracy by repeat

    @property
    def mean(self) -> float:
        return float(self.ensemble.mean())

    @property
    def name(self) -> str:
        if len(self.lengths) == 1:
            return f"one long cosine of {self.lengths[0]} epochs"
        return f"cycles of {schedule_text(self.lengths)} epochs, {len(self.lengths)} snapshots"


class Advice(NamedTuple):
    """What follows from a group of comparable trials. `chosen` is None where there is not enough data."""

    chosen: Schedule | None
    best: Schedule
    difference: Interval | None  # of the chosen one's ensemble against the best; None where it is the best
    gain: Interval | None  # of the chosen one's ensemble against one long cosine; None where it is that, or there are too few pairs


def advise(group: Comparable) -> Advice | None:
    """What to choose of a table 4 group. None where fewer than two schedules have completed trials."""
    done = completed(group.trials)
    done = done.assign(lengths=[schedule_of(trial) for _, trial in done.iterrows()])
    schedules = [Schedule(lengths, same.set_index("repeat")["ensemble_accuracy"]) for lengths, same in done.groupby("lengths")]
    if len(schedules) < 2:
        return None
    best = max(schedules, key=lambda schedule: (schedule.mean, -len(schedule.lengths)))
    if len(best.ensemble) < FEWEST_PAIRS:
        return Advice(None, best, None, None)
    fewer = [schedule for schedule in schedules if len(schedule.lengths) < len(best.lengths)]
    told = [(schedule, found) for schedule in fewer if (found := paired_difference(schedule.ensemble, best.ensemble))]
    equals = [(schedule, found) for schedule, found in told if found.high >= 0 and found.value >= -POINT]
    chosen, difference = min(equals, key=lambda pair: len(pair[0].lengths), default=(best, None))
    cosine = next((schedule for schedule in schedules if len(schedule.lengths) == 1), None)
    gain = paired_difference(chosen.ensemble, cosine.ensemble) if cosine and chosen is not cosine else None
    return Advice(chosen, best, difference, gain)


def sentences(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """A recommendation in words for each group of trials that varies the schedule, from the frame of `runs.sweep_runs`."""
    found = [(group, advice) for group in groups(frame) if (advice := advise(group))]
    named = Counter((group.block, group.varied) for group, _ in found)
    texts = [_sentence(group, advice, several=named[group.block, group.varied] > 1) for group, advice in found]
    return texts if markdown else [textwrap.fill(text, WIDTH) for text in texts]


def cycle_recommendations(frame: pd.DataFrame) -> pd.DataFrame:
    """The same as a tidy frame, a row for each group of trials that varies the schedule.

    Columns: sweep, block, varied, surroundings (str; the table it follows from), schedule (str, epochs of each cycle, '' where there is not
    enough data), snapshots (Int64), ensemble (float: mean accuracy), best_schedule (str), best_ensemble (float), difference,
    difference_low, difference_high (float: of its ensemble against the best, NaN where it is the best), gain, gain_low, gain_high (float:
    against one long cosine, NaN where it is that one or pairs are too few), text (str: the sentence).
    """
    found = pd.DataFrame([_tidy(group, advice) for group in groups(frame) if (advice := advise(group))])
    return found.astype({"snapshots": "Int64"}) if len(found) else found


def _tidy(group: Comparable, advice: Advice) -> dict[str, Any]:
    chosen = advice.chosen
    intervals = {name: found or Interval(math.nan, math.nan, math.nan)
                 for name, found in (("difference", advice.difference), ("gain", advice.gain))}  # fmt: skip
    return {
        **group.labels,
        "schedule": schedule_text(chosen.lengths) if chosen else "",
        "snapshots": len(chosen.lengths) if chosen else None,
        "ensemble": chosen.mean if chosen else math.nan,
        "best_schedule": schedule_text(advice.best.lengths),
        "best_ensemble": advice.best.mean,
        **{f"{name}{end}": value for name, found in intervals.items() for end, value in zip(("", "_low", "_high"), found, strict=True)},
        "text": _sentence(group, advice, several=False),
    }


def _sentence(group: Comparable, advice: Advice, several: bool) -> str:
    where = ", ".join([f"block {group.block}", *filter(None, [group.varied, group.surroundings if several else ""])])
    if advice.chosen is None:
        repeats = len(advice.best.ensemble)
        found = f"The best ensemble, {advice.best.name}, {100 * advice.best.mean:.1f} %, has {repeats} repeat{'' if repeats == 1 else 's'}"
        return f"No recommendation for {where}: not enough data. {found}; an interval needs {FEWEST_PAIRS}."
    said = f"Recommended for {where}: {advice.chosen.name}, ensemble {100 * advice.chosen.mean:.1f} %"
    if advice.difference:
        said += f", not told apart from the best, {advice.best.name}, {100 * advice.best.mean:.1f} %: {_points(advice.difference)}."
    else:
        said += ", the best."
    if advice.gain:
        told = "" if advice.gain.tells_apart else ", not told apart"
        said += f" Against one long cosine: {_points(advice.gain)}{told}."
    return said


def _points(difference: Interval) -> str:
    value, low, high = (100 * number for number in difference)
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
