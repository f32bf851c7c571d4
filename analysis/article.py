"""Reports what became of the article's table on this machine, in sentences.

Command: `python -m analysis article`.

The one idea is that the report holds whichever way the comparisons went: its sentences
(article_claims.py) state measured figures, and beside them the bound that no number of workers
passes (article_model.py). All figures come from the tracker alone, and missing figures are reported
as missing.
"""

import textwrap
from collections.abc import Iterator

import pandas as pd

from analysis.article_claims import (
    COLD,
    NETWORK,
    SMALL,
    cold_cache,
    comparisons_at_ratio,
    slow_reads,
    small_shm,
    two_causes,
)
from analysis.article_model import (
    ARTICLE_CORES,
    ARTICLE_MIN,
    FEW,
    NONE,
    RATIOS,
    Blocks,
    costs,
    max_speedup,
    percent_saved,
    two_digits,
)
from analysis.comparable_groups import comparable
from analysis.runs import SweepRuns
from analysis.tables import rebuild_command
from analysis.text_tables import OUTCOME_LABELS, WIDTH, disturbance_lines, grid, join_texts
from analysis.timed_trials import timed_trials
from analysis.tradeoff import SHM, WORKERS

SWEEP = "article"  # the name of the sweep in sweeps/examples/article.yaml
BETWEEN = "between"  # the block of more worker counts at the step of block `ratio`
BLOCKS = (*RATIOS, BETWEEN, NETWORK, COLD, SMALL)


def report(runs: SweepRuns) -> list[str]:
    """Returns the sweep as paragraphs and a table.

    Raises LookupError if the sweep has none of the article's blocks, or if their times are not
    comparable.
    """
    blocks = _blocks(runs)
    return [
        _summary(runs, blocks),
        _article_figures(),
        *_measured_ratios(blocks),
        _milliseconds_table(blocks),
        *(text for block in RATIOS for text in comparisons_at_ratio(block, blocks)),
        _article_limit(),
        *small_shm(blocks),
        *slow_reads(blocks),
        *cold_cache(blocks),
        *two_causes(blocks),
        *disturbance_lines(pd.concat(list(blocks.values())), markdown=True),
    ]


def _blocks(runs: SweepRuns) -> Blocks:
    """Returns a mapping from each block to its trials.

    Raises LookupError if the times of the blocks cannot be compared.
    """
    blocks: dict[str, pd.DataFrame] = {}
    for group in comparable(runs, (WORKERS, SHM)):
        if group.block in blocks:
            raise LookupError(
                f"block {group.block}: its trials differ in more than workers and /dev/shm"
                f" ({group.varied or group.surroundings}). To list them, run"
                f" `{rebuild_command([runs.name])}`"
            )
        blocks[group.block] = group.trials
    if not set(BLOCKS) & set(blocks):
        names = ", ".join(blocks) or "none"
        raise LookupError(
            f"sweep {runs.name} has no block of sweeps/examples/article.yaml"
            f" ({', '.join(BLOCKS)}). Its blocks with trials: {names}"
        )
    machines = (
        pd.concat(list(blocks.values()))[["cpu_name", "cores", "threads"]]
        .dropna()
        .drop_duplicates()
    )
    if len(machines) > 1:
        raise LookupError(
            f"the blocks ran on {len(machines)} machines, and their times are not comparable"
        )
    return blocks


def _summary(runs: SweepRuns, blocks: Blocks) -> str:
    """Returns the first paragraph: sweep, machine, number of timed trials, missing blocks."""
    trials = pd.concat(list(blocks.values()))
    known = trials[["cpu_name", "cores"]].dropna()
    machine = (
        f" on {known['cpu_name'].iloc[0]}, {known['cores'].iloc[0]} cores" if len(known) else ""
    )
    text = (
        f"Sweep {runs.name}{machine}: {len(timed_trials(trials))} of"
        f" {runs.planned_count} trials have a time."
    )
    if absent := [block for block in BLOCKS if block not in blocks]:
        text += f" Missing: block{'s' * (len(absent) > 1)} {join_texts(absent)}."
    return text


def _article_figures() -> str:
    """Returns the article's own figures and the bounds on s / (b·c) and r that follow."""
    slow, fast = ARTICLE_MIN[NONE], ARTICLE_MIN[FEW]
    share = fast / (slow - fast)
    return (
        f"The article: {slow:g} min an epoch without workers, {fast:g} with {FEW},"
        f" {fast / slow - 1:+.0%} or {slow / fast:.0f} times as fast. Its step took at most"
        f" {fast:g} of the {slow:g} min, so s / (b·c) is at most 1/{1 / share:.0f} and r = s·C /"
        f" (b·c) at most C/{1 / share:.0f}. The article does not state C. On"
        f" {ARTICLE_CORES} cores, as many as its best number of workers, r is"
        f" {two_digits(share * ARTICLE_CORES)}; r/4 and 4r are the ratios on"
        f" {ARTICLE_CORES / 4:g} and {ARTICLE_CORES * 4} cores."
    )


def _measured_ratios(blocks: Blocks) -> Iterator[str]:
    """Yields r as measured in the blocks that have trials without workers."""
    block_costs = {
        block: measured
        for block in RATIOS
        if block in blocks and (measured := costs(blocks[block]))
    }
    if not block_costs:
        yield (
            "Measured r: missing, no trial without workers has a time in blocks "
            + join_texts(list(RATIOS))
            + "."
        )
        return
    texts = [
        f"{two_digits(measured.ratio)} for {RATIOS[block]} (block {block}:"
        f" {1000 * measured.step_s:.3g} ms a step, {1000 * measured.prepare_s:.3g} ms to prepare"
        f" {measured.batch_size} clips)"
        for block, measured in block_costs.items()
    ]
    absent = [RATIOS[block] for block in RATIOS if block not in block_costs]
    yield (
        f"Measured r, on {next(iter(block_costs.values())).cores:g} cores: {join_texts(texts)}."
        + (f" Missing: {join_texts(absent)}." if absent else "")
    )


def _milliseconds_table(blocks: Blocks) -> str:
    """Returns a table of milliseconds a step, with a column for each block.

    The worker counts of block `between` are shown in the column of block `ratio`.
    """
    columns = {block: blocks[block] for block in BLOCKS if block in blocks and block != BETWEEN}
    if BETWEEN in blocks and "ratio" in blocks:
        columns["ratio"] = pd.concat([blocks["ratio"], blocks[BETWEEN]])
    counts = sorted({int(count) for trials in columns.values() for count in trials[WORKERS]})
    rows = [
        [str(count), *(_step_text(trials[trials[WORKERS] == count]) for trials in columns.values())]
        for count in counts
    ]
    headers = ["workers", *(f"{block}\n{RATIOS.get(block, '')}".rstrip() for block in columns)]
    table = grid(headers, rows, ["right"] * len(headers), markdown=False)
    return f"{table}\n\nMilliseconds a step: the median trial's warm epoch, divided by its batches."


def _step_text(trials: pd.DataFrame) -> str:
    """Returns the median milliseconds a step, or how the trials ended if none has a time."""
    with_time = timed_trials(trials)
    if with_time.empty:
        return (
            join_texts(
                sorted({OUTCOME_LABELS.get(outcome, outcome) for outcome in trials["outcome"]})
            )
            or "-"
        )
    return f"{1000 * (with_time['loader.batch_size'] / with_time['clips_per_s']).median():.1f}"


def _article_limit() -> str:
    """Returns the paragraph on why workers alone cannot give the article's cut."""
    slow, fast = ARTICLE_MIN[NONE], ARTICLE_MIN[FEW]
    most = max_speedup(FEW, ARTICLE_CORES, ARTICLE_CORES * fast / (slow - fast))
    return (
        f"Why workers alone cannot save {percent_saved(slow / fast)}: k workers, as fast as the"
        " loop, prepare at most k batches at once, and at most one a core if preparation computes."
        f" So an epoch gets at most k + 1 times as fast: 3 times ({percent_saved(3)} less) if"
        f" they compute on 2 cores, {FEW + 1} times ({percent_saved(FEW + 1)} less) if {FEW}"
        " workers only wait for reads or have a core for each. At the article's r, at most"
        f" {most:.1f} times is possible, and the article reports {slow / fast:.0f}: something else"
        " changed between its two epochs."
    )


def render(runs: SweepRuns) -> str:
    """Returns the report as text for the terminal. Raises LookupError as `report` does."""
    return "\n\n".join(map(_wrap, report(runs))) + "\n"


def _wrap(text: str) -> str:
    """Wraps a paragraph to the terminal's width, and leaves a table as it is."""
    return text if "\n" in text else textwrap.fill(text, WIDTH)
