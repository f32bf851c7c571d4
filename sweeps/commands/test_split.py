"""Evaluates the best ensemble on the test split, which is read once.

A sweep compares validation accuracies, and the best of many is biased upwards by its selection.
`--evaluate-test` reads the held-out split with the ensemble that was best on validation, from the
snapshots of its run. The result is recorded in that run. Another `--evaluate-test` reads the
record, not the split. A tag of the sweep counts how often the split has been read.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from speech.config import RuntimeSettings, Trial
from sweeps.accuracy import accuracy_context
from sweeps.execution.preflight import run_task
from sweeps.execution.sweep import Sweep
from sweeps.host.node import Log, PreflightError
from sweeps.sandbox.isolation import ForkServer, Record, Task
from sweeps.tracking import best_ensemble
from sweeps.tracking.mlflow_runs import RunLogger

if TYPE_CHECKING:
    from mlflow.entities import Run


def evaluate(sweep: Sweep, log: Log) -> None:
    """Logs the test accuracy of the sweep's best ensemble, with its 95 % interval.

    Raises PreflightError if the sweep has no ensemble.
    """
    run = _best_run(sweep)
    name = run.info.run_name
    if math.isnan(run.data.metrics.get("test_ensemble_accuracy", math.nan)):
        reads = (
            int(sweep.tracking.client.get_run(sweep.parent).data.tags.get("test_reads", "0")) + 1
        )
        # Counted first: a reading that fails half-way has also seen the split
        sweep.tracking.set_tags(sweep.parent, {"test_reads": reads})
        run = _measure(sweep, run)
        log(
            f"test split read, {'once' if reads == 1 else f'{reads} times so far'}; the result is"
            " stored with the trial"
        )
    metrics = run.data.metrics
    accuracy, clips = metrics["test_ensemble_accuracy"], int(metrics["test_clips"])
    context = accuracy_context(metrics, "test_")
    log(
        f"test accuracy of the best ensemble on validation, {name}:"
        f" {format_interval(round(accuracy * clips), clips)}{context}"
    )
    log(
        "its last snapshot alone:"
        f" {format_interval(round(metrics['test_accuracy'] * clips), clips)}{context}"
    )


def check(sweep: Sweep) -> None:
    """Raises PreflightError, before any trial runs, if no trial of the plan can be tested."""
    if all(sweep.node.device(trial.config) == "simulated" for trial in sweep.plan.trials):
        raise PreflightError(
            "--evaluate-test: every trial runs on the simulated device, which learns nothing, so"
            " there is nothing to test."
        )
    for corpus in sweep.trial_forecasts.corpora.values():
        if corpus.account.untestable:
            raise PreflightError(
                f"--evaluate-test: corpus {corpus.root} has no test split:"
                f" {corpus.account.untestable}."
            )
    if sweep.config.snapshots.keep == "none":
        raise PreflightError(
            "--evaluate-test needs the snapshots of the best ensemble: write snapshots:"
            " {keep: best} or all."
        )


def format_interval(correct: int, clips: int) -> str:
    """Returns a proportion with Wilson's interval.

    An example is '90.5 % (447 of 494; 95 % interval 87.6 to 92.8)'.
    """
    from scipy.stats import binomtest  # its import takes a second

    low, high = binomtest(correct, clips).proportion_ci(method="wilson")
    return (
        f"{100 * correct / clips:.1f} % ({correct} of {clips}; 95 % interval {100 * low:.1f} to"
        f" {100 * high:.1f})"
    )


def _best_run(sweep: Sweep) -> "Run":
    """Returns the run with the best ensemble on validation; raises PreflightError without one."""
    try:
        return best_ensemble.best_run(
            sweep.tracking.trials(sweep.parent), {trial.trial_id for trial in sweep.plan.trials}
        )
    except LookupError as problem:
        raise PreflightError(f"--evaluate-test: {problem}, so none can be evaluated.") from None


def _measure(sweep: Sweep, run: "Run") -> "Run":
    """Evaluates the run's snapshots on the test split, and records the result in the run.

    It uses a machine that has the run's device, or the first machine if none has it.
    """
    spec = next(trial for trial in sweep.plan.trials if trial.trial_id == run.data.tags["trial_id"])
    trial = Trial(
        config=spec.config,
        seed=spec.seed,
        runtime=_recorded_runtime(run.data.tags),
        folder=str(sweep.folder / "test"),
        fingerprint=sweep.trial_forecasts.corpora[spec.config.corpus.selection_key()].fingerprint,
    )
    same_device = [
        name
        for name, host in sweep.host_plans.items()
        if host.node.device(spec.config) == run.data.tags["device"]
    ]
    host = (same_device or list(sweep.host_plans))[0]
    task = EvaluateTestSplit(trial, sweep.tracking.uri, sweep.tracking.experiment, run.info.run_id)
    result = sweep.hosts.call({host: task})[host]
    names = {
        "accuracy": "test_accuracy",
        "ensemble_accuracy": "test_ensemble_accuracy",
        "clips": "test_clips",
    }
    names["largest_label_fraction"] = "test_largest_label_fraction"
    sweep.tracking.log_summary(
        run.info.run_id, {new: result[old] for old, new in names.items() if old in result}
    )
    return sweep.tracking.client.get_run(run.info.run_id)


@dataclass(frozen=True)
class EvaluateTestSplit:
    """Evaluates the snapshots of a run on the test split; a task for one host.

    `trial.folder` is created anew, and removed after the evaluation.
    """

    activity: ClassVar[str] = "the evaluation on the test split"

    trial: Trial
    uri: str
    experiment: str
    run_id: str

    def run(self, fork_server: ForkServer, log: Log) -> Record:
        """Returns the resulting record.

        Raises PreflightError if snapshots are missing or the task reports an error.
        """
        folder = Path(self.trial.folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        client = RunLogger(self.uri, self.experiment).client
        run, cycles = client.get_run(self.run_id), len(self.trial.config.sgdr.cycles())
        try:
            snapshots = best_ensemble.download_snapshots(client, run, cycles, folder)
        except LookupError as problem:
            raise PreflightError(
                f"--evaluate-test: {problem}; run the sweep under another name."
            ) from None
        arguments = {
            "trial": self.trial.model_copy(update={"folder": str(snapshots)}).model_dump(),
            "members": best_ensemble.member_cycles(run, cycles),
        }
        message = f"--evaluate-test: {run.info.run_name}: {{problem}}"
        task = Task("test", arguments, private=False)
        result = run_task(fork_server, task, folder / "stderr.log", "test", message)
        shutil.rmtree(folder)
        return result


def _recorded_runtime(tags: dict[str, Any]) -> RuntimeSettings:
    """Returns the runtime settings with which the trial itself was computed."""
    return RuntimeSettings(
        precision=tags["precision"],
        channels_last=tags["channels_last"] == "true",
        threads=int(tags["threads"]),
    )
