"""Tables 1 and 2 of a block that sweeps neither workers nor sizes but other keys of the loader: the form, the batch size, the start method.

The one idea is that such points have no natural zero: each is compared with the fastest, paired over repeats, and one that can't be
told from it is as good. `key_times` gives the figures, `tables` the page.
"""

import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.epochs import CAPTION, drawn, parts
from analysis.page import WIDTH, decimals, disturbance_lines, grid, heading
from analysis.runs import Comparable, comparable
from analysis.statistics import FEWEST_PAIRS, WIDE, paired_change
from analysis.tradeoff import MARK, SHM, WORKERS, cell_figures, change_figures, change_text, epoch_seconds, time_text, timed, why_wide
from sweeps.names import short_names, written


def key_times(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a point, from the frame of `runs.sweep_runs`.

    Columns: sweep, block, varied, surroundings (str; the table the row belongs to), point (str: 'form=png start_method=fork'), trials, n,
    not_run, median_s, min_s, max_s, fill_s, spread, slower_cores, outcomes as in `tradeoff.epoch_times`, change, change_low, change_high
    (float: against the fastest point of the table, NaN for itself and below three pairs), and what `epochs.epoch_parts` has, each with
    part_ before its name. Blocks that sweep workers or sizes, or nothing of the loader, are left out.
    """
    return pd.DataFrame([row for group, keys in _groups(frame) for row in _rows(group, keys)])


def tables(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """Both tables as text, for each block, combination of other parameters and hardware."""
    return [text for group, keys in _groups(frame) for text in _tables(group, keys, markdown)]


def _groups(frame: pd.DataFrame) -> Iterator[tuple[Comparable, list[str]]]:
    for _, trials in frame[frame["planned"].astype(bool)].groupby("block", sort=False):
        varying = [column for column in trials if column.startswith("loader.") and trials[column].nunique(dropna=False) > 1]
        if varying and not {WORKERS, SHM} & set(varying):
            trials.attrs = {"not_run": frame.attrs.get("not_run", [])}
            yield from ((group, varying) for group in comparable(trials, tuple(varying)) if len(timed(group.trials)))


def _rows(group: Comparable, keys: list[str]) -> Iterator[dict[str, Any]]:
    points = {_point(keys, values): alike for values, alike in group.trials.groupby(keys, dropna=False)}
    medians = {point: epoch_seconds(alike).median() for point, alike in points.items() if len(timed(alike))}
    fastest = min(medians, key=lambda point: medians[point])
    missing = {_point(keys, values): len(alike) for values, alike in group.not_run.groupby(keys, dropna=False)}
    for point in dict.fromkeys((*points, *missing)):
        alike = points.get(point, group.trials.iloc[:0])
        change = paired_change(epoch_seconds(alike), epoch_seconds(points[fastest])) if point != fastest else None
        figures = {f"part_{name}": value for name, value in parts(alike).items()}
        yield {**group.labels, "point": point, **cell_figures(alike), "not_run": missing.get(point, 0), **change_figures(change), **figures}


def _point(keys: list[str], values: tuple[Any, ...]) -> str:
    names = short_names(keys)
    texts = (written(key, None if pd.isna(value) else value) for key, value in zip(keys, values, strict=True))
    return " ".join(f"{names[key]}={text}" for key, text in zip(keys, texts, strict=True))


def _tables(group: Comparable, keys: list[str], markdown: bool) -> Iterator[str]:
    rows = pd.DataFrame(_rows(group, keys))
    of = " and ".join(short_names(keys).values())
    yield _times(group, rows, of, markdown)
    told = rows[rows["part_n"] > 0]
    if len(told):
        figures = told[[name for name in told if name.startswith("part_")]].rename(columns=lambda name: name.removeprefix("part_"))
        least, most = int(figures["n"].min()), int(figures["n"].max())
        caption = CAPTION.format(trials=f"{f'{least} to ' if least < most else ''}{most} trial{'s' * (most > 1)}")
        title = heading(f"Where an epoch goes by {of}", rows.iloc[0], markdown)
        body = drawn(figures, "point", told["point"].tolist(), markdown)
        yield "\n".join([title, *body, caption if markdown else textwrap.fill(caption, WIDTH)])


def _times(group: Comparable, rows: pd.DataFrame, of: str, markdown: bool) -> str:
    title = heading(f"Epoch seconds by {of}", rows.iloc[0], markdown)
    digits = decimals(rows["median_s"].min())
    widest = len(f"{rows['median_s'].max():.{digits}f}")
    fastest = rows["median_s"].idxmin()
    texts = [
        [row.point, time_text(row, digits, widest), str(row.n), "the fastest" if row.Index == fastest else change_text(row)]
        for row in rows.itertuples()
    ]
    notes = [
        "Median over n trials of their epoch seconds (fastest-slowest trial); warm epochs only.",
        f"Change: mean over repeats, paired, and its 95 % interval, from {FEWEST_PAIRS} pairs on; above zero is slower.",
    ]
    if (rows["spread"] > WIDE).any():
        notes += [f"{MARK} Fastest and slowest trial lie more than {100 * WIDE:.0f} % of the median apart.", *why_wide(rows)]
    table = grid(["point", "epoch s", "n", "against the fastest"], texts, ["left", "left", "right", "left"], markdown)
    return "\n".join([title, table, "", *notes, *disturbance_lines(group.trials, markdown)])
