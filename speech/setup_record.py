"""Computes the record that begins a trial: what it runs on, and what a prediction needs later."""

import os

import torch

from speech import accelerator, corpora
from speech.config import Trial
from speech.cpu import cpu_model, cpu_weight, format_quota, usable_cores
from speech.dataset import build_picture
from speech.epoch import Record
from speech.shapes import batch_bytes


def setup_record(trial: Trial, device: str, corpus: corpora.PreparedCorpus, steps: int) -> Record:
    """Returns the setup record, without the inputs of a later prediction; `steps`: per epoch."""
    config, cpus, cores = trial.config, sorted(os.sched_getaffinity(0)), usable_cores()
    return {
        "kind": "setup",
        "device": device,
        "device_name": accelerator.device_name(device, config.device),
        "cpu_name": cpu_model(),
        "cores": cores,
        "affinity": cpus,
        "cpu_quota": format_quota(len(cpus), cores),
        "cpu_weight": cpu_weight(),
        "precision": trial.runtime.precision,
        "channels_last": trial.runtime.channels_last,
        **accelerator.thread_counts(),
        "torch": torch.__version__,
        "labels": corpus.labels,
        "training_clips": len(corpus.split("training")),
        "validation_clips": len(corpus.split("validation")),
        "skipped_clips": len(corpus.skipped),
        "split": corpus.account.how,
        "corpus": corpus.account.document(),
        "steps_per_epoch": steps,
        "batch_bytes": batch_bytes(config, config.loader.batch_size),
    }


def prediction_inputs(trial: Trial, corpus: corpora.PreparedCorpus) -> Record:
    """Returns all inputs that speech/prediction.py needs in addition to the trial's snapshots.

    With them a prediction is possible months later and without the corpus.
    """
    picture = build_picture(trial.config, corpus)
    # The lists are exact, since a Python float holds any float32
    statistics = {"mean": picture.mean.tolist(), "deviation": picture.deviation.tolist()}
    return {"config": trial.config.model_dump(mode="json"), "statistics": statistics}
