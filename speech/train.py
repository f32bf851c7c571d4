"""fit(trial, emit): one trial, in reading order.

Reads batches, learns from them (or waits, on the modelled accelerator), validates after each epoch, takes a snapshot at each cycle end,
and says what happened through one callable. Records are plain dicts, fit for one JSON object a line:

    setup     what the trial runs on and with                                   once, before the first batch
    epoch     `metrics` (units in their names), `steps` (raw seconds of each)   after each epoch
    snapshot  a member of the ensemble, alone and together with those so far    after each cycle
    end       the trial's `summary` and the ensemble's confusion matrix         once

Evaluation and snapshots stand outside the epoch's clock. A metric that was not measured is absent, never 0.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from speech import accelerator, corpora, sgdr, snapshots
from speech.augment import draws, mixup_weight
from speech.config import Trial
from speech.cpu import cpu_model
from speech.learner import Interval, Learner
from speech.loading import make_loader
from speech.shapes import batch_bytes, picture_shape
from speech.timing import Gauge, Timeline, accelerator_metrics, watched

Record = dict[str, Any]
Work = Callable[[Any, int, int], tuple[torch.Tensor | None, Interval | None]]  # (batch, epoch, step) -> loss, when the device was busy
MIXUP_STREAM = 3  # mixup draws from (seed, epoch, step, 3), apart from every clip's stream


def fit(trial: Trial, emit: Callable[[Record], None], gauge: Gauge | None = None) -> None:
    """Trains one trial to the end of its schedule. Whatever goes wrong is raised; the caller files it."""
    gauge = gauge or Gauge()
    config = trial.config
    torch.manual_seed(trial.seed)
    torch.set_num_threads(trial.pinned.threads)
    device = accelerator.choose(config.device)
    corpus = corpora.prepare(config.corpus)
    loader, order = make_loader(config, corpus, "training", trial.seed, pin_memory=config.loader.pin_memory and device == "cuda")
    cycle_steps = [epochs * len(loader) for epochs in config.sgdr.cycles()]
    learner = None
    if device != "paced":
        learner = Learner(config, trial.pinned, device, len(corpus.labels), picture_shape(config)[0])
        validation, _ = make_loader(config, corpus, "validation", trial.seed, pin_memory=False)
    work = _learning(trial, learner, cycle_steps, len(loader)) if learner else _pacing(trial)
    setup = _setup(trial, device, corpus, len(loader))
    gauge.expect(setup["batch_bytes"])
    emit(setup)

    ensemble, epochs = None, []
    for epoch in range(config.sgdr.epochs):
        order.epoch = epoch
        metrics, steps = _train_epoch(loader, work, epoch, learner, gauge)
        if learner:
            began = time.perf_counter()
            scores, labels, metrics["loss/validation"] = learner.predict(watched(validation, gauge))
            metrics["accuracy/validation"] = snapshots.accuracy(scores, labels)
            metrics["time/eval_s"] = time.perf_counter() - began
            metrics["lr"] = sgdr.learning_rate((epoch + 1) * len(loader) - 1, cycle_steps, config.sgdr.lr, config.sgdr.lr_min)
        epochs.append(metrics)
        emit({"kind": "epoch", "epoch": epoch, "warmup": epoch < trial.warmup_epochs, "metrics": metrics, "steps": steps})
        cycle = sgdr.cycle_ended((epoch + 1) * len(loader) - 1, cycle_steps)
        if learner and cycle is not None:
            ensemble = ensemble or snapshots.Ensemble(labels)
            ensemble.add(scores)
            emit(_take_snapshot(learner, ensemble, Path(trial.folder), cycle, epoch))
    end: Record = {"kind": "end", "summary": _summary(epochs, trial.warmup_epochs, ensemble)}
    emit(end | ({"confusion": ensemble.confusion()} if ensemble else {}))


def _train_epoch(loader: DataLoader, work: Work, epoch: int, learner: Learner | None, gauge: Gauge) -> tuple[dict[str, float], Record]:
    """One pass over the training split: its metrics, and the raw seconds of every step."""
    gauge.take_shm_peak_bytes()
    busy: list[Interval] = []
    losses: list[torch.Tensor] = []
    clips = 0
    timeline = Timeline()
    batches = iter(loader)
    timeline.lap("start")
    for step in range(len(loader)):
        gauge.waiting()
        batch = next(batches)
        gauge.beat()
        timeline.lap("wait" if step else "fill")
        loss, interval = work(batch, epoch, step)
        spent = timeline.lap("step")
        busy.append(interval or spent)
        if loss is not None:
            losses.append(loss)
        clips += len(batch[1])
        del batch  # its room in /dev/shm is free before the loader is asked for more
        timeline.lap("other")
    if learner:
        learner.synchronise()
        timeline.lap("step")
        busy = learner.take_busy() or busy
    metrics = timeline.metrics()
    metrics |= accelerator_metrics(busy, metrics["time/epoch_s"]) | {"rate/clips_per_s": clips / metrics["time/epoch_s"]}
    peak = gauge.take_shm_peak_bytes()
    if peak is not None:
        metrics["shm/peak_bytes"] = peak
    if losses:
        metrics["loss/training"] = torch.stack(losses).mean().item()
    return metrics, {"wait_s": timeline.laps["fill"] + timeline.laps["wait"], "step_s": timeline.laps["step"][: len(loader)]}


def _pacing(trial: Trial) -> Work:
    return lambda batch, epoch, step: (None, accelerator.work_paced(trial.config.device))


def _learning(trial: Trial, learner: Learner, cycle_steps: list[int], epoch_steps: int) -> Work:
    keys, alpha = trial.config.sgdr, trial.config.augment.mixup

    def learn(batch: Any, epoch: int, step: int) -> tuple[torch.Tensor, None]:
        lr = sgdr.learning_rate(epoch * epoch_steps + step, cycle_steps, keys.lr, keys.lr_min)
        mixup = mixup_weight(alpha, draws(trial.seed, epoch, step, MIXUP_STREAM)) if alpha else 1.0
        pictures, labels = batch
        return learner.learn(pictures, labels, lr, mixup), None

    return learn


def _take_snapshot(learner: Learner, ensemble: snapshots.Ensemble, folder: Path, cycle: int, epoch: int) -> Record:
    began = time.perf_counter()
    path = snapshots.save(learner.model, folder, cycle)
    metrics = {
        "snapshot/accuracy": ensemble.accuracies()[-1],
        "snapshot/ensemble_accuracy": snapshots.accuracy(ensemble.mean(), ensemble.labels),
        "time/snapshot_s": time.perf_counter() - began,
    }
    disagreement = ensemble.disagreement()
    if disagreement is not None:
        metrics["snapshot/disagreement"] = disagreement
    return {"kind": "snapshot", "cycle": cycle, "epoch": epoch, "file": path.name, "metrics": metrics}


def _setup(trial: Trial, device: str, corpus: corpora.PreparedCorpus, steps: int) -> Record:
    config = trial.config
    return {
        "kind": "setup",
        "device": device,
        "device_name": accelerator.name_of(device, config.device),
        "cpu_name": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "affinity": sorted(os.sched_getaffinity(0)),
        "precision": trial.pinned.precision,
        "channels_last": trial.pinned.channels_last,
        **accelerator.threads(),
        "torch": torch.__version__,
        "labels": corpus.labels,
        "training_clips": len(corpus.split("training")),
        "validation_clips": len(corpus.split("validation")),
        "skipped_clips": len(corpus.skipped),
        "steps_per_epoch": steps,
        "batch_bytes": batch_bytes(config, config.loader.batch_size),
    }


def _summary(epochs: list[dict[str, float]], warmup_epochs: int, ensemble: snapshots.Ensemble | None) -> dict[str, float]:
    """The trial in a dozen numbers: medians over warm epochs, the most of /dev/shm over all, accuracies on validation."""
    warm = epochs[warmup_epochs:]
    summary = {"train_s": sum(epoch["time/epoch_s"] for epoch in epochs)}
    if warm:
        for name, metric in (("epoch_s", "time/epoch_s"), ("start_s", "time/start_s"), ("fill_s", "time/fill_s")):
            summary[name] = statistics.median(epoch[metric] for epoch in warm)
        summary["clips_per_s"] = statistics.median(epoch["rate/clips_per_s"] for epoch in warm)
        waits = [(epoch["time/fill_s"] + epoch["time/wait_s"]) / epoch["time/epoch_s"] for epoch in warm]
        summary["wait_fraction"] = statistics.median(waits)
    peaks = [epoch["shm/peak_bytes"] for epoch in epochs if "shm/peak_bytes" in epoch]
    if peaks:
        summary["shm_peak_bytes"] = max(peaks)
    if ensemble:
        alone = ensemble.accuracies()
        summary |= {"accuracy": alone[-1], "best_snapshot_accuracy": max(alone)}
        summary["ensemble_accuracy"] = snapshots.accuracy(ensemble.mean(), ensemble.labels)
    return summary
