"""Predicts the word in wav files with a sweep's best ensemble on validation.

    python launch.py predict NAME clip.wav

`launch.py --evaluate-test` evaluates the same ensemble. All that a prediction requires comes from
the tracker; it uses no corpus and no Ray. Weights are read without executing code from their files.
Several clips share one table. An unreadable clip is reported, and the others are predicted all the
same.

Exit codes: 0 every clip was predicted; 1 the tracker cannot be reached; 2 some clip cannot be read,
or the sweep has no usable ensemble.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tabulate
from pydantic import ValidationError

from speech.config import TrialConfig
from sweeps.accuracy import accuracy_context
from sweeps.tracking import artifacts, best_ensemble
from sweeps.tracking.run_queries import find_sweep, plan_rows, trial_runs
from sweeps.tracking.tracker_errors import translate_tracker_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MEND = "Run the sweep under another name{extra}: a trial that has ended is not run again."


def predict_clips(name: str, clips: Sequence[Path], top: int, uri: str, experiment: str) -> int:
    """Prints the `top` likeliest words of each wav file and returns the exit code.

    The ensemble is the best of the sweep `name` in an MLflow experiment of the tracker at `uri`.
    Raises TrackerUnavailable if the tracker cannot be reached.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="predict-") as folder:
            with translate_tracker_errors(uri):
                downloaded = download_ensemble(*find_sweep(name, uri, experiment), Path(folder))
            return print_predictions(clips, top, *downloaded)
    except LookupError as problem:
        print(problem.args[0], file=sys.stderr)
        return 2


def download_ensemble(
    client: "MlflowClient", parent: "Run", folder: Path
) -> "tuple[Run, dict[str, Any], Path]":
    """Downloads the best ensemble of a sweep.

    Returns its run, the setup record of that run, and the folder of its snapshots. Raises
    LookupError if the sweep has no usable ensemble.
    """
    planned = {row["trial_id"] for row in plan_rows(client, parent)}
    try:
        run = best_ensemble.best_run(trial_runs(client, parent), planned)
    except LookupError as problem:
        raise LookupError(
            f"{problem}. Trials on the simulated device learn nothing: write device: auto in"
            " a block."
        ) from None
    with artifacts.fetch(client, run.info.run_id, "records.jsonl", folder).open() as records:
        try:
            setup = json.loads(next(records, ""))
        except ValueError:
            raise LookupError(
                f"records.jsonl of {run.info.run_name} is empty or corrupt. {MEND.format(extra='')}"
            ) from None
    if "config" not in setup:
        raise LookupError(
            f"{run.info.run_name} was recorded by an older version, without the config that a"
            f" prediction needs. {MEND.format(extra='')}"
        )
    try:
        cycles = len(TrialConfig.model_validate(setup["config"]).sgdr.cycles())
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise LookupError(
            f"{run.info.run_name} was recorded by another version: its {field} is not valid here."
            f" {MEND.format(extra='')}"
        ) from None
    try:
        return run, setup, best_ensemble.download_snapshots(client, run, cycles, folder)
    except LookupError as problem:
        extra = " with snapshots: {keep: best} or all"
        raise LookupError(f"{problem}. {MEND.format(extra=extra)}") from None


def print_predictions(
    paths: Sequence[Path], top: int, run: "Run", setup: dict[str, Any], snapshots: Path
) -> int:
    """Prints the ensemble and a row for every clip, and returns the exit code.

    Raises LookupError if the weights cannot be used.
    """
    from speech import prediction  # imports torch, which takes two seconds
    from speech.audio import BadClip
    from speech.model import WeightsError

    config, clips = TrialConfig.model_validate(setup["config"]), {}
    members = best_ensemble.member_cycles(run, len(config.sgdr.cycles()))
    for path in dict.fromkeys(paths):
        try:
            clips[path] = prediction.read_wav(path, config)
        except BadClip as problem:
            print(problem, file=sys.stderr)
    if clips:
        try:
            probabilities = prediction.predict(
                setup, snapshots, [clip.waveform for clip in clips.values()], members
            ).tolist()
        except WeightsError as problem:
            raise LookupError(
                f"the snapshots of {run.info.run_name} can't be used: {problem}"
            ) from None
        print(format_heading(run, len(members)) + "\n")
        parts = {str(path): clip.part for path, clip in clips.items()}
        print(
            format_table(
                parts, [likeliest_labels(row, setup["labels"], top) for row in probabilities]
            )
        )
    return 0 if len(clips) == len(set(paths)) else 2


def format_heading(run: "Run", cycles: int) -> str:
    """Returns a line on the ensemble and its accuracy on validation."""
    members = f"ensemble of {cycles} snapshots" if cycles > 1 else "its only snapshot"
    figures = run.data.metrics
    accuracy = (
        f"{100 * figures['ensemble_accuracy']:.1f} % on validation{accuracy_context(figures)}"
    )
    return f"{run.info.run_name}: {members}, {accuracy}, the best of the sweep"


def likeliest_labels(
    probabilities: Sequence[float], labels: Sequence[str], top: int
) -> list[tuple[str, float]]:
    """Returns the `top` likeliest labels with their probabilities, the likeliest first."""
    return sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])[:top]


def format_table(parts: dict[str, str], predictions: Sequence[Sequence[tuple[str, float]]]) -> str:
    """Returns a table with a row for every clip: its likeliest words and their probabilities.

    `parts` states by clip how it was cut or padded, if at all.
    """
    headers = ["clip", "word", "%", *["then", "%"] * (len(predictions[0]) - 1)]
    align = ["left", *["left", "right"] * len(predictions[0])]
    rows = [
        [clip, *(text for word, share in likeliest for text in (word, f"{100 * share:.1f}")), part]
        for (clip, part), likeliest in zip(parts.items(), predictions, strict=True)
    ]
    if any(parts.values()):
        headers, align = [*headers, "part used"], [*align, "left"]
    else:
        rows = [row[:-1] for row in rows]
    return tabulate.tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)
