"""Gives all pictures one look: colours, panels with titles, legends and the axis of worker counts.

Colours are Okabe and Ito's, which readers who do not distinguish red from green can tell apart.
Markers and hatches carry the same information in print.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.comparable_groups import Comparable

WIDTH_IN, PANEL_IN, DPI = 7.5, 3.6, 150
# Okabe and Ito's colours, the strongest first, with markers that replace them without colour
LINES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)
# The parts of an epoch: blue is work, orange and vermilion are waiting
WORK, FILL, WAIT, START, OTHER = "#0072B2", "#E69F00", "#D55E00", "#CC79A7", "#999999"
FORECAST = "#555555"


def draw_panels(
    parts: Sequence[Any],
    draw: Callable[[Axes, Any], None],
    missing: str,
    height_in: float = PANEL_IN,
) -> Figure:
    """Returns a Figure with a panel for each part, one below the other.

    Raises LookupError with the message `missing` if there are no parts.
    """
    if not parts:
        raise LookupError(missing)
    figure = Figure(figsize=(WIDTH_IN, height_in * len(parts)), dpi=DPI, layout="constrained")
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        draw(axes, part)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def set_panel_title(axes: Axes, group: Comparable, title: str) -> None:
    """Sets the title of a panel, with the group's labels in small print below it."""
    details = ", ".join(filter(None, [f"block {group.block}", group.varied, group.surroundings]))
    axes.set_title(
        textwrap.fill(title, 80),
        loc="left",
        fontsize=11,
        pad=10 + 11 * len(textwrap.wrap(details, 120)),
    )
    axes.text(
        0,
        1.02,
        textwrap.fill(details, 120),
        transform=axes.transAxes,
        fontsize=7.5,
        color="#444444",
        va="bottom",
    )


def add_legend(axes: Axes, handles: Sequence[Any]) -> None:
    """Adds a legend right of the axes, so that it hides nothing.

    Long texts are wrapped, so that the axes keep their room.
    """
    for handle in handles:
        handle.set_label(textwrap.fill(handle.get_label(), 32))
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0,
    )


def draw_spread_line(
    axes: Axes, x: Sequence[float], middles: Any, lows: Any, highs: Any, **style: Any
) -> None:
    """Draws a line through `middles`, with a bar from low to high at each point."""
    axes.errorbar(x, middles, [middles - lows, highs - middles], capsize=3, linewidth=1.6, **style)


def spread_handle(label: str) -> Line2D:
    """Returns the legend's handle of the bars of `draw_spread_line`."""
    return Line2D([], [], color="#000000", marker="|", linestyle="", markersize=10, label=label)


def label_workers_axis(axes: Axes, counts: Sequence[int]) -> None:
    """Labels the x axis with the worker counts."""
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_xlabel("loader workers")
