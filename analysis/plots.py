"""Pictures of a worker sweep: how long an epoch takes, where it goes, and what it takes of /dev/shm.

The one idea is that a picture shows a table's figures and no others, with their spread, and that a cell without a time is in it too.
Each function takes the frame of `runs.sweep_runs`, or a part of it, and returns a Figure with a panel for each of its tables. LookupError:
it has none. Colours are Okabe and Ito's, which people who see red and green alike tell apart; markers and hatches say the same in print.
"""

import textwrap
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.epochs import SPANS, epoch_parts_of
from analysis.fit import fits
from analysis.page import WORDS, decimals, listed
from analysis.recommendation import advise
from analysis.runs import Comparable
from analysis.tradeoff import SHM, TIMED, WORKERS, epoch_times_of, groups, timed
from sweeps.names import written

WIDTH_IN, PANEL_IN, DPI = 7.5, 3.6, 150
MIB = 1 << 20
# Okabe and Ito's colours, the strongest first, and what tells them apart where there are none
LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"))
OF_SPANS = {  # what it is called here, its colour as in stalls.py (blue is work, orange and vermilion are waiting), its hatch
    "start_s": ("start of workers", "#CC79A7", "\\\\"),
    "fill_s": ("fill: first batch", "#E69F00", ".."),
    "wait_s": ("wait: later batches", "#D55E00", "//"),
    "step_s": ("step", "#0072B2", ""),
    "other_s": ("other", "#999999", "xx"),
}
FORECAST = "#555555"
LINE_PT, AXES_PT = 9, 170  # height of a line of small print, and of a panel's axes at least
CROSS: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": ""}


def epoch_seconds(frame: pd.DataFrame) -> Figure:
    """Table 1: epoch seconds by workers, a line a size of /dev/shm, from fastest to slowest trial; the forecast dashed, in its interval."""
    return panels(list(groups(frame)), _epoch_seconds, "no block of these trials sweeps workers or sizes of /dev/shm")


def where_epochs_go(frame: pd.DataFrame) -> Figure:
    """Table 2: the host's seconds of an epoch by workers, stacked."""
    having = [group for group in groups(frame) if len(epoch_parts_of(group))]
    return panels(having, _where_epochs_go, "no block that sweeps workers or sizes of /dev/shm has trials with these figures")


def shm_peaks(frame: pd.DataFrame) -> Figure:
    """The most that trials took of /dev/shm, by workers, beside the most that was foreseen and the sizes that there were."""
    having = [group for group in groups(frame) if any(map(len, _taken(group.trials)))]
    return panels(having, _shm_peaks, "no trial with workers tells what it takes of /dev/shm")


def panels(parts: Sequence[Any], draw: Callable[[Axes, Any], None], missing: str, height_in: float = PANEL_IN) -> Figure:
    """A Figure with a panel for each part, one below the other. LookupError(`missing`) where there is none."""
    if not parts:
        raise LookupError(missing)
    figure = Figure(figsize=(WIDTH_IN, height_in * len(parts)), dpi=DPI, layout="constrained")
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        draw(axes, part)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def titled(axes: Axes, group: Comparable, seen: str) -> None:
    """What is seen, and below it in small print of what."""
    of = ", ".join(filter(None, [f"block {group.block}", group.varied, group.surroundings]))
    axes.set_title(textwrap.fill(seen, 80), loc="left", fontsize=11, pad=10 + 11 * len(textwrap.wrap(of, 120)))
    axes.text(0, 1.02, textwrap.fill(of, 120), transform=axes.transAxes, fontsize=7.5, color="#444444", va="bottom")


def legend_beside(axes: Axes, handles: Sequence[Any]) -> None:
    """Right of the axes, so that it hides nothing; a long text in lines, so that it leaves the axes their room."""
    for handle in handles:
        handle.set_label(textwrap.fill(handle.get_label(), 32))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5, frameon=False, borderaxespad=0)


def _epoch_seconds(axes: Axes, group: Comparable) -> None:
    cells = epoch_times_of(group)
    counts, sizes = sorted(set(cells["num_workers"])), list(dict.fromkeys(cells["shm_size"]))
    handles = []
    for at, size in enumerate(sizes):
        colour, marker = LINES[at % len(LINES)]
        of_size = cells[(cells["shm_size"] == size) & (cells["n"] > 0)]
        x = [counts.index(workers) + _dodge(at, len(sizes)) for workers in of_size["num_workers"]]
        spread = [of_size["median_s"] - of_size["min_s"], of_size["max_s"] - of_size["median_s"]]
        axes.errorbar(x, of_size["median_s"], spread, color=colour, marker=marker, capsize=3, linewidth=1.6, markersize=5)
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"shm {size}"))
    handles += [*_forecast(axes, group, counts), *_ring(axes, group, counts, sizes)]
    axes.set_ylim(0, axes.get_ylim()[1])
    handles += _without_time(axes, group, cells, counts, sizes)
    _workers_axis(axes, counts)
    axes.set_ylabel("epoch, s")
    if (cells["n"] > 1).any():
        handles.append(Line2D([], [], color="#000000", marker="|", linestyle="", markersize=10, label="fastest to slowest trial"))
    legend_beside(axes, handles)
    titled(axes, group, _seen_of_times(group, cells))


def _dodge(at: int, of: int) -> float:
    """Beside its count, so that whiskers don't lie on each other."""
    return 0.1 * (at - (of - 1) / 2)


def _without_time(axes: Axes, group: Comparable, cells: pd.DataFrame, counts: Sequence[int], sizes: Sequence[str]) -> list[Any]:
    """A cross for each cell whose trials did not all end with a time, at the foot of its column or at its time, and how many of how many.

    The texts of a column stand on each other, above all its times, since those of neighbouring sizes would lie on each other beside their
    crosses. Where trials ended in different ways, letters tell which.
    """
    lost = cells[cells["trials"] > cells["n"]]
    if lost.empty:
        return []
    trials = group.trials[~group.trials.index.isin(timed(group.trials).index)]
    trials = trials.assign(shm_size=[written(SHM, None if pd.isna(size) else int(size)) for size in trials[SHM]])
    ways = list(trials["outcome"].unique())
    letters = dict(zip(ways, ascii_lowercase, strict=False)) if len(ways) > 1 else {}
    for (workers, has_time), column in lost.groupby(["num_workers", lost["n"] > 0]):
        top = cells.loc[cells["num_workers"] == workers, "max_s"].max() if has_time else 0.0
        _room_for(axes, top, len(column))
        for above, cell in enumerate(column.itertuples()):
            at = sizes.index(cell.shm_size)
            x, colour = counts.index(workers) + _dodge(at, len(sizes)), LINES[at % len(LINES)][0]
            axes.plot([x], [cell.max_s if has_time else 0.0], color=colour, clip_on=False, zorder=3, **CROSS)
            _small(axes, _how_many(cell, trials, letters), (x, top), 6 + LINE_PT * above, colour)
    words = "without a time" if letters else WORDS.get(ways[0], ways[0])
    told = [Line2D([], [], linestyle="", label=f"{letter}: {WORDS.get(way, way)}") for way, letter in letters.items()]
    return [Line2D([], [], color="#000000", label=f"how many of how many {words}", **CROSS), *told]


def _how_many(cell: Any, trials: pd.DataFrame, letters: dict[str, str]) -> str:
    """'2/3 a b': of the cell's trials, and the ways in which they ended. `trials`: all without a time."""
    ended = set(trials.loc[(trials[WORKERS] == cell.num_workers) & (trials["shm_size"] == cell.shm_size), "outcome"])
    return " ".join([f"{cell.trials - cell.n}/{cell.trials}", *(letter for way, letter in letters.items() if way in ended)])


def _small(axes: Axes, text: str, at: tuple[float, float], above_pt: float, colour: str) -> None:
    """Small print above a point, in a halo, as it may stand on a line."""
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(
        text, at, (0, above_pt), color=colour, fontsize=7.5, path_effects=[withStroke(linewidth=2, foreground="#ffffff")], **place
    )


def _room_for(axes: Axes, top: float, lines: int) -> None:
    """Raises the axes' upper end so that as many lines of text end below it that stand on `top`."""
    share = (6 + LINE_PT * lines) / AXES_PT
    axes.set_ylim(0, max(axes.get_ylim()[1], top / (1 - min(share, 0.7))))


def _forecast(axes: Axes, group: Comparable, counts: Sequence[int]) -> list[Any]:
    """It does not depend on the size: one line."""
    names = ["forecast_epoch_s", "forecast_epoch_low_s", "forecast_epoch_high_s"]
    known = [each.reindex(columns=[WORKERS, *names]) for each in (group.trials, group.forecast_only) if len(each)]
    foreseen = pd.concat(known).dropna(subset=names[:1]).astype(float).groupby(WORKERS).median()
    if foreseen.empty:
        return []
    x = [counts.index(int(workers)) for workers in foreseen.index]
    axes.fill_between(x, foreseen[names[1]], foreseen[names[2]], color=FORECAST, alpha=0.15, linewidth=0)
    axes.plot(x, foreseen[names[0]], color=FORECAST, linestyle="--", linewidth=1.3, marker="" if len(x) > 1 else "_")
    return [Line2D([], [], color=FORECAST, linestyle="--", label="forecast, in its interval")]


def _ring(axes: Axes, group: Comparable, counts: Sequence[int], sizes: Sequence[str]) -> list[Any]:
    """Around the cell that is recommended."""
    if len(group.values(WORKERS)) < 2 or not (cell := advise(group).cell):
        return []
    size = written(SHM, None if cell.shm_bytes == float("inf") else int(cell.shm_bytes))
    x = counts.index(cell.workers) + _dodge(sizes.index(size), len(sizes))
    ring: dict[str, Any] = {"marker": "o", "markersize": 15, "markerfacecolor": "none", "markeredgecolor": "#000000", "linestyle": ""}
    axes.plot([x], [cell.median_s], **ring)
    return [Line2D([], [], **ring | {"markersize": 11}, label="recommended")]


def _workers_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_xlabel("loader workers")


def _seen_of_times(group: Comparable, cells: pd.DataFrame) -> str:
    """'An epoch takes 3.32 s with 0 workers and 1.55 s with 2, the fastest'."""
    having = cells[cells["n"] > 0]
    if having.empty:
        return "No trial of these has a time"
    fastest = having.loc[having["median_s"].idxmin()]
    digits = decimals(fastest["median_s"])
    said = f"{_workers(fastest['num_workers'])} at the fastest: {fastest['median_s']:.{digits}f} s an epoch"
    alone = having[(having["num_workers"] == 0) & (having["shm_size"] == fastest["shm_size"])]
    if len(alone) and fastest["num_workers"]:
        said += f", against {alone['median_s'].iloc[0]:.{digits}f} s with none"
    return said


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _where_epochs_go(axes: Axes, group: Comparable) -> None:
    rows = epoch_parts_of(group)
    counts = rows["num_workers"].tolist()
    below = np.zeros(len(rows))
    for span in SPANS:
        label, colour, hatch = OF_SPANS[span]
        axes.bar(range(len(rows)), rows[span], 0.7, bottom=below, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=label)
        below += rows[span].to_numpy()
    digits = decimals(rows["epoch_s"].min())
    for at, row in enumerate(rows.itertuples()):
        axes.annotate(f"{row.epoch_s:.{digits}f} s", (at, below[at]), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_ylim(0, max(below) * 1.1)
    _workers_axis(axes, counts)
    axes.set_ylabel("epoch, s")
    legend_beside(axes, axes.get_legend_handles_labels()[0][::-1])  # as they lie
    titled(axes, group, _seen_of_parts(rows))


def _seen_of_parts(rows: pd.DataFrame) -> str:
    """'With 2 workers 32 % of an epoch waits for batches, with none 70 %'."""
    waiting = ((rows["fill_s"] + rows["wait_s"]) / rows["epoch_s"]).set_axis(rows["num_workers"])
    fastest = rows.loc[rows["epoch_s"].idxmin(), "num_workers"]
    said = f"With {_workers(fastest)} {100 * waiting[fastest]:.0f} % of an epoch waits for batches"
    return said + (f", with none {100 * waiting[0]:.0f} %" if fastest and 0 in waiting.index else "")


def _shm_peaks(axes: Axes, group: Comparable) -> None:
    trials = group.trials[group.trials[WORKERS] > 0]
    counts = sorted({int(workers) for workers in trials[WORKERS]})
    peaks, bounds = _taken(trials)
    lost = trials[trials["outcome"] == "shm_exhausted"].dropna(subset=SHM)

    def mark(of: pd.Series, label: str, **style: Any) -> None:
        if len(of):
            axes.plot([counts.index(int(at)) for at in of.index], of, linestyle="", label=label, **style)

    mark(peaks, "most taken by a trial that ran through", color=LINES[0][0], marker="o", markersize=8)
    for at, value in peaks.items():
        axes.annotate(f"{value:,.1f}", (counts.index(int(at)), value), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    mark(bounds, "foreseen: no trial takes more", color=FORECAST, marker="_", markersize=22, markeredgewidth=2)
    limits = pd.Series(sorted(trials[SHM].dropna().unique()), dtype=float) / MIB
    for limit in limits:
        axes.axhline(limit, color="#000000", linewidth=1.2)
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"shm {written(SHM, int(limit * MIB))}", (1, limit), (4, 0), va="center", fontsize=8.5, **beside)
    mark(lost.set_index(WORKERS)[SHM].astype(float) / MIB, "overflowed", color=LINES[1][0], marker="X", markersize=9)
    _log_axis(axes, pd.concat([peaks, bounds, limits]))
    _workers_axis(axes, counts)
    handles = axes.get_legend_handles_labels()[0]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(handles), fontsize=8.5, frameon=False)
    titled(axes, group, _seen_of_peaks(group, peaks))


def _taken(trials: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """MiB by workers: the most that one took which ran through, and the most that was foreseen; of those that took any."""
    with_workers = trials[trials[WORKERS] > 0]
    ran = with_workers[with_workers["outcome"].isin(TIMED)]
    peaks, bounds = ran.groupby(WORKERS)["shm_peak_bytes"].max(), with_workers.groupby(WORKERS)["forecast_shm_bound_bytes"].max()
    return peaks[peaks > 0] / MIB, bounds[bounds > 0] / MIB


def _log_axis(axes: Axes, values: pd.Series) -> None:
    axes.set_yscale("log", base=2)
    axes.set_ylim(values.min() / 2, values.max() * 2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("/dev/shm, MiB (log)")


def _seen_of_peaks(group: Comparable, peaks: pd.Series) -> str:
    """'8 workers took 239.1 MiB of /dev/shm at most; shm 64M overflowed with 4 and 8 workers'."""
    said = (
        f"{_workers(int(peaks.idxmax()))} took {peaks.max():,.1f} MiB of /dev/shm at most"
        if len(peaks)
        else "No trial with workers ran through"
    )
    cells = fits(group.trials)
    if cells.empty:
        return said
    lost = cells[cells["outcomes"].str.contains(WORDS["shm_exhausted"])]
    for size, of_size in lost.groupby("shm_size", sort=False):
        said += f"; shm {size} overflowed with {listed([str(count) for count in sorted(of_size['num_workers'])])}"
    return said
