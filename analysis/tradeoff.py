"""Computes table 1: epoch seconds by number of loader workers and size of /dev/shm.

The one idea is that a cell without a time is still an answer. If trials overflowed /dev/shm, the
cell says so, with their number. A worker count is compared with 0 workers at the same /dev/shm and
in the same repeat, never across hardware or across another parameter. Each such combination has a
table of its own.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.comparable_groups import CACHED, Comparable, comparable
from analysis.runs import SweepRuns
from analysis.statistics import Interval, paired_change, relative_spread
from analysis.text_tables import outcome_words
from analysis.timed_trials import epoch_seconds, reasons_without_time, timed_trials
from sweeps.names import format_parameter

WORKERS, SHM = "loader.num_workers", "loader.shm_size"
# Relative to the least CPU time of a batch. The two speeds of virtual cores are 1.4 apart
TWO_SPEEDS = 0.25


def epoch_times(runs: SweepRuns) -> pd.DataFrame:
    """Returns table 1 as a tidy frame, a row a cell.

    Columns:
        sweep, block, varied, surroundings   str; the table that the cell belongs to
        shm_size          str, '64M' or 'node'
        num_workers       int
        trials, n, not_run   int: trials that ran, those of them with a time, and planned trials
                          without a run
        median_s, min_s, max_s, first_batch_s   float, over the n trials' medians of timed epochs
        spread            float, (max_s - min_s) / median_s; NaN for n = 1
        two_speeds        bool: some epochs used over TWO_SPEEDS more CPU time for the same batches
                          than others
        outcomes          str: how the others ended, '1 of 3 overflowed', or that they were
                          disturbed, and how many diverged, whose times count
        change, change_low, change_high   float: relative to 0 workers, -0.25 for a quarter less,
                          with its 95 % interval; NaN below three pairs
        forecast_s        float: of a cell without trials, which was forecast and never measured;
                          otherwise NaN
    Blocks in which neither count nor size varies are left out.
    """
    return pd.DataFrame([row for group in groups(runs) for row in _cells(group)])


def epoch_times_of(group: Comparable) -> pd.DataFrame:
    """Returns the cells of one table 1."""
    return pd.DataFrame(_cells(group))


@functools.lru_cache(maxsize=CACHED)  # many tables need the same groups
def groups(runs: SweepRuns) -> tuple[Comparable, ...]:
    """Returns the groups that have a table 1.

    The trials of a group differ only in number of workers, size of /dev/shm and repeat, and their
    block varies one of the first two. A machine that ran a single cell of such a block has a table
    too.
    """
    all_groups = comparable(_add_size_column(runs), (WORKERS, SHM))

    def varies(block: str) -> bool:
        block_groups = [other for other in all_groups if other.block == block]
        return any(
            len(set[Any]().union(*(other.values(column) for other in block_groups))) > 1
            for column in (WORKERS, SHM)
        )

    return tuple(group for group in all_groups if varies(group.block))


def _add_size_column(runs: SweepRuns) -> SweepRuns:
    """Adds an empty size column if no trial sets a size, since the tables expect the column."""
    trials = runs.trials
    if SHM in trials:
        return runs
    return runs.with_trials(
        trials.assign(**{SHM: pd.Series(pd.NA, index=trials.index, dtype="Int64")})
    )


def _cells(group: Comparable) -> Iterator[dict[str, Any]]:
    """Yields a row for each cell of a group, by size, then by workers."""
    for size in sorted(group.values(SHM), key=lambda size: float("inf") if size is None else size):
        size_trials, forecast_only, not_run = (
            _trials_of_size(trials, size)
            for trials in (group.trials, group.forecast_only, group.not_run)
        )
        baseline = epoch_seconds(size_trials[size_trials[WORKERS] == 0])
        for workers in sorted(
            {*size_trials[WORKERS], *forecast_only[WORKERS], *not_run[WORKERS].dropna()}
        ):
            trials = size_trials[size_trials[WORKERS] == workers]
            change = paired_change(epoch_seconds(trials), baseline) if workers else None
            yield {
                **group.labels,
                "shm_size": format_parameter(SHM, None if size is None else int(size)),
                "num_workers": int(workers),
                **cell_figures(trials),
                "not_run": int((not_run[WORKERS] == workers).sum()),
                **change_figures(change),
                "forecast_s": math.nan,
                **(
                    {}
                    if len(trials)
                    else _forecast_figures(forecast_only[forecast_only[WORKERS] == workers])
                ),
            }


def cell_figures(trials: pd.DataFrame) -> dict[str, Any]:
    """Returns the figures of the trials of one cell, under the column names of `epoch_times`."""
    with_time = timed_trials(trials)
    times = with_time["epoch_s"]
    diverged = with_time.loc[with_time["outcome"] == "diverged", "outcome"]
    return {
        "trials": len(trials),
        "n": len(times),
        "median_s": times.median(),
        "min_s": times.min(),
        "max_s": times.max(),
        "first_batch_s": with_time["first_batch_s"].median(),
        "spread": relative_spread(times),
        "two_speeds": _met_two_speeds(with_time),
        "outcomes": outcome_words(pd.concat([reasons_without_time(trials), diverged]), len(trials)),
    }


def change_figures(change: Interval | None) -> dict[str, float]:
    """Returns a change and its interval under the column names of `epoch_times`."""
    value, low, high = change or (math.nan,) * 3
    return {"change": value, "change_low": low, "change_high": high}


def _trials_of_size(trials: pd.DataFrame, size: int | None) -> pd.DataFrame:
    """Returns the trials with this size of /dev/shm; None is the node's own."""
    return trials[
        trials[SHM].isna() if size is None else (trials[SHM] == size).fillna(False).astype(bool)
    ]


def _forecast_figures(trials: pd.DataFrame) -> dict[str, Any]:
    """Returns the forecast of a cell without a measured trial.

    `outcomes` states whether the cell is sure to overflow.
    """
    if trials.empty:
        return {}
    overflows = "forecast_fit" in trials and (trials["forecast_fit"] == "overflows").all()
    return {
        "forecast_s": float(trials["forecast_epoch_s"].median()),
        "outcomes": "overflows" if overflows else "",
    }


def _met_two_speeds(trials: pd.DataFrame) -> bool:
    """Returns whether the timed epochs of a cell ran at two speeds of the cores.

    All of them prepare the same batches. The CPU seconds of a batch grow if a core is slow, as a
    virtual one may be by its neighbours, and not by waiting.
    """
    figures = trials.reindex(columns=["batch_cpu_min_s", "batch_cpu_max_s"])
    return bool(
        figures["batch_cpu_max_s"].max() > (1 + TWO_SPEEDS) * figures["batch_cpu_min_s"].min()
    )
