"""Writes table 1 as text: epoch seconds by number of loader workers and size of /dev/shm.

The one idea is that the text says how far its figures carry. It says where two counts are not
distinguishable, and where trials vary widely. A cell that `method: forecast` did not measure shows
its forecast, marked.
"""

import math
from typing import Any

import pandas as pd

from analysis.comparable_groups import Comparable
from analysis.number_text import change_text, decimals, percent
from analysis.runs import SweepRuns
from analysis.statistics import FEWEST_PAIRS, WIDE, Interval
from analysis.text_tables import (
    disturbance_lines,
    grid,
    heading,
    throttling_lines,
    wrap_columns,
)
from analysis.tradeoff import TWO_SPEEDS, epoch_times_of, groups

MARK = "†"  # marks a time whose trials vary widely
SPREAD_NOTE = f"{MARK} Fastest and slowest trial differ by more than {percent(WIDE)} of the median."
NOT_RUN = "not run yet"
NOT_MEASURED = "~ Not measured: by the forecast, this cell does not matter for the recommendation."
MEDIAN_NOTE = (
    "Median over n trials of their epoch seconds (fastest-slowest trial); timed epochs only."
)
SPEED_MARK = "‡"  # marks a time whose epochs met two speeds of the cores
SPEED_NOTE = (
    f"{SPEED_MARK} The cores ran at two speeds: some epochs took over {percent(TWO_SPEEDS)} more"
    " CPU time for the same batches."
)

# header of a size -> num_workers -> texts of its cell
Columns = dict[str, dict[int, tuple[str, ...]]]


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns table 1 as texts, one a block, combination of other parameters and hardware."""
    return [_table(group, markdown) for group in groups(runs)]


def _table(group: Comparable, markdown: bool) -> str:
    """Returns one table 1 as text."""
    cells = epoch_times_of(group)
    title = heading("Epoch seconds by num_workers and shm_size", cells.iloc[0], markdown)
    notes = [MEDIAN_NOTE, *spread_notes(cells)]
    if cells["forecast_s"].notna().any():
        notes.append(NOT_MEASURED)
    notes += disturbance_lines(group.trials, markdown) + throttling_lines(group.trials, markdown)
    return "\n".join(
        [
            title,
            *_wrap_columns(_time_columns(cells), markdown),
            *notes,
            "",
            *_change_lines(cells, markdown),
        ]
    )


def spread_notes(cells: pd.DataFrame) -> list[str]:
    """Returns notes on the marks of cells whose trials vary widely or met two speeds."""
    notes = {SPREAD_NOTE: (cells["spread"] > WIDE).any(), SPEED_NOTE: cells["two_speeds"].any()}
    return [note for note, applies in notes.items() if applies]


def _change_lines(cells: pd.DataFrame, markdown: bool) -> list[str]:
    """Returns the lines on the changes against 0 workers."""
    with_workers = cells[cells["num_workers"] > 0]
    comparable_cells = with_workers[
        with_workers["shm_size"].isin(
            cells.loc[(cells["num_workers"] == 0) & (cells["n"] > 0), "shm_size"]
        )
    ]
    if comparable_cells.empty:
        return ["Change against 0 workers: no trial with 0 workers has a time."]
    if comparable_cells["change"].isna().all():
        return [
            f"Change against 0 workers: not enough data, an interval needs {FEWEST_PAIRS} repeats"
            " with both times."
        ]
    title = "Change of epoch seconds against 0 workers at the same shm_size"
    notes = ["Mean change over repeats, paired, and its 95 % interval; below zero is faster."]
    if any(
        not change.excludes_zero for change in map(_change, comparable_cells.itertuples()) if change
    ):
        notes.append("Not distinguishable: the interval contains zero.")
    return [title, "", *_wrap_columns(_change_columns(comparable_cells), markdown), *notes]


def _time_columns(cells: pd.DataFrame) -> Columns:
    """Returns the texts of times and counts for each size."""
    digits = decimals(cells[["median_s", "forecast_s"]].min(axis=None))
    widest = len(f"{cells['median_s'].max():.{digits}f}")
    columns: Columns = {}
    for cell in cells.itertuples():
        texts = (time_text(cell, digits, widest), str(cell.n) if cell.trials else "")
        columns.setdefault(f"shm {cell.shm_size}", {})[cell.num_workers] = texts
    return columns


def time_text(cell: Any, digits: int, widest: int) -> str:
    """Returns the text of a cell, a row of `epoch_times`.

    Examples are '1.55 (1.51-1.61)', '41.2 s, 1 of 3 overflowed' and '3 of 3 overflowed'.
    """
    if not cell.trials and cell.not_run:
        return NOT_RUN
    if not cell.trials:
        return f"~{cell.outcomes or f'{cell.forecast_s:.{digits}f}'} forecast"
    if not cell.n:
        return cell.outcomes
    median = f"{cell.median_s:{widest}.{digits}f}"
    mark = (MARK if cell.spread > WIDE else "") + (SPEED_MARK if cell.two_speeds else "")
    if cell.outcomes:
        return f"{median} s{mark}, {cell.outcomes}"
    return (
        f"{median} ({cell.min_s:.{digits}f}-{cell.max_s:.{digits}f}){mark}"
        if cell.n > 1
        else median + mark
    )


def _change_columns(cells: pd.DataFrame) -> Columns:
    """Returns the texts of changes for each size."""
    columns: Columns = {}
    for cell in cells.itertuples():
        columns.setdefault(f"shm {cell.shm_size}", {})[cell.num_workers] = (cell_change_text(cell),)
    return columns


def cell_change_text(cell: Any) -> str:
    """Returns for example '-56% (-67% to -41%)', and whether the two are distinguishable.

    `cell` is a row of `epoch_times`.
    """
    if not cell.n:
        return "-"
    if not (change := _change(cell)):
        return "not enough data"
    return change_text(change, width=4) + ("" if change.excludes_zero else ", not distinguishable")


def _change(cell: Any) -> Interval | None:
    """Returns the change of a cell as an interval; None if it is missing."""
    return (
        None
        if math.isnan(cell.change)
        else Interval(cell.change, cell.change_low, cell.change_high)
    )


def _wrap_columns(columns: Columns, markdown: bool) -> list[str]:
    """Returns the columns as texts of the terminal's width."""
    return wrap_columns(
        list(columns),
        lambda names: _side_by_side({name: columns[name] for name in names}, markdown),
        markdown,
    )


def _side_by_side(columns: Columns, markdown: bool) -> str:
    """Returns the columns as one table, a row for each worker count."""
    counts = sorted({count for column in columns.values() for count in column})
    cell_width = len(next(iter(next(iter(columns.values())).values())))
    headers = [header for name in columns for header in (name, "n")[:cell_width]]
    absent = ("-", "")[:cell_width]
    rows = [
        [str(count), *(text for column in columns.values() for text in column.get(count, absent))]
        for count in counts
    ]
    return grid(
        ["workers", *headers],
        rows,
        ["right", *(["left", "right"][:cell_width] * len(columns))],
        markdown,
    )
