"""Probes how fast this machine prepares and trains at the moment, in one to two seconds.

The cores of a virtual machine change their speed with its neighbours. A calibration of an hour ago
may therefore be wrong by a constant factor. The probe repeats two figures of the calibration with
the same work: preparation in one process for every core, and the training step, if the host
computes it. Forecasts are scaled by what it finds.
"""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader

from speech import accelerator, corpora, page_cache
from speech.calibration.batch_workers import Killed, measure_pace
from speech.calibration.costs import Speed
from speech.calibration.step_timings import time_steps
from speech.calibration.undisturbed_rounds import attempt_measurement, is_disturbed
from speech.config import Trial
from speech.cpu import usable_cores
from speech.dataset import ClipDataset
from speech.learner import make_learner
from speech.loading import make_loader

PROBE_WINDOW_S = 0.5  # for each of both kinds of work
ATTEMPTS = 2


def probe_speed(trial: Trial, corpus: corpora.PreparedCorpus) -> Speed | None:
    """Measures the speed for the batches and the step of `trial`.

    The trial's own learner and random streams are not involved. Returns None if other programs used
    the cores in every attempt, as for a disturbed trial, or if the machine refuses the processes.
    """
    without_workers = trial.config.loader.model_copy(update={"num_workers": 0})
    config = trial.config.model_copy(update={"loader": without_workers})
    loader, _ = make_loader(config, corpus, "training", trial.seed)
    files = cast(ClipDataset, loader.dataset).files() if config.corpus.cache == "cold" else []
    step = None
    if accelerator.choose_device(config.device) == "cpu":
        torch.set_num_threads(trial.runtime.threads)
        step = make_step(trial, corpus, loader)
    for _ in range(ATTEMPTS):
        try:
            attempt = attempt_measurement(lambda: _measure(loader, step, files))
        except (Killed, OSError):  # too little memory, or too few processes allowed
            return None
        if not is_disturbed(attempt):
            return attempt.value
    return None


def make_step(
    trial: Trial, corpus: corpora.PreparedCorpus, loader: DataLoader
) -> Callable[[], None]:
    """Returns a function that runs a training step of `trial` on the CPU, on a network of its own.

    The step has run once, as memory is allocated and kernels are chosen in the first one.
    """
    learner, batch = make_learner(trial, corpus, "cpu"), next(iter(loader))

    def step() -> None:
        learner.learn(batch, lr=1e-6, mixup=1.0)

    step()
    return step


def _measure(loader: DataLoader, step: Callable[[], None] | None, files: list[Path]) -> Speed:
    """Measures once, without regard to other programs.

    `files` are read from storage, and not from the page cache.
    """
    pace = measure_pace(
        loader, math.ceil(usable_cores()), PROBE_WINDOW_S, lambda: page_cache.drop(files)
    )
    step_s = statistics.median(time_steps(step, PROBE_WINDOW_S)) if step else None
    return Speed(prepare_s=pace.cpu_s, step_s=step_s)
