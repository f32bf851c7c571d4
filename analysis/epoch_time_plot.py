"""Draws table 1: epoch seconds by loader workers, with their spread, forecast and losses.

The one idea is that the picture shows the table's figures and no others, with their spread. A cell
without a time is shown too.
"""

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from analysis.comparable_groups import Comparable
from analysis.number_text import count_text, decimals
from analysis.panels import (
    FORECAST,
    LINES,
    add_legend,
    draw_panels,
    draw_spread_line,
    label_workers_axis,
    set_panel_title,
    spread_handle,
)
from analysis.recommendation import advise_workers
from analysis.runs import SweepRuns
from analysis.text_tables import OUTCOME_LABELS
from analysis.timed_trials import reasons_without_time
from analysis.tradeoff import SHM, WORKERS, epoch_times_of, groups
from sweeps.names import format_parameter

LINE_PT, AXES_PT = 9, 170  # height of a line of small print, and minimum height of a panel's axes
FORECAST_ROOM = 1.25  # a forecast may raise the upper limit by this factor at most
CROSS: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": ""}


def epoch_seconds(runs: SweepRuns) -> Figure:
    """Draws table 1: epoch seconds by workers, a line for each size of /dev/shm.

    Bars reach from the fastest to the slowest trial. The forecast is dashed, within its interval.
    """
    return draw_panels(
        list(groups(runs)),
        _draw_epoch_seconds,
        "no block of these trials sweeps workers or sizes of /dev/shm",
    )


def _draw_epoch_seconds(axes: Axes, group: Comparable) -> None:
    """Draws the epoch seconds of one group."""
    cells = epoch_times_of(group)
    counts, sizes = sorted(set(cells["num_workers"])), list(dict.fromkeys(cells["shm_size"]))
    handles = []
    for index, size in enumerate(sizes):
        colour, marker = LINES[index % len(LINES)]
        size_cells = cells[(cells["shm_size"] == size) & (cells["n"] > 0)]
        x = [
            counts.index(workers) + _x_offset(index, len(sizes))
            for workers in size_cells["num_workers"]
        ]
        draw_spread_line(
            axes,
            x,
            *(size_cells[name] for name in ("median_s", "min_s", "max_s")),
            color=colour,
            marker=marker,
            markersize=5,
        )
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"shm {size}"))
    measured_limit = axes.get_ylim()[1]
    handles += [*_draw_forecast(axes, group, counts), *_draw_ring(axes, group, counts, sizes)]
    # A forecast that is far off must not press what was measured together
    room = FORECAST_ROOM * measured_limit if cells["n"].any() else float("inf")
    axes.set_ylim(0, min(axes.get_ylim()[1], room))
    handles += _draw_crosses(axes, group, cells, counts, sizes)
    label_workers_axis(axes, counts)
    axes.set_ylabel("epoch, s")
    if (cells["n"] > 1).any():
        handles.append(spread_handle("fastest to slowest trial"))
    add_legend(axes, handles)
    set_panel_title(axes, group, _times_title(group, cells))


def _x_offset(index: int, count: int) -> float:
    """Returns a shift from the worker count's position, so that whiskers do not overlap."""
    return 0.1 * (index - (count - 1) / 2)


def _draw_crosses(
    axes: Axes, group: Comparable, cells: pd.DataFrame, counts: Sequence[int], sizes: Sequence[str]
) -> list[Any]:
    """Draws a cross, with a count, for each cell in which some trials ended without a time.

    The cross stands at the foot of its column, or at the cell's time. The texts of a column are
    stacked above all its times, since those of neighbouring sizes would overlap beside their
    crosses. Where trials ended in different ways, letters name the ways. Returns the legend's
    handles.
    """
    incomplete = cells[cells["trials"] > cells["n"]]
    if incomplete.empty:
        return []
    reasons = reasons_without_time(group.trials)
    trials = group.trials.loc[reasons.index].assign(
        outcome=reasons,
        shm_size=[
            format_parameter(SHM, None if pd.isna(size) else int(size))
            for size in group.trials.loc[reasons.index, SHM]
        ],
    )
    outcomes = list(trials["outcome"].unique())
    letters = dict(zip(outcomes, ascii_lowercase, strict=False)) if len(outcomes) > 1 else {}
    for (workers, has_time), column in incomplete.groupby(["num_workers", incomplete["n"] > 0]):
        top = cells.loc[cells["num_workers"] == workers, "max_s"].max() if has_time else 0.0
        _raise_upper_limit(axes, top, len(column))
        for above, cell in enumerate(column.itertuples()):
            index = sizes.index(cell.shm_size)
            x, colour = (
                counts.index(workers) + _x_offset(index, len(sizes)),
                LINES[index % len(LINES)][0],
            )
            axes.plot(
                [x],
                [cell.max_s if has_time else 0.0],
                color=colour,
                clip_on=False,
                zorder=3,
                **CROSS,
            )
            _annotate(
                axes, _loss_text(cell, trials, letters), (x, top), 6 + LINE_PT * above, colour
            )
    cross_label = "without a time" if letters else OUTCOME_LABELS.get(outcomes[0], outcomes[0])
    legend_lines = [
        Line2D([], [], linestyle="", label=f"{letter}: {OUTCOME_LABELS.get(outcome, outcome)}")
        for outcome, letter in letters.items()
    ]
    return [
        Line2D([], [], color="#000000", label=f"k/n: k of n trials {cross_label}", **CROSS),
        *legend_lines,
    ]


def _loss_text(cell: Any, trials: pd.DataFrame, letters: dict[str, str]) -> str:
    """Returns for example '2/3 a b': trials without a time, and the ways in which they ended.

    `trials` are all trials without a time.
    """
    cell_outcomes = set(
        trials.loc[
            (trials[WORKERS] == cell.num_workers) & (trials["shm_size"] == cell.shm_size), "outcome"
        ]
    )
    return " ".join(
        [
            f"{cell.trials - cell.n}/{cell.trials}",
            *(letter for outcome, letter in letters.items() if outcome in cell_outcomes),
        ]
    )


def _annotate(
    axes: Axes, text: str, point: tuple[float, float], above_pt: float, colour: str
) -> None:
    """Writes small print above a point, in a halo, as it may stand on a line."""
    placement: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(
        text,
        point,
        (0, above_pt),
        color=colour,
        fontsize=7.5,
        path_effects=[withStroke(linewidth=2, foreground="#ffffff")],
        **placement,
    )


def _raise_upper_limit(axes: Axes, top: float, lines: int) -> None:
    """Raises the upper limit so that `lines` lines of text fit above `top`."""
    text_fraction = (6 + LINE_PT * lines) / AXES_PT
    axes.set_ylim(0, max(axes.get_ylim()[1], top / (1 - min(text_fraction, 0.7))))


def _draw_forecast(axes: Axes, group: Comparable, counts: Sequence[int]) -> list[Any]:
    """Draws the forecast as one line, as it does not depend on the size.

    Returns the legend's handles.
    """
    names = ["forecast_epoch_s", "forecast_epoch_low_s", "forecast_epoch_high_s"]
    sources = [
        trials.reindex(columns=[WORKERS, *names])
        for trials in (group.trials, group.forecast_only)
        if len(trials)
    ]
    medians = pd.concat(sources).dropna(subset=names[:1]).astype(float).groupby(WORKERS).median()
    if medians.empty:
        return []
    x = [counts.index(int(workers)) for workers in medians.index]
    axes.fill_between(
        x, medians[names[1]], medians[names[2]], color=FORECAST, alpha=0.15, linewidth=0
    )
    axes.plot(
        x,
        medians[names[0]],
        color=FORECAST,
        linestyle="--",
        linewidth=1.3,
        marker="" if len(x) > 1 else "_",
    )
    return [Line2D([], [], color=FORECAST, linestyle="--", label="forecast, with its interval")]


def _draw_ring(
    axes: Axes, group: Comparable, counts: Sequence[int], sizes: Sequence[str]
) -> list[Any]:
    """Draws a ring around the recommended cell. Returns the legend's handles."""
    if len(group.values(WORKERS)) < 2 or not (cell := advise_workers(group).cell):
        return []
    size = format_parameter(SHM, None if cell.shm_bytes == float("inf") else int(cell.shm_bytes))
    x = counts.index(cell.workers) + _x_offset(sizes.index(size), len(sizes))
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 15,
        "markerfacecolor": "none",
        "markeredgecolor": "#000000",
        "linestyle": "",
    }
    axes.plot([x], [cell.median_s], **ring)
    return [Line2D([], [], **ring | {"markersize": 11}, label="recommended")]


def _times_title(group: Comparable, cells: pd.DataFrame) -> str:
    """Returns for example 'Fastest with 2 workers: 1.55 s an epoch, against 3.32 s with none'."""
    measured = cells[cells["n"] > 0]
    if measured.empty:
        return "No selected trial has a time"
    fastest = measured.loc[measured["median_s"].idxmin()]
    digits = decimals(fastest["median_s"])
    text = (
        f"Fastest with {count_text(fastest['num_workers'], 'worker')}:"
        f" {fastest['median_s']:.{digits}f} s an epoch"
    )
    baseline = measured[
        (measured["num_workers"] == 0) & (measured["shm_size"] == fastest["shm_size"])
    ]
    if len(baseline) and fastest["num_workers"]:
        text += f", against {baseline['median_s'].iloc[0]:.{digits}f} s with none"
    return text
