"""Whether batches fitted into /dev/shm, beside what was foreseen before the trial ran.

The one idea is that a forecast is worth what it can be held to: every cell says the verdict and what happened, and where the two
contradict each other it says WRONG. `fits` gives the figures, `tables` the page, for blocks that sweep the size of /dev/shm.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.page import WORDS, grid, heading, spread
from analysis.runs import Comparable, comparable
from analysis.tradeoff import SHM, WORKERS
from sweeps.names import written

RAN = ("completed", "stopped_early")  # nothing overflowed
CONTRADICTED = {"fits": ("shm_exhausted",), "overflows": RAN}  # a verdict -> the outcomes that prove it wrong
CAPTION = "Foreseen, then what happened. Fits from: the most that a trial can take.\nPeak: the most taken by one that ran through."


def fits(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell, from the frame of `runs.sweep_runs`.

    Columns: sweep, block, varied, surroundings (str; the table the cell belongs to), num_workers (int), shm_size (str, '64M' or 'node'),
    batch_bytes, bound_bytes, peak_bytes (float: equal for all sizes of a worker count, the peak being the largest of trials that ran
    through; NaN where unknown), verdict (str: foreseen, '' in runs older than the forecast), outcomes (str: '2 completed, 1 overflowed'),
    wrong (bool: an outcome contradicts the verdict of its trial). Blocks that run at a single size are left out.
    """
    rows = [row for group in comparable(frame, (WORKERS, SHM)) if SHM in frame and _sizes(group) > 1 for row in _cells(group)]
    return pd.DataFrame(rows)


def tables(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """The table as text, one for each block, combination of other parameters and hardware."""
    cells = fits(frame)
    if cells.empty:
        return []
    return [_table(group, markdown) for _, group in cells.groupby(["block", "varied", "surroundings"], sort=False)]


def _sizes(group: Comparable) -> int:
    return group.trials[SHM].nunique(dropna=False)


def _cells(group: Comparable) -> Iterator[dict[str, Any]]:
    for size, of_size in group.trials.groupby(SHM, dropna=False):
        for workers, trials in of_size.groupby(WORKERS):
            alike = group.trials[group.trials[WORKERS] == workers]
            yield {
                **group.labels,
                "num_workers": int(workers),
                "shm_size": written(SHM, None if pd.isna(size) else int(size)),
                "batch_bytes": alike["batch_bytes"].max(),
                "bound_bytes": alike["forecast_shm_bound_bytes"].max(),
                "peak_bytes": alike.loc[alike["outcome"].isin(RAN), "shm_peak_bytes"].max(),
                "verdict": " or ".join(sorted(trials["forecast_fit"].dropna().unique())),
                "outcomes": ", ".join(f"{count} {WORDS.get(word, word)}" for word, count in trials["outcome"].value_counts().items()),
                "wrong": any(trial.outcome in CONTRADICTED.get(trial.forecast_fit, ()) for trial in trials.itertuples()),
            }


def _table(cells: pd.DataFrame, markdown: bool) -> str:
    title = heading("/dev/shm: foreseen and measured", cells.iloc[0], markdown)
    sizes = list(dict.fromkeys(cells["shm_size"]))
    return "\n".join([title, *spread(sizes, lambda some: _side_by_side(cells, some, markdown), markdown), CAPTION])


def _side_by_side(cells: pd.DataFrame, sizes: Sequence[str], markdown: bool) -> str:
    rows = []
    for workers, alike in cells.groupby("num_workers"):
        first, texts = alike.iloc[0], {cell.shm_size: _text(cell, markdown) for cell in alike.itertuples()}
        need = [_mib(first[name]) for name in ("batch_bytes", "bound_bytes", "peak_bytes")]
        rows.append([str(workers), *need, *(texts.get(size, "-") for size in sizes)])
    headers = ["workers", "batch\nMiB", "fits from\nMiB", "peak\nMiB", *(f"shm {size}" for size in sizes)]
    return grid(headers, rows, [*["right"] * 4, *["left"] * len(sizes)], markdown)


def _text(cell: Any, markdown: bool) -> str:
    """'WRONG: fits, 2 completed, 1 overflowed', in the terminal a line each."""
    text = ("WRONG: " if cell.wrong else "") + ", ".join(filter(None, [cell.verdict, cell.outcomes]))
    return text if markdown else text.replace(", ", ",\n")


def _mib(size_bytes: float) -> str:
    return "-" if pd.isna(size_bytes) else f"{size_bytes / 2**20:,.1f}"
