"""Writes the Markdown notes of runs for MLflow's pages, and the columns of its table of runs.

A run's note in the browser is complete by itself, even months later. It states the varied
parameters, the outcome with its evidence, the important figures with units, and the artifacts. All
of this comes from data that the tracker receives anyway. MLflow's own table of runs opens without
parameters and figures. It takes its columns from a view that is stored as a tag of the experiment.
Every sweep therefore stores a view under its name, and its note links to that view.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sweeps.accuracy import accuracy_context
from sweeps.metrics import METRICS
from sweeps.sandbox.outcome import ClassifiedOutcome

NOTE_TAG = "mlflow.note.content"  # tag that MLflow shows as a run's description
# Selects MLflow's pages for training, not those for language models
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
VIEW_TAG_PREFIX = "mlflow.sharedViewState."  # a tag of the experiment; the view's key follows

FIGURES = (  # figures of a trial's note, in this order
    "epoch_s",
    "start_s",
    "first_batch_s",
    "wait_fraction",
    "clips_per_s",
    "shm_peak_bytes",
    "ensemble_accuracy",
    "accuracy",
    "best_snapshot_accuracy",
    "largest_label_fraction",
    "train_s",
)
COLUMNS = (  # metric columns of the runs view
    "epoch_s",
    "forecast_epoch_s",
    "first_batch_s",
    "wait_fraction",
    "clips_per_s",
    "shm_peak_bytes",
    "accuracy",
    "ensemble_accuracy",
    "largest_label_fraction",
)
FIXED_PX = {  # columns that every table of runs has -> width in pixels
    "attributes.`Run Name`": 420,
    "runDateAndNestInfo": 120,
    "duration": 90,
}
ARTIFACTS = {  # first part of an artifact's path -> description
    "records.jsonl": (
        "all records of the trial, a JSON object a line: every epoch with its raw step times"
    ),
    "trace.json.gz": (
        "the same on a time axis: download it and drop it on"
        " [ui.perfetto.dev](https://ui.perfetto.dev)"
    ),
    "snapshots": "weights at the ends of SGDR cycles, as a state_dict of tensors",
    "confusion.csv": "validation clips by true label (row) and by the ensemble's answer (column)",
    "stderr.log": "what its processes wrote to stderr",
}
_ENDED = "\n\n**When the latest launch ended:** "


def sweep_note(
    name: str,
    plan: Sequence[Mapping[str, Any]],
    write: Callable[[str, Any], str],
    rebuild: str,
    experiment_id: str,
) -> str:
    """Returns the note of a sweep's run.

    `plan` holds the rows of plan.json. `write` formats the value of a dotted path for tables.
    """
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in plan:
        blocks.setdefault(row.get("block", ""), []).append(row)
    varied = "\n".join(
        f"- {_describe_block(block, rows, write)}" for block, rows in blocks.items() if block
    )
    return (
        f"**{name}**: a sweep of {len(plan)} trial{'' if len(plan) == 1 else 's'}, each a child of"
        f" this run.\n\n{varied}\n\n[All trials with varied parameters, outcomes and"
        f" figures](#/experiments/{experiment_id}/runs?viewStateShareKey={name}).\n\nArtifacts:"
        " `report.html` recommendations, tables and pictures; `tables.md` only the tables;"
        " `sweep.yaml` the sweep file; `plan.json` every trial and its forecast; `corpora.json`"
        " the clips present, used and excluded; `calibrations.json` the measured costs of a"
        f" batch.\n\nThe tables again: `{rebuild}`"
    )


def ended_sweep_note(note: str, outcomes: Iterable[str]) -> str:
    """Returns the note of `sweep_note` with the numbers of trials by outcome.

    `outcomes` has one outcome for every trial.
    """
    counts = Counter(outcomes).most_common()
    return (
        note.split(_ENDED)[0]
        + _ENDED
        + (", ".join(f"{count} {outcome}" for outcome, count in counts) or "no trial had run")
        + "."
    )


class TrialHeading(NamedTuple):
    """Names a trial in the first sentence of its note."""

    block: str
    repeat: int
    swept: Mapping[str, str]  # dotted path -> formatted value


def trial_note(heading: TrialHeading) -> str:
    """Returns the note of a trial that has just started."""
    return f"{_headline(heading)}\n\nIts tags `outcome` and `evidence` show how it ended."


def ended_trial_note(
    heading: TrialHeading,
    ended: ClassifiedOutcome,
    figures: Mapping[str, float],
    disturbed: str | None,
    artifacts: Iterable[str],
) -> str:
    """Returns the note of a trial that has ended.

    `figures` holds its summary and its forecast. `artifacts` holds the artifacts' paths in the run.
    """
    parts = [
        _headline(heading),
        f"**{ended.outcome}**{_key_figures(figures)}: `{ended.evidence.replace('`', '')}`",
    ]
    if disturbed:
        parts.append(f"Disturbed from outside: {disturbed}.")
    known = [name for name in FIGURES if figures.get(name) is not None]
    lines = [
        f"- **{_format_figure(name, figures[name])}** `{name}`{_forecast_suffix(name, figures)}:"
        f" {METRICS[name][1]}"
        for name in known
    ]
    parts += ["\n".join(lines)] if lines else []
    kinds = dict.fromkeys(path.partition("/")[0] for path in artifacts)
    parts.append(
        "\n".join(
            [
                "Artifacts:\n",
                *(f"- `{kind}`: {ARTIFACTS[kind]}" for kind in kinds if kind in ARTIFACTS),
            ]
        )
    )
    return "\n\n".join(parts)


def runs_view(name: str, plan: Sequence[Mapping[str, Any]], created_ms: int) -> str:
    """Returns a view of the table of runs, in the JSON format in which MLflow stores views.

    It shows one sweep, in the order in which the trials ran. The varied parameters are beside the
    figures, and the name column is wide enough to read. `created_ms` is in milliseconds since 1970.
    """
    swept = dict.fromkeys(path for row in plan for path in row.get("swept", {}))
    columns = (
        [f"tags.`{tag}`" for tag in (*swept, "outcome")]
        + [f"metrics.`{metric}`" for metric in COLUMNS]
        + ["tags.`disturbed`"]
    )
    state = {
        "searchFilter": f"tags.sweep = '{name}'",
        # With any other order MLflow does not nest trials under their sweep
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": [*FIXED_PX, *columns],
        "columnWidths": FIXED_PX,
    }
    return json.dumps(
        {"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": json.dumps(state)}
    )


def _headline(heading: TrialHeading) -> str:
    """Returns the first sentence of a trial's note, with the varied parameters."""
    values = (
        ", ".join(f"`{path}` = {value}" for path, value in heading.swept.items())
        or "nothing is varied"
    )
    return f"A trial of block **{heading.block}**, repeat {heading.repeat}: {values}."


def _describe_block(
    block: str, rows: Sequence[Mapping[str, Any]], write: Callable[[str, Any], str]
) -> str:
    """Returns a line about a block.

    '**workers**, 30 trials, 3 repeats: `loader.num_workers` 0, 1, 2; `loader.shm_size` 64M, 1G'.
    """
    paths = dict.fromkeys(path for row in rows for path in row.get("swept", {}))
    values = {
        path: sorted(
            (row["swept"][path] for row in rows if path in row.get("swept", {})), key=_sort_key
        )
        for path in paths
    }
    parameters = [
        f"`{path}` {', '.join(dict.fromkeys(write(path, value) for value in path_values))}"
        for path, path_values in values.items()
    ]
    repeats = max(row.get("repeat", 1) for row in rows)
    counts = f"{len(rows)} trial{'s' * (len(rows) > 1)}, {repeats} repeat{'s' * (repeats > 1)}"
    return f"**{block}**, {counts}: {'; '.join(parameters) or 'nothing is varied'}"


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Returns a sort key that puts numbers first, by size, and then other values, by their text."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, str(value)


def _key_figures(figures: Mapping[str, float]) -> str:
    """Returns the two main figures: ', 1.55 s an epoch, ensemble 84.1 %'.

    They come first because MLflow folds a note after its first lines.
    """
    templates = {"epoch_s": "{} an epoch", "ensemble_accuracy": "ensemble {}"}
    context = accuracy_context(figures) if "ensemble_accuracy" in figures else ""
    parts = [
        template.format(_format_figure(name, figures[name]))
        for name, template in templates.items()
        if name in figures
    ]
    return "".join(f", {part}" for part in parts) + context


def _format_figure(name: str, value: float) -> str:
    """Returns a figure with its unit: '1.71 s', '84.1 %', '55.2 MiB' or '730 clips/s'."""
    match METRICS[name][0]:
        case "1":
            return f"{100 * value:.1f} %"
        case "B":
            return f"{value / 2**20:,.1f} MiB"
        case "1/s":
            return f"{value:,.0f} clips/s"
        case unit:
            return f"{value:,.3g} {unit}"


def _forecast_suffix(name: str, figures: Mapping[str, float]) -> str:
    """Returns ', forecast 1.65 s (1.40 to 1.90)', or '' if the figure has no forecast."""
    forecast, low, high = (
        figures.get(f"forecast_{part}")
        for part in (name, f"{name[:-2]}_low_s", f"{name[:-2]}_high_s")
    )
    if forecast is None:
        return ""
    interval = (
        f" ({low:.3g} to {high:.3g})"
        if low is not None and high is not None and name.endswith("_s")
        else ""
    )
    return f", forecast {_format_figure(name, forecast)}{interval}"
