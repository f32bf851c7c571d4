"""Probes how fast this machine prepares and trains at the moment, in one to two seconds.

The cores of a virtual machine change their speed with its neighbours. A calibration of an hour ago
may therefore be wrong by a constant factor. The probe repeats two figures of the calibration with
the same work: preparation in one process for every core, and the training step, if the host
computes it. Forecasts are scaled by what it finds. The processes are no workers of a loader: those
would put their batches into the trial's /dev/shm.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from speech import accelerator, corpora, page_cache
from speech.calibration.batch_workers import Killed, start_process
from speech.calibration.costs import Speed
from speech.calibration.step_timings import time_steps
from speech.calibration.undisturbed_rounds import attempt_measurement, is_disturbed
from speech.config import Trial
from speech.cpu import usable_cores
from speech.dataset import ClipDataset
from speech.learner import make_learner
from speech.loading import make_loader

PROBE_WINDOW_S = 0.5  # for each of both kinds of work
MIN_BATCHES = 2
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
        step = make_step(trial, corpus, loader, "cpu")
    for _ in range(ATTEMPTS):
        try:
            attempt = attempt_measurement(lambda: measure_speed(loader, step, files))
        except (Killed, OSError):  # too little memory, or too few processes allowed
            return None
        if not is_disturbed(attempt):
            return attempt.value
    return None


def make_step(
    trial: Trial, corpus: corpora.PreparedCorpus, loader: DataLoader, device: str
) -> Callable[[], None]:
    """Returns a function that runs a training step of `trial` on 'cpu' or 'cuda'.

    The network is its own. The step has run once, as memory is allocated and kernels are chosen in
    the first one. On CUDA it queues the step, with a batch in pinned memory if the trial pins.
    """
    learner, batch = make_learner(trial, corpus, device), next(iter(loader))
    if device == "cuda" and trial.config.loader.pin_memory:
        batch = [tensor.pin_memory() for tensor in batch]

    def step() -> None:
        learner.learn(batch, lr=1e-6, mixup=1.0)
        learner.events.clear()  # of CUDA; nothing reads them

    step()
    return step


def measure_speed(loader: DataLoader, step: Callable[[], None] | None, files: list[Path]) -> Speed:
    """Measures once, without regard to other programs.

    `loader` has no workers. `files` are read from storage, and not from the page cache.
    """
    page_cache.drop(files)
    processes = [start_process(_prepare, loader) for _ in range(math.ceil(usable_cores()))]
    try:
        for process in processes:
            process.receive()  # the first batch is ready, which is slow to prepare
        for process in processes:
            process.end.send("go")
        prepare_s = statistics.mean(process.receive() for process in processes)
    finally:
        for process in processes:
            process.kill()
    step_s = statistics.median(time_steps(step, PROBE_WINDOW_S)) if step else None
    return Speed(prepare_s=prepare_s, step_s=step_s)


def _prepare(loader: DataLoader, end: Connection) -> None:
    """Prepares batches during the window on one thread; sends the mean CPU seconds of a batch."""
    try:
        torch.set_num_threads(1)
        batches = iter(loader)
        next(batches)
        end.send("ready")
        end.recv()
        count, began, cpu_began = 0, time.perf_counter(), time.thread_time()
        while count < MIN_BATCHES or time.perf_counter() - began < PROBE_WINDOW_S:
            if next(batches, None) is None:
                batches = iter(loader)
                next(batches)
            count += 1
        end.send((time.thread_time() - cpu_began) / count)
    except Exception:
        end.send(ExceptionWrapper(sys.exc_info(), "in the probe of the machine's speed"))
