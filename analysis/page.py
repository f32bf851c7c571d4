"""How a table is put on the page: in a terminal of 100 columns, or as Markdown for the artifact."""

import math
import textwrap
from collections.abc import Callable, Sequence

import pandas as pd
import tabulate

WIDTH = 100  # columns of the terminal
tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more

NAMED = 5  # trials that a footnote names

WORDS = {
    "shm_exhausted": "overflowed",
    "oom": "out of memory",
    "timeout": "timed out",
    "data_error": "bad data",
    "stopped_early": "stopped early",
}


def listed(texts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def outcome_words(outcomes: pd.Series, trials: int) -> str:
    """['shm_exhausted'] of 3 trials -> '1 of 3 overflowed'; the most frequent first; '' for none."""
    return ", ".join(f"{count} of {trials} {WORDS.get(outcome, outcome)}" for outcome, count in outcomes.value_counts().items())


def disturbance_lines(trials: pd.DataFrame, markdown: bool) -> list[str]:
    """Which of the trials something outside disturbed, as a footnote: none, or a single text. `trials`: rows of `runs.sweep_runs`."""
    disturbed = int((trials["disturbances"] > 0).sum())
    if not disturbed:
        return []
    stayed = trials[(trials["disturbances"] > 0) & trials["disturbed"].notna()]
    again = disturbed - int((stayed["disturbances"] == 1).sum())
    said = f"{disturbed} of {len(trials)} trials {'was' if disturbed == 1 else 'were'} disturbed from outside"
    if again:
        said += " and ran again" if again == disturbed else f", {again} of them ran again"
    if len(stayed):
        named = [f"{trial.run_name} ({trial.disturbed})" for trial in stayed.head(NAMED).itertuples()]
        named += [f"and {len(stayed) - NAMED} more"] if len(stayed) > NAMED else []
        said += f"{f'; {len(stayed)} stayed disturbed' if again else ''}: {', '.join(named)}"
    return [said + "." if markdown else textwrap.fill(said + ".", WIDTH)]


def heading(title: str, group: pd.Series, markdown: bool) -> str:
    """What the table shows, and below it what all its trials share. `group` has block, varied and surroundings."""
    title = ", ".join(filter(None, [title, group["block"] and f"block {group['block']}", group["varied"]]))
    if markdown:
        return f"### {title}\n\n{group['surroundings']}\n"
    return f"{textwrap.fill(title, WIDTH)}\n{textwrap.fill(group['surroundings'], WIDTH)}\n"


def grid(headers: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str], markdown: bool) -> str:
    """Rows of texts under their headers. A line break in a header is a space in Markdown."""
    if markdown:
        headers = [header.replace("\n", " ") for header in headers]
    style = "pipe" if markdown else "simple"
    return tabulate.tabulate(rows, headers, style, disable_numparse=True, colalign=align, preserve_whitespace=not markdown)


def spread(names: Sequence[str], draw: Callable[[Sequence[str]], str], markdown: bool) -> list[str]:
    """The columns `names` as `draw` puts them side by side: as many as the terminal takes; the rest follow below."""
    for fit in range(len(names), 0, -1):
        texts = [draw(names[at : at + fit]) for at in range(0, len(names), fit)]
        if markdown or fit == 1 or max(map(width, texts)) <= WIDTH:
            break
    return [text + "\n" for text in texts]


def decimals(smallest: float) -> int:
    """Decimals that leave the smallest time of a table three significant digits; at most three."""
    return 1 if not smallest > 0 else min(3, max(0, 2 - math.floor(math.log10(smallest))))


def width(text: str) -> int:
    """Columns that a text takes in the terminal."""
    return max(map(len, text.splitlines()))
