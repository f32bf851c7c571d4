"""Builds table 3: what each trial was forecast to take, beside what it took.

The one idea is to test a forecast with two questions. The first is its error. The second is its
regret: how much slower than the fastest is the cell that the forecast would have chosen. Two rivals
that cost nothing are tested too: the textbooks' closed form max(), and the rule that a loader has
as many workers as there are cores.

Two forecasts are registered before the trial's first epoch: the planned one, and the one at the
trial's start, after a probe of the machine's speed. A third figure is computed afterwards, at the
speed that the trial met. It shows the error of the model without that of the machine's speed.
Intervals are judged by their interval score, which is smaller for narrow intervals and for those
that contain the measured time. `forecasts` and `choices` return the figures, `tables` the text.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.comparable_groups import Comparable
from analysis.number_text import MIB, count_text, decimals, or_dash, percent
from analysis.runs import SweepRuns
from analysis.text_tables import WIDTH, grid, heading, wrap_columns
from analysis.timed_trials import RAN_THROUGH, timed_trials
from analysis.tradeoff import SHM, WORKERS, groups
from sweeps.names import format_parameter

# Relative to the smallest time. Epochs this close are equally good, and the fewest workers are
# chosen.
NEAR = 0.02
FORECASTS = {  # column of table 3 -> figure of the trial
    "forecast_s": "forecast_epoch_s",
    "low_s": "forecast_epoch_low_s",
    "high_s": "forecast_epoch_high_s",
    "start_s": "forecast_at_start_s",
    "start_low_s": "forecast_at_start_low_s",
    "start_high_s": "forecast_at_start_high_s",
    "speed_s": "forecast_at_speed_s",
    "closed_form_s": "forecast_closed_form_s",
    "forecast_first_batch_s": "forecast_first_batch_s",
    "first_batch_low_s": "forecast_first_batch_low_s",
    "first_batch_high_s": "forecast_first_batch_high_s",
    "forecast_wait_fraction": "forecast_wait_fraction",
    "forecast_stall_steps": "forecast_stall_steps",
    "forecast_shm_peak_bytes": "forecast_shm_peak_bytes",
}
# figures of the trial that have a forecast_... counterpart
MEASURED = ("first_batch_s", "wait_fraction", "stall_steps", "shm_peak_bytes")
# rule -> column of the seconds by which it chooses
RULES = {"forecast": "forecast_s", "closed form": "closed_form_s"}
CORES_RULE = "workers = cores"
# a cell with this verdict that ran through did so by luck
UNRELIABLE_VERDICTS = ("depends", "overflows")
MISSED = 0.1  # share of times that an interval may miss: its nominal coverage is 90 %
EPOCH = ("measured\ns", "planned\ns", "error\n%", "at start\ns", "error\n%")
MODEL = ("at met\nspeed s", "error\n%", "closed\nform s", "error\n%")
OUTSIDE = "*"  # marks an interval that does not contain the measured time
# name of an error in the note -> its column
ERRORS = {
    "planned": "error",
    "at start": "start_error",
    "at met speed": "speed_error",
    "closed form": "closed_form_error",
}
WITHIN = tuple(
    header
    for name in ("first batch s", "wait %", "stalls", "shm MiB")
    for header in (f"{name},\nforecast", "\nseen")
)


def forecasts(runs: SweepRuns) -> pd.DataFrame:
    """Returns table 3 as a tidy frame, a row a cell that has both a forecast and a time.

    Columns:
        sweep, block, varied, surroundings   str; the table that the row belongs to
        num_workers               int
        shm_size                  str, '64M' or 'node'
        n                         int, trials with a time
        forecast_s, low_s, high_s   float, planned epoch seconds and their interval
        start_s, start_low_s, start_high_s   float, the same at the trial's start
        speed_s                   float, epoch seconds by the model at the speed that the trial met
        measured_s                float, median over n trials
        error, start_error, speed_error   float, forecast over measured, minus 1
        inside, start_inside      bool: measured lies within the interval
        score, start_score        float, see `interval_score`
        closed_form_s, closed_form_error   float
        forecast_first_batch_s, first_batch_low_s, first_batch_high_s, first_batch_s,
        forecast_wait_fraction, wait_fraction, forecast_stall_steps, stall_steps,
        forecast_shm_peak_bytes, shm_peak_bytes
                                  float, medians; NaN where not measured
        counts                    bool: the cell may be chosen, as its trials all completed and none
                                  did so by luck
    """
    return pd.DataFrame([row for group in groups(runs) for row in _rows(group)])


def choices(runs: SweepRuns) -> pd.DataFrame:
    """Returns the cell that each rule would have chosen among those of `forecasts` that count.

    A row is a rule. Columns:
        sweep, block, varied, surroundings   str
        rule          str: forecast, closed form or workers = cores
        num_workers   float, NaN if no cell follows the rule
        shm_size      str
        measured_s    float
        fastest_s     float, the fastest measured of those cells
        regret        float, measured over fastest, minus 1; NaN if nothing was chosen
    If no cell counts, the rules choose among all cells.
    """
    return pd.DataFrame(
        [
            choice
            for group in groups(runs)
            if (rows := _frame(group)) is not None
            for choice in _choices(group, rows)
        ]
    )


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns table 3 as texts, one beside each table 1 whose trials were forecast."""
    return [
        _table(group, rows, markdown)
        for group in groups(runs)
        if (rows := _frame(group)) is not None
    ]


def _frame(group: Comparable) -> pd.DataFrame | None:
    """Returns the rows of a group as a frame; None if there are none."""
    rows = pd.DataFrame(_rows(group))
    return None if rows.empty else rows


def _rows(group: Comparable) -> Iterator[dict[str, Any]]:
    """Yields rows by workers, then by size.

    The first of several rows thus requires the least of the machine.
    """
    for (workers, size), cell_trials in group.trials.groupby([WORKERS, SHM], dropna=False):
        trials = timed_trials(cell_trials)
        forecast_medians = trials.reindex(columns=list(FORECASTS.values())).median()
        measured_s = trials["epoch_s"].median()
        if pd.isna(forecast_medians["forecast_epoch_s"]) or pd.isna(measured_s):
            continue
        row = {column: float(forecast_medians[name]) for column, name in FORECASTS.items()}
        yield {
            **group.labels,
            "num_workers": int(workers),
            "shm_size": format_parameter(SHM, None if pd.isna(size) else int(size)),
            "n": len(trials),
            **row,
            "measured_s": measured_s,
            "error": row["forecast_s"] / measured_s - 1,
            "start_error": row["start_s"] / measured_s - 1,
            "speed_error": row["speed_s"] / measured_s - 1,
            "inside": bool(row["low_s"] <= measured_s <= row["high_s"]),
            "start_inside": bool(row["start_low_s"] <= measured_s <= row["start_high_s"]),
            "score": interval_score(row["low_s"], row["high_s"], measured_s),
            "start_score": interval_score(row["start_low_s"], row["start_high_s"], measured_s),
            **trials[list(MEASURED)].median(),
            "closed_form_error": row["closed_form_s"] / measured_s - 1,
            "counts": bool(
                cell_trials["outcome"].isin(RAN_THROUGH).all()
                and not cell_trials["forecast_fit"].isin(UNRELIABLE_VERDICTS).any()
            ),
        }


def interval_score(low_s: float, high_s: float, measured_s: float) -> float:
    """Returns the interval score, relative to the measured time; smaller is better.

    It is the interval's width, plus 2 / MISSED times the distance by which the measured time lies
    outside (Gneiting and Raftery, JASA 2007, equation 43).
    """
    outside_s = max(low_s - measured_s, measured_s - high_s, 0.0)
    return (high_s - low_s + 2 / MISSED * outside_s) / measured_s


def _choices(group: Comparable, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yields a row of `choices` for each rule."""
    pool = rows[rows["counts"]] if rows["counts"].any() else rows
    fastest_s = float(pool["measured_s"].min())
    # Under a quota, only whole cores count.
    cores = pd.to_numeric(group.trials["cores"], errors="coerce").max() // 1
    chosen = {
        rule: pool[pool[column] <= (1 + NEAR) * pool[column].min()]
        for rule, column in RULES.items()
    }
    for rule, cells in (chosen | {CORES_RULE: pool[pool["num_workers"] == cores]}).items():
        cell: Any = (
            cells.iloc[0]
            if len(cells)
            else {"num_workers": math.nan, "shm_size": "", "measured_s": math.nan}
        )
        yield {
            **group.labels,
            "rule": rule,
            **{name: cell[name] for name in ("num_workers", "shm_size", "measured_s")},
            "fastest_s": fastest_s,
            "regret": cell["measured_s"] / fastest_s - 1,
        }


def _table(group: Comparable, rows: pd.DataFrame, markdown: bool) -> str:
    """Returns one table 3 as text."""
    title = heading("Forecast and measured", rows.iloc[0], markdown)
    digits = decimals(rows[["measured_s", "forecast_s"]].min(axis=None))
    axes = {
        "epoch": (EPOCH, lambda row: _epoch_texts(row, digits)),
        "model": (MODEL, lambda row: _model_texts(row, digits)),
        "within": (WITHIN, lambda row: _figure_texts(row, max(2, digits))),
    }

    def draw(names: Sequence[str]) -> str:
        """Returns the axes with these names as one table."""
        headers = ["workers", "shm", *(header for name in names for header in axes[name][0])]
        texts = [
            [
                str(row.num_workers),
                row.shm_size,
                *(text for name in names for text in axes[name][1](row)),
            ]
            for row in rows.itertuples()
        ]
        return grid(headers, texts, ["right", "left", *["right"] * (len(headers) - 2)], markdown)

    notes = [
        "Planned before the first trial ran; at start: after a probe of the machine's speed as each"
        f" trial started; both with their interval, and {OUTSIDE} if it does not contain the"
        " measured time. At met speed: the model at the speed that the trial met, computed"
        " afterwards. Measured and seen: median over trials. Error: against measured. Stalls: steps"
        " that the accelerator waited for more than 1 ms."
    ]
    notes += [_errors_note(rows), _choices_note(group, rows)]
    return "\n".join(
        [
            title,
            *wrap_columns(list(axes), draw, markdown),
            *(notes if markdown else [textwrap.fill(note, WIDTH) for note in notes]),
        ]
    )


def _epoch_texts(row: Any, digits: int) -> list[str]:
    """Returns the texts of the columns EPOCH."""
    planned = f"{row.forecast_s:.{digits}f} ({row.low_s:.{digits}f}-{row.high_s:.{digits}f})"
    start = "-"
    if not pd.isna(row.start_s):
        start = (
            f"{row.start_s:.{digits}f} ({row.start_low_s:.{digits}f}-{row.start_high_s:.{digits}f})"
            + ("" if row.start_inside else OUTSIDE)
        )
    return [
        f"{row.measured_s:.{digits}f}",
        planned + ("" if row.inside else OUTSIDE),
        f"{100 * row.error:+.1f}",
        start,
        or_dash(100 * row.start_error, "+.1f"),
    ]


def _model_texts(row: Any, digits: int) -> list[str]:
    """Returns the texts of the columns MODEL."""
    return [
        or_dash(row.speed_s, f".{digits}f"),
        or_dash(100 * row.speed_error, "+.1f"),
        or_dash(row.closed_form_s, f".{digits}f"),
        or_dash(100 * row.closed_form_error, "+.1f"),
    ]


def _figure_texts(row: Any, digits: int) -> list[str]:
    """Returns the texts of the columns WITHIN."""
    first = or_dash(row.forecast_first_batch_s, f".{digits}f")
    if not pd.isna(row.first_batch_low_s):
        first += f" ({row.first_batch_low_s:.{digits}f}-{row.first_batch_high_s:.{digits}f})"
    waits = [
        or_dash(100 * value, ".0f") for value in (row.forecast_wait_fraction, row.wait_fraction)
    ]
    stalls = [or_dash(value, ".0f") for value in (row.forecast_stall_steps, row.stall_steps)]
    peaks = [
        or_dash(value / MIB, ".1f") for value in (row.forecast_shm_peak_bytes, row.shm_peak_bytes)
    ]
    return [first, or_dash(row.first_batch_s, f".{digits}f"), *waits, *stalls, *peaks]


def _errors_note(rows: pd.DataFrame) -> str:
    """Returns for example 'Absolute error over 8 cells: forecast, median 3.1 % ...'."""
    texts = []
    for rule, column in ERRORS.items():
        error = 100 * rows[column].abs()
        if error.notna().any():
            texts.append(f"{rule}, median {error.median():.1f} % and worst {error.max():.1f} %")
    cells = count_text(len(rows), "cell")
    intervals = [
        f"{rule}, {rows[inside].sum()} of {len(rows)} inside, score {rows[score].mean():.2f}"
        for rule, inside, score in (
            ("planned", "inside", "score"),
            ("at start", "start_inside", "start_score"),
        )
        if rows[score].notna().all()
    ]
    return (
        f"Absolute error over {cells}: {'; '.join(texts)}. Intervals, meant to contain"
        f" {percent(1 - MISSED)}: {'; '.join(intervals)}. Score: mean width over the measured time,"
        f" plus {2 / MISSED:.0f} times what lies outside."
    )


def _choices_note(group: Comparable, rows: pd.DataFrame) -> str:
    """Returns a sentence with the choice and the regret of each rule."""
    several = len(set(rows["shm_size"])) > 1
    texts = []
    for choice in _choices(group, rows):
        if math.isnan(choice["num_workers"]):
            texts.append(f"{choice['rule']}, no such cell")
            continue
        workers = count_text(int(choice["num_workers"]), "worker")
        cell = f"{workers} with shm {choice['shm_size']}" if several else workers
        texts.append(f"{choice['rule']}, {cell}, regret {choice['regret']:+.1%}")
    rule = f"the fewest workers within {percent(NEAR)} of the rule's smallest time"
    return (
        f"Choice by each rule, {rule}: {'; '.join(texts)}. Regret: how much slower than the fastest"
        " measured cell."
    )
