"""All tables of a sweep from the tracker alone, as text, which launch.py prints and `python -m analysis NAME` prints again, and as CSV."""

import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis import cycle_choice, cycles, epochs, fit, forecasts, loader_keys, recommendation, tradeoff
from analysis.page import WIDTH, WORDS
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, joined_runs
from sweeps.tracker import database_file, resolve_uri
from sweeps.tracking import SETTLED

SHOWN_FAILURES = 5
TABLES = (  # of a block, in this order
    tradeoff.tables,
    loader_keys.tables,
    epochs.tables,
    forecasts.tables,
    fit.tables,
    cycles.tables,
)
ADVICE = (recommendation.sentences, cycle_choice.sentences)  # comes last, where whoever looks at a terminal looks first
FRAMES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {  # name of the CSV file -> what stands in it
    "trials": lambda frame: frame,
    "epoch_times": tradeoff.epoch_times,
    "key_times": loader_keys.key_times,
    "epoch_parts": epochs.epoch_parts,
    "forecasts": forecasts.forecasts,
    "choices": forecasts.choices,
    "shm_fits": fit.fits,
    "cycle_accuracies": cycles.cycle_accuracies,
    "recommendations": recommendation.recommendations,
    "cycle_recommendations": cycle_choice.cycle_recommendations,
}


def render(name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT, markdown: bool = False) -> str:
    """Every table of a sweep for the terminal, or as Markdown for its artifact tables.md. LookupError: no such sweep."""
    return body(joined_runs([name], uri, experiment), markdown) + "\n\n" + _next(name, uri, experiment, markdown) + "\n"


def body(frame: pd.DataFrame, markdown: bool = False) -> str:
    """Every table of the trials of `runs.sweep_runs`, or of a part of them."""
    return "\n\n".join([head(frame, markdown), *of_blocks(frame, markdown)])


def of_blocks(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """The tables alone, block by block, and then what each recommends."""
    blocks = [trials for _, trials in frame.groupby("block", sort=False)]
    return [text for kinds in (TABLES, ADVICE) for trials in blocks for of_block in kinds for text in of_block(trials, markdown)]


def write_csv(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes <folder>/<name>.csv for each of FRAMES that has a row, with the columns that its docstring tells; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    tidy = {folder / f"{name}.csv": of(frame) for name, of in FRAMES.items()}
    for file, rows in tidy.items():
        file.unlink(missing_ok=True)  # what an earlier version of the sweep left
        if len(rows):
            rows.to_csv(file, index=False)
    return [file for file in tidy if file.exists()]


def rebuild_command(names: Sequence[str], uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT, flags: Sequence[str] = ()) -> str:
    """The command that prints the tables again, from the folder in which the sweep was launched."""
    words = ["python", "-m", "analysis", *names]
    if resolve_uri(uri) != resolve_uri(DEFAULT_URI):
        words += ["--uri", uri]
    if experiment != DEFAULT_EXPERIMENT:
        words += ["--experiment", experiment]
    return shlex.join([*words, *flags])


def head(frame: pd.DataFrame, markdown: bool = False) -> str:
    """The sweep in a line, and what keeps the tables from being whole."""
    planned = frame[frame["planned"].astype(bool)]
    counts = [f"{count} {WORDS.get(outcome, outcome)}" for outcome, count in planned["outcome"].value_counts().items()]
    title = f"Sweep {frame.attrs['sweep']}: {', '.join(counts) or 'no trial has run yet'}"
    lines = [f"## {title}" if markdown else textwrap.fill(title, WIDTH), *_left_to_forecasts(frame)]
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
    commands = {"These tables again:": rebuild_command([name], uri, experiment), "Every epoch of every trial:": see}
    if markdown:
        return "\n".join(f"- {what} `{command}`" for what, command in commands.items())
    return "\n".join(f"{what:<29}{command}" for what, command in commands.items())
