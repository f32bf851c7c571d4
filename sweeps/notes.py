"""What MLflow's pages say of a run, in Markdown, and which columns its table of runs opens with.

The one idea is that whoever meets a run in the browser, months later, needs no other page to know what it is: what was varied, how it
ended and by which evidence, the figures that matter in their units, and what lies among its artifacts. All of it is made of what the
tracker is given anyway. MLflow's own table of runs opens without a single parameter or figure; it takes its columns from a view that is
kept as a tag of the experiment, so every sweep keeps one under its name, and its note links to it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sweeps.metrics import METRICS

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description
OF_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # pages for training, not for chats with models
VIEW = "mlflow.sharedViewState."  # followed by the view's key: a tag of the experiment

FIGURES = (  # of a trial's note, in this order
    "epoch_s", "start_s", "fill_s", "wait_fraction", "clips_per_s", "shm_peak_bytes",
    "ensemble_accuracy", "accuracy", "best_snapshot_accuracy", "train_s",
)  # fmt: skip
COLUMNS = (
    "epoch_s", "forecast_epoch_s", "fill_s", "wait_fraction", "clips_per_s", "shm_peak_bytes", "accuracy", "ensemble_accuracy",
)  # fmt: skip
FIXED_PX = {
    "attributes.`Run Name`": 420,
    "runDateAndNestInfo": 120,
    "duration": 90,
}  # columns that every table of runs has, and their widths
ARTIFACTS = {  # by the first part of their path
    "records.jsonl": "all that the trial told, a JSON object a line: every epoch with its raw step times",
    "trace.json.gz": "the same on a time axis: download it and drop it on [ui.perfetto.dev](https://ui.perfetto.dev)",
    "snapshots": "weights at the ends of SGDR cycles, as a state_dict of tensors",
    "confusion.csv": "validation clips by true label (row) and by what the ensemble said (column)",
    "stderr.log": "what its processes wrote to stderr",
}
_ENDED = "\n\n**When the latest launch ended:** "


def of_sweep(
    name: str, plan: Sequence[Mapping[str, Any]], write: Callable[[str, Any], str], rebuild: str, experiment_id: str
) -> str:  # fmt: skip
    """`plan`: the rows of plan.json; `write`: a dotted path and its value -> the value as tables write it."""
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in plan:
        blocks.setdefault(row.get("block", ""), []).append(row)
    varied = "\n".join(f"- {_block(block, rows, write)}" for block, rows in blocks.items() if block)
    return (
        f"**{name}**: a sweep of {len(plan)} trials, each a child of this run.\n\n{varied}\n\n"
        f"[All trials with what was varied, outcomes and figures](#/experiments/{experiment_id}/runs?viewStateShareKey={name}).\n\n"
        "Artifacts: `report.html` the answer, with tables and pictures; `tables.md` the tables alone; `sweep.yaml` what was launched; "
        f"`plan.json` every trial and its forecast; `calibrations.json` what a batch cost here.\n\nThe tables again: `{rebuild}`"
    )


def of_ended_sweep(note: str, outcomes: Iterable[str]) -> str:
    """The note of `of_sweep` with how the sweep's trials ended, a word for each."""
    counts = Counter(outcomes).most_common()
    return note.split(_ENDED)[0] + _ENDED + (", ".join(f"{count} {outcome}" for outcome, count in counts) or "no trial had run") + "."


def of_trial(block: str, repeat: int, swept: Mapping[str, str]) -> str:
    """Of one that has just begun. `swept`: dotted path -> value, as tables write it."""
    return f"{_headline(block, repeat, swept)}\n\nIts tags `outcome` and `evidence` say how it ended."


def of_ended_trial(
    block: str,
    repeat: int,
    swept: Mapping[str, str],
    *,
    outcome: str,
    evidence: str,
    figures: Mapping[str, float],
    disturbed: str | None,
    artifacts: Iterable[str],
) -> str:
    """`figures`: its summary and what was foreseen of it; `artifacts`: their paths in the run."""
    parts = [_headline(block, repeat, swept), f"**{outcome}**{_in_short(figures)}: `{evidence.replace('`', '')}`"]
    if disturbed:
        parts.append(f"Disturbed from outside: {disturbed}.")
    known = [name for name in FIGURES if figures.get(name) is not None]
    lines = [f"- **{_measured(name, figures[name])}** `{name}`{_foreseen(name, figures)}: {METRICS[name][1]}" for name in known]
    parts += ["\n".join(lines)] if lines else []
    kinds = dict.fromkeys(path.partition("/")[0] for path in artifacts)
    parts.append("\n".join(["Artifacts:\n", *(f"- `{kind}`: {ARTIFACTS[kind]}" for kind in kinds if kind in ARTIFACTS)]))
    return "\n\n".join(parts)


def view(name: str, plan: Sequence[Mapping[str, Any]], made_ms: int) -> str:
    """A view of the table of runs as MLflow saves one: this sweep alone, in the order in which its trials ran, what was varied beside the
    figures, and names wide enough to be read. `made_ms`: milliseconds since 1970."""
    swept = dict.fromkeys(path for row in plan for path in row.get("swept", {}))
    columns = [f"tags.`{tag}`" for tag in (*swept, "outcome")] + [f"metrics.`{metric}`" for metric in COLUMNS] + ["tags.`disturbed`"]
    state = {
        "searchFilter": f"tags.sweep = '{name}'",
        "orderByKey": "attributes.start_time",  # any other order, and MLflow no longer nests trials under their sweep
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": [*FIXED_PX, *columns],
        "columnWidths": FIXED_PX,
    }
    return json.dumps({"name": name, "createdAt": made_ms, "updatedAt": made_ms, "state": json.dumps(state)})


def _headline(block: str, repeat: int, swept: Mapping[str, str]) -> str:
    values = ", ".join(f"`{path}` = {value}" for path, value in swept.items()) or "nothing is varied"
    return f"A trial of block **{block}**, repeat {repeat}: {values}."


def _block(block: str, rows: Sequence[Mapping[str, Any]], write: Callable[[str, Any], str]) -> str:
    """'**workers**, 30 trials, 3 repeats: `loader.num_workers` 0, 1, 2; `loader.shm_size` 64M, 1G'."""
    paths = dict.fromkeys(path for row in rows for path in row.get("swept", {}))
    values = {path: sorted((row["swept"][path] for row in rows if path in row.get("swept", {})), key=_rank) for path in paths}
    what = [f"`{path}` {', '.join(dict.fromkeys(write(path, value) for value in found))}" for path, found in values.items()]
    repeats = max(row.get("repeat", 1) for row in rows)
    counts = f"{len(rows)} trial{'s' * (len(rows) > 1)}, {repeats} repeat{'s' * (repeats > 1)}"
    return f"**{block}**, {counts}: {'; '.join(what) or 'nothing is varied'}"


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then the rest by its text."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def _in_short(figures: Mapping[str, float]) -> str:
    """', 1.55 s an epoch, ensemble 84.1 %': MLflow folds a note after its first lines."""
    said = {"epoch_s": "{} an epoch", "ensemble_accuracy": "ensemble {}"}
    return "".join(f", {words.format(_measured(name, figures[name]))}" for name, words in said.items() if name in figures)


def _measured(name: str, value: float) -> str:
    """'1.71 s', '84.1 %', '55.2 MiB', '730 clips/s'."""
    match METRICS[name][0]:
        case "1":
            return f"{100 * value:.1f} %"
        case "B":
            return f"{value / 2**20:,.1f} MiB"
        case "1/s":
            return f"{value:,.0f} clips/s"
        case unit:
            return f"{value:,.3g} {unit}"


def _foreseen(name: str, figures: Mapping[str, float]) -> str:
    """', forecast 1.65 s (1.40 to 1.90)', or nothing."""
    foreseen, low, high = (figures.get(f"forecast_{part}") for part in (name, f"{name[:-2]}_low_s", f"{name[:-2]}_high_s"))
    if foreseen is None:
        return ""
    interval = f" ({low:.3g} to {high:.3g})" if low is not None and high is not None and name.endswith("_s") else ""
    return f", forecast {_measured(name, foreseen)}{interval}"
