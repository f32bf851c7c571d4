"""Builds table 4: the effect of SGDR's cycle length on accuracy at one budget of epochs.

The one idea is an honest comparison. A snapshot ensemble (Huang et al., ICLR 2017) is compared with
its own last and best snapshot. It is also compared with one long cosine of as many epochs. All
accuracies are on the validation split. Only completed trials count, because one that was cut short
had a smaller budget. `cycle_accuracies` returns the figures, `tables` the text.
"""

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.comparable_groups import Comparable, comparable
from analysis.number_text import or_dash, whole_from_ten
from analysis.runs import SweepRuns
from analysis.statistics import FEWEST_PAIRS, Interval, paired_difference, wilson
from analysis.text_tables import WIDTH, grid, heading, outcome_words
from sweeps.accuracy import SHARED_SPEAKERS, accuracy_context

CYCLE, FACTOR, EPOCHS = "sgdr.cycle_epochs", "sgdr.cycle_factor", "sgdr.epochs"
ACCURACIES = {"last": "accuracy", "best": "best_snapshot_accuracy", "ensemble": "ensemble_accuracy"}


def cycle_accuracies(runs: SweepRuns) -> pd.DataFrame:
    """Returns table 4 as a tidy frame, a row a schedule.

    Columns:
        sweep, block, varied, surroundings   str; the table that the row belongs to
        schedule                  str, epochs of each cycle
        cycles                    int
        trials, n, not_run        int: trials that ran, those of them that completed, and planned
                                  trials without a run
        last, best, ensemble      float, mean validation accuracy over n trials, 0 to 1
        last_sd, best_sd, ensemble_sd   float, NaN for n = 1
        long_cosine               float: mean last snapshot of the trials with one cycle at the same
                                  budget; NaN without such trials
        gain, gain_low, gain_high   float: ensemble - long cosine, paired over repeats, with its
                                  95 % interval; NaN below three pairs
        train_s                   float, median
        validation_clips          float
        largest_label             float: share of the validation clips that the largest label has;
                                  NaN in runs older than this figure
        shared_speakers           bool: speakers are in several splits
        outcomes                  str: how the trials that are not in n ended
    Blocks that learn nothing are left out.
    """
    return pd.DataFrame([row for group in groups(runs) for row in _rows(group)])


def groups(runs: SweepRuns) -> Iterator[Comparable]:
    """Yields the groups that have a table 4.

    The trials of a group differ only in cycles and repeat. At least one of them has learned
    something or diverged.
    """
    for group in comparable(runs, (CYCLE, FACTOR)):
        if group.trials["accuracy"].notna().any() or has_diverged(group.trials).any():
            yield group


def accuracy_note(trials: pd.DataFrame) -> str:
    """Returns for example ' (largest label 33.3 %)', which stands beside every accuracy.

    `trials` are rows of `SweepRuns.trials`. The result is '' if neither figure is known.
    """
    names = ("largest_label_fraction", "shared_speakers")
    return accuracy_context(
        {
            name: trials[name].max()
            for name in names
            if name in trials and trials[name].notna().any()
        }
    )


def has_diverged(trials: pd.DataFrame) -> pd.Series:
    """Returns for each trial whether its training diverged, even after some snapshots."""
    return (trials["outcome"] == "diverged") | (trials["diverged_snapshots"] > 0)


def completed_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the trials that count.

    A trial that was cut short had a smaller budget, and so had one that diverged on the way.
    """
    whole = trials[["accuracy", "ensemble_accuracy"]].notna().all(axis=1) & ~has_diverged(trials)
    return trials[(trials["outcome"] == "completed") & whole]


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns table 4 as texts, one a block, combination of other parameters and hardware."""
    rows = cycle_accuracies(runs)
    if rows.empty:
        return []
    return [
        _table(group, markdown)
        for _, group in rows.groupby(["block", "varied", "surroundings"], sort=False)
    ]


def cycle_lengths(epochs: int, cycle_epochs: int | str | None, factor: int = 1) -> list[int]:
    """Returns the epochs of every cycle from the tracker's parameters.

    An absent `cycle_epochs` is one long cosine; a list is JSON text.
    """
    if cycle_epochs is None:
        return [epochs]
    if isinstance(cycle_epochs, str):
        return json.loads(cycle_epochs)
    lengths = [cycle_epochs]
    while sum(lengths) < epochs:
        lengths.append(lengths[-1] * factor)
    return lengths


def _rows(group: Comparable) -> Iterator[dict[str, Any]]:
    """Yields the rows of `cycle_accuracies` for one group, most cycles first."""
    trials = group.trials.assign(
        lengths=[schedule_of(trial) for _, trial in group.trials.iterrows()]
    )
    missing = [schedule_of(trial) for _, trial in group.not_run.iterrows()]
    counted_trials = completed_trials(trials)
    cosine = counted_trials[counted_trials["lengths"].map(len) == 1].set_index("repeat")["accuracy"]
    trials_by_schedule = dict(list(trials.groupby("lengths")))
    for lengths in sorted(
        {*trials_by_schedule, *missing}, key=lambda lengths: (-len(lengths), lengths)
    ):
        schedule_trials = trials_by_schedule.get(lengths, trials.iloc[:0])
        counted = schedule_trials[schedule_trials.index.isin(counted_trials.index)]
        gain = (
            paired_difference(counted.set_index("repeat")["ensemble_accuracy"], cosine)
            if len(lengths) > 1
            else None
        )
        yield {
            **group.labels,
            "schedule": schedule_text(lengths),
            "cycles": len(lengths),
            "trials": len(schedule_trials),
            "n": len(counted),
            "not_run": missing.count(lengths),
            **{column: counted[name].mean() for column, name in ACCURACIES.items()},
            **{f"{column}_sd": counted[name].std() for column, name in ACCURACIES.items()},
            "long_cosine": cosine.mean(),
            "gain": gain.value if gain else math.nan,
            "gain_low": gain.low if gain else math.nan,
            "gain_high": gain.high if gain else math.nan,
            "train_s": counted["train_s"].median(),
            "validation_clips": counted["validation_clips"].median(),
            "largest_label": (
                counted["largest_label_fraction"].median()
                if "largest_label_fraction" in counted
                else math.nan
            ),
            "shared_speakers": (
                bool((counted["shared_speakers"] == 1).any())
                if "shared_speakers" in counted
                else False
            ),
            "outcomes": outcome_words(
                _final_outcomes(schedule_trials.loc[~schedule_trials.index.isin(counted.index)]),
                len(schedule_trials),
            ),
        }


def _final_outcomes(trials: pd.DataFrame) -> pd.Series:
    """Returns the outcomes, with a separate name for trials that diverged after some snapshots.

    The outcome of such a trial is completed, yet it does not count.
    """
    return trials["outcome"].mask(
        (trials["outcome"] == "completed") & has_diverged(trials), "diverged after some snapshots"
    )


def schedule_of(trial: pd.Series) -> tuple[int, ...]:
    """Returns the epochs of every cycle of a trial, a row of `SweepRuns.trials`."""
    cycle = trial.get(CYCLE)
    return tuple(
        cycle_lengths(
            int(trial[EPOCHS]), None if pd.isna(cycle) else cycle, int(trial.get(FACTOR, 1))
        )
    )


def schedule_text(lengths: tuple[int, ...]) -> str:
    """Returns '2' for equal cycles, '8, 14, 24' for others, '8, long cosine' for a single one."""
    if len(lengths) == 1:
        return f"{lengths[0]}, long cosine"
    return str(lengths[0]) if len(set(lengths)) == 1 else ", ".join(map(str, lengths))


def schedule_name(schedule: tuple[int, ...]) -> str:
    """Returns the name of a schedule in words."""
    return (
        f"cycles of {schedule_text(schedule)}"
        if len(schedule) > 1
        else f"one cosine of {schedule[0]}"
    )


def add_schedule(rows: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Returns `rows` with a column `schedule` that holds the schedule of their trial."""
    schedules = {trial["run_id"]: schedule_of(trial) for _, trial in trials.iterrows()}
    return rows.assign(schedule=[schedules[run_id] for run_id in rows["run_id"]])


HEADERS = (
    "cycle\nepochs",
    "cycles",
    "last\nsnapshot %",
    "best\nsnapshot %",
    "ensemble\n%",
    "long\ncosine %",
    "ensemble -\ncosine, points",
    "train\ns",
    "n",
)


def _table(rows: pd.DataFrame, markdown: bool) -> str:
    """Returns one table 4 as text."""
    first = rows.iloc[0]
    title = heading("Validation accuracy by SGDR cycle length", first, markdown)
    texts = [_row_texts(row, markdown) for row in rows.itertuples()]
    align = ["left", "right", "left", "left", "left", "right", "left", "right", "right"]
    return "\n".join([title, grid(HEADERS, texts, align, markdown), "", _caption(rows, markdown)])


def _row_texts(row: Any, markdown: bool) -> list[str]:
    """Returns the texts of one row, in the order of HEADERS."""
    if not row.n:
        return [row.schedule, str(row.cycles), *["-"] * 6, "0"]
    accuracies = [
        _accuracy(getattr(row, column), getattr(row, f"{column}_sd")) for column in ACCURACIES
    ]
    cosine = or_dash(100 * row.long_cosine, ".1f")
    return [
        row.schedule,
        str(row.cycles),
        *accuracies,
        cosine,
        _gain(row, markdown),
        whole_from_ten(row.train_s),
        str(row.n),
    ]


def _accuracy(mean: float, sd: float) -> str:
    """Returns a mean accuracy with its standard deviation, in percent."""
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" if math.isnan(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _gain(row: Any, markdown: bool) -> str:
    """Returns the gain with its interval, in percentage points."""
    if row.cycles == 1 or math.isnan(row.long_cosine):
        return "-"
    if math.isnan(row.gain):
        return "not enough data"
    interval = f"{100 * row.gain:+.1f} ({100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f})"
    if Interval(row.gain, row.gain_low, row.gain_high).excludes_zero:
        return interval
    return f"{interval}, not distinguishable" if markdown else f"{interval},\nnot distinguishable"


def _caption(rows: pd.DataFrame, markdown: bool) -> str:
    """Returns the lines below one table 4."""
    lines = [
        "Mean ± standard deviation over n completed trials; train: median seconds of all epochs."
    ]
    lines += [
        f"Not counted, cycles of {row.schedule}: {row.outcomes}."
        for row in rows.itertuples()
        if row.outcomes
    ]
    lines += [
        f"Not run yet, cycles of {row.schedule}: {row.not_run}."
        for row in rows.itertuples()
        if row.not_run
    ]
    if (rows["cycles"] > 1).any() and rows["long_cosine"].notna().any():
        lines.append(
            "Difference: paired over repeats, with its 95 % interval, which needs"
            f" {FEWEST_PAIRS} repeats."
        )
    clips, best = rows["validation_clips"].max(), rows["ensemble"].max()
    if pd.notna(clips) and pd.notna(best):
        low, high = 100 * wilson(best, int(clips))[1], 100 * wilson(best, int(clips))[2]
        lines.append(
            f"With {clips:.0f} validation clips, the 95 % interval of one accuracy of"
            f" {100 * best:.1f} % is {low:.1f}-{high:.1f} % (Wilson)."
        )
    if pd.notna(share := rows["largest_label"].max()):
        lines.append(
            f"The largest label has {100 * share:.1f} % of the clips: the accuracy of always"
            " answering it."
        )
    if rows["shared_speakers"].any():
        lines.append(f"All accuracies: {SHARED_SPEAKERS}.")
    return "\n".join(lines if markdown else [textwrap.fill(line, WIDTH) for line in lines])
