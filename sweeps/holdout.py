"""The test split: read once, by the ensemble that was best on validation.

What a sweep compares is validation accuracy; the best of many is flattering by choice. `--test` reads the held-out split with that
one ensemble, from the snapshots its run keeps. The answer is written down there; asking again reads the record, not the split, and a tag
of the sweep counts how often the split has been read.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import binomtest

from speech.config import Pinned, Trial
from sweeps import ensemble
from sweeps.isolation import Record, Task, Template
from sweeps.preflight import PreflightError, Say, result_of
from sweeps.sweep import Sweep
from sweeps.tracking import Tracking

if TYPE_CHECKING:
    from mlflow.entities import Run


def read(sweep: Sweep, say: Say) -> None:
    """Says the test accuracy of the sweep's best ensemble, with its 95 % interval. PreflightError where there is none."""
    run = _best(sweep)
    name = run.info.run_name
    if "test_ensemble_accuracy" not in run.data.metrics:
        reads = int(sweep.tracking.client.get_run(sweep.parent).data.tags.get("test_reads", "0")) + 1
        sweep.tracking.set_tags(sweep.parent, {"test_reads": reads})  # counted first: a reading that fails half-way has seen the split
        run = _measure(sweep, run)
        say(f"test split read, {'once' if reads == 1 else f'{reads} times by now'}; the answer is kept with the trial")
    metrics = run.data.metrics
    accuracy, clips = metrics["test_ensemble_accuracy"], int(metrics["test_clips"])
    say(f"test accuracy of the best ensemble on validation, {name}: {interval(round(accuracy * clips), clips)}")
    say(f"its last snapshot alone: {interval(round(metrics['test_accuracy'] * clips), clips)}")


def check(sweep: Sweep) -> None:
    """PreflightError where no trial of the plan could answer: said before any of them runs."""
    if all(sweep.node.device(trial.config) == "paced" for trial in sweep.plan.trials):
        raise PreflightError("--test: every trial runs on the paced device, which learns nothing, so there is nothing to test.")
    if sweep.config.snapshots.keep == "none":
        raise PreflightError("--test reads the snapshots of the best ensemble: write snapshots: {keep: best} or all.")


def interval(correct: int, clips: int) -> str:
    """'90.5 % (447 of 494; 95 % interval 87.6 to 92.8)': Wilson's interval of a proportion."""
    low, high = binomtest(correct, clips).proportion_ci(method="wilson")
    return f"{100 * correct / clips:.1f} % ({correct} of {clips}; 95 % interval {100 * low:.1f} to {100 * high:.1f})"


def _best(sweep: Sweep) -> "Run":
    try:
        return ensemble.best(sweep.tracking.trials(sweep.parent), {trial.key for trial in sweep.plan.trials})
    except LookupError as problem:
        raise PreflightError(f"--test: {problem} to read the test split with.") from None


def _measure(sweep: Sweep, run: "Run") -> "Run":
    """Reads the split with the snapshots that the run keeps, on a machine with its device, and writes the answer to it."""
    spec = next(trial for trial in sweep.plan.trials if trial.key == run.data.tags["key"])
    trial = Trial(config=spec.config, seed=spec.seed, pinned=_pinned(run.data.tags), folder=str(sweep.folder / "test"))
    alike = [name for name, site in sweep.sites.items() if site.node.device(spec.config) == run.data.tags["device"]]
    machine = (alike or list(sweep.sites))[0]
    asked_with = trial, sweep.tracking.uri, sweep.tracking.experiment, run.info.run_id
    answer = sweep.machines.ask(answer_with, {machine: asked_with})[machine]
    names = {"accuracy": "test_accuracy", "ensemble_accuracy": "test_ensemble_accuracy", "clips": "test_clips"}
    sweep.tracking.log_summary(run.info.run_id, {new: answer[old] for old, new in names.items()})
    return sweep.tracking.client.get_run(run.info.run_id)


def answer_with(template: Template, say: Say, trial: Trial, uri: str, experiment: str, run_id: str) -> Record:
    """What the snapshots of a run say on the test split; asked on a machine as in sweeps/sites.py. `trial.folder` is for the while."""
    folder = Path(trial.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    client = Tracking(uri, experiment).client
    try:
        snapshots = ensemble.download(client, client.get_run(run_id), len(trial.config.sgdr.cycles()), folder)
    except LookupError as problem:
        raise PreflightError(f"--test: {problem}; run the sweep under another name.") from None
    task = Task("test", trial.model_copy(update={"folder": str(snapshots)}).model_dump(), private=False)
    answer = result_of(template, task, folder / "stderr.log", "test", "--test: {problem}")
    shutil.rmtree(folder)
    return answer


def _pinned(tags: dict[str, Any]) -> Pinned:
    """As the trial itself was computed."""
    return Pinned(precision=tags["precision"], channels_last=tags["channels_last"] == "true", threads=int(tags["threads"]))
