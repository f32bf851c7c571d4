"""Draws table 2: where an epoch goes, by loader workers."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.comparable_groups import Comparable
from analysis.epochs import SPANS, epoch_parts_of
from analysis.number_text import count_text, decimals, percent
from analysis.panels import (
    FILL,
    OTHER,
    START,
    WAIT,
    WORK,
    add_legend,
    draw_panels,
    label_workers_axis,
    set_panel_title,
)
from analysis.runs import SweepRuns
from analysis.tradeoff import groups

SPAN_STYLES = {  # label, colour, hatch
    "start_s": ("start of workers", START, "\\\\"),
    "first_batch_s": ("first batch", FILL, ".."),
    "data_wait_s": ("wait: later batches", WAIT, "//"),
    "step_s": ("step", WORK, ""),
    "other_s": ("other", OTHER, "xx"),
}


def where_epochs_go(runs: SweepRuns) -> Figure:
    """Draws table 2: the host's seconds of an epoch by workers, stacked."""
    drawable = [group for group in groups(runs) if len(epoch_parts_of(group))]
    return draw_panels(
        drawable,
        _draw_parts,
        "no block that sweeps workers or sizes of /dev/shm has trials with these figures",
    )


def _draw_parts(axes: Axes, group: Comparable) -> None:
    """Draws the parts of an epoch of one group, stacked."""
    rows = epoch_parts_of(group)
    counts = rows["num_workers"].tolist()
    below = np.zeros(len(rows))
    for span in SPANS:
        label, colour, hatch = SPAN_STYLES[span]
        axes.bar(
            range(len(rows)),
            rows[span],
            0.7,
            bottom=below,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=label,
        )
        below += rows[span].to_numpy()
    digits = decimals(rows["epoch_s"].min())
    for index, row in enumerate(rows.itertuples()):
        axes.annotate(
            f"{row.epoch_s:.{digits}f} s",
            (index, below[index]),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axes.set_ylim(0, max(below) * 1.1)
    label_workers_axis(axes, counts)
    axes.set_ylabel("epoch, s")
    add_legend(axes, axes.get_legend_handles_labels()[0][::-1])  # in the order of the stack
    set_panel_title(axes, group, _parts_title(rows))


def _parts_title(rows: pd.DataFrame) -> str:
    """Returns for example 'With 2 workers, 32 % of an epoch is spent waiting for batches'."""
    waiting = ((rows["first_batch_s"] + rows["data_wait_s"]) / rows["epoch_s"]).set_axis(
        rows["num_workers"]
    )
    fastest = rows.loc[rows["epoch_s"].idxmin(), "num_workers"]
    text = (
        f"With {count_text(fastest, 'worker')}, {percent(waiting[fastest])} of an epoch is spent"
        " waiting for batches"
    )
    return text + (f"; with none, {percent(waiting[0])}" if fastest and 0 in waiting.index else "")
