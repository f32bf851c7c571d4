"""Draws the use of /dev/shm by loader workers, beside the forecast bound and the sizes."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.comparable_groups import Comparable
from analysis.number_text import MIB, count_text, mib
from analysis.panels import FORECAST, LINES, draw_panels, label_workers_axis, set_panel_title
from analysis.runs import SweepRuns
from analysis.shm_table import fits_of
from analysis.text_tables import OUTCOME_LABELS, join_texts
from analysis.timed_trials import RAN_THROUGH
from analysis.tradeoff import SHM, WORKERS, groups
from sweeps.names import format_parameter


def shm_peaks(runs: SweepRuns) -> Figure:
    """Draws the largest use of /dev/shm by workers, beside the forecast bound and the sizes."""
    drawable = [group for group in groups(runs) if any(map(len, _peaks_and_bounds(group.trials)))]
    return draw_panels(
        drawable, _draw_shm_peaks, "no trial with workers has recorded its use of /dev/shm"
    )


def _draw_shm_peaks(axes: Axes, group: Comparable) -> None:
    """Draws the peaks, bounds and sizes of /dev/shm of one group."""
    trials = group.trials[group.trials[WORKERS] > 0]
    counts = sorted({int(workers) for workers in trials[WORKERS]})
    peaks, bounds = _peaks_and_bounds(trials)
    overflowed = trials[trials["outcome"] == "shm_exhausted"].dropna(subset=SHM)

    def mark(values: pd.Series, label: str, **style: Any) -> None:
        """Draws a marker for each value, at the worker count of its index."""
        if len(values):
            axes.plot(
                [counts.index(int(count)) for count in values.index],
                values,
                linestyle="",
                label=label,
                **style,
            )

    mark(peaks, "highest peak, completed or diverged", color=LINES[0][0], marker="o", markersize=8)
    for count, value in peaks.items():
        axes.annotate(
            f"{value:,.1f}",
            (counts.index(int(count)), value),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    mark(
        bounds,
        "forecast maximum",
        color=FORECAST,
        marker="_",
        markersize=22,
        markeredgewidth=2,
    )
    limits = pd.Series(sorted(trials[SHM].dropna().unique()), dtype=float) / MIB
    _draw_sizes(axes, limits)
    mark(
        overflowed.set_index(WORKERS)[SHM].astype(float) / MIB,
        "overflowed",
        color=LINES[1][0],
        marker="X",
        markersize=9,
    )
    _log_axis(axes, pd.concat([peaks, bounds, limits]))
    label_workers_axis(axes, counts)
    handles = axes.get_legend_handles_labels()[0]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
    )
    set_panel_title(axes, group, _peaks_title(group, peaks))


def _draw_sizes(axes: Axes, limits: pd.Series) -> None:
    """Draws a line with a label for each size of /dev/shm; `limits` are in MiB."""
    for limit in limits:
        axes.axhline(limit, color="#000000", linewidth=1.2)
        placement: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
        }
        axes.annotate(
            f"shm {format_parameter(SHM, int(limit * MIB))}",
            (1, limit),
            (4, 0),
            va="center",
            fontsize=8.5,
            **placement,
        )


def _peaks_and_bounds(trials: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Returns two series in MiB, by workers, without worker counts that took none.

    The first holds the largest peak of trials that ran through, the second the largest forecast
    bound.
    """
    with_workers = trials[trials[WORKERS] > 0]
    completed = with_workers[with_workers["outcome"].isin(RAN_THROUGH)]
    peaks, bounds = (
        completed.groupby(WORKERS)["shm_peak_bytes"].max(),
        with_workers.groupby(WORKERS)["forecast_shm_max_bytes"].max(),
    )
    return peaks[peaks > 0] / MIB, bounds[bounds > 0] / MIB


def _log_axis(axes: Axes, values: pd.Series) -> None:
    """Sets a logarithmic y axis in MiB that covers `values`."""
    axes.set_yscale("log", base=2)
    axes.set_ylim(values.min() / 2, values.max() * 2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("/dev/shm, MiB (log)")


def _peaks_title(group: Comparable, peaks: pd.Series) -> str:
    """Returns a title on the largest use of /dev/shm and on the sizes that overflowed.

    An example is '8 workers used at most 239.1 MiB of /dev/shm; shm 64M overflowed with 4 and 8'.
    """
    text = (
        f"{count_text(int(peaks.idxmax()), 'worker')} used at most {mib(MIB * peaks.max())} of"
        " /dev/shm"
        if len(peaks)
        else "No trial with workers completed"
    )
    cells = fits_of(group)
    if cells.empty:
        return text
    overflowed = cells[cells["outcomes"].str.contains(OUTCOME_LABELS["shm_exhausted"])]
    for size, size_cells in overflowed.groupby("shm_size", sort=False):
        text += (
            f"; shm {size} overflowed with"
            f" {join_texts([str(count) for count in sorted(size_cells['num_workers'])])}"
        )
    return text
