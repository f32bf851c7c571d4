"""Draws the schedules of a cycle sweep side by side: course of training, and disagreement.

The one idea is that schedules stand side by side at one scale, since they had one budget. Every
public function fetches the series it draws from the tracker (series.py), returns a Figure, and
raises LookupError if there is nothing to draw.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.comparable_groups import Comparable
from analysis.cycles import (
    accuracy_note,
    add_schedule,
    completed_trials,
    groups,
    schedule_name,
    schedule_of,
)
from analysis.number_text import percent
from analysis.panels import DPI, LINES, WIDTH_IN, add_legend
from analysis.runs import SweepRuns
from analysis.series import disagreements, epoch_rows, snapshot_rows

SCHEDULE: dict[str, Any] = {"color": LINES[2][0], "linewidth": 1.4}
RECORDED: dict[str, Any] = {
    "color": LINES[2][0],
    "marker": LINES[2][1],
    "linestyle": "",
    "markersize": 5,
}
SNAPSHOT: dict[str, Any] = {"color": LINES[0][0], "marker": "D", "linestyle": "", "markersize": 7}
COURSE = ("lr", "loss/training", "loss/validation", "accuracy/validation")
NOTHING = "no selected trial has completed its training schedule"
MOST_COLUMNS = 4  # schedules that one picture shows; it states the total if there are more
TITLE_CHARS, LINE_IN = 28, 0.18  # of a panel's title: characters in a line, and a line's height


def training_course(runs: SweepRuns) -> Figure:
    """Draws learning rate, losses and validation accuracy by epoch, with marked snapshots.

    Draws one trial of each schedule of each group. The learning rate is drawn as scheduled, since
    the recorded values are from the ends of epochs and miss the peak of every cycle.
    """
    trials_by_schedule = _first_trials(runs)
    if not trials_by_schedule:
        raise LookupError(NOTHING)
    shown, trials = (
        trials_by_schedule[:MOST_COLUMNS],
        pd.DataFrame([trial for _, trial in trials_by_schedule[:MOST_COLUMNS]]),
    )
    chosen = runs.with_trials(trials)
    epochs, snapshots = epoch_rows(chosen, COURSE), snapshot_rows(chosen)
    common, distinct = _split_labels([group for group, _ in shown])
    titles, title_in = _titles((schedule_of(trial) for _, trial in shown), distinct)
    figure = Figure(
        figsize=(max(WIDTH_IN, 2.4 * len(shown) + 1.5), 6.0 + title_in),
        dpi=DPI,
        layout="constrained",
    )
    grid = figure.subplots(3, len(shown), squeeze=False, sharex="col", sharey="row")
    for column, (_, trial), title in zip(grid.T, shown, titles, strict=True):
        _draw_course(
            column,
            trial,
            *(rows[rows["run_id"] == trial["run_id"]] for rows in (epochs, snapshots)),
        )
        column[0].set_title(title, fontsize=10)
    for axes, label in zip(
        grid[:, 0], ("learning rate", "loss, nat", "validation accuracy"), strict=True
    ):
        axes.set_ylabel(label)
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set_ylim(bottom=0)
    legends = (
        {"as scheduled": SCHEDULE, "at an epoch's end": RECORDED},
        {"training": _style(0), "validation": _style(1)},
        {"every epoch": _style(1), "snapshot": SNAPSHOT},
    )
    for axes, styles in zip(grid[:, -1], legends, strict=True):
        add_legend(axes, [Line2D([], [], label=label, **style) for label, style in styles.items()])
    repeats = ", ".join(sorted({f"repeat {trial['repeat']}" for _, trial in shown}))
    _set_heading(
        figure,
        _courses_title(shown, distinct),
        [*common, repeats, *_shown_note(len(shown), len(trials_by_schedule))],
    )
    return figure


def snapshot_disagreement(runs: SweepRuns) -> Figure:
    """Draws the disagreement of each pair of a schedule's snapshots.

    Disagreement is the share of validation clips on which the two name different words, as the mean
    over trials.
    """
    matrices = [
        (group, schedule, pairs)
        for group in groups(runs)
        for schedule, pairs in _mean_disagreements(runs, group)
    ]
    if not matrices:
        raise LookupError("no selected trial has recorded the disagreement of its snapshots")
    most = max(float(np.nanmax(pairs)) for *_, pairs in matrices)
    shown = matrices[:MOST_COLUMNS]
    common, distinct = _split_labels([group for group, *_ in shown])
    titles, title_in = _titles((schedule for _, schedule, _ in shown), distinct)
    figure = Figure(
        figsize=(max(5.5, 2.8 * len(shown) + 1.0), 3.8 + title_in), dpi=DPI, layout="constrained"
    )
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (_, _, pairs), title in zip(panels, shown, titles, strict=True):
        pairs = pairs[1:, :-1]  # the first has no predecessor, the last no successor
        image = axes.imshow(100 * pairs, cmap="viridis", vmin=0, vmax=100 * most)
        _write_percents(axes, pairs, most)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("snapshot")
    panels[0].set_ylabel("snapshot")
    figure.colorbar(image, ax=list(panels), label="clips with different answers, %", shrink=0.8)
    heading = f"Two snapshots of a run disagree on at most {percent(most)} of the validation clips"
    _set_heading(
        figure, heading, [*common, "mean over trials", *_shown_note(len(shown), len(matrices))]
    )
    return figure


def _first_trials(runs: SweepRuns) -> list[tuple[Comparable, pd.Series]]:
    """Returns the first completed trial, by repeat, of each schedule of each group.

    Within a group, schedules with more snapshots come first.
    """
    chosen = []
    for group in groups(runs):
        first_trials: dict[tuple[int, ...], pd.Series] = {}
        for _, trial in completed_trials(group.trials).sort_values("repeat").iterrows():
            first_trials.setdefault(schedule_of(trial), trial)
        chosen += [
            (group, first_trials[schedule])
            for schedule in sorted(first_trials, key=lambda lengths: (-len(lengths), lengths))
        ]
    return chosen


def _split_labels(groups_shown: Sequence[Comparable]) -> tuple[list[str], list[str]]:
    """Returns the labels that all panels share, and for each panel those that differ.

    The shared ones go into the heading, the others into the panel's title. Labels are the block,
    the varied parameters and the surroundings.
    """
    labels = [(f"block {group.block}", group.varied, group.surroundings) for group in groups_shown]
    differ = [len(set(texts)) > 1 for texts in zip(*labels, strict=True)]
    common = [
        text
        for text, differs in zip(labels[0][:2], differ[:2], strict=True)
        if text and not differs
    ]
    return common, [
        ", ".join(text for text, differs in zip(texts, differ, strict=True) if text and differs)
        for texts in labels
    ]


def _titles(
    schedules: Iterable[tuple[int, ...]], distinct: Sequence[str]
) -> tuple[list[str], float]:
    """Returns a title for each panel, and the inches that titles take beyond one line."""
    lines = [
        [*textwrap.wrap(schedule_name(item), TITLE_CHARS), *textwrap.wrap(label, TITLE_CHARS)]
        for item, label in zip(schedules, distinct, strict=True)
    ]
    return ["\n".join(item) for item in lines], LINE_IN * (max(map(len, lines)) - 1)


def _shown_note(shown: int, total: int) -> list[str]:
    """Returns a note such as '4 of 7 shown', or nothing if all are shown."""
    return [f"{shown} of {total} shown"] if shown < total else []


def _courses_title(shown: Sequence[tuple[Comparable, pd.Series]], distinct: Sequence[str]) -> str:
    """Returns for example 'Cycles of 2 at 80.6 %; one cosine of 8 at 84.1 % at the end'.

    With several groups, whose schedules share names, it returns the range of accuracies instead.
    """
    ends = [100 * trial["accuracy"] for _, trial in shown]
    note = accuracy_note(pd.DataFrame([trial for _, trial in shown]))
    if any(distinct):
        return f"Validation accuracy ends between {min(ends):.1f} and {max(ends):.1f} %{note}"
    text = "; ".join(
        f"{schedule_name(schedule_of(trial))} at {end:.1f} %"
        for (_, trial), end in zip(shown, ends, strict=True)
    )
    return f"{text[0].upper()}{text[1:]} at the end{note}"


def _set_heading(figure: Figure, title: str, details: Sequence[str]) -> None:
    """Sets the heading of a figure: a title and, on the next lines, details."""
    figure.suptitle(
        f"{textwrap.fill(title, 60)}\n{textwrap.fill(', '.join(details), 75)}",
        x=0.01,
        ha="left",
        fontsize=11,
    )


def _style(index: int) -> dict[str, Any]:
    """Returns the line style with this index."""
    colour, marker = LINES[index]
    return {
        "color": colour,
        "marker": marker,
        "markersize": 3.5,
        "linewidth": 1.4,
        "linestyle": ("-", "--")[index % 2],
    }


def _scheduled_rates(trial: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs trained and the learning rates scheduled at them.

    In each cycle the rate falls from `lr` to `lr_min` along half a cosine.
    """
    lr, low = float(trial["sgdr.lr"]), float(trial.get("sgdr.lr_min", 0.0))
    lengths, part = np.array(schedule_of(trial)), np.linspace(0, 1, 61)
    starts = lengths.cumsum() - lengths
    return (starts[:, None] + lengths[:, None] * part).ravel(), np.tile(
        low + (lr - low) * (1 + np.cos(np.pi * part)) / 2, len(lengths)
    )


def _draw_course(
    column: Sequence[Axes], trial: pd.Series, epochs: pd.DataFrame, snapshots: pd.DataFrame
) -> None:
    """Draws the three panels of one trial.

    The x axis is the number of epochs trained, so that a snapshot stands at its cycle's end.
    """
    trained = epochs["epoch"] + 1
    column[0].plot(*_scheduled_rates(trial), **SCHEDULE)
    column[0].plot(trained, epochs["lr"], **RECORDED)
    for index, series in enumerate(("loss/training", "loss/validation")):
        column[1].plot(trained, epochs[series], **_style(index))
    column[2].plot(trained, epochs["accuracy/validation"], **_style(1))
    column[2].plot(snapshots["epochs"].astype(float), snapshots["snapshot/accuracy"], **SNAPSHOT)
    for axes in column:
        for end in snapshots["epochs"]:
            axes.axvline(float(end), color="#999999", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    column[2].set_xlabel("epochs trained")


def _mean_disagreements(
    runs: SweepRuns, group: Comparable
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Returns pairs of a schedule and its (M, M) mean shares, NaN where there is no pair."""
    trials = completed_trials(group.trials)
    rows = add_schedule(disagreements(runs.with_trials(trials)), trials)
    matrices = []
    for schedule, schedule_rows in rows.groupby("schedule"):
        matrix = np.full((len(schedule), len(schedule)), np.nan)
        for (cycle, other), share in (
            schedule_rows.groupby(["cycle", "other"])["share"].mean().items()
        ):
            matrix[cycle, other] = share
        matrices.append((schedule, matrix))
    return matrices


def _write_percents(axes: Axes, pairs: np.ndarray, most: float) -> None:
    """Writes the percentage into every cell, and labels the ticks."""
    for (row, column), share in np.ndenumerate(pairs):
        if not np.isnan(share):
            colour = "#ffffff" if share < 0.6 * most else "#000000"
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    ticks = range(len(pairs))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 2) for tick in ticks])
    axes.spines[:].set_visible(False)
