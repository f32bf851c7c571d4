"""Table 1: how long an epoch takes by number of loader workers and size of /dev/shm.

The one idea is that a cell with no time is still an answer: where trials overflowed /dev/shm the cell says so, and how many of how many.
A worker count is compared with 0 workers at the same /dev/shm and in the same repeat, never across hardware or across another
parameter; each such combination has a table of its own. Where trials can't tell two counts apart, or lie far apart themselves, the
table says so. A cell that `method: forecast` did not measure shows its forecast, marked. `epoch_times` gives the figures, `tables` the
page.
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.page import decimals, disturbance_lines, grid, heading, outcome_words, spread
from analysis.runs import Comparable, comparable
from analysis.statistics import FEWEST_PAIRS, WIDE, Interval, paired_change, relative_spread
from sweeps.names import written

WORKERS, SHM = "loader.num_workers", "loader.shm_size"
MARK = "†"  # beside a time whose trials lie far apart
NOT_RUN = "not run yet"
NOT_MEASURED = "~ Not measured: by its forecast this cell can't change the recommendation."
TIMED = ("completed", "stopped_early")  # a trial cut short by an overflow may hold an epoch or two; they are no cell of this table


def epoch_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as a tidy frame, a row a cell, from the frame of `runs.sweep_runs`.

    Columns: sweep, block, varied, surroundings (str; the table the cell belongs to), shm_size (str, '64M' or 'node'), num_workers (int),
    trials, n and not_run (int: that ran, those of them with a time, and planned ones without a run), median_s, min_s, max_s, fill_s (float:
    over the n trials' medians of warm epochs), spread (float: (max_s - min_s) / median_s, NaN for n = 1), slower_cores (bool: it is wide,
    and the slowest trial used as much more CPU time for the same work than the fastest), outcomes (str: how the others ended, '1 of 3
    overflowed'), change, change_low, change_high (float: relative to 0 workers, -0.25 for a quarter less, with its 95 % interval; NaN below
    three pairs), forecast_s (float: of a cell of no trials, which was forecast and never measured; otherwise NaN). Blocks in which neither
    count nor size varies are left out.
    """
    return pd.DataFrame([row for group in groups(frame) for row in _cells(group)])


def epoch_times_of(group: Comparable) -> pd.DataFrame:
    """The cells of one table 1."""
    return pd.DataFrame(_cells(group))


def tables(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """Table 1 as text, one for each block, combination of other parameters and hardware."""
    return [_table(group, markdown) for group in groups(frame)]


def groups(frame: pd.DataFrame) -> Iterator[Comparable]:
    """What has a table 1: trials that differ in number of workers, size of /dev/shm and repeat only, of a block that varies one of the
    first two. A machine that ran a single cell of it has a table too."""
    found = list(comparable(_with_sizes(frame), (WORKERS, SHM)))
    for group in found:
        of_block = [each for each in found if each.block == group.block]
        if any(len(set[Any]().union(*(each.values(column) for each in of_block))) > 1 for column in (WORKERS, SHM)):
            yield group


def _with_sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """A size that no trial sets is no parameter of any, yet it has a column here."""
    return frame if SHM in frame else frame.assign(**{SHM: pd.Series(pd.NA, index=frame.index, dtype="Int64")})


def _cells(group: Comparable) -> Iterator[dict[str, Any]]:
    for size in sorted(group.values(SHM), key=lambda size: float("inf") if size is None else size):
        of_size, foreseen, missing = (_of_size(trials, size) for trials in (group.trials, group.forecast_only, group.not_run))
        baseline = epoch_seconds(of_size[of_size[WORKERS] == 0])
        for workers in sorted({*of_size[WORKERS], *foreseen[WORKERS], *missing[WORKERS].dropna()}):
            trials = of_size[of_size[WORKERS] == workers]
            change = paired_change(epoch_seconds(trials), baseline) if workers else None
            yield {
                **group.labels,
                "shm_size": written(SHM, None if size is None else int(size)),
                "num_workers": int(workers),
                **cell_figures(trials),
                "not_run": int((missing[WORKERS] == workers).sum()),
                **change_figures(change),
                "forecast_s": math.nan,
                **({} if len(trials) else _foreseen(foreseen[foreseen[WORKERS] == workers])),
            }


def cell_figures(trials: pd.DataFrame) -> dict[str, Any]:
    """What trials of one cell have in common; the columns are those of `epoch_times`."""
    with_time = timed(trials)
    times = with_time["epoch_s"]
    return {
        "trials": len(trials),
        "n": len(times),
        "median_s": times.median(),
        "min_s": times.min(),
        "max_s": times.max(),
        "fill_s": with_time["fill_s"].median(),
        "spread": relative_spread(times),
        "slower_cores": _slower_cores(with_time),
        "outcomes": outcome_words(trials.loc[~trials.index.isin(with_time.index), "outcome"], len(trials)),
    }


def change_figures(change: Interval | None) -> dict[str, float]:
    value, low, high = change or (math.nan,) * 3
    return {"change": value, "change_low": low, "change_high": high}


def _of_size(trials: pd.DataFrame, size: int | None) -> pd.DataFrame:
    return trials[trials[SHM].isna() if size is None else (trials[SHM] == size).fillna(False).astype(bool)]


def _foreseen(trials: pd.DataFrame) -> dict[str, Any]:
    """What a cell was forecast to take, none of whose trials was measured; it may be sure to overflow."""
    if trials.empty:
        return {}
    overflows = "forecast_fit" in trials and (trials["forecast_fit"] == "overflows").all()
    return {"forecast_s": float(trials["forecast_epoch_s"].median()), "outcomes": "overflows" if overflows else ""}


def _slower_cores(trials: pd.DataFrame) -> bool:
    """Of trials that do the same work: CPU seconds grow where a core is slow, as a virtual one may be by its neighbours, and not by
    waiting; but for the threads of a training step on the host, which are at work while they wait for each other."""
    if trials.empty or trials["device"].iloc[0] == "cpu":
        return False
    cpu_s = (trials["main_cpu_s"] + trials["worker_cpu_s"].fillna(0))[trials["epoch_s"].sort_values().index]
    return bool(relative_spread(trials["epoch_s"]) > WIDE and cpu_s.iloc[-1] > (1 + WIDE) * cpu_s.iloc[0])


def timed(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that have a time."""
    return trials[trials["outcome"].isin(TIMED) & trials["epoch_s"].notna()]


def epoch_seconds(trials: pd.DataFrame) -> pd.Series:
    """Epoch seconds by repeat, of the trials that have them."""
    return timed(trials).set_index("repeat")["epoch_s"]


def _table(group: Comparable, markdown: bool) -> str:
    cells = epoch_times_of(group)
    title = heading("Epoch seconds by num_workers and shm_size", cells.iloc[0], markdown)
    notes = ["Median over n trials of their epoch seconds (fastest-slowest trial); warm epochs only."]
    if (cells["spread"] > WIDE).any():
        notes.append(f"{MARK} Fastest and slowest trial lie more than {100 * WIDE:.0f} % of the median apart.")
        notes += why_wide(cells)
    if cells["forecast_s"].notna().any():
        notes.append(NOT_MEASURED)
    notes += disturbance_lines(group.trials, markdown)
    return "\n".join([title, *_spread(_time_columns(cells), markdown), *notes, "", *_changes(cells, markdown)])


def why_wide(cells: pd.DataFrame) -> list[str]:
    """In how many of the wide cells the cores are the reason."""
    wide, slower = (cells["spread"] > WIDE).sum(), cells["slower_cores"].sum()
    of = f"{slower} of {wide} such cell{'' if wide == 1 else 's'}"
    return [f"In {of} the slowest trial took over {100 * WIDE:.0f} % more CPU time: its cores ran slower."] if slower else []


def _changes(cells: pd.DataFrame, markdown: bool) -> list[str]:
    with_workers = cells[cells["num_workers"] > 0]
    compared = with_workers[with_workers["shm_size"].isin(cells.loc[(cells["num_workers"] == 0) & (cells["n"] > 0), "shm_size"])]
    if compared.empty:
        return ["Change against 0 workers: no trial with 0 workers has a time here."]
    if compared["change"].isna().all():
        return [f"Change against 0 workers: not enough data, an interval needs {FEWEST_PAIRS} repeats with both times."]
    title = "Change of epoch seconds against 0 workers at the same shm_size"
    notes = ["Mean change over repeats, paired, and its 95 % interval; below zero is faster."]
    if any(not change.tells_apart for change in map(_change, compared.itertuples()) if change):
        notes.append("Not told apart: the interval holds zero.")
    return [title, "", *_spread(_change_columns(compared), markdown), *notes]


Columns = dict[str, dict[int, tuple[str, ...]]]  # header of a size -> num_workers -> the texts of its cell


def _time_columns(cells: pd.DataFrame) -> Columns:
    digits = decimals(cells[["median_s", "forecast_s"]].min(axis=None))
    widest = len(f"{cells['median_s'].max():.{digits}f}")
    columns: Columns = {}
    for cell in cells.itertuples():
        texts = (time_text(cell, digits, widest), str(cell.n) if cell.trials else "")
        columns.setdefault(f"shm {cell.shm_size}", {})[cell.num_workers] = texts
    return columns


def time_text(cell: Any, digits: int, widest: int) -> str:
    """'1.55 (1.51-1.61)', '41.2 s, 1 of 3 overflowed', '3 of 3 overflowed': a row of `epoch_times`."""
    if not cell.trials and cell.not_run:
        return NOT_RUN
    if not cell.trials:
        return f"~{cell.outcomes or f'{cell.forecast_s:.{digits}f}'} forecast"
    if not cell.n:
        return cell.outcomes
    median, mark = f"{cell.median_s:{widest}.{digits}f}", MARK if cell.spread > WIDE else ""
    if cell.outcomes:
        return f"{median} s{mark}, {cell.outcomes}"
    return f"{median} ({cell.min_s:.{digits}f}-{cell.max_s:.{digits}f}){mark}" if cell.n > 1 else median


def _change_columns(cells: pd.DataFrame) -> Columns:
    columns: Columns = {}
    for cell in cells.itertuples():
        columns.setdefault(f"shm {cell.shm_size}", {})[cell.num_workers] = (change_text(cell),)
    return columns


def change_text(cell: Any) -> str:
    """'-56% (-67% to -41%)', and whether that tells the two apart: a row of `epoch_times`."""
    if not cell.n:
        return "-"
    if not (change := _change(cell)):
        return "not enough data"
    return f"{change.value:+4.0%} ({change.low:+.0%} to {change.high:+.0%})" + ("" if change.tells_apart else ", not told apart")


def _change(cell: Any) -> Interval | None:
    return None if math.isnan(cell.change) else Interval(cell.change, cell.change_low, cell.change_high)


def _spread(columns: Columns, markdown: bool) -> list[str]:
    return spread(list(columns), lambda names: _side_by_side({name: columns[name] for name in names}, markdown), markdown)


def _side_by_side(columns: Columns, markdown: bool) -> str:
    counts = sorted({count for column in columns.values() for count in column})
    cell_width = len(next(iter(next(iter(columns.values())).values())))
    headers = [header for name in columns for header in (name, "n")[:cell_width]]
    absent = ("-", "")[:cell_width]
    rows = [[str(count), *(text for column in columns.values() for text in column.get(count, absent))] for count in counts]
    return grid(["workers", *headers], rows, ["right", *(["left", "right"][:cell_width] * len(columns))], markdown)
