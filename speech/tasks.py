"""Defines the tasks that run in a process with torch.

Examples are training a trial, preparing a corpus, finding the fastest precision and evaluating the
test split. A task takes JSON arguments, reports through `emit`, and raises every error. Its caller
isolates the process that runs it; the tasks are independent of where they run.
"""

from collections.abc import Callable
from typing import Any

import torch

from speech import accelerator, corpora
from speech.calibration import external_loader
from speech.calibration.calibrate import calibrate_trial
from speech.calibration.speed import probe_speed
from speech.config import Trial, TrialConfig
from speech.evaluation import evaluate_test_split
from speech.feasibility import find_obstacle
from speech.loading import make_loader, prepare_forms
from speech.model import build_model
from speech.shapes import picture_shape
from speech.timing import Gauge
from speech.train import fit


class Infeasible(ValueError):
    """Reports that a trial can't be trained; the text names the key to change."""


Arguments = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]


def train(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Trains a trial; the arguments are a Trial."""
    fit(Trial.model_validate(arguments), emit, gauge)


def prepare(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Prepares the cached data of this TrialConfig, and tries to open all else that a trial opens.

    Progress is emitted as `say` records. Raises Infeasible if a trial could not be trained.
    """
    torch.set_num_threads(1)  # clips come one by one: threads would only wait for each other
    config = TrialConfig.model_validate(arguments)

    def log(line: str) -> None:
        emit({"kind": "log", "line": line})

    corpus = corpora.prepare_corpus(config.corpus, log)
    if obstacle := find_obstacle(
        config, corpus, learns=accelerator.choose_device(config.device) != "simulated"
    ):
        raise Infeasible(obstacle)
    prepare_forms(config, corpus, log)
    make_loader(config, corpus, "training", 0)
    build_model(len(corpus.labels), picture_shape(config)[0], config.model.weights)


def probe(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Emits the fastest precision for a configuration as a `probe` record.

    The arguments are `config` (a TrialConfig) and `threads`.
    """
    config = TrialConfig.model_validate(arguments["config"])
    runtime, line = accelerator.find_fastest_settings(
        config, picture_shape(config), arguments["threads"]
    )
    emit({"kind": "probe", "runtime": runtime.model_dump(), "line": line})


def calibrate(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Measures the costs of a batch for a Trial on this host; emits a `calibration` record."""
    trial = Trial.model_validate(arguments)
    emit({"kind": "calibration", "calibration": calibrate_trial(trial).model_dump()})


def speed(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Probes the speed of this host for a Trial; emits a `speed` record.

    Its `speed` is None if other programs used the cores.
    """
    trial = Trial.model_validate(arguments)
    found = probe_speed(trial, corpora.prepare_corpus(trial.config.corpus))
    emit({"kind": "speed", "speed": found and found.model_dump()})


def advise(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Measures the costs of a batch for another project's loader on this host.

    speech/calibration/external_loader.py describes the arguments and records.
    """
    external_loader.advise(arguments, emit)


def test(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Evaluates one trial's ensemble on the test split; emits a `test` record.

    The arguments are `trial`, whose folder holds the snapshots, and `members`, the cycles of the
    snapshots.
    """
    emit(
        {"kind": "test"}
        | evaluate_test_split(Trial.model_validate(arguments["trial"]), arguments["members"])
    )


def list_gpus(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """Emits the names of this machine's GPUs."""
    emit({"kind": "list_gpus", "gpus": accelerator.gpu_names()})


Task = Callable[[Arguments, Emit, Gauge], None]
TASKS: dict[str, Task] = {
    task.__name__: task
    for task in (train, prepare, probe, calibrate, speed, advise, test, list_gpus)
}
