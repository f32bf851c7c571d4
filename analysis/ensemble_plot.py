"""Draws the validation accuracy of snapshot ensembles by their number of snapshots."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.comparable_groups import Comparable
from analysis.cycle_plots import NOTHING
from analysis.cycles import (
    accuracy_note,
    add_schedule,
    completed_trials,
    groups,
    schedule_name,
)
from analysis.panels import (
    LINES,
    add_legend,
    draw_panels,
    draw_spread_line,
    set_panel_title,
    spread_handle,
)
from analysis.runs import SweepRuns
from analysis.series import snapshot_rows


def ensemble_accuracy(runs: SweepRuns) -> Figure:
    """Draws the validation accuracy of the ensemble by its number of snapshots.

    A line shows a schedule: its mean, and its lowest to highest trial.
    """
    with_snapshots = [
        (group, rows) for group in groups(runs) if len(rows := _snapshot_rows(runs, group))
    ]
    return draw_panels(with_snapshots, _draw_ensemble, NOTHING)


def _snapshot_rows(runs: SweepRuns, group: Comparable) -> pd.DataFrame:
    """Returns `snapshot_rows` of the group's completed trials, with their schedule."""
    trials = completed_trials(group.trials)
    return add_schedule(snapshot_rows(runs.with_trials(trials)), trials)


def _draw_ensemble(axes: Axes, group_rows: tuple[Comparable, pd.DataFrame]) -> None:
    """Draws the ensemble accuracy of one group, a line for each schedule."""
    group, rows = group_rows
    handles = []
    schedules = sorted(set(rows["schedule"]), key=lambda lengths: (-len(lengths), lengths))
    for index, schedule in enumerate(schedules):
        colour, marker = LINES[index % len(LINES)]
        by_count = rows[rows["schedule"] == schedule].groupby("snapshots")[
            "snapshot/ensemble_accuracy"
        ]
        mean, low, high = (
            100 * figure for figure in (by_count.mean(), by_count.min(), by_count.max())
        )
        x = mean.index + 0.06 * (index - (len(schedules) - 1) / 2)
        draw_spread_line(axes, x, mean, low, high, color=colour, marker=marker, markersize=5.5)
        handles.append(Line2D([], [], color=colour, marker=marker, label=schedule_name(schedule)))
    if rows.groupby("schedule")["run_id"].nunique().max() > 1:
        handles.append(spread_handle("lowest to highest trial"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("snapshots in the ensemble")
    axes.set_ylabel("validation accuracy, %")
    add_legend(axes, handles)
    set_panel_title(axes, group, _ensembles_title(rows) + accuracy_note(group.trials))


def _ensembles_title(rows: pd.DataFrame) -> str:
    """Returns a title that names the schedule with the most accurate ensemble."""
    last = rows[rows["snapshots"] == rows["schedule"].map(len)]
    means = 100 * last.groupby("schedule")["snapshot/ensemble_accuracy"].mean()
    if means.empty:
        return "No ensemble is complete"
    best = means.idxmax()
    if len(best) == 1:
        return f"One cosine of {best[0]} reaches {means[best]:.1f} %, the highest"
    alone = 100 * last[last["schedule"] == best]["snapshot/accuracy"].mean()
    return (
        f"The ensemble of {schedule_name(best)} reaches {means[best]:.1f} %, the highest; its last"
        f" snapshot alone reaches {alone:.1f} %"
    )
