"""Formats tables as text: for a terminal of 100 columns, or as Markdown for the artifact."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import tabulate

from sweeps.names import format_parameter

WIDTH = 100  # columns of the terminal
# A column is as wide as its widest text. By default tabulate adds two columns to headers.
tabulate.MIN_PADDING = 0

MAX_NAMED_TRIALS = 5  # trials that a footnote names
THROTTLED = 0.05  # of a quota's periods: below this the quota had no effect

OUTCOME_LABELS = {
    "shm_exhausted": "overflowed",
    "oom": "out of memory",
    "timeout": "timed out",
    "data_error": "bad data",
}


def join_texts(texts: Sequence[str]) -> str:
    """Returns 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def written_value(column: str, value: Any) -> str:
    """Returns a parameter's value as it is written in names and tables."""
    plain = value.item() if hasattr(value, "item") else value  # numpy's scalars are no JSON
    return format_parameter(column, None if pd.isna(plain) else plain)


def outcome_words(outcomes: pd.Series, trials: int) -> str:
    """Returns the counts of outcomes in words, the most frequent first; '' for none.

    ['shm_exhausted'] of 3 trials becomes '1 of 3 overflowed'.
    """
    return ", ".join(
        f"{count} of {trials} {OUTCOME_LABELS.get(outcome, outcome)}"
        for outcome, count in outcomes.value_counts().items()
    )


def disturbance_lines(trials: pd.DataFrame, markdown: bool) -> list[str]:
    """Returns a footnote on the trials that were disturbed from outside: one text or none.

    `trials` are rows of `SweepRuns.trials`.
    """
    disturbed = int((trials["disturbances"] > 0).sum())
    if not disturbed:
        return []
    still_disturbed = trials[(trials["disturbances"] > 0) & trials["disturbed"].notna()]
    rerun_count = disturbed - int((still_disturbed["disturbances"] == 1).sum())
    text = (
        f"{disturbed} of {len(trials)} trials {'was' if disturbed == 1 else 'were'} disturbed from"
        " outside"
    )
    if rerun_count:
        text += (
            " and ran again" if rerun_count == disturbed else f", {rerun_count} of them ran again"
        )
    if len(still_disturbed):
        trial_names = [
            f"{trial.run_name} ({trial.disturbed})"
            for trial in still_disturbed.head(MAX_NAMED_TRIALS).itertuples()
        ]
        trial_names += (
            [f"and {len(still_disturbed) - MAX_NAMED_TRIALS} more"]
            if len(still_disturbed) > MAX_NAMED_TRIALS
            else []
        )
        text += (
            f"{f'; {len(still_disturbed)} stayed disturbed' if rerun_count else ''}:"
            f" {', '.join(trial_names)}"
        )
    return [text + "." if markdown else textwrap.fill(text + ".", WIDTH)]


def throttling_lines(trials: pd.DataFrame, markdown: bool) -> list[str]:
    """Returns a footnote on how far a CPU quota held trials back: one text or none.

    It states the share of the quota's periods in which it was used up, by number of workers.
    """
    if "throttled_fraction" not in trials or "loader.num_workers" not in trials:
        return []
    shares = trials.groupby("loader.num_workers")["throttled_fraction"].median()
    if not (shares > THROTTLED).any():
        return []
    shares_text = join_texts(
        [f"{share:.0%} at {int(workers)}" for workers, share in shares.dropna().items()]
    )
    text = (
        "A CPU quota held trials back. Share of its periods in which it was used up, by workers:"
        f" {shares_text}."
    )
    return [text if markdown else textwrap.fill(text, WIDTH)]


def heading(title: str, group: pd.Series, markdown: bool) -> str:
    """Returns the title of a table, and below it the surroundings that all its trials share.

    `group` has block, varied and surroundings.
    """
    title = ", ".join(
        filter(None, [title, group["block"] and f"block {group['block']}", group["varied"]])
    )
    if markdown:
        return f"### {title}\n\n{group['surroundings']}\n"
    return f"{textwrap.fill(title, WIDTH)}\n{textwrap.fill(group['surroundings'], WIDTH)}\n"


def grid(
    headers: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str], markdown: bool
) -> str:
    """Returns rows of texts under their headers.

    A line break in a header becomes a space in Markdown.
    """
    if markdown:
        headers = [header.replace("\n", " ") for header in headers]
    style = "pipe" if markdown else "simple"
    return tabulate.tabulate(
        rows,
        headers,
        style,
        disable_numparse=True,
        colalign=align,
        preserve_whitespace=not markdown,
    )


def wrap_columns(
    names: Sequence[str], draw: Callable[[Sequence[str]], str], markdown: bool
) -> list[str]:
    """Returns tables that together show the columns `names`, each as wide as the terminal allows.

    `draw` puts some columns side by side. The rest follows below.
    """
    for count in range(len(names), 0, -1):
        texts = [draw(names[start : start + count]) for start in range(0, len(names), count)]
        if markdown or count == 1 or max(map(width, texts)) <= WIDTH:
            break
    return [text + "\n" for text in texts]


def width(text: str) -> int:
    """Returns the number of terminal columns that a text takes."""
    return max(map(len, text.splitlines()))
