"""Table 3: what a trial was forecast to take, beside what it took.

The one idea is to hold a forecast to two questions: how far off it was, and how much slower than the fastest is the cell that one would
have chosen by it, its regret. Two rivals that cost nothing are asked the same: the textbooks' closed form max(), and the rule that a
loader has as many workers as there are cores. All forecasts were in the tracker before their trial began. `forecasts` and `choices` give
the figures, `tables` the page.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.page import WIDTH, decimals, grid, heading, spread
from analysis.runs import Comparable
from analysis.tradeoff import SHM, WORKERS, groups, timed
from sweeps.names import written

NEAR = 0.02  # of the smallest: epochs this close are as good, and the fewest workers are chosen
FORECASTS = {  # column here -> figure of the trial
    "forecast_s": "forecast_epoch_s",
    "low_s": "forecast_epoch_low_s",
    "high_s": "forecast_epoch_high_s",
    "closed_form_s": "forecast_closed_form_s",
    "forecast_fill_s": "forecast_fill_s",
    "fill_low_s": "forecast_fill_low_s",
    "fill_high_s": "forecast_fill_high_s",
    "forecast_wait_fraction": "forecast_wait_fraction",
    "forecast_stall_steps": "forecast_stall_steps",
    "forecast_shm_peak_bytes": "forecast_shm_peak_bytes",
}
MEASURED = ("fill_s", "wait_fraction", "stall_steps", "shm_peak_bytes")  # figures of the trial that stand beside forecast_...
RULES = {"forecast": "forecast_s", "closed form": "closed_form_s"}  # who chooses by its seconds -> the column that holds them
CORES_RULE = "workers = cores"
UNSURE = ("depends", "overflows")  # verdicts of cells that ran through by luck
EPOCH = ("forecast\ns", "measured\ns", "error\n%", "inside", "closed\nform s", "error\n%")
WITHIN = tuple(header for name in ("fill s", "wait %", "stalls", "shm MiB") for header in (f"{name},\nforecast", "\nseen"))


def forecasts(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 3 as a tidy frame, a row a cell that has both a forecast and a time, from the frame of `runs.sweep_runs`.

    Columns: sweep, block, varied, surroundings (str; the table the row belongs to), num_workers (int), shm_size (str, '64M' or 'node'), n
    (int: trials with a time), forecast_s, low_s, high_s (float: epoch seconds and their interval), measured_s (float: median over n
    trials), error (float: forecast over measured, minus 1), inside (bool: measured within the interval), closed_form_s, closed_form_error
    (float), forecast_fill_s, fill_low_s, fill_high_s, fill_s, forecast_wait_fraction, wait_fraction, forecast_stall_steps, stall_steps,
    forecast_shm_peak_bytes, shm_peak_bytes (float, NaN where it wasn't measured: medians), counts (bool: a cell to choose, whose trials all
    completed and not by luck).
    """
    return pd.DataFrame([row for group in groups(frame) for row in _rows(group)])


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """What each rule would have chosen among the cells of `forecasts` that count, a row a rule.

    Columns: sweep, block, varied, surroundings (str), rule (str: forecast, closed form or workers = cores), num_workers (float, NaN where
    no cell follows the rule), shm_size (str), measured_s (float), fastest_s (float: the fastest measured of those cells), regret (float:
    measured over fastest, minus 1; NaN where nothing was chosen).
    """
    return pd.DataFrame([choice for group in groups(frame) if (rows := _frame(group)) is not None for choice in _choices(group, rows)])


def tables(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """Table 3 as text, one beside each table 1 whose trials were forecast."""
    return [_table(group, rows, markdown) for group in groups(frame) if (rows := _frame(group)) is not None]


def _frame(group: Comparable) -> pd.DataFrame | None:
    rows = pd.DataFrame(_rows(group))
    return None if rows.empty else rows


def _rows(group: Comparable) -> Iterator[dict[str, Any]]:
    """By workers, then by size, so that the first of several asks least of the machine."""
    for (workers, size), alike in group.trials.groupby([WORKERS, SHM], dropna=False):
        trials = timed(alike)
        foreseen = trials[list(FORECASTS.values())].median()
        measured_s = trials["epoch_s"].median()
        if pd.isna(foreseen["forecast_epoch_s"]) or pd.isna(measured_s):
            continue
        row = {column: float(foreseen[name]) for column, name in FORECASTS.items()}
        yield {
            **group.labels,
            "num_workers": int(workers),
            "shm_size": written(SHM, None if pd.isna(size) else int(size)),
            "n": len(trials),
            **row,
            "measured_s": measured_s,
            "error": row["forecast_s"] / measured_s - 1,
            "inside": bool(row["low_s"] <= measured_s <= row["high_s"]),
            **trials[list(MEASURED)].median(),
            "closed_form_error": row["closed_form_s"] / measured_s - 1,
            "counts": bool((alike["outcome"] == "completed").all() and not alike["forecast_fit"].isin(UNSURE).any()),
        }


def _choices(group: Comparable, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    pool = rows[rows["counts"]] if rows["counts"].any() else rows
    fastest_s = float(pool["measured_s"].min())
    cores = pd.to_numeric(group.trials["cores"], errors="coerce").max()
    chosen = {rule: pool[pool[column] <= (1 + NEAR) * pool[column].min()] for rule, column in RULES.items()}
    for rule, cells in (chosen | {CORES_RULE: pool[pool["num_workers"] == cores]}).items():
        cell: Any = cells.iloc[0] if len(cells) else {"num_workers": math.nan, "shm_size": "", "measured_s": math.nan}
        yield {
            **group.labels,
            "rule": rule,
            **{name: cell[name] for name in ("num_workers", "shm_size", "measured_s")},
            "fastest_s": fastest_s,
            "regret": cell["measured_s"] / fastest_s - 1,
        }


def _table(group: Comparable, rows: pd.DataFrame, markdown: bool) -> str:
    title = heading("Forecast and measured", rows.iloc[0], markdown)
    digits = decimals(rows[["measured_s", "forecast_s"]].min(axis=None))
    axes = {"epoch": (EPOCH, lambda row: _epoch(row, digits)), "within": (WITHIN, lambda row: _within(row, max(2, digits)))}

    def draw(names: Sequence[str]) -> str:
        headers = ["workers", "shm", *(header for name in names for header in axes[name][0])]
        texts = [
            [str(row.num_workers), row.shm_size, *(text for name in names for text in axes[name][1](row))] for row in rows.itertuples()
        ]
        return grid(headers, texts, ["right", "left", *["right"] * (len(headers) - 2)], markdown)

    notes = [
        "Forecast before the trials ran, with its interval; measured and seen: median over trials. Error: forecast against measured. "
        "Stalls: steps that the accelerator waited for more than 1 ms."
    ]
    notes += [_errors(rows), _chosen(group, rows)]
    return "\n".join([title, *spread(list(axes), draw, markdown), *(notes if markdown else [textwrap.fill(note, WIDTH) for note in notes])])


def _epoch(row: Any, digits: int) -> list[str]:
    forecast = f"{row.forecast_s:.{digits}f} ({row.low_s:.{digits}f}-{row.high_s:.{digits}f})"
    closed = [_figure(row.closed_form_s, f".{digits}f"), _figure(100 * row.closed_form_error, "+.1f")]
    return [forecast, f"{row.measured_s:.{digits}f}", f"{100 * row.error:+.1f}", "yes" if row.inside else "no", *closed]


def _within(row: Any, digits: int) -> list[str]:
    fill = _figure(row.forecast_fill_s, f".{digits}f")
    if not pd.isna(row.fill_low_s):
        fill += f" ({row.fill_low_s:.{digits}f}-{row.fill_high_s:.{digits}f})"
    waits = [_figure(100 * value, ".0f") for value in (row.forecast_wait_fraction, row.wait_fraction)]
    stalls = [_figure(value, ".0f") for value in (row.forecast_stall_steps, row.stall_steps)]
    peaks = [_figure(value / 2**20, ".1f") for value in (row.forecast_shm_peak_bytes, row.shm_peak_bytes)]
    return [fill, _figure(row.fill_s, f".{digits}f"), *waits, *stalls, *peaks]


def _figure(value: float, how: str) -> str:
    return "-" if pd.isna(value) else format(value, how)


def _errors(rows: pd.DataFrame) -> str:
    """'Error over 8 cells, its sign left out: forecast, median 3.1 % and worst 9.4 %; ...'"""
    said = []
    for rule, column in (("forecast", "error"), ("closed form", "closed_form_error")):
        error = 100 * rows[column].abs()
        if error.notna().any():
            said.append(f"{rule}, median {error.median():.1f} % and worst {error.max():.1f} %")
    cells = f"{len(rows)} cell{'' if len(rows) == 1 else 's'}"
    inside = f"{rows['inside'].sum()} of {len(rows)} measured within the forecast's interval"
    return f"Error over {cells}, its sign left out: {'; '.join(said)}; {inside}."


def _chosen(group: Comparable, rows: pd.DataFrame) -> str:
    several = len(set(rows["shm_size"])) > 1
    said = []
    for choice in _choices(group, rows):
        if math.isnan(choice["num_workers"]):
            said.append(f"{choice['rule']}, no such cell")
            continue
        workers = f"{choice['num_workers']:.0f} worker{'' if choice['num_workers'] == 1 else 's'}"
        cell = f"{workers} with shm {choice['shm_size']}" if several else workers
        said.append(f"{choice['rule']}, {cell}, regret {choice['regret']:+.1%}")
    rule = f"the fewest workers within {100 * NEAR:.0f} % of its smallest time"
    return f"Choice of each, {rule}: {'; '.join(said)}. Regret: how much slower than the fastest measured."
