"""What became of the article's table on this machine, in sentences: `python -m analysis article --article`.

The one idea is that each claim of the article is a comparison of two cells of sweeps/examples/article.yaml, said with both times and,
where there are three pairs, its interval, whichever way it went. Beside it stands the bound that no number of workers passes: workers
move preparation beside the step, so an epoch of r = s·C / (b·c), the step's seconds over those in which all cores prepare its batch,
gets at most `most_times` as fast. All is from the tracker alone, and what is not there is said to be missing.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from analysis.page import WIDTH, WORDS, decimals, disturbance_lines, grid, listed
from analysis.runs import comparable
from analysis.statistics import FEWEST_PAIRS, paired_change
from analysis.tradeoff import SHM, TIMED, WORKERS, epoch_seconds, timed
from sweeps.names import written

RATIOS = {"quarter": "r/4", "ratio": "r", "fourfold": "4r"}  # blocks of the sweep that differ in the step alone
BETWEEN, SMALL, NETWORK, COLD = "between", "small", "network", "cold"  # the first: more worker counts at the step of `ratio`
BLOCKS = (*RATIOS, BETWEEN, NETWORK, COLD, SMALL)
NONE, FEW, MANY = 0, 8, 64  # workers that the article compares

ARTICLE_MIN = {NONE: 80.0, FEW: 3.2}  # minutes an epoch took the article, by workers
ARTICLE_CORES = 8  # none of its figures here; as many as the workers that were best
UNTIMED = "missing, one of the two has no time."

Blocks = Mapping[str, pd.DataFrame]  # a block's trials, all alike but for workers, /dev/shm and repeat


class Costs(NamedTuple):
    """What a batch costs without workers, a trial's median."""

    step_s: float
    prepare_s: float  # reading included
    batch_size: int
    cores: int

    @property
    def ratio(self) -> float:
        """r: the step's seconds over those in which all cores prepare its batch."""
        return self.step_s * self.cores / self.prepare_s


def report(frame: pd.DataFrame) -> list[str]:
    """The sweep in paragraphs and a table, from the frame of `runs.sweep_runs`. LookupError: it isn't a sweep of the article's blocks."""
    blocks = _blocks(frame)
    return [
        _head(frame, blocks),
        _of_article(),
        *_ratios_here(blocks),
        _milliseconds(blocks),
        *(text for block in RATIOS for text in _at_ratio(block, blocks)),
        _why_not(),
        *_small(blocks),
        *_network(blocks),
        *_cold(blocks),
        *_as_the_article(blocks),
        *disturbance_lines(pd.concat(list(blocks.values())), markdown=True),
    ]


def most_times(workers: int, cores: int, ratio: float) -> float:
    """How many times faster an epoch can get by so many workers that compute, against none, if each prepares as fast as the loop did.

    A batch takes b·c + s without them, and with them at least the longer of s and b·c / min(workers, cores). Over all r the most is
    min(workers, cores) + 1; workers that only wait for reads need no core, and reach workers + 1.
    """
    step = ratio / cores  # in units of b·c
    return (1 + step) / max(step, 1 / min(workers, cores))


def costs(trials: pd.DataFrame) -> Costs | None:
    """From the trials without workers; None where none has a time."""
    alone = timed(trials[trials[WORKERS] == NONE])
    if alone.empty or alone[["fill_s", "wait_s", "step_s", "clips_per_s"]].isna().any(axis=None):
        return None
    size = int(alone["loader.batch_size"].iloc[0])
    batches = alone["clips_per_s"] * alone["epoch_s"] / size
    step_s, prepare_s = (alone["step_s"] / batches).median(), ((alone["fill_s"] + alone["wait_s"]) / batches).median()
    return Costs(float(step_s), float(prepare_s), size, int(alone["cores"].iloc[0]))


def _blocks(frame: pd.DataFrame) -> Blocks:
    """Block -> its trials. LookupError where times can't be set side by side."""
    blocks: dict[str, pd.DataFrame] = {}
    for group in comparable(frame, (WORKERS, SHM)):
        if group.block in blocks:
            raise LookupError(
                f"block {group.block} holds trials that differ in more than workers and /dev/shm ({group.varied or group.surroundings}): "
                f"`python -m analysis {frame.attrs.get('sweep', 'NAME')}` shows them"
            )
        blocks[group.block] = group.trials
    if not set(BLOCKS) & set(blocks):
        there = ", ".join(blocks) or "none with a trial"
        raise LookupError(f"no block of sweeps/examples/article.yaml ({', '.join(BLOCKS)}); there are {there}")
    machines = pd.concat(list(blocks.values()))[["cpu_name", "cores", "threads"]].dropna().drop_duplicates()
    if len(machines) > 1:
        raise LookupError(f"its blocks ran on {len(machines)} machines, whose times are not compared")
    return blocks


def _head(frame: pd.DataFrame, blocks: Blocks) -> str:
    trials = pd.concat(list(blocks.values()))
    known = trials[["cpu_name", "cores"]].dropna()
    machine = f" on {known['cpu_name'].iloc[0]}, {known['cores'].iloc[0]} cores" if len(known) else ""
    text = f"Sweep {frame.attrs['sweep']}{machine}: {len(timed(trials))} of {frame.attrs['plan']} trials have a time."
    if absent := [block for block in BLOCKS if block not in blocks]:
        text += f" Missing: block{'s' * (len(absent) > 1)} {listed(absent)}."
    return text


def _of_article() -> str:
    slow, fast = ARTICLE_MIN[NONE], ARTICLE_MIN[FEW]
    share = fast / (slow - fast)
    return (
        f"The article: {slow:g} min an epoch without workers, {fast:g} with {FEW}, {fast / slow - 1:+.0%} or {slow / fast:.0f} times as "
        f"fast. Its step took at most {fast:g} of the {slow:g} min, so s / (b·c) is at most 1/{1 / share:.0f} and r = s·C / (b·c) at most "
        f"C/{1 / share:.0f}. C is none of these figures: r is {_two(share * ARTICLE_CORES)} on {ARTICLE_CORES} cores, as many as the "
        f"workers that were best; r/4 and 4r are what {ARTICLE_CORES / 4:g} and {ARTICLE_CORES * 4} cores make of it."
    )


def _ratios_here(blocks: Blocks) -> Iterator[str]:
    found = {block: here for block in RATIOS if block in blocks and (here := costs(blocks[block]))}
    if not found:
        yield "r here: missing, no trial without workers has a time in blocks " + listed(list(RATIOS)) + "."
        return
    said = [
        f"{_two(here.ratio)} for {RATIOS[block]} (block {block}: {1000 * here.step_s:.3g} ms a step, {1000 * here.prepare_s:.3g} ms to "
        f"prepare {here.batch_size} clips)"
        for block, here in found.items()
    ]
    absent = [RATIOS[block] for block in RATIOS if block not in found]
    yield f"r here, on {next(iter(found.values())).cores} cores: {listed(said)}." + (f" Missing: {listed(absent)}." if absent else "")


def _milliseconds(blocks: Blocks) -> str:
    """A table of milliseconds a step, a column a block; what is between its counts stands with `ratio`."""
    columns = {block: blocks[block] for block in BLOCKS if block in blocks and block != BETWEEN}
    if BETWEEN in blocks and "ratio" in blocks:
        columns["ratio"] = pd.concat([blocks["ratio"], blocks[BETWEEN]])
    counts = sorted({int(count) for trials in columns.values() for count in trials[WORKERS]})
    rows = [[str(count), *(_step_text(trials[trials[WORKERS] == count]) for trials in columns.values())] for count in counts]
    headers = ["workers", *(f"{block}\n{RATIOS.get(block, '')}".rstrip() for block in columns)]
    table = grid(headers, rows, ["right"] * len(headers), markdown=False)
    return f"{table}\n\nMilliseconds a step: the median trial's warm epoch over its batches."


def _step_text(trials: pd.DataFrame) -> str:
    with_time = timed(trials)
    if with_time.empty:
        return listed(sorted({WORDS.get(outcome, outcome) for outcome in trials["outcome"]})) or "-"
    return f"{1000 * (with_time['loader.batch_size'] / with_time['clips_per_s']).median():.1f}"


def _at_ratio(block: str, blocks: Blocks) -> Iterator[str]:
    """The cut by a few workers against none, and what many do against a few."""
    if block not in blocks:
        return
    trials, here = blocks[block], costs(blocks[block])
    label = f"At {RATIOS[block]}" + (f" = {_two(here.ratio)}" if here else "")
    cut = _compared(trials, FEW, trials, NONE)
    if cut and here:
        most = most_times(FEW, here.cores, here.ratio)
        cut += f" {FEW} workers that prepare a batch as fast as the loop did could cut {_share(most)} on {here.cores} cores."
    yield f"{label}, {FEW} workers against none: {cut or _missing(trials, FEW, NONE)}"
    more = _compared(trials, MANY, trials, FEW)
    yield f"{label}, {MANY} workers against {FEW}: " + (f"{more} {_won(trials)} {_fills(trials)}" if more else _missing(trials, MANY, FEW))


def _compared(trials: pd.DataFrame, workers: int, others: pd.DataFrame, against: int) -> str | None:
    """'7.70 s -> 3.90 s, -49% (-51% to -47%).'; None where one of the two has no time."""
    times, baseline = _seconds(trials, workers), _seconds(others, against)
    if times.empty or baseline.empty:
        return None
    before, after = baseline.median(), times.median()
    digits = decimals(min(before, after))
    text = f"{before:.{digits}f} s -> {after:.{digits}f} s, "
    if change := paired_change(times, baseline):
        return text + f"{change.value:+.0%} ({change.low:+.0%} to {change.high:+.0%})."
    pairs = len(set(times.index) & set(baseline.index))
    return text + f"{after / before - 1:+.0%} ({pairs} pair{'' if pairs == 1 else 's'}; an interval needs {FEWEST_PAIRS})."


def _won(trials: pd.DataFrame) -> str:
    change = paired_change(_seconds(trials, MANY), _seconds(trials, FEW))
    if change is None:
        return f"Whether {MANY} lose is not shown by so few."
    if not change.tells_apart:
        return f"The two are not told apart: the article's loss of {MANY} is not seen here."
    return f"{MANY} lose, as in the article." if change.low > 0 else f"{MANY} win, unlike in the article."


def _fills(trials: pd.DataFrame) -> str:
    """How much of the difference is the wait for the first batch."""
    few, many = (timed(trials[trials[WORKERS] == count])[["fill_s", "epoch_s"]].median() for count in (FEW, MANY))
    if pd.isna(few["fill_s"]) or pd.isna(many["fill_s"]):
        return "Their fill: missing."
    later, longer = many["fill_s"] - few["fill_s"], many["epoch_s"] - few["epoch_s"]
    return (
        f"The first batch comes after {few['fill_s']:.2f} s with {FEW} and {many['fill_s']:.2f} s with {MANY}, {later:+.2f} s, where the "
        f"epoch takes {longer:+.2f} s."
    )


def _why_not() -> str:
    slow, fast = ARTICLE_MIN[NONE], ARTICLE_MIN[FEW]
    most = most_times(FEW, ARTICLE_CORES, ARTICLE_CORES * fast / (slow - fast))
    return (
        f"Why workers alone can't give {_share(slow / fast)}: k of them that prepare a batch as fast as the loop did have at most k under "
        "way beside it, and no more than there are cores where preparing computes. So an epoch gets at most k + 1 times as fast: 3 times "
        f"({_share(3)} less) computing on 2 cores, {FEW + 1} times ({_share(FEW + 1)} less) with {FEW} workers that only wait for reads or "
        f"have a core each. At the article's r it is {most:.1f} times at most, and {slow / fast:.0f} were seen: something else changed "
        "between its two epochs."
    )


def _small(blocks: Blocks) -> Iterator[str]:
    if SMALL not in blocks:
        return
    trials = blocks[SMALL]
    size = listed(sorted({written(SHM, None if pd.isna(given) else int(given)) for given in trials[SHM]}))
    ended = {_ended(outcome): _counts(alike) for outcome, alike in trials.sort_values(WORKERS).groupby("outcome", sort=False)}
    yield f"In {size} of /dev/shm " + "; ".join(f"{counts} workers {word}" for word, counts in ended.items()) + f". {_foreseen(trials)}"
    large = blocks.get("ratio")
    if large is None or trials["batch_bytes"].isna().all():
        yield f"What {MANY} workers take where there is room: missing."
        return
    peak = large.loc[(large[WORKERS] == MANY) & large["outcome"].isin(TIMED), "shm_peak_bytes"].max()
    bound = large.loc[large[WORKERS] == MANY, "forecast_shm_bound_bytes"].max()
    yield (
        f"A batch is {_mib(trials['batch_bytes'].max())}. Where there is room for them, {MANY} workers took {_mib(peak)} of /dev/shm at "
        f"most; that they could take as much as {_mib(bound)} was foreseen."
    )


def _ended(outcome: str) -> str:
    return "ran through" if outcome in TIMED else WORDS.get(outcome, outcome)


def _foreseen(trials: pd.DataFrame) -> str:
    """What was said before, where it was."""
    words = {"fits": "to fit", "depends": "to depend on rates", "overflows": "to overflow"}
    said = {words[verdict]: _counts(alike) for verdict, alike in trials.groupby("forecast_fit", sort=False)}
    return "Foreseen " + "; ".join(f"{word}: {counts}" for word, counts in said.items()) + "." if said else "Not foreseen."


def _network(blocks: Blocks) -> Iterator[str]:
    """What reads that wait add, and what workers do about it."""
    if NETWORK not in blocks:
        return
    trials, warm = blocks[NETWORK], blocks.get("ratio", blocks[NETWORK].iloc[:0])
    waits = f"{1000 * float(trials['corpus.read_latency_s'].iloc[0]):g} ms"
    for count in sorted({int(count) for count in trials[WORKERS]}):
        added = _compared(trials, count, warm, count)
        yield f"Each read waits {waits}, {count} workers, against the same without: {added or UNTIMED}"
    cut = _compared(trials, FEW, trials, NONE)
    yield (
        f"Each read waits {waits}, {FEW} workers against none: {cut or _missing(trials, FEW, NONE)}"
        + (f" Workers that only waited would cut at most {_share(FEW + 1)}." if cut else "")
    )


def _cold(blocks: Blocks) -> Iterator[str]:
    """What this machine's own drive adds to an epoch whose files are in no cache."""
    if COLD not in blocks:
        return
    trials, warm = blocks[COLD], blocks.get("ratio", blocks[COLD].iloc[:0])
    for count in sorted({int(count) for count in trials[WORKERS]}):
        added = _compared(trials, count, warm, count)
        read = timed(trials[trials[WORKERS] == count])["read_bytes"].median()
        said = f" {_mib(read)} came from the drive." if added else ""
        yield f"Files dropped from the page cache, {count} workers, against warm: {added or UNTIMED}{said}"


def _as_the_article(blocks: Blocks) -> Iterator[str]:
    """Two epochs that differ in the drive too: what the article may have compared."""
    if not {NETWORK, "ratio"} <= blocks.keys():
        yield "A slow drive without workers against a warm cache with 8: missing."
        return
    both = _compared(blocks["ratio"], FEW, blocks[NETWORK], NONE)
    slow, fast = ARTICLE_MIN[NONE], ARTICLE_MIN[FEW]
    yield (
        f"Reads that wait and no workers, against a warm cache and {FEW}: {both or UNTIMED} A first epoch from a slow drive against "
        f"a later one from memory is a cut of two causes, and one way to the article's {fast / slow - 1:+.0%}."
    )


def _seconds(trials: pd.DataFrame, workers: int) -> pd.Series:
    return epoch_seconds(trials[trials[WORKERS] == workers])


def _missing(trials: pd.DataFrame, *counts: int) -> str:
    absent = [str(count) for count in counts if _seconds(trials, count).empty]
    return f"missing, no trial with {' or '.join(absent)} workers has a time." if absent else ""


def _counts(trials: pd.DataFrame) -> str:
    return listed([str(count) for count in sorted({int(count) for count in trials[WORKERS]})])


def _share(times: float) -> str:
    """25 times as fast -> '96 %' of the time saved."""
    return f"{100 * (1 - 1 / times):.0f} %"


def _two(value: float) -> str:
    return f"{value:.2g}"


def _mib(size_bytes: float) -> str:
    return "an unknown number of MiB" if pd.isna(size_bytes) or math.isinf(size_bytes) else f"{size_bytes / 2**20:,.1f} MiB"


def render(frame: pd.DataFrame) -> str:
    """The report for the terminal. LookupError as `report`."""
    return "\n\n".join(map(_wrapped, report(frame))) + "\n"


def _wrapped(text: str) -> str:
    return text if "\n" in text else textwrap.fill(text, WIDTH)
