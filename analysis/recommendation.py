"""Recommends the fewest workers, then the least /dev/shm, not distinguishable from the fastest
cell.

The one idea is that a cell has to earn its workers. The comparison starts from the fastest cell of
table 1. Among the cells that the paired interval over repeats does not separate from it, the one
that needs the fewest resources is recommended. Noisy repeats separate nothing, so a cell is
excluded if it is more than WIDE slower by the mean change or by its median. A cell counts only if
all its trials completed, as one that overflowed once will do so again. A cell that completed by
luck, since its loader can take more /dev/shm than there is, counts only if no other does.
`advise_workers` decides and `sentences` puts it into words, with what bounds the epochs of the
chosen cell (bottleneck.py).
"""

import functools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from analysis.bottleneck import Bound, describe_bound, find_bound
from analysis.comparable_groups import Comparable
from analysis.epochs import parts, rank_count
from analysis.number_text import change_text, count_text, decimals, mib, percent
from analysis.prices import price_sentence
from analysis.runs import SweepRuns
from analysis.statistics import FEWEST_PAIRS, WIDE, Interval, paired_change
from analysis.text_tables import THROTTLED, WIDTH
from analysis.timed_trials import RAN_THROUGH, epoch_seconds
from analysis.tradeoff import SHM, WORKERS, groups
from sweeps.names import format_parameter


class Cell(NamedTuple):
    """A point of table 1 whose trials all completed."""

    workers: int
    shm_bytes: float  # infinite for the node's own size
    times: pd.Series  # epoch seconds by repeat
    # The most that its loader can take of /dev/shm if that exceeds the size; otherwise NaN.
    overflow_bound_bytes: float

    @property
    def resources(self) -> tuple[int, float]:
        """Workers and /dev/shm that the cell takes, for comparison with another cell's."""
        return self.workers, self.shm_bytes

    @property
    def median_s(self) -> float:
        """Median of the epoch seconds over repeats."""
        return float(self.times.median())


class WorkerAdvice(NamedTuple):
    """The advice that follows from a group of comparable trials.

    `cell` is None if there is not enough data; `fastest` is None if no cell counts.
    """

    cell: Cell | None
    fastest: Cell | None
    change: Interval | None  # the cell's time against the fastest's; None if it is the fastest
    runner_up: Cell | None  # if the cell is the fastest: the best of those with fewer resources
    runner_up_change: Interval | None  # its time against the fastest's


def advise_workers(group: Comparable) -> WorkerAdvice:
    """Returns the cell to choose for a group of table 1."""
    cells = list(_cells(group.trials))
    cells = [cell for cell in cells if pd.isna(cell.overflow_bound_bytes)] or cells
    if not cells:
        return WorkerAdvice(None, None, None, None, None)
    fastest = min(cells, key=lambda cell: (cell.median_s, *cell.resources))
    if len(fastest.times) < FEWEST_PAIRS:
        return WorkerAdvice(None, fastest, None, None, None)
    changes = [
        (cell, change)
        for cell in cells
        if cell.resources < fastest.resources
        and (change := paired_change(cell.times, fastest.times))
    ]
    near_s = (1 + WIDE) * fastest.median_s
    equals = [
        (cell, change)
        for cell, change in changes
        if change.low <= 0 and change.value <= WIDE and cell.median_s <= near_s
    ]
    if equals:
        cell, change = min(equals, key=lambda pair: pair[0].resources)
        return WorkerAdvice(cell, fastest, change, None, None)
    runner_up, over = min(changes, key=lambda pair: pair[0].median_s, default=(None, None))
    return WorkerAdvice(fastest, fastest, None, runner_up, over)


def sentences(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns a recommendation in words for each group that varies the number of workers."""
    varied_groups = [group for group in groups(runs) if len(group.values(WORKERS)) > 1]
    name_counts = Counter((group.block, group.varied) for group in varied_groups)
    texts = [
        text
        for group in varied_groups
        for text in _group_sentences(runs, group, name_counts[group.block, group.varied] > 1)
    ]
    return texts if markdown else [textwrap.fill(text, WIDTH) for text in texts]


def recommendations(runs: SweepRuns) -> pd.DataFrame:
    """Returns the recommendations as a tidy frame, a row a group that varies the workers.

    Columns:
        sweep, block, varied, surroundings   str; the tables that the recommendation follows from
        num_workers       Int64, NA if there is not enough data
        shm_size          str, '64M' or 'node'; '' likewise
        epoch_s           float
        fastest_workers   Int64, NA if no cell counts
        fastest_shm       str
        fastest_s         float
        change, change_low, change_high   float: its time against the fastest's, with the 95 %
                          interval; NaN if it is the fastest
        bound             str: accelerator, preparation, reads, starting, unknown or several; '' if
                          figures are missing
        bound_share       float, of an epoch
        text              str, the sentences
    """
    rows = pd.DataFrame(
        [_tidy_row(runs, group) for group in groups(runs) if len(group.values(WORKERS)) > 1]
    )
    return rows.astype({"num_workers": "Int64", "fastest_workers": "Int64"}) if len(rows) else rows


def bound_of(group: Comparable, cell: Cell) -> Bound | None:
    """Returns what bounds an epoch of this cell; None if figures are missing."""
    trials = _trials_of(cell, group)
    figures = parts(trials)
    (row,) = pd.DataFrame([{"num_workers": cell.workers, **figures}]).itertuples()
    return find_bound(row, trials.iloc[0]) if figures["n"] else None


def _trials_of(cell: Cell, group: Comparable) -> pd.DataFrame:
    """Returns the trials of a cell."""
    sizes = group.trials[SHM]
    return group.trials[
        (group.trials[WORKERS] == cell.workers)
        & (sizes.isna() if math.isinf(cell.shm_bytes) else sizes == cell.shm_bytes)
    ]


def _tidy_row(runs: SweepRuns, group: Comparable) -> dict[str, Any]:
    """Returns the row of `recommendations` for one group."""
    advice = advise_workers(group)
    cell, fastest = advice.cell, advice.fastest
    change = advice.change or Interval(math.nan, math.nan, math.nan)
    limit = bound_of(group, chosen) if (chosen := cell or fastest) else None
    return {
        **group.labels,
        "num_workers": cell.workers if cell else None,
        "shm_size": _size_text(cell) if cell else "",
        "epoch_s": cell.median_s if cell else math.nan,
        "fastest_workers": fastest.workers if fastest else None,
        "fastest_shm": _size_text(fastest) if fastest else "",
        "fastest_s": fastest.median_s if fastest else math.nan,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "bound": limit.by if limit else "",
        "bound_share": limit.share if limit else math.nan,
        "text": " ".join(_group_sentences(runs, group, several=False)),
    }


def _group_sentences(runs: SweepRuns, group: Comparable, several: bool) -> Iterator[str]:
    """Yields the recommendation with its price, and what bounds the recommended or else the fastest
    cell."""
    advice = advise_workers(group)
    price = price_sentence(runs, _trials_of(advice.cell, group)) if advice.cell else ""
    yield _sentence(group, several) + price
    if (cell := advice.cell or advice.fastest) and (limit := bound_of(group, cell)):
        yield describe_bound(limit, _cell_name(cell, group))


def _cells(trials: pd.DataFrame) -> Iterator[Cell]:
    """Yields the cells whose trials all ran through and have a time."""
    for (size, workers), cell_trials in trials.groupby([SHM, WORKERS], dropna=False):
        if cell_trials["outcome"].isin(RAN_THROUGH).all() and cell_trials["epoch_s"].notna().all():
            overflow_bound = cell_trials.loc[
                cell_trials["forecast_fit"] == "depends", "forecast_shm_max_bytes"
            ].max()
            yield Cell(
                int(workers),
                float("inf") if pd.isna(size) else float(size),
                epoch_seconds(cell_trials),
                overflow_bound,
            )


def _sentence(group: Comparable, several: bool) -> str:
    """Returns the recommendation for one group in words.

    With `several`, the surroundings are named as well.
    """
    advice, cell_name = advise_workers(group), functools.partial(_cell_name, group=group)
    where = ", ".join(
        [
            f"block {group.block}",
            *filter(None, [group.varied, group.surroundings if several else ""]),
        ]
    )
    if advice.fastest is None:
        return f"No recommendation for {where}: no cell has only completed trials."
    if advice.cell is None:
        repeats = count_text(len(advice.fastest.times), "repeat")
        reason = f"The fastest cell, {cell_name(advice.fastest)}, has {repeats}"
        return (
            f"No recommendation for {where}: not enough data. {reason}; an interval needs"
            f" {FEWEST_PAIRS}."
        )
    digits = decimals(advice.fastest.median_s)
    text = (
        f"Recommended for {where}: {cell_name(advice.cell)}, {advice.cell.median_s:.{digits}f} s an"
        " epoch"
    )
    if advice.change:
        text += (
            f", not distinguishable from the fastest, {cell_name(advice.fastest)},"
            f" {advice.fastest.median_s:.{digits}f} s:"
        )
        text += f" {change_text(advice.change)}."
        if advice.change.high > WIDE:
            text += (
                f" The spread of the trials can hide differences above {percent(WIDE)}: raise"
                " repeats to detect them."
            )
    elif advice.runner_up and advice.runner_up_change:
        text += (
            ", the fastest. The fastest cell with fewer resources,"
            f" {cell_name(advice.runner_up)}, takes"
        )
        text += (
            f" {advice.runner_up.median_s:.{digits}f} s: {change_text(advice.runner_up_change)}."
        )
    else:
        text += ", the fastest."
    text += _throttling_sentence(advice.cell, group)
    if len(group.forecast_only):
        text += " Cells that were forecast and not measured are not compared."
    if len(group.not_run):
        text += (
            f" Not run yet, and not compared: {count_text(len(group.not_run), 'planned trial')}."
        )
    if pd.notna(advice.cell.overflow_bound_bytes):
        text += (
            " It may overflow when rates change: its loader can take"
            f" {mib(advice.cell.overflow_bound_bytes)} of /dev/shm."
        )
    return text


def _throttling_sentence(cell: Cell, group: Comparable) -> str:
    """Returns a sentence if a CPU quota held back the trials of this cell; otherwise ''.

    More of the quota would then help.
    """
    trials = _trials_of(cell, group)
    share = trials["throttled_fraction"].median() if "throttled_fraction" in trials else math.nan
    if not share > THROTTLED:
        return ""
    return (
        f" The CPU quota was used up in {share:.0%} of its periods: a larger quota may change"
        " the choice."
    )


def _cell_name(cell: Cell, group: Comparable) -> str:
    """Returns the name of a cell in words, with its size if the group has several."""
    per_rank = " a rank" if rank_count(group.trials) > 1 else ""
    workers = count_text(cell.workers, "worker") + per_rank
    return f"{workers} with shm {_size_text(cell)}" if len(group.values(SHM)) > 1 else workers


def _size_text(cell: Cell) -> str:
    """Returns the size of /dev/shm as it is written in tables."""
    return format_parameter(SHM, None if cell.shm_bytes == float("inf") else int(cell.shm_bytes))
