"""python -m sweeps.predict NAME clip.wav: the sweep's best ensemble on validation says the word in a wav file.

The ensemble is the one that `--test` reads the test split with, and comes from the tracker with all that it takes: no corpus is needed, and
no Ray. Weights are read without executing code from their files. Several clips are told in one table; what is wrong with one of
them is said, and the others are told all the same.

Exit codes: 0 every clip was told; 1 the tracker can't be reached; 2 some clip can't be read, or the sweep has nothing to tell it with.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tabulate

from speech.config import TrialConfig
from sweeps import ensemble
from sweeps.away import TrackerAway, asked
from sweeps.config import Tracking
from sweeps.tracker import find_sweep, plan_rows, resolve_uri
from sweeps.tracking import children

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MEND = "Run the sweep under another name{extra}: a trial that has ended is not run again."


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parsed(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="predict-") as folder:
            with asked(flags.uri):
                obtained = obtain(*find_sweep(flags.name, flags.uri, flags.experiment), Path(folder))
            return tell(flags.clips, flags.top, *obtained)
    except LookupError as problem:
        print(problem.args[0], file=sys.stderr)
        return 2
    except TrackerAway as problem:
        print(problem, file=sys.stderr)
        return 1


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = Tracking()
    parser = argparse.ArgumentParser("python -m sweeps.predict", description="The best ensemble of a sweep says the word in wav files.")
    parser.add_argument("name", help="name of the sweep, as in its YAML")
    parser.add_argument(
        "clips", metavar="clip.wav", nargs="+", type=Path, help="wav files of 1 kHz to 1 MHz and any depth, length and number of channels"
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="the N likeliest labels of a clip (default: %(default)s)")
    parser.add_argument("--uri", default=default.uri, help="the tracker (default: %(default)s)")
    parser.add_argument("--experiment", default=default.experiment, help="MLflow experiment of the sweep (default: %(default)s)")
    flags = parser.parse_args(arguments)
    if flags.top < 1:
        parser.error("--top is at least 1")
    try:
        resolve_uri(flags.uri)
    except ValueError as error:
        parser.error(str(error))
    return flags


def obtain(client: "MlflowClient", parent: "Run", folder: Path) -> "tuple[Run, dict[str, Any], Path]":
    """The trial with the best ensemble, its setup record, and the folder of its snapshots. LookupError: there is none to be had."""
    planned = {row["key"] for row in plan_rows(client, parent)}
    try:
        run = ensemble.best(children(client, parent), planned)
    except LookupError as problem:
        raise LookupError(f"{problem}. Trials on the paced device learn nothing: give a block device: auto.") from None
    with Path(client.download_artifacts(run.info.run_id, "records.jsonl", str(folder))).open() as records:
        setup = json.loads(next(records))
    if "config" not in setup:
        raise LookupError(f"{run.info.run_name} was recorded before runs kept what a prediction takes. {MEND.format(extra='')}")
    cycles = len(TrialConfig.model_validate(setup["config"]).sgdr.cycles())
    try:
        return run, setup, ensemble.download(client, run, cycles, folder)
    except LookupError as problem:
        extra = " with snapshots: {keep: best} or all"
        raise LookupError(f"{problem}. {MEND.format(extra=extra)}") from None


def tell(paths: Sequence[Path], top: int, run: "Run", setup: dict[str, Any], snapshots: Path) -> int:
    """Prints who speaks and a row a clip; returns the exit code. LookupError: the weights can't be used."""
    from speech import prediction  # torch: two seconds
    from speech.audio import BadClip
    from speech.model import WeightsError

    config, found = TrialConfig.model_validate(setup["config"]), {}
    for path in dict.fromkeys(paths):
        try:
            found[path] = prediction.read(path, config)
        except BadClip as problem:
            print(problem, file=sys.stderr)
    if found:
        try:
            said = prediction.predict(setup, snapshots, [clip.waveform for clip in found.values()]).tolist()
        except WeightsError as problem:
            raise LookupError(f"the snapshots of {run.info.run_name} can't be used: {problem}") from None
        print(heading(run, len(config.sgdr.cycles())) + "\n")
        parts = {str(path): clip.part for path, clip in found.items()}
        print(table(parts, [ranked(row, setup["labels"], top) for row in said]))
    return 0 if len(found) == len(set(paths)) else 2


def heading(run: "Run", cycles: int) -> str:
    members = f"ensemble of {cycles} snapshots" if cycles > 1 else "its only snapshot"
    return f"{run.info.run_name}: {members}, {100 * run.data.metrics['ensemble_accuracy']:.1f} % on validation, the best of the sweep"


def ranked(probabilities: Sequence[float], labels: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The `top` likeliest labels with their probabilities, the likeliest first."""
    return sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])[:top]


def table(parts: dict[str, str], said: Sequence[Sequence[tuple[str, float]]]) -> str:
    """A row a clip: the word, its probability, those that come next; of a clip that was cut or padded, how."""
    headers = ["clip", "says", "%", *["then", "%"] * (len(said[0]) - 1)]
    align = ["left", *["left", "right"] * len(said[0])]
    rows = [
        [clip, *(text for word, share in likeliest for text in (word, f"{100 * share:.1f}")), part]
        for (clip, part), likeliest in zip(parts.items(), said, strict=True)
    ]
    if any(parts.values()):
        headers, align = [*headers, "heard of it"], [*align, "left"]
    else:
        rows = [row[:-1] for row in rows]
    return tabulate.tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)


if __name__ == "__main__":
    sys.exit(main())
