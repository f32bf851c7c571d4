"""Which trials of a frame are looked at: `block=workers num_workers=8 cores=2 outcome=completed`.

The one idea is that a filter reads as a run's name does. KEY is a column of `runs.sweep_runs`, of a dotted one its last part too; VALUE
is written as in names and tables: 64M, node, 0.01. All filters of a list have to hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sweeps.names import written


def matching(frame: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """The trials of `runs.sweep_runs` of which every filter holds, in a frame like it. LookupError: an unknown key, or none is left.

    Of frame.attrs, `forecast_only` and `not_run` are filtered likewise, and `plan` counts what is left.
    """
    if not filters:
        return frame
    attrs, trials = dict(frame.attrs), frame
    trials.attrs = {}  # pandas copies them, deeply, at nearly every step
    try:
        for text in filters:
            trials = _of_one(frame, trials, text)
    finally:
        frame.attrs = attrs
    rest = {name: [row for row in attrs.get(name, []) if _all_hold(row, filters)] for name in ("forecast_only", "not_run")}
    trials.attrs = attrs | rest | {"plan": int(trials["planned"].sum()) + len(rest["not_run"])}
    return trials


def _of_one(frame: pd.DataFrame, trials: pd.DataFrame, text: str) -> pd.DataFrame:
    name, _, value = text.partition("=")
    columns = [column for column in frame if _named(name, column)]
    if len(columns) != 1:
        raise LookupError(f"{text}: {name!r} is {'more than one' if columns else 'no'} parameter of this sweep")
    values = [_written(columns[0], given) for given in trials[columns[0]].tolist()]
    left = trials[[given == value for given in values]]
    if left.empty:
        raise LookupError(f"{text}: no such trial; there are {', '.join(sorted(set(values))) or 'none'}")
    return left


def _all_hold(row: Mapping[str, Any], filters: Sequence[str]) -> bool:
    """Of a trial without a run. What it has no value of, as the outcome, holds of none."""
    parts = [text.partition("=") for text in filters]
    return all(any(_named(name, key) and _written(key, given) == value for key, given in row.items()) for name, _, value in parts)


def _named(name: str, column: str) -> bool:
    return name in (column, column.rpartition(".")[2])


def _written(column: str, value: Any) -> str:
    return written(column, None if pd.isna(value) else value)
