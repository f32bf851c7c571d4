"""States in sentences how cells of the article's sweep compare: workers, /dev/shm, reads, caches.

The one idea is that every claim of the article is a comparison of two cells. A sentence states both
times and, from three pairs on, the interval, whichever way the comparison went. Missing figures are
reported as missing.
"""

import math
from collections.abc import Iterator

import pandas as pd

from analysis.article_model import (
    ARTICLE_MIN,
    FEW,
    MANY,
    NONE,
    RATIOS,
    Blocks,
    costs,
    max_speedup,
    percent_saved,
    two_digits,
)
from analysis.number_text import change_text, count_text, decimals, mib
from analysis.statistics import FEWEST_PAIRS, paired_change
from analysis.text_tables import OUTCOME_LABELS, join_texts
from analysis.timed_trials import RAN_THROUGH, epoch_seconds, timed_trials
from analysis.tradeoff import SHM, WORKERS
from sweeps.names import format_parameter

# blocks of sweeps/examples/article.yaml with a small /dev/shm, slow reads, and an empty page cache
SMALL, NETWORK, COLD = "small", "network", "cold"
UNTIMED = "missing, one of the two has no time."


def comparisons_at_ratio(block: str, blocks: Blocks) -> Iterator[str]:
    """Yields the cut by FEW workers against none, and the effect of MANY against FEW."""
    if block not in blocks:
        return
    trials, measured = blocks[block], costs(blocks[block])
    label = f"At {RATIOS[block]}" + (f" = {two_digits(measured.ratio)}" if measured else "")
    cut = _compare(trials, FEW, trials, NONE)
    if cut and measured:
        most = max_speedup(FEW, measured.cores, measured.ratio)
        cut += (
            f" {FEW} workers, as fast as the loop, can save at most {percent_saved(most)} on"
            f" {measured.cores:g} cores."
        )
    yield f"{label}, {FEW} workers against none: {cut or _missing_text(trials, FEW, NONE)}"
    more = _compare(trials, MANY, trials, FEW)
    yield f"{label}, {MANY} workers against {FEW}: " + (
        f"{more} {_many_workers_result(trials)} {_first_batch_text(trials)}"
        if more
        else _missing_text(trials, MANY, FEW)
    )


def _compare(trials: pd.DataFrame, workers: int, others: pd.DataFrame, against: int) -> str | None:
    """Returns for example '7.70 s -> 3.90 s, -49% (-51% to -47%).'; None if a time is missing."""
    times, baseline = _epoch_seconds(trials, workers), _epoch_seconds(others, against)
    if times.empty or baseline.empty:
        return None
    before, after = baseline.median(), times.median()
    digits = decimals(min(before, after))
    text = f"{before:.{digits}f} s -> {after:.{digits}f} s, "
    if change := paired_change(times, baseline):
        return text + f"{change_text(change)}."
    pairs = count_text(len(set(times.index) & set(baseline.index)), "pair")
    return text + f"{after / before - 1:+.0%} ({pairs}; an interval needs {FEWEST_PAIRS})."


def _many_workers_result(trials: pd.DataFrame) -> str:
    """Returns a sentence that states whether MANY workers lose against FEW."""
    change = paired_change(_epoch_seconds(trials, MANY), _epoch_seconds(trials, FEW))
    if change is None:
        return f"Too few repeats to show whether {MANY} workers are slower."
    if not change.excludes_zero:
        return f"The two are not distinguishable: the article's loss with {MANY} does not appear."
    return (
        f"{MANY} workers are slower, as in the article."
        if change.low > 0
        else f"{MANY} workers are faster, unlike in the article."
    )


def _first_batch_text(trials: pd.DataFrame) -> str:
    """Returns how much of the difference is the wait for the first batch."""
    few, many = (
        timed_trials(trials[trials[WORKERS] == count])[["first_batch_s", "epoch_s"]].median()
        for count in (FEW, MANY)
    )
    if pd.isna(few["first_batch_s"]) or pd.isna(many["first_batch_s"]):
        return "Their first batch: missing."
    later, longer = many["first_batch_s"] - few["first_batch_s"], many["epoch_s"] - few["epoch_s"]
    return (
        f"The first batch takes {few['first_batch_s']:.2f} s with {FEW} and"
        f" {many['first_batch_s']:.2f} s with {MANY}, {later:+.2f} s; the epoch takes"
        f" {longer:+.2f} s."
    )


def small_shm(blocks: Blocks) -> Iterator[str]:
    """Yields how trials ended in a small /dev/shm, and what MANY workers take of a large one."""
    if SMALL not in blocks:
        return
    trials = blocks[SMALL]
    size = join_texts(
        sorted(
            {
                format_parameter(SHM, None if pd.isna(size_bytes) else int(size_bytes))
                for size_bytes in trials[SHM]
            }
        )
    )
    counts_by_outcome = {
        _outcome_text(outcome): _worker_counts(same_outcome)
        for outcome, same_outcome in trials.sort_values(WORKERS).groupby("outcome", sort=False)
    }
    yield (
        f"In {size} of /dev/shm "
        + "; ".join(f"{counts} workers {word}" for word, counts in counts_by_outcome.items())
        + f". {_verdict_text(trials)}"
    )
    large = blocks.get("ratio")
    if large is None or trials["batch_bytes"].isna().all():
        yield f"Use of /dev/shm by {MANY} workers without an overflow: missing."
        return
    peak = large.loc[
        (large[WORKERS] == MANY) & large["outcome"].isin(RAN_THROUGH), "shm_peak_bytes"
    ].max()
    bound = large.loc[large[WORKERS] == MANY, "forecast_shm_max_bytes"].max()
    yield (
        f"A batch is {_mib_text(trials['batch_bytes'].max())}. Without an overflow, {MANY} workers"
        f" used at most {_mib_text(peak)} of /dev/shm; the forecast was at most"
        f" {_mib_text(bound)}."
    )


def _outcome_text(outcome: str) -> str:
    """Returns the words for an outcome."""
    return OUTCOME_LABELS.get(outcome, outcome)


def _verdict_text(trials: pd.DataFrame) -> str:
    """Returns the forecast verdicts with their worker counts, or that there was no forecast."""
    words = {"fits": "fits", "depends": "depends on rates", "overflows": "overflows"}
    counts_by_verdict = {
        words[verdict]: _worker_counts(same_verdict)
        for verdict, same_verdict in trials.groupby("forecast_fit", sort=False)
    }
    return (
        "Forecast, by workers: "
        + "; ".join(f"{word} with {counts}" for word, counts in counts_by_verdict.items())
        + "."
        if counts_by_verdict
        else "No forecast."
    )


def slow_reads(blocks: Blocks) -> Iterator[str]:
    """Yields what slow reads add to an epoch, and how much of it workers recover."""
    if NETWORK not in blocks:
        return
    trials, warm = blocks[NETWORK], blocks.get("ratio", blocks[NETWORK].iloc[:0])
    waits = f"{1000 * float(trials['corpus.read_latency_s'].iloc[0]):g} ms"
    for count in sorted({int(count) for count in trials[WORKERS]}):
        added = _compare(trials, count, warm, count)
        yield (f"Reads delayed by {waits}, {count} workers, against no delay: {added or UNTIMED}")
    cut = _compare(trials, FEW, trials, NONE)
    yield (
        f"Reads delayed by {waits}, {FEW} workers against none:"
        f" {cut or _missing_text(trials, FEW, NONE)}"
        + (f" Workers that only wait can save at most {percent_saved(FEW + 1)}." if cut else "")
    )


def cold_cache(blocks: Blocks) -> Iterator[str]:
    """Yields what this machine's own drive adds to an epoch whose files are in no cache."""
    if COLD not in blocks:
        return
    trials, warm = blocks[COLD], blocks.get("ratio", blocks[COLD].iloc[:0])
    for count in sorted({int(count) for count in trials[WORKERS]}):
        added = _compare(trials, count, warm, count)
        read = timed_trials(trials[trials[WORKERS] == count])["read_bytes"].median()
        read_text = f" {_mib_text(read)} came from the drive." if added else ""
        yield (
            f"Page cache emptied, {count} workers, against a warm one:"
            f" {added or UNTIMED}{read_text}"
        )


def two_causes(blocks: Blocks) -> Iterator[str]:
    """Yields a comparison of two epochs that also differ in the drive.

    The article may have compared two such epochs.
    """
    if not {NETWORK, "ratio"} <= blocks.keys():
        yield "A slow drive without workers against a warm cache with 8: missing."
        return
    both = _compare(blocks["ratio"], FEW, blocks[NETWORK], NONE)
    slow, fast = ARTICLE_MIN[NONE], ARTICLE_MIN[FEW]
    yield (
        f"Delayed reads without workers, against a warm cache with {FEW}: {both or UNTIMED} If the"
        " article compared a first epoch from a slow drive with a later one from memory, its"
        f" {fast / slow - 1:+.0%} has two causes."
    )


def _epoch_seconds(trials: pd.DataFrame, workers: int) -> pd.Series:
    """Returns the epoch seconds by repeat of the trials with `workers` workers."""
    return epoch_seconds(trials[trials[WORKERS] == workers])


def _missing_text(trials: pd.DataFrame, *counts: int) -> str:
    """Returns which worker counts have no time; '' if all have one."""
    absent = [str(count) for count in counts if _epoch_seconds(trials, count).empty]
    return f"missing, no trial with {' or '.join(absent)} workers has a time." if absent else ""


def _worker_counts(trials: pd.DataFrame) -> str:
    """Returns the worker counts of the trials as a list in words."""
    return join_texts([str(count) for count in sorted({int(count) for count in trials[WORKERS]})])


def _mib_text(size_bytes: float) -> str:
    """Returns the size in MiB, or that it is unknown."""
    return (
        "an unknown number of MiB"
        if pd.isna(size_bytes) or math.isinf(size_bytes)
        else mib(size_bytes)
    )
