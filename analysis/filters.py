"""Selects trials of a sweep: `block=workers num_workers=8 cores=2 outcome=completed`.

The one idea is that a filter reads like a run's name. KEY is a column of `SweepRuns.trials`, or the
last part of a dotted one. VALUE is written as in names and tables: 64M, node, 0.01. All filters of
a list must hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.runs import SweepRuns
from analysis.text_tables import written_value


def filter_trials(runs: SweepRuns, filters: Sequence[str]) -> SweepRuns:
    """Returns the trials for which every filter holds.

    `forecast_only` and `not_run` are filtered likewise, and `planned_count` counts the selected
    trials. Raises LookupError if a key is unknown or no trial remains.
    """
    if not filters:
        return runs
    trials = runs.trials
    for text in filters:
        trials = _apply_filter(runs.trials, trials, text)
    forecast_only, not_run = (
        tuple(row for row in rows if _all_hold(row, filters))
        for rows in (runs.forecast_only, runs.not_run)
    )
    return replace(
        runs,
        trials=trials,
        planned_count=int(trials["planned"].sum()) + len(not_run),
        forecast_only=forecast_only,
        not_run=not_run,
    )


def _apply_filter(frame: pd.DataFrame, trials: pd.DataFrame, text: str) -> pd.DataFrame:
    """Returns those of `trials` for which one filter holds. Raises LookupError if none does."""
    name, _, value = text.partition("=")
    columns = [column for column in frame if _names_column(name, column)]
    if len(columns) != 1:
        raise LookupError(
            f"{text}: {name!r} matches {'several parameters' if columns else 'no parameter'} of"
            " this sweep"
        )
    values = [written_value(columns[0], text_value) for text_value in trials[columns[0]].tolist()]
    remaining = trials[[text_value == value for text_value in values]]
    if remaining.empty:
        present = ", ".join(sorted(set(values))) or "none"
        raise LookupError(f"{text}: no trial matches. Values of {name}: {present}")
    return remaining


def _all_hold(row: Mapping[str, Any], filters: Sequence[str]) -> bool:
    """Applies the same test to a planned trial that has no run yet.

    A filter on a missing value, such as the outcome, never holds.
    """
    parts = [text.partition("=") for text in filters]
    return all(
        any(
            _names_column(name, key) and written_value(key, row_value) == value
            for key, row_value in row.items()
        )
        for name, _, value in parts
    )


def _names_column(name: str, column: str) -> bool:
    """Returns whether `name` is the column's full name or its last part."""
    return name in (column, column.rpartition(".")[2])
