"""Builds all tables of a sweep from the tracker alone, as text and as CSV.

launch.py prints the text, and `python -m analysis NAME` prints it again.
"""

import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis import (
    cycle_recommendation,
    cycles,
    epochs,
    forecasts,
    loader_tables,
    prices,
    recommendation,
    shm_table,
    tradeoff,
    tradeoff_table,
)
from analysis.number_text import whole_from_ten
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, SweepRuns, join_sweep_runs
from analysis.text_tables import OUTCOME_LABELS, WIDTH
from sweeps.output import mask_passwords
from sweeps.tracking.mlflow_client import database_file, mlflow_uri, resolve_uri
from sweeps.trial_states import SETTLED

MAX_SHOWN_FAILURES = 5
# First words of `python -m analysis` that are no sweep. One with such a name comes after `--`.
SUBCOMMANDS = ("timeline", "article")
TABLES = (  # of a block, in this order
    tradeoff_table.tables,
    loader_tables.tables,
    epochs.tables,
    forecasts.tables,
    shm_table.tables,
    cycles.tables,
    prices.tables,
)
# Recommendations come last, since a terminal's last lines are read first.
ADVICE = (recommendation.sentences, cycle_recommendation.sentences)
# name of the CSV file -> function that builds its frame
FRAMES: dict[str, Callable[[SweepRuns], pd.DataFrame]] = {
    "trials": lambda runs: runs.trials,
    "epoch_times": tradeoff.epoch_times,
    "key_times": loader_tables.key_times,
    "epoch_parts": epochs.epoch_parts,
    "forecasts": forecasts.forecasts,
    "choices": forecasts.choices,
    "shm_fits": shm_table.fits,
    "cycle_accuracies": cycles.cycle_accuracies,
    "prices": prices.prices,
    "recommendations": recommendation.recommendations,
    "cycle_recommendations": cycle_recommendation.cycle_recommendations,
}


def render(
    name: str, uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT, markdown: bool = False
) -> str:
    """Returns every table of a sweep as text for the terminal, or as Markdown for tables.md.

    Raises LookupError if there is no such sweep.
    """
    return render_runs(join_sweep_runs([name], uri, experiment), uri, experiment, markdown)


def render_runs(runs: SweepRuns, uri: str, experiment: str, markdown: bool = False) -> str:
    """Returns the same for a sweep that was read from the tracker before."""
    commands = _next_commands(runs.name, uri, experiment, markdown)
    return f"{body(runs, markdown)}\n\n{commands}\n"


def body(runs: SweepRuns, markdown: bool = False) -> str:
    """Returns every table of a sweep, or of a part of its trials, as text."""
    return "\n\n".join([head(runs, markdown), *block_tables(runs, markdown)])


def block_tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns the tables block by block, and then the recommendations of each block."""
    blocks = [block for _, block in runs.blocks()]
    return [
        text
        for kinds in (TABLES, ADVICE)
        for block in blocks
        for make_texts in kinds
        for text in make_texts(block, markdown)
    ]


def write_csv(runs: SweepRuns, folder: Path) -> list[Path]:
    """Writes <folder>/<name>.csv for each of FRAMES that has a row, and returns the files.

    The columns are in the docstring of the function that builds the frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy = {folder / f"{name}.csv": build(runs) for name, build in FRAMES.items()}
    for file, rows in tidy.items():
        file.unlink(missing_ok=True)  # may be from an earlier version of the sweep
        if len(rows):
            rows.to_csv(file, index=False)
    return [file for file in tidy if file.exists()]


def rebuild_command(
    names: Sequence[str],
    uri: str = DEFAULT_URI,
    experiment: str = DEFAULT_EXPERIMENT,
    flags: Sequence[str] = (),
) -> str:
    """Returns the command that prints the tables again, run in the folder of the launch."""
    options = list(flags)
    if experiment != DEFAULT_EXPERIMENT:
        options = ["--experiment", experiment, *options]
    if resolve_uri(uri) != resolve_uri(DEFAULT_URI):
        options = ["--uri", mask_passwords(uri), *options]
    words = [*options, "--", *names] if names[0] in SUBCOMMANDS else [*names, *options]
    return shlex.join(["python", "-m", "analysis", *words])


def head(runs: SweepRuns, markdown: bool = False) -> str:
    """Returns a line on the sweep, and lines on what the tables lack."""
    planned = runs.planned
    counts = [
        f"{count} {OUTCOME_LABELS.get(outcome, outcome)}"
        for outcome, count in planned["outcome"].value_counts().items()
    ]
    title = f"Sweep {runs.name}: {', '.join(counts) or 'no trial has run yet'}"
    lines = [
        f"## {title}" if markdown else textwrap.fill(title, WIDTH),
        *_forecast_only_line(runs),
    ]
    lines += [line.strip() if markdown else line for line in runs.corpora]
    if missing := runs.planned_count - len(planned):
        lines.append(f"{missing} of {runs.planned_count} planned trials have not run.")
    if others := len(runs.trials) - len(planned):
        lines.append(
            f"{others} trials of an earlier version of this sweep are in MLflow and not in these"
            " tables."
        )
    failed = planned[~planned["outcome"].isin([*SETTLED, "running"])]
    lines += _diverged_lines(planned)
    lines += [
        f"{trial.run_name}: {trial.outcome}, {_first_line(trial.evidence)}"
        for trial in failed.head(MAX_SHOWN_FAILURES).itertuples()
    ]
    if len(failed) > MAX_SHOWN_FAILURES:
        lines.append(f"and {len(failed) - MAX_SHOWN_FAILURES} more that failed.")
    return ("\n\n" if markdown else "\n").join(lines)


def _diverged_lines(planned: pd.DataFrame) -> list[str]:
    """Returns a line for each trial whose training diverged, wholly or after some snapshots."""
    if planned.empty:
        return []
    trials = planned[cycles.has_diverged(planned)]
    lines = [
        f"{trial.run_name}: {trial.outcome}, {_first_line(trial.evidence)}"
        for trial in trials.head(MAX_SHOWN_FAILURES).itertuples()
    ]
    return lines + (
        [f"and {len(trials) - MAX_SHOWN_FAILURES} more that diverged."]
        if len(trials) > MAX_SHOWN_FAILURES
        else []
    )


def _forecast_only_line(runs: SweepRuns) -> list[str]:
    """Returns the time that `method: forecast` saved.

    A trial that is sure to overflow would have ended at once and saves nothing.
    """
    if not runs.forecast_only:
        return []
    seconds = [
        row["forecast_epoch_s"] * row["sgdr.epochs"]
        for row in runs.forecast_only
        if row.get("forecast_fit") != "overflows"
    ]
    measured = runs.planned_count
    return [
        f"{measured} of {measured + len(runs.forecast_only)} trials measured, the others forecast:"
        f" about {whole_from_ten(sum(seconds) / 60)} min saved."
    ]


def _first_line(evidence: str | None) -> str:
    """Returns the first line of the evidence, at most 160 characters."""
    return (evidence or "no evidence recorded").strip().partition("\n")[0][:160]


def _next_commands(name: str, uri: str, experiment: str, markdown: bool) -> str:
    """Returns the commands that show more."""
    ui_command = mask_passwords(uri)
    if database_file(resolve_uri(uri)):
        mlflow_command = shlex.join(
            ["python", "-m", "mlflow", "ui", "--backend-store-uri", mlflow_uri(resolve_uri(uri))]
        )
        ui_command = "make ui" if resolve_uri(uri) == resolve_uri(DEFAULT_URI) else mlflow_command
    commands = {
        "These tables again:": rebuild_command([name], uri, experiment),
        "Every epoch of every trial:": ui_command,
    }
    if markdown:
        return "\n".join(f"- {label} `{command}`" for label, command in commands.items())
    return "\n".join(f"{label:<29}{command}" for label, command in commands.items())
