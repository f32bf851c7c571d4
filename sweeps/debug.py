"""python launch.py sweep.yaml --debug KEY: one trial in this process, where a debugger works.

No Ray, no namespace, no tracker: `fit` is called as a trial's process calls it, with the same Trial, and its records are printed in short.
So `breakpoint()` stops in the training loop, and `python -m pdb launch.py ...` where an exception is raised, which leaves as it is. What
differs from a trial of a launch: /dev/shm is the machine's own, and nothing is kept.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

from speech.config import Pinned, Trial
from sweeps.config import SweepConfig
from sweeps.names import run_name
from sweeps.outlook import outlook
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, Say, unprobed
from sweeps.rerun import find

Record = dict[str, Any]
SHOWN = ("loss/training", "accuracy/validation", "snapshot/accuracy", "snapshot/ensemble_accuracy")  # beside the times


def debug(config: SweepConfig, key: str, say: Say) -> None:
    """Runs the trial whose key begins with `key`. UnknownKey, PreflightError, and whatever the trial raises."""
    made = outlook(config, say)
    spec = find(key, made.plan.trials)
    say(f"{run_name(spec.block, spec.swept, spec.repeat)}, key {spec.key}, in process {os.getpid()}")
    if workers := spec.config.loader.num_workers:
        say(f"its {workers} loader workers are processes of their own: breakpoints in the data set are reached with num_workers 0 only")
    from speech import tasks  # imports torch
    from speech.timing import Gauge

    def emit(record: Record) -> None:
        for line in lines_of(record):
            say(line)

    tasks.prepare(spec.config.model_dump(), emit, Gauge())
    pinned = _pinned(config, spec, emit)
    with tempfile.TemporaryDirectory(prefix="debug-") as folder:
        trial = Trial(config=spec.config, seed=spec.seed, warmup_epochs=spec.warmup_epochs, pinned=pinned, folder=folder)
        tasks.train(trial.model_dump(), emit, Gauge())


def _pinned(config: SweepConfig, spec: TrialSpec, emit: Callable[[Record], None]) -> Pinned:
    """As a launch pins it, but for the cores: this process keeps those that it has."""
    from speech import accelerator, tasks
    from speech.timing import Gauge

    node = Node(tuple(accelerator.gpu_names()), tuple(sorted(os.sched_getaffinity(0))))
    found = unprobed(node, config)
    if node.device(spec.config) == "paced":
        return found
    told: list[Record] = []
    tasks.probe({"config": spec.config.model_dump(), "threads": found.threads}, told.append, Gauge())
    emit(told[0])
    return Pinned.model_validate(told[0]["pinned"] | {"cpus": found.cpus})


def lines_of(record: Record) -> list[str]:
    """A record in a line; none of a kind that says nothing here."""
    match record["kind"]:
        case "say":
            return [record["line"]]
        case "probe":
            return [f"precision: {record['line']}"]
        case "setup":
            names = ("device_name", "precision", "threads", "training_clips", "validation_clips", "steps_per_epoch", "batch_bytes")
            return ["setup: " + ", ".join(f"{name} {record[name]}" for name in names)]
        case "epoch":
            times = [f"{name} {value:.2f}" for name, value in _of("time/", record["metrics"])]
            return [f"epoch {record['epoch']}{' (warm-up)' if record['warmup'] else ''}: " + ", ".join(times + _shown(record["metrics"]))]
        case "snapshot":
            return [f"snapshot of cycle {record['cycle']}: " + ", ".join(_shown(record["metrics"]))]
        case "end":
            return ["end: " + ", ".join(f"{name} {value:.6g}" for name, value in record["summary"].items())]
    return []


def _of(prefix: str, metrics: dict[str, float]) -> list[tuple[str, float]]:
    return [(name.removeprefix(prefix), value) for name, value in metrics.items() if name.startswith(prefix)]


def _shown(metrics: dict[str, float]) -> list[str]:
    return [f"{name.partition('/')[2] if name.startswith('snapshot/') else name} {metrics[name]:.4g}" for name in SHOWN if name in metrics]
