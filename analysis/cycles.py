"""Table 4: what the length of SGDR's cycles does to accuracy at one budget of epochs.

The one idea is an honest comparison: a snapshot ensemble (Huang et al., ICLR 2017) is set beside its own last and best snapshot and
beside one long cosine that trained for as many epochs. All accuracies are on the validation split. Only completed trials count, because
one that was cut short had a smaller budget. `cycle_accuracies` gives the figures, `tables` the page.
"""

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.page import WIDTH, grid, heading, outcome_words
from analysis.runs import Comparable, comparable
from analysis.statistics import FEWEST_PAIRS, Interval, paired_difference, wilson

CYCLE, FACTOR, EPOCHS = "sgdr.cycle_epochs", "sgdr.cycle_factor", "sgdr.epochs"
ACCURACIES = {"last": "accuracy", "best": "best_snapshot_accuracy", "ensemble": "ensemble_accuracy"}


def cycle_accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 4 as a tidy frame, a row a schedule, from the frame of `runs.sweep_runs`.

    Columns: sweep, block, varied, surroundings (str; the table the row belongs to), schedule (str, epochs of each cycle), cycles, trials,
    n, not_run (int: that ran, those of them that completed, and planned ones without a run), last, best, ensemble (float: mean validation
    accuracy over n trials, 0 to 1), last_sd, best_sd, ensemble_sd (float, NaN for n = 1), long_cosine (float: mean last snapshot of the
    trials with one cycle at the same budget, NaN without), gain, gain_low, gain_high (float: ensemble - long cosine, paired over repeats,
    with its 95 % interval; NaN below three pairs), train_s (float, median), validation_clips (float), outcomes (str: how the trials that
    are not in n ended). Blocks that learn nothing are left out.
    """
    return pd.DataFrame([row for group in groups(frame) for row in _rows(group)])


def groups(frame: pd.DataFrame) -> Iterator[Comparable]:
    """What has a table 4: trials that differ in their cycles and repeat only, of which one at least has learned something."""
    for group in comparable(frame, (CYCLE, FACTOR)):
        if group.trials["accuracy"].notna().any():
            yield group


def completed(trials: pd.DataFrame) -> pd.DataFrame:
    """Those that count: one that was cut short had a smaller budget."""
    return trials[(trials["outcome"] == "completed") & trials[["accuracy", "ensemble_accuracy"]].notna().all(axis=1)]


def tables(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """Table 4 as text, one for each block, combination of other parameters and hardware."""
    rows = cycle_accuracies(frame)
    if rows.empty:
        return []
    return [_table(group, markdown) for _, group in rows.groupby(["block", "varied", "surroundings"], sort=False)]


def cycle_lengths(epochs: int, cycle_epochs: int | str | None, factor: int = 1) -> list[int]:
    """Epochs of every cycle from the tracker's parameters: absent is one long cosine, a list is JSON text."""
    if cycle_epochs is None:
        return [epochs]
    if isinstance(cycle_epochs, str):
        return json.loads(cycle_epochs)
    lengths = [cycle_epochs]
    while sum(lengths) < epochs:
        lengths.append(lengths[-1] * factor)
    return lengths


def _rows(group: Comparable) -> Iterator[dict[str, Any]]:
    trials = group.trials.assign(lengths=[schedule_of(trial) for _, trial in group.trials.iterrows()])
    missing = [schedule_of(trial) for _, trial in group.not_run.iterrows()]
    done = completed(trials)
    cosine = done[done["lengths"].map(len) == 1].set_index("repeat")["accuracy"]
    alike = dict(list(trials.groupby("lengths")))
    for lengths in sorted({*alike, *missing}, key=lambda lengths: (-len(lengths), lengths)):
        same = alike.get(lengths, trials.iloc[:0])
        counted = same[same.index.isin(done.index)]
        gain = paired_difference(counted.set_index("repeat")["ensemble_accuracy"], cosine) if len(lengths) > 1 else None
        yield {
            **group.labels,
            "schedule": schedule_text(lengths),
            "cycles": len(lengths),
            "trials": len(same),
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
            "outcomes": outcome_words(same.loc[~same.index.isin(counted.index), "outcome"], len(same)),
        }


def schedule_of(trial: pd.Series) -> tuple[int, ...]:
    """Epochs of every cycle of a trial, a row of `runs.sweep_runs`."""
    cycle = trial.get(CYCLE)
    return tuple(cycle_lengths(int(trial[EPOCHS]), None if pd.isna(cycle) else cycle, int(trial.get(FACTOR, 1))))


def schedule_text(lengths: tuple[int, ...]) -> str:
    """'2' for equal cycles, '8, 14, 24' for others, '8, long cosine' for a single one."""
    if len(lengths) == 1:
        return f"{lengths[0]}, long cosine"
    return str(lengths[0]) if len(set(lengths)) == 1 else ", ".join(map(str, lengths))


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
    first = rows.iloc[0]
    title = heading("Validation accuracy by SGDR cycle length", first, markdown)
    texts = [_texts(row, markdown) for row in rows.itertuples()]
    align = ["left", "right", "left", "left", "left", "right", "left", "right", "right"]
    return "\n".join([title, grid(HEADERS, texts, align, markdown), "", _caption(rows, markdown)])


def _texts(row: Any, markdown: bool) -> list[str]:
    if not row.n:
        return [row.schedule, str(row.cycles), *["-"] * 6, "0"]
    accuracies = [_accuracy(getattr(row, column), getattr(row, f"{column}_sd")) for column in ACCURACIES]
    cosine = "-" if math.isnan(row.long_cosine) else f"{100 * row.long_cosine:.1f}"
    return [row.schedule, str(row.cycles), *accuracies, cosine, _gain(row, markdown), _seconds(row.train_s), str(row.n)]


def _accuracy(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" if math.isnan(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _gain(row: Any, markdown: bool) -> str:
    if row.cycles == 1 or math.isnan(row.long_cosine):
        return "-"
    if math.isnan(row.gain):
        return "not enough data"
    interval = f"{100 * row.gain:+.1f} ({100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f})"
    if Interval(row.gain, row.gain_low, row.gain_high).tells_apart:
        return interval
    return f"{interval}, not told apart" if markdown else f"{interval},\nnot told apart"


def _seconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _caption(rows: pd.DataFrame, markdown: bool) -> str:
    lines = ["Mean ± standard deviation over n completed trials; train: median seconds of all epochs."]
    lines += [f"Not counted, cycles of {row.schedule}: {row.outcomes}." for row in rows.itertuples() if row.outcomes]
    lines += [f"Not run yet, cycles of {row.schedule}: {row.not_run}." for row in rows.itertuples() if row.not_run]
    if (rows["cycles"] > 1).any() and rows["long_cosine"].notna().any():
        lines.append(f"Difference: paired over repeats, with its 95 % interval from {FEWEST_PAIRS} repeats on.")
    clips, best = rows["validation_clips"].max(), rows["ensemble"].max()
    if pd.notna(clips) and pd.notna(best):
        low, high = 100 * wilson(best, int(clips))[1], 100 * wilson(best, int(clips))[2]
        lines.append(
            f"With {clips:.0f} validation clips one accuracy of {100 * best:.1f} % is known to {low:.1f}-{high:.1f} % (95 %, Wilson)."
        )
    return "\n".join(lines if markdown else [textwrap.fill(line, WIDTH) for line in lines])
