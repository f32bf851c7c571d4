"""Splits the trials of a sweep into groups that differ only in what a table spreads out.

The one idea is that trials are pooled only if all their parameters and surroundings are equal,
except those that a table spreads out. `comparable` splits by this rule, so that no table has to
apply it itself.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.runs import SweepRuns
from analysis.text_tables import written_value
from analysis.trial_rows import SURROUNDINGS, distinct_values
from sweeps.names import KEYS_IDLE_AT_0_WORKERS, short_names

CACHED = 64  # groups of as many blocks and spreads are kept
# A plan runs 0 workers once for all values of these, since they have no effect there.
IDLE_AT_0 = tuple(f"loader.{key}" for key in KEYS_IDLE_AT_0_WORKERS)


class Comparable(NamedTuple):
    """A group of trials that differ only in what their table spreads out, repeat and seed."""

    sweep: str
    block: str
    # 'format=png prefetch_factor=4': the parameters that distinguish this group from the block's
    # others; empty if it is the only one
    varied: str
    surroundings: str  # 'simulated accelerator: 25 ms a step · 2 cores · 2 threads · float32'
    trials: pd.DataFrame
    # Planned trials of this group that are never measured, as in SweepRuns. Columns: at least those
    # that the table spreads out.
    forecast_only: pd.DataFrame
    not_run: pd.DataFrame  # likewise: trials to be measured that have no run yet

    @property
    def labels(self) -> dict[str, str]:
        """The first columns of every tidy table, which name the table a row belongs to."""
        return {
            "sweep": self.sweep,
            "block": self.block,
            "varied": self.varied,
            "surroundings": self.surroundings,
        }

    def values(self, column: str) -> set[Any]:
        """Returns the values of a column over all trials, measured or not; missing ones as None."""
        return (
            distinct_values(self.trials, column)
            | distinct_values(self.forecast_only, column)
            | distinct_values(self.not_run, column)
        )


@functools.lru_cache(maxsize=CACHED)  # many tables need the same groups
def comparable(runs: SweepRuns, spread: tuple[str, ...]) -> tuple[Comparable, ...]:
    """Splits the planned trials by sweep, block, surroundings and the varying parameters.

    Parameters in `spread` do not split them.
    """
    return tuple(_split(runs, spread))


def _split(runs: SweepRuns, spread: tuple[str, ...]) -> Iterator[Comparable]:
    """Yields the groups of `comparable`."""
    unmeasured = [pd.DataFrame(rows) for rows in (runs.forecast_only, runs.not_run)]
    for block, trials in runs.planned.groupby("block", sort=False):
        trials = _fill_surroundings(trials)
        forecast_rows, not_run_rows = (
            rows[rows["block"] == block] if len(rows) else rows for rows in unmeasured
        )
        sources = (trials, forecast_rows, not_run_rows)
        varying = _varying_columns(sources, spread)
        names = short_names(varying)
        idle = [column for column in varying if column in IDLE_AT_0]
        trials = trials.assign(**{column: None for column in varying if column not in trials})
        for _, group in trials.groupby([*varying, *SURROUNDINGS], sort=False, dropna=False):
            first = group.iloc[0]
            if idle:
                group = pd.concat(
                    [group, _equal_at_0_workers(trials, first, [*varying, *SURROUNDINGS], idle)]
                ).drop_duplicates("trial_id")
            varied = " ".join(
                f"{names[column]}={written_value(column, first[column])}" for column in varying
            )
            is_latest = (len(forecast_rows) or len(not_run_rows)) and _matches_latest(
                first, trials[_equal_mask(trials, first, varying)]
            )
            unrun = [
                _unrun_rows_of_group(
                    rows if is_latest else rows.iloc[:0], first, varying, idle, spread
                )
                for rows in (forecast_rows, not_run_rows)
            ]
            yield Comparable(
                str(first.get("sweep", "")),
                str(block),
                varied,
                _describe_surroundings(first),
                group,
                *unrun,
            )


def _varying_columns(sources: Sequence[pd.DataFrame], spread: tuple[str, ...]) -> list[str]:
    """Returns the columns in which the trials of a block differ, without those in `spread`."""
    columns = dict.fromkeys(
        column for source in sources for column in source if "." in column and column not in spread
    )
    return [
        column
        for column in ("sweep", *columns)
        if len(set[Any]().union(*(distinct_values(source, column) for source in sources))) > 1
    ]


def _unrun_rows_of_group(
    rows: pd.DataFrame,
    first: pd.Series,
    varying: list[str],
    idle: list[str],
    spread: tuple[str, ...],
) -> pd.DataFrame:
    """Returns the rows of trials without a run that belong to the group of `first`."""
    if len(rows):
        equal_rows = rows[_equal_mask(rows, first, varying)]
        rows = (
            pd.concat(
                [equal_rows, _equal_at_0_workers(rows, first, varying, idle)]
            ).drop_duplicates("trial_id")
            if idle
            else equal_rows
        )
    return rows.reindex(columns=[*dict.fromkeys((*rows, *spread))])


def _equal_mask(trials: pd.DataFrame, first: pd.Series, columns: list[str]) -> pd.Series:
    """Returns a mask of the trials that equal `first` in these columns.

    Two missing values are equal.
    """
    mask = pd.Series(True, index=trials.index)
    for column in columns:
        values = (
            trials[column]
            if column in trials
            else pd.Series(None, index=trials.index, dtype=object)
        )
        mask &= (
            (values == first[column]).fillna(False) | (values.isna() & pd.isna(first[column]))
        ).astype(bool)
    return mask


def _equal_at_0_workers(
    trials: pd.DataFrame, first: pd.Series, columns: list[str], idle: list[str]
) -> pd.DataFrame:
    """Returns the trials without workers that equal `first`, except in `idle` columns.

    Those columns have no meaning at 0 workers, so these trials are the group's baseline too.
    """
    mask = _equal_mask(trials, first, [column for column in columns if column not in idle])
    return trials[mask & (trials["loader.num_workers"] == 0).fillna(False).astype(bool)]


def _matches_latest(first: pd.Series, trials: pd.DataFrame) -> bool:
    """Returns whether `first` ran in the same surroundings as the last of `trials`.

    A forecast holds for the machine of the latest launch.
    """
    return bool(_equal_mask(trials, first, list(SURROUNDINGS)).iloc[-1])


def _fill_surroundings(trials: pd.DataFrame) -> pd.DataFrame:
    """Fills in the missing surroundings of trials if the others of the block agree.

    A trial may die before it reports where it ran.
    """
    known = {tag: trials[tag].dropna().unique() for tag in SURROUNDINGS}
    return trials.fillna({tag: values[0] for tag, values in known.items() if len(values) == 1})


def _describe_surroundings(trial: pd.Series) -> str:
    """Returns the surroundings of a trial in words.

    An example is 'simulated accelerator: 25 ms a step · Xeon · 4 cores · 2 threads · float32
    · each read waits 20 ms'.
    """
    tags = {tag: trial[tag] for tag in SURROUNDINGS if pd.notna(trial[tag])}
    device = tags.get("device_name", tags.get("device", "device unknown"))
    threads = (
        f"{tags['threads']} thread" + ("s" if tags["threads"] != "1" else "")
        if "threads" in tags
        else None
    )
    numbers = " ".join(
        [
            *filter(None, [tags.get("precision")]),
            *(["channels_last"] if tags.get("channels_last") == "true" else []),
        ]
    )
    cpu = tags.get("cpu_name") if tags.get("cpu_name") != device else None
    cores = (
        f"{tags['cores']} core" + ("s" if tags["cores"] != "1" else "") if "cores" in tags else None
    )
    if cores and tags.get("cpu_quota", "none") != "none":
        cores += " by CPU quota"
    notes = [*_rank_note(trial), *_loop_note(trial), *_reading_notes(trial)]
    return " · ".join(filter(None, [device, cpu, cores, threads, numbers, *notes]))


def _rank_note(trial: pd.Series) -> list[str]:
    """Returns the number of ranks, unless it is one."""
    ranks = trial.get("device.ranks", 1)
    return [f"{ranks:g} ranks"] if pd.notna(ranks) and ranks > 1 else []


def _loop_note(trial: pd.Series) -> list[str]:
    """Returns whether the loop waited for every step on a GPU.

    The name of a simulated accelerator says it already.
    """
    if trial.get("device") != "cuda":
        return []
    reads_loss = trial.get("device.sync_every_step", False) is True
    return ["the loop reads every loss" if reads_loss else "the loop runs ahead"]


def _reading_notes(trial: pd.Series) -> list[str]:
    """Returns how clips were read, unless it was at full speed from a warm cache."""
    notes = []
    if trial.get("corpus.cache", "warm") == "cold":
        notes.append("cold cache: files dropped before each epoch")
    if latency := trial.get("corpus.read_latency_s", 0.0):
        notes.append(f"each read waits {1000 * latency:g} ms")
    return notes
