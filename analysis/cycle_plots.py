"""Pictures of a cycle sweep: a run's learning rate, loss and snapshots, what an ensemble gains by them, and how much they disagree.

The one idea is that schedules stand side by side at one scale, as they had one budget. Each function takes the frame of `runs.sweep_runs`,
or a part of it, fetches what it draws from the tracker (series.py) and returns a Figure. LookupError: there is nothing to draw.
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

from analysis.cycles import completed, groups, schedule_of, schedule_text
from analysis.plots import DPI, LINES, WIDTH_IN, legend_beside, panels, titled
from analysis.runs import Comparable
from analysis.series import disagreements, epoch_rows, snapshot_rows

SCHEDULE: dict[str, Any] = {"color": LINES[2][0], "linewidth": 1.4}
RECORDED: dict[str, Any] = {"color": LINES[2][0], "marker": LINES[2][1], "linestyle": "", "markersize": 5}
SNAPSHOT: dict[str, Any] = {"color": LINES[0][0], "marker": "D", "linestyle": "", "markersize": 7}
COURSE = ("lr", "loss/training", "loss/validation", "accuracy/validation")
NOTHING = "no trial of these has learned to the end of its schedule"
MOST_COLUMNS = 4  # schedules that one picture sets side by side; of more it says how many there are
TITLE_CHARS, LINE_IN = 28, 0.18  # of a panel's title: characters that fit in a line, and its height


def training_course(frame: pd.DataFrame) -> Figure:
    """Learning rate, losses and validation accuracy by epoch of a trial of each schedule of each group, its snapshots marked.

    The learning rate is drawn as scheduled, since what was recorded is its value at each epoch's end, which misses every cycle's peak.
    """
    every = _one_of_each(frame)
    if not every:
        raise LookupError(NOTHING)
    shown, trials = every[:MOST_COLUMNS], pd.DataFrame([trial for _, trial in every[:MOST_COLUMNS]])
    chosen = _of_frame(frame, trials)
    epochs, snapshots = epoch_rows(chosen, COURSE), snapshot_rows(chosen)
    alike, apart = _told_apart([group for group, _ in shown])
    titles, title_in = _titles((schedule_of(trial) for _, trial in shown), apart)
    figure = Figure(figsize=(max(WIDTH_IN, 2.4 * len(shown) + 1.5), 6.0 + title_in), dpi=DPI, layout="constrained")
    grid = figure.subplots(3, len(shown), squeeze=False, sharex="col", sharey="row")
    for column, (_, trial), title in zip(grid.T, shown, titles, strict=True):
        _course(column, trial, *(rows[rows["run_id"] == trial["run_id"]] for rows in (epochs, snapshots)))
        column[0].set_title(title, fontsize=10)
    for axes, label in zip(grid[:, 0], ("learning rate", "loss, nat", "validation accuracy"), strict=True):
        axes.set_ylabel(label)
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set_ylim(bottom=0)
    legends = (
        {"as scheduled": SCHEDULE, "at an epoch's end": RECORDED},
        {"training": _style(0), "validation": _style(1)},
        {"every epoch": _style(1), "snapshot": SNAPSHOT},
    )
    for axes, styles in zip(grid[:, -1], legends, strict=True):
        legend_beside(axes, [Line2D([], [], label=label, **style) for label, style in styles.items()])
    repeats = ", ".join(sorted({f"repeat {trial['repeat']}" for _, trial in shown}))
    _headed(figure, _seen_of_courses(shown, apart), [*alike, repeats, *_part(len(shown), len(every))])
    return figure


def ensemble_accuracy(frame: pd.DataFrame) -> Figure:
    """Validation accuracy of the ensemble by its number of snapshots, a line a schedule: mean, and lowest to highest trial."""
    having = [(group, rows) for group in groups(frame) if len(rows := _snapshots(frame, group))]
    return panels(having, _ensemble, NOTHING)


def snapshot_disagreement(frame: pd.DataFrame) -> Figure:
    """Of each pair of a schedule's snapshots the share of validation clips on which they name different words, mean over trials."""
    found = [(group, schedule, pairs) for group in groups(frame) for schedule, pairs in _pairs(frame, group)]
    if not found:
        raise LookupError("no trial of these has recorded how its snapshots disagree")
    most = max(float(np.nanmax(pairs)) for *_, pairs in found)
    shown = found[:MOST_COLUMNS]
    alike, apart = _told_apart([group for group, *_ in shown])
    titles, title_in = _titles((schedule for _, schedule, _ in shown), apart)
    figure = Figure(figsize=(max(5.5, 2.8 * len(shown) + 1.0), 3.8 + title_in), dpi=DPI, layout="constrained")
    every = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (_, _, pairs), title in zip(every, shown, titles, strict=True):
        pairs = pairs[1:, :-1]  # the first has none before it, the last none after
        image = axes.imshow(100 * pairs, cmap="viridis", vmin=0, vmax=100 * most)
        _percents(axes, pairs, most)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("snapshot")
    every[0].set_ylabel("snapshot")
    figure.colorbar(image, ax=list(every), label="clips named differently, %", shrink=0.8)
    seen = f"Two snapshots of a run name {100 * most:.0f} % of the validation clips differently at most"
    _headed(figure, seen, [*alike, "mean over trials", *_part(len(shown), len(found))])
    return figure


def _one_of_each(frame: pd.DataFrame) -> list[tuple[Comparable, pd.Series]]:
    """The first completed trial of each schedule of each group, by repeat; in a group most snapshots first."""
    every = []
    for group in groups(frame):
        found: dict[tuple[int, ...], pd.Series] = {}
        for _, trial in completed(group.trials).sort_values("repeat").iterrows():
            found.setdefault(schedule_of(trial), trial)
        every += [(group, found[schedule]) for schedule in sorted(found, key=lambda lengths: (-len(lengths), lengths))]
    return every


def _told_apart(of: Sequence[Comparable]) -> tuple[list[str], list[str]]:
    """What all panels have in common, for the heading, and what tells each from the others, for its title: block, what varies, machine."""
    labels = [(f"block {group.block}", group.varied, group.surroundings) for group in of]
    differ = [len(set(texts)) > 1 for texts in zip(*labels, strict=True)]
    alike = [text for text, differs in zip(labels[0][:2], differ[:2], strict=True) if text and not differs]
    return alike, [", ".join(text for text, differs in zip(texts, differ, strict=True) if text and differs) for texts in labels]


def _titles(schedules: Iterable[Sequence[int]], apart: Sequence[str]) -> tuple[list[str], float]:
    """A title for each panel, and the inches that they take beyond a line."""
    lines = [[*textwrap.wrap(_name(each), TITLE_CHARS), *textwrap.wrap(of, TITLE_CHARS)] for each, of in zip(schedules, apart, strict=True)]
    return ["\n".join(each) for each in lines], LINE_IN * (max(map(len, lines)) - 1)


def _part(shown: int, of: int) -> list[str]:
    return [f"{shown} of {of} shown"] if shown < of else []


def _seen_of_courses(shown: Sequence[tuple[Comparable, pd.Series]], apart: Sequence[str]) -> str:
    """'Cycles of 2 at 80.6 %; one cosine of 8 at 84.1 % in the end'; of several groups, whose schedules have one name, the range."""
    ends = [100 * trial["accuracy"] for _, trial in shown]
    if any(apart):
        return f"Validation accuracy ends between {min(ends):.1f} and {max(ends):.1f} %"
    said = "; ".join(f"{_name(schedule_of(trial))} at {end:.1f} %" for (_, trial), end in zip(shown, ends, strict=True))
    return f"{said[0].upper()}{said[1:]} in the end"


def _of_frame(frame: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    trials.attrs = {"uri": frame.attrs["uri"]}
    return trials


def _headed(figure: Figure, seen: str, of: Sequence[str]) -> None:
    figure.suptitle(f"{textwrap.fill(seen, 60)}\n{textwrap.fill(', '.join(of), 75)}", x=0.01, ha="left", fontsize=11)


def _name(schedule: Sequence[int]) -> str:
    return f"cycles of {schedule_text(tuple(schedule))}" if len(schedule) > 1 else f"one cosine of {schedule[0]}"


def _style(at: int) -> dict[str, Any]:
    colour, marker = LINES[at]
    return {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.4, "linestyle": ("-", "--")[at % 2]}


def _scheduled(trial: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Epochs trained and the learning rate there, from `lr` down to `lr_min` along half a cosine in each cycle."""
    lr, low = float(trial["sgdr.lr"]), float(trial.get("sgdr.lr_min", 0.0))
    lengths, part = np.array(schedule_of(trial)), np.linspace(0, 1, 61)
    starts = lengths.cumsum() - lengths
    return (starts[:, None] + lengths[:, None] * part).ravel(), np.tile(low + (lr - low) * (1 + np.cos(np.pi * part)) / 2, len(lengths))


def _course(column: Sequence[Axes], trial: pd.Series, epochs: pd.DataFrame, snapshots: pd.DataFrame) -> None:
    """`epochs` is the number trained by then, so that a snapshot stands at its cycle's end."""
    trained = epochs["epoch"] + 1
    column[0].plot(*_scheduled(trial), **SCHEDULE)
    column[0].plot(trained, epochs["lr"], **RECORDED)
    for at, series in enumerate(("loss/training", "loss/validation")):
        column[1].plot(trained, epochs[series], **_style(at))
    column[2].plot(trained, epochs["accuracy/validation"], **_style(1))
    column[2].plot(snapshots["epochs"].astype(float), snapshots["snapshot/accuracy"], **SNAPSHOT)
    for axes in column:
        for end in snapshots["epochs"]:
            axes.axvline(float(end), color="#999999", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    column[2].set_xlabel("epochs trained")


def _snapshots(frame: pd.DataFrame, group: Comparable) -> pd.DataFrame:
    """`snapshot_rows` of the group's completed trials, with their schedule."""
    trials = _of_frame(frame, completed(group.trials))
    return _with_schedule(snapshot_rows(trials), trials)


def _with_schedule(rows: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    schedules = {trial["run_id"]: schedule_of(trial) for _, trial in trials.iterrows()}
    return rows.assign(schedule=[schedules[run_id] for run_id in rows["run_id"]])


def _ensemble(axes: Axes, of: tuple[Comparable, pd.DataFrame]) -> None:
    group, rows = of
    handles = []
    schedules = sorted(set(rows["schedule"]), key=lambda lengths: (-len(lengths), lengths))
    for at, schedule in enumerate(schedules):
        colour, marker = LINES[at % len(LINES)]
        by_count = rows[rows["schedule"] == schedule].groupby("snapshots")["snapshot/ensemble_accuracy"]
        mean, low, high = (100 * figure for figure in (by_count.mean(), by_count.min(), by_count.max()))
        x = mean.index + 0.06 * (at - (len(schedules) - 1) / 2)
        axes.errorbar(x, mean, [mean - low, high - mean], color=colour, marker=marker, capsize=3, linewidth=1.6, markersize=5.5)
        handles.append(Line2D([], [], color=colour, marker=marker, label=_name(schedule)))
    if rows.groupby("schedule")["run_id"].nunique().max() > 1:
        handles.append(Line2D([], [], color="#000000", marker="|", linestyle="", markersize=10, label="lowest to highest trial"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("snapshots in the ensemble")
    axes.set_ylabel("validation accuracy, %")
    legend_beside(axes, handles)
    titled(axes, group, _seen_of_ensembles(rows))


def _seen_of_ensembles(rows: pd.DataFrame) -> str:
    last = rows[rows["snapshots"] == rows["schedule"].map(len)]
    means = 100 * last.groupby("schedule")["snapshot/ensemble_accuracy"].mean()
    if means.empty:
        return "No ensemble is whole"
    best = means.idxmax()
    if len(best) == 1:
        return f"One cosine of {best[0]} reaches {means[best]:.1f} %, the highest"
    alone = 100 * last[last["schedule"] == best]["snapshot/accuracy"].mean()
    return f"The ensemble of {_name(best)} reaches {means[best]:.1f} %, the highest; its last snapshot alone {alone:.1f} %"


def _pairs(frame: pd.DataFrame, group: Comparable) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Schedule -> (M, M) mean shares, NaN where there is no pair."""
    trials = _of_frame(frame, completed(group.trials))
    rows = _with_schedule(disagreements(trials), trials)
    found = []
    for schedule, of_schedule in rows.groupby("schedule"):
        matrix = np.full((len(schedule), len(schedule)), np.nan)
        for (cycle, other), share in of_schedule.groupby(["cycle", "other"])["share"].mean().items():
            matrix[cycle, other] = share
        found.append((schedule, matrix))
    return found


def _percents(axes: Axes, pairs: np.ndarray, most: float) -> None:
    for (row, column), share in np.ndenumerate(pairs):
        if not np.isnan(share):
            colour = "#ffffff" if share < 0.6 * most else "#000000"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(pairs))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 2) for tick in ticks])
    axes.spines[:].set_visible(False)
