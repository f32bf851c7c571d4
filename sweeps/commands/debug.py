"""Runs one trial in this process, where a debugger works: python launch.py sweep.yaml --debug KEY.

The trial runs without Ray, namespace or tracker. It calls the training as a trial's process calls
it, with the same Trial, and prints its records in short. `breakpoint()` therefore stops in the
training loop. `python -m pdb launch.py ...` stops where an exception is raised, which is not
caught. Unlike a trial of a launch, it uses the machine's own /dev/shm, and its results are
discarded.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

from speech.config import RuntimeSettings, Trial
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.forecast.trial_forecasts import prepare_forecasts
from sweeps.host.node import Log, Node, PreflightError, default_runtime
from sweeps.names import run_name
from sweeps.tracking.rerun import find_trial

Record = dict[str, Any]
# Metrics that are printed beside the times
PRINTED_METRICS = (
    "loss/training",
    "accuracy/validation",
    "snapshot/accuracy",
    "snapshot/ensemble_accuracy",
)


def debug(config: SweepConfig, trial_id: str, log: Log) -> None:
    """Runs the trial whose id begins with `trial_id`.

    Raises UnknownTrial, PreflightError, and whatever the trial raises.
    """
    forecasts = prepare_forecasts(config, log)
    spec = find_trial(trial_id, forecasts.plan.trials, "--debug")
    if (ranks := spec.config.device.ranks) > 1:
        raise PreflightError(
            f"--debug runs a trial in one process, and this one has {ranks} ranks. Add --set"
            " parameters.device.ranks=1, or debug another trial."
        )
    for line in forecasts.corpora[spec.config.corpus.selection_key()].account.lines():
        log(line)
    log(
        f"{run_name(spec.block, spec.swept, spec.repeat)}, id {spec.trial_id}, in process"
        f" {os.getpid()}"
    )
    if workers := spec.config.loader.num_workers:
        log(
            f"its {workers} loader workers are separate processes: breakpoints in the data set"
            " work only with num_workers 0"
        )
    from speech import tasks  # imports torch
    from speech.timing import Gauge

    def emit(record: Record) -> None:
        for line in format_record(record):
            log(line)

    tasks.prepare(spec.config.model_dump(), emit, Gauge())
    runtime = _choose_runtime(config, spec, emit)
    with tempfile.TemporaryDirectory(prefix="debug-") as folder:
        trial = Trial(
            config=spec.config,
            seed=spec.seed,
            warmup_epochs=spec.warmup_epochs,
            runtime=runtime,
            folder=folder,
        )
        tasks.train(trial.model_dump(), emit, Gauge())


def _choose_runtime(
    config: SweepConfig, spec: TrialSpec, emit: Callable[[Record], None]
) -> RuntimeSettings:
    """Chooses the trial's runtime settings as a launch does, except for the cores.

    This process stays on the cores that it already has.
    """
    from speech import accelerator, tasks
    from speech.timing import Gauge

    node = Node.local(accelerator.gpu_names())
    default = default_runtime(node, config)
    if node.device(spec.config) == "simulated":
        return default
    records: list[Record] = []
    tasks.probe(
        {"config": spec.config.model_dump(), "threads": default.threads}, records.append, Gauge()
    )
    emit(records[0])
    return RuntimeSettings.model_validate(records[0]["runtime"] | {"cpus": default.cpus})


def format_record(record: Record) -> list[str]:
    """Returns a record as one line, or no line if its kind is not printed."""
    match record["kind"]:
        case "log":
            return [record["line"]]
        case "probe":
            return [f"precision: {record['line']}"]
        case "setup":
            names = (
                "device_name",
                "precision",
                "threads",
                "training_clips",
                "validation_clips",
                "steps_per_epoch",
                "batch_bytes",
            )
            return ["setup: " + ", ".join(f"{name} {record[name]}" for name in names)]
        case "epoch":
            times = [
                f"{name} {value:.2f}" for name, value in _with_prefix("time/", record["metrics"])
            ]
            return [
                f"epoch {record['epoch']}{' (warm-up)' if record['warmup'] else ''}: "
                + ", ".join(times + _format_metrics(record["metrics"]))
            ]
        case "snapshot":
            return [
                f"snapshot of cycle {record['cycle']}: "
                + ", ".join(_format_metrics(record["metrics"]))
            ]
        case "end":
            diverged = [f"diverged: {record['diverged']}"] if "diverged" in record else []
            return [
                "end: "
                + ", ".join(f"{name} {value:.6g}" for name, value in record["summary"].items()),
                *diverged,
            ]
    return []


def _with_prefix(prefix: str, metrics: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the metrics whose name has this prefix, without the prefix."""
    return [
        (name.removeprefix(prefix), value)
        for name, value in metrics.items()
        if name.startswith(prefix)
    ]


def _format_metrics(metrics: dict[str, float]) -> list[str]:
    """Returns those PRINTED_METRICS that were measured, as text."""
    return [
        f"{name.partition('/')[2] if name.startswith('snapshot/') else name} {metrics[name]:.4g}"
        for name in PRINTED_METRICS
        if name in metrics
    ]
