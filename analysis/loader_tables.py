"""Builds tables 1 and 2 for blocks that sweep other keys of the loader than workers and sizes.

Such keys are the format, the batch size and the start method. The one idea is that such points have
no natural zero. Each point is compared with the fastest, paired over repeats, and one that is not
distinguishable from it is as good. `key_times` returns the figures, `tables` the text.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.comparable_groups import Comparable, comparable
from analysis.epochs import CAPTION, draw_parts, parts
from analysis.number_text import decimals
from analysis.runs import SweepRuns
from analysis.statistics import FEWEST_PAIRS, paired_change
from analysis.text_tables import WIDTH, disturbance_lines, grid, heading, written_value
from analysis.timed_trials import epoch_seconds, timed_trials
from analysis.tradeoff import SHM, WORKERS, cell_figures, change_figures
from analysis.tradeoff_table import MEDIAN_NOTE, cell_change_text, spread_notes, time_text
from sweeps.names import short_names


def key_times(runs: SweepRuns) -> pd.DataFrame:
    """Returns a tidy frame, a row a point.

    Columns:
        sweep, block, varied, surroundings   str; the table that the row belongs to
        point      str, 'format=png start_method=fork'
        trials, n, not_run, median_s, min_s, max_s, first_batch_s, spread, two_speeds, outcomes
                   as in `tradeoff.epoch_times`
        change, change_low, change_high   float: against the fastest point of the table; NaN for
                   that point and below three pairs
    The columns of `epochs.epoch_parts` follow, with the prefix part_. Blocks that sweep workers or
    sizes, or nothing of the loader, are left out.
    """
    return pd.DataFrame([row for group, keys in _groups(runs) for row in _rows(group, keys)])


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns both tables as texts, a pair a block, combination of parameters and hardware."""
    return [text for group, keys in _groups(runs) for text in _tables(group, keys, markdown)]


def _groups(runs: SweepRuns) -> Iterator[tuple[Comparable, list[str]]]:
    """Yields the groups that have these tables, each with the loader keys that vary."""
    for _, trials in runs.planned.groupby("block", sort=False):
        varying = [
            column
            for column in trials
            if column.startswith("loader.") and trials[column].nunique(dropna=False) > 1
        ]
        if varying and not {WORKERS, SHM} & set(varying):
            # points that were only forecast have no row in these tables
            block = replace(runs, trials=trials, forecast_only=())
            yield from (
                (group, varying)
                for group in comparable(block, tuple(varying))
                if len(timed_trials(group.trials))
            )


def _rows(group: Comparable, keys: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for each point of a group."""
    points = {
        _point(keys, values): point_trials
        for values, point_trials in group.trials.groupby(keys, dropna=False)
    }
    medians = {
        point: epoch_seconds(point_trials).median()
        for point, point_trials in points.items()
        if len(timed_trials(point_trials))
    }
    fastest = min(medians, key=lambda point: medians[point])
    missing = {
        _point(keys, values): len(point_trials)
        for values, point_trials in group.not_run.groupby(keys, dropna=False)
    }
    for point in dict.fromkeys((*points, *missing)):
        point_trials = points.get(point, group.trials.iloc[:0])
        change = (
            paired_change(epoch_seconds(point_trials), epoch_seconds(points[fastest]))
            if point != fastest
            else None
        )
        figures = {f"part_{name}": value for name, value in parts(point_trials).items()}
        yield {
            **group.labels,
            "point": point,
            **cell_figures(point_trials),
            "not_run": missing.get(point, 0),
            **change_figures(change),
            **figures,
        }


def _point(keys: list[str], values: tuple[Any, ...]) -> str:
    """Returns the name of a point, such as 'format=png start_method=fork'."""
    names = short_names(keys)
    return " ".join(
        f"{names[key]}={written_value(key, value)}" for key, value in zip(keys, values, strict=True)
    )


def _tables(group: Comparable, keys: list[str], markdown: bool) -> Iterator[str]:
    """Yields table 1 and, if its trials have the figures, table 2 of a group."""
    rows = pd.DataFrame(_rows(group, keys))
    key_names = " and ".join(short_names(keys).values())
    yield _times(group, rows, key_names, markdown)
    measured = rows[rows["part_n"] > 0]
    if len(measured):
        figures = measured[[name for name in measured if name.startswith("part_")]].rename(
            columns=lambda name: name.removeprefix("part_")
        )
        fewest, most = int(figures["n"].min()), int(figures["n"].max())
        caption = CAPTION.format(
            trials=f"{f'{fewest} to ' if fewest < most else ''}{most} trial{'s' * (most > 1)}"
        )
        title = heading(f"Where an epoch goes by {key_names}", rows.iloc[0], markdown)
        body = draw_parts(figures, "point", measured["point"].tolist(), markdown)
        yield "\n".join([title, *body, caption if markdown else textwrap.fill(caption, WIDTH)])


def _times(group: Comparable, rows: pd.DataFrame, key_names: str, markdown: bool) -> str:
    """Returns table 1 of a group as text."""
    title = heading(f"Epoch seconds by {key_names}", rows.iloc[0], markdown)
    digits = decimals(rows["median_s"].min())
    widest = len(f"{rows['median_s'].max():.{digits}f}")
    fastest = rows["median_s"].idxmin()
    texts = [
        [
            row.point,
            time_text(row, digits, widest),
            str(row.n),
            "the fastest" if row.Index == fastest else cell_change_text(row),
        ]
        for row in rows.itertuples()
    ]
    notes = [
        MEDIAN_NOTE,
        (
            "Change: mean over repeats, paired, with its 95 % interval, which needs"
            f" {FEWEST_PAIRS} pairs; above 0 is slower."
        ),
        *spread_notes(rows),
    ]
    table = grid(
        ["point", "epoch s", "n", "against the fastest"],
        texts,
        ["left", "left", "right", "left"],
        markdown,
    )
    return "\n".join([title, table, "", *notes, *disturbance_lines(group.trials, markdown)])
