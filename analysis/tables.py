"""The tables of a sweep as one text, from the tracker alone: what launch.py prints at the end and `python -m analysis NAME` again."""

import pandas as pd

from analysis import cycles, epochs, fit, forecasts, recommendation, tradeoff
from analysis.page import WORDS
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, sweep_runs
from sweeps.tracking import SETTLED, database_file, resolve_uri

SHOWN_FAILURES = 5
TABLES = (tradeoff.tables, epochs.tables, forecasts.tables, fit.tables, cycles.tables)  # of a block, in this order
ADVICE = (recommendation.sentences,)


def render(name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT, markdown: bool = False) -> str:
    """Every table of a sweep for the terminal, or as Markdown for its artifact tables.md. LookupError: no such sweep.

    What to do comes last, where whoever looks at a terminal looks first.
    """
    frame = sweep_runs(name, uri, experiment)
    parts = [_head(frame, markdown)]
    for of_blocks in (TABLES, ADVICE):
        for _, trials in frame.groupby("block", sort=False):
            parts += [text for of_block in of_blocks for text in of_block(trials, markdown)]
    return "\n\n".join([*parts, _next(name, uri, experiment, markdown)]) + "\n"


def rebuild_command(name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT) -> str:
    """The command that prints the tables again, from the folder in which the sweep was launched."""
    command = f"python -m analysis {name}"
    if resolve_uri(uri) != resolve_uri(DEFAULT_URI):
        command += f" --uri {uri}"
    return command if experiment == DEFAULT_EXPERIMENT else f"{command} --experiment {experiment}"


def _head(frame: pd.DataFrame, markdown: bool) -> str:
    """The sweep in a line, and what keeps the tables from being whole."""
    planned = frame[frame["planned"].astype(bool)]
    counts = [f"{count} {WORDS.get(outcome, outcome)}" for outcome, count in planned["outcome"].value_counts().items()]
    title = f"Sweep {frame.attrs['sweep']}: {', '.join(counts) or 'no trial has run yet'}"
    lines = [f"## {title}" if markdown else title, *_left_to_forecasts(frame)]
    if missing := frame.attrs["plan"] - len(planned):
        lines.append(f"{missing} of {frame.attrs['plan']} planned trials have not run.")
    if others := len(frame) - len(planned):
        lines.append(f"{others} trials of an earlier version of this sweep are in MLflow and not in these tables.")
    failed = planned[~planned["outcome"].isin([*SETTLED, "running"])]
    lines += [f"{trial.run_name}: {trial.outcome}, {_first_line(trial.evidence)}" for trial in failed.head(SHOWN_FAILURES).itertuples()]
    if len(failed) > SHOWN_FAILURES:
        lines.append(f"and {len(failed) - SHOWN_FAILURES} more that failed.")
    return ("\n\n" if markdown else "\n").join(lines)


def _left_to_forecasts(frame: pd.DataFrame) -> list[str]:
    """What `method: forecast` spared: a trial that is sure to overflow would have ended at once."""
    if not (left_out := frame.attrs["forecast_only"]):
        return []
    seconds = [row["forecast_epoch_s"] * row["sgdr.epochs"] for row in left_out if row.get("forecast_fit") != "overflows"]
    measured, minutes = frame.attrs["plan"], sum(seconds) / 60
    said = f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}"
    return [f"{measured} of {measured + len(left_out)} trials measured, the others forecast: about {said} min saved."]


def _first_line(evidence: str | None) -> str:
    return (evidence or "no evidence recorded").strip().partition("\n")[0][:160]


def _next(name: str, uri: str, experiment: str, markdown: bool) -> str:
    """Where to look next."""
    uri = resolve_uri(uri)
    see = uri
    if database_file(uri):
        see = "make ui" if uri == resolve_uri(DEFAULT_URI) else f"python -m mlflow ui --backend-store-uri {uri}"
    commands = {"These tables again:": rebuild_command(name, uri, experiment), "Every epoch of every trial:": see}
    if markdown:
        return "\n".join(f"- {what} `{command}`" for what, command in commands.items())
    return "\n".join(f"{what:<29}{command}" for what, command in commands.items())
