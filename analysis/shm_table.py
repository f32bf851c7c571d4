"""Builds the /dev/shm table: whether batches fitted, beside what was forecast before the trial.

The one idea is that a forecast must be testable. Every cell states the verdict and the outcome, and
shows WRONG if they contradict each other. `fits` returns the figures, `tables` the text, for blocks
that sweep the size of /dev/shm.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.comparable_groups import Comparable, comparable
from analysis.number_text import MIB, or_dash
from analysis.runs import SweepRuns
from analysis.text_tables import OUTCOME_LABELS, grid, heading, wrap_columns
from analysis.timed_trials import RAN_THROUGH
from analysis.tradeoff import SHM, WORKERS
from sweeps.names import format_parameter

# verdict -> outcomes that prove it wrong
CONTRADICTED = {"fits": ("shm_exhausted",), "overflows": RAN_THROUGH}
CAPTION = (
    "Each cell: the verdict, then the outcomes. Fits from: the most that a trial can use.\n"
    "Peak: the most that a completed or diverged trial used."
)


def fits(runs: SweepRuns) -> pd.DataFrame:
    """Returns a tidy frame, a row a cell.

    Columns:
        sweep, block, varied, surroundings   str; the table that the cell belongs to
        num_workers   int
        shm_size      str, '64M' or 'node'
        batch_bytes, max_bytes, peak_bytes   float: equal for all sizes of a worker count; the
                      peak is the largest of trials that ran through; NaN where unknown
        verdict       str, forecast; '' in runs older than the forecast
        outcomes      str, '2 completed, 1 overflowed'
        wrong         bool: an outcome contradicts the verdict of its trial
    Blocks that run at a single size are left out.
    """
    return pd.DataFrame(
        [
            row
            for group in comparable(runs, (WORKERS, SHM))
            if SHM in runs.trials
            for row in _cells(group)
        ]
    )


def fits_of(group: Comparable) -> pd.DataFrame:
    """Returns the cells of one table; none if the group runs at a single size."""
    return pd.DataFrame(_cells(group))


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns the table as texts, one a block, combination of other parameters and hardware."""
    cells = fits(runs)
    if cells.empty:
        return []
    return [
        _table(group, markdown)
        for _, group in cells.groupby(["block", "varied", "surroundings"], sort=False)
    ]


def _cells(group: Comparable) -> Iterator[dict[str, Any]]:
    """Yields a row for each cell of a group that runs at several sizes."""
    if group.trials[SHM].nunique(dropna=False) == 1:
        return
    for size, size_trials in group.trials.groupby(SHM, dropna=False):
        for workers, trials in size_trials.groupby(WORKERS):
            same_count = group.trials[group.trials[WORKERS] == workers]
            yield {
                **group.labels,
                "num_workers": int(workers),
                "shm_size": format_parameter(SHM, None if pd.isna(size) else int(size)),
                "batch_bytes": same_count["batch_bytes"].max(),
                "max_bytes": same_count["forecast_shm_max_bytes"].max(),
                "peak_bytes": (
                    same_count.loc[same_count["outcome"].isin(RAN_THROUGH), "shm_peak_bytes"].max()
                ),
                "verdict": " or ".join(sorted(trials["forecast_fit"].dropna().unique())),
                "outcomes": ", ".join(
                    f"{count} {OUTCOME_LABELS.get(word, word)}"
                    for word, count in trials["outcome"].value_counts().items()
                ),
                "wrong": any(
                    trial.outcome in CONTRADICTED.get(trial.forecast_fit, ())
                    for trial in trials.itertuples()
                ),
            }


def _table(cells: pd.DataFrame, markdown: bool) -> str:
    """Returns one table as text."""
    title = heading("/dev/shm: forecast and measured", cells.iloc[0], markdown)
    sizes = list(dict.fromkeys(cells["shm_size"]))
    return "\n".join(
        [
            title,
            *wrap_columns(
                sizes, lambda shown_sizes: _side_by_side(cells, shown_sizes, markdown), markdown
            ),
            CAPTION,
        ]
    )


def _side_by_side(cells: pd.DataFrame, sizes: Sequence[str], markdown: bool) -> str:
    """Returns the columns of these sizes as text."""
    rows = []
    for workers, count_cells in cells.groupby("num_workers"):
        first, texts = (
            count_cells.iloc[0],
            {cell.shm_size: _text(cell, markdown) for cell in count_cells.itertuples()},
        )
        requirements = [
            or_dash(first[name] / MIB, ",.1f")
            for name in ("batch_bytes", "max_bytes", "peak_bytes")
        ]
        rows.append([str(workers), *requirements, *(texts.get(size, "-") for size in sizes)])
    headers = [
        "workers",
        "batch\nMiB",
        "fits from\nMiB",
        "peak\nMiB",
        *(f"shm {size}" for size in sizes),
    ]
    return grid(headers, rows, [*["right"] * 4, *["left"] * len(sizes)], markdown)


def _text(cell: Any, markdown: bool) -> str:
    """Returns for example 'WRONG: fits, 2 completed, 1 overflowed'.

    In the terminal, each part has a line of its own.
    """
    text = ("WRONG: " if cell.wrong else "") + ", ".join(
        filter(None, [cell.verdict, cell.outcomes])
    )
    return text if markdown else text.replace(", ", ",\n")
