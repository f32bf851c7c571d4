"""How a table is put on the page: in a terminal of 100 columns, or as Markdown for the artifact."""

import textwrap
from collections.abc import Callable, Sequence

import pandas as pd
import tabulate

WIDTH = 100  # columns of the terminal
tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more

WORDS = {
    "shm_exhausted": "overflowed",
    "oom": "out of memory",
    "timeout": "timed out",
    "data_error": "bad data",
    "stopped_early": "stopped early",
}


def outcome_words(outcomes: pd.Series, trials: int) -> str:
    """['shm_exhausted'] of 3 trials -> '1 of 3 overflowed'; the most frequent first; '' for none."""
    return ", ".join(f"{count} of {trials} {WORDS.get(outcome, outcome)}" for outcome, count in outcomes.value_counts().items())


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


def width(text: str) -> int:
    """Columns that a text takes in the terminal."""
    return max(map(len, text.splitlines()))
