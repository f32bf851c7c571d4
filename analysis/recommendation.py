"""The recommendation: the fewest loader workers, then the least /dev/shm, whose time can't be told from the fastest's.

The one idea is that a cell has to earn its workers. The fastest cell of table 1 is where the comparison starts; of all that the paired
interval over repeats can't tell from it the one that asks least of the machine is recommended. Noisy repeats tell nothing apart, so a
cell that looks more than WIDE slower, by the mean change or by its median, is none of them. A cell counts only when every one of its
trials completed: one that overflowed once will do so again. One that completed by luck, its loader being able to take more /dev/shm than
there is, counts only where no other does. `advise` decides, `sentences` says it, and of the cell that is chosen what bounds its epochs
(bottleneck.py).
"""

import functools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from analysis.bottleneck import Bound, bound, words
from analysis.epochs import parts
from analysis.page import WIDTH, decimals
from analysis.runs import Comparable
from analysis.statistics import FEWEST_PAIRS, WIDE, Interval, paired_change
from analysis.tradeoff import SHM, WORKERS, epoch_seconds, groups
from sweeps.names import written


class Cell(NamedTuple):
    """A point of table 1 whose trials all completed."""

    workers: int
    shm_bytes: float  # infinite for the node's own
    times: pd.Series  # epoch seconds by repeat
    foreseen_bytes: float  # the most its loader can take of /dev/shm where that is more than there is; otherwise NaN

    @property
    def asks(self) -> tuple[int, float]:
        """What it takes of the machine, to be compared with another's."""
        return self.workers, self.shm_bytes

    @property
    def median_s(self) -> float:
        return float(self.times.median())


class Advice(NamedTuple):
    """What follows from a group of comparable trials. `cell` is None where there is not enough data; `fastest` where no cell counts."""

    cell: Cell | None
    fastest: Cell | None
    change: Interval | None  # of the cell's time against the fastest's; None where it is the fastest
    runner_up: Cell | None  # where the cell is the fastest: the best of those that ask less
    runner_up_change: Interval | None  # of its time against the fastest's


def advise(group: Comparable) -> Advice:
    """What to choose of a table 1 group."""
    cells = list(_cells(group.trials))
    cells = [cell for cell in cells if pd.isna(cell.foreseen_bytes)] or cells
    if not cells:
        return Advice(None, None, None, None, None)
    fastest = min(cells, key=lambda cell: (cell.median_s, *cell.asks))
    if len(fastest.times) < FEWEST_PAIRS:
        return Advice(None, fastest, None, None, None)
    changes = [(cell, change) for cell in cells if cell.asks < fastest.asks and (change := paired_change(cell.times, fastest.times))]
    near_s = (1 + WIDE) * fastest.median_s
    equals = [(cell, change) for cell, change in changes if change.low <= 0 and change.value <= WIDE and cell.median_s <= near_s]
    if equals:
        cell, change = min(equals, key=lambda pair: pair[0].asks)
        return Advice(cell, fastest, change, None, None)
    runner_up, over = min(changes, key=lambda pair: pair[0].median_s, default=(None, None))
    return Advice(fastest, fastest, None, runner_up, over)


def sentences(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """A recommendation in words for each group of trials that varies the number of workers, from the frame of `runs.sweep_runs`."""
    found = [group for group in groups(frame) if len(group.values(WORKERS)) > 1]
    named = Counter((group.block, group.varied) for group in found)
    texts = [text for group in found for text in _of_group(group, several=named[group.block, group.varied] > 1)]
    return texts if markdown else [textwrap.fill(text, WIDTH) for text in texts]


def recommendations(frame: pd.DataFrame) -> pd.DataFrame:
    """The recommendation as a tidy frame, a row for each group of trials that varies the number of workers.

    Columns: sweep, block, varied, surroundings (str; the tables it follows from), num_workers (Int64, NA where there is not enough data),
    shm_size (str, '64M' or 'node'; '' likewise), epoch_s (float), fastest_workers (Int64, NA where no cell counts), fastest_shm (str),
    fastest_s, change, change_low, change_high (float: of its time against the fastest's, with its 95 % interval; NaN where it is the
    fastest), bound (str: accelerator, preparation, reads, starting or several; '' where not known), bound_share (float: of an epoch), text
    (str: the sentences).
    """
    found = pd.DataFrame([_tidy(group) for group in groups(frame) if len(group.values(WORKERS)) > 1])
    return found.astype({"num_workers": "Int64", "fastest_workers": "Int64"}) if len(found) else found


def bound_of(group: Comparable, cell: Cell) -> Bound | None:
    """What bounds an epoch of this cell; None where it isn't known."""
    sizes = group.trials[SHM]
    trials = group.trials[
        (group.trials[WORKERS] == cell.workers) & (sizes.isna() if math.isinf(cell.shm_bytes) else sizes == cell.shm_bytes)
    ]
    figures = parts(trials)
    (row,) = pd.DataFrame([{"num_workers": cell.workers, **figures}]).itertuples()
    return bound(row, trials.iloc[0]) if figures["n"] else None


def _tidy(group: Comparable) -> dict[str, Any]:
    advice = advise(group)
    cell, fastest = advice.cell, advice.fastest
    change = advice.change or Interval(math.nan, math.nan, math.nan)
    limit = bound_of(group, chosen) if (chosen := cell or fastest) else None
    return {
        **group.labels,
        "num_workers": cell.workers if cell else None,
        "shm_size": _size(cell) if cell else "",
        "epoch_s": cell.median_s if cell else math.nan,
        "fastest_workers": fastest.workers if fastest else None,
        "fastest_shm": _size(fastest) if fastest else "",
        "fastest_s": fastest.median_s if fastest else math.nan,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "bound": limit.by if limit else "",
        "bound_share": limit.share if limit else math.nan,
        "text": " ".join(_of_group(group, several=False)),
    }


def _of_group(group: Comparable, several: bool) -> Iterator[str]:
    """What to choose; and, of that or else of the fastest cell, what bounds it."""
    yield _sentence(group, several)
    advice = advise(group)
    if (cell := advice.cell or advice.fastest) and (limit := bound_of(group, cell)):
        yield words(limit, _named(cell, group))


def _cells(trials: pd.DataFrame) -> Iterator[Cell]:
    for (size, workers), alike in trials.groupby([SHM, WORKERS], dropna=False):
        if (alike["outcome"] == "completed").all() and alike["epoch_s"].notna().all():
            unsure = alike.loc[alike["forecast_fit"] == "depends", "forecast_shm_bound_bytes"].max()
            yield Cell(int(workers), float("inf") if pd.isna(size) else float(size), epoch_seconds(alike), unsure)


def _sentence(group: Comparable, several: bool) -> str:
    advice, named = advise(group), functools.partial(_named, group=group)
    where = ", ".join([f"block {group.block}", *filter(None, [group.varied, group.surroundings if several else ""])])
    if advice.fastest is None:
        return f"No recommendation for {where}: there is no cell whose trials all completed."
    if advice.cell is None:
        repeats = len(advice.fastest.times)
        found = f"The fastest cell, {named(advice.fastest)}, has {repeats} repeat{'' if repeats == 1 else 's'}"
        return f"No recommendation for {where}: not enough data. {found}; an interval needs {FEWEST_PAIRS}."
    digits = decimals(advice.fastest.median_s)
    said = f"Recommended for {where}: {named(advice.cell)}, {advice.cell.median_s:.{digits}f} s an epoch"
    if advice.change:
        said += f", not told apart from the fastest, {named(advice.fastest)}, {advice.fastest.median_s:.{digits}f} s:"
        said += f" {_percent(advice.change)}."
        if advice.change.high > WIDE:
            said += f" Trials this far apart hide differences above {100 * WIDE:.0f} %: raise repeats to find them."
    elif advice.runner_up and advice.runner_up_change:
        said += f", the fastest. Of those that ask for less the next, {named(advice.runner_up)}, takes"
        said += f" {advice.runner_up.median_s:.{digits}f} s: {_percent(advice.runner_up_change)}."
    else:
        said += ", the fastest."
    if len(group.forecast_only):
        said += " Cells that were forecast and not measured are not compared."
    if len(group.not_run):
        said += f" Not run yet, and not compared: {len(group.not_run)} planned trial{'s' * (len(group.not_run) > 1)}."
    if pd.notna(advice.cell.foreseen_bytes):
        said += f" It may overflow when rates change: its loader can take {advice.cell.foreseen_bytes / 2**20:,.1f} MiB of /dev/shm."
    return said


def _named(cell: Cell, group: Comparable) -> str:
    workers = f"{cell.workers} worker{'' if cell.workers == 1 else 's'}"
    return f"{workers} with shm {_size(cell)}" if len(group.values(SHM)) > 1 else workers


def _size(cell: Cell) -> str:
    return written(SHM, None if cell.shm_bytes == float("inf") else int(cell.shm_bytes))


def _percent(change: Interval) -> str:
    return f"{change.value:+.0%} ({change.low:+.0%} to {change.high:+.0%})"
