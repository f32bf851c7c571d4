"""fit(trial, emit): one trial, in reading order.

Reads batches, learns from them (or waits, on the modelled accelerator), validates after each epoch, takes a snapshot at each cycle end,
and says what happened through one callable. Records are plain dicts, fit for one JSON object a line:

    setup     what the trial runs on and with                                                                   once, before the first batch
    epoch     `metrics` (units in their names) and the raw `steps`, `busy` and `fetches` of speech/epoch.py     after each epoch
    snapshot  a member of the ensemble, alone and together with those so far                                    after each cycle
    end       the trial's `summary` and the ensemble's confusion matrix                                         once

A trial that goes on from where an interrupted attempt was (speech/continuation.py) first tells that one's epochs and snapshots again,
marked `again` and without raw steps, so that its records are of the whole trial; the setup record says how many epochs they are.
Evaluation and snapshots stand outside the epoch's clock. A metric that was not measured is absent, never 0.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from speech import accelerator, corpora, page_cache, sgdr, snapshots
from speech.augment import draws, mixup_weight
from speech.clips import Clips, picture_of
from speech.config import Trial
from speech.continuation import Continuation, Progress
from speech.cpu import cpu_model
from speech.epoch import Record, Work, run_epoch
from speech.fetches import FetchLog
from speech.learner import Learner, make_learner
from speech.loading import make_loader
from speech.shapes import batch_bytes
from speech.timing import SPANS, Gauge, watched

MIXUP_STREAM = 3  # mixup draws from (seed, epoch, step, 3), apart from every clip's stream


def fit(trial: Trial, emit: Callable[[Record], None], gauge: Gauge | None = None) -> None:
    """Trains one trial to the end of its schedule. Whatever goes wrong is raised; the caller files it."""
    gauge = gauge or Gauge()
    config = trial.config
    torch.manual_seed(trial.seed)
    torch.set_num_threads(trial.pinned.threads)
    device = accelerator.choose(config.device)
    corpus = corpora.prepare(config.corpus)
    with tempfile.TemporaryDirectory(prefix="fetches-") as scratch:
        log = FetchLog(Path(scratch, "log"))
        pinning = config.loader.pin_memory and device == "cuda"
        loader, order = make_loader(config, corpus, "training", trial.seed, pinning, log)
        clips = cast(Clips, loader.dataset)
        cycle_steps = [epochs * len(loader) for epochs in config.sgdr.cycles()]
        learner = None
        continuation: Continuation | None = None
        progress = Progress()
        if device != "paced":
            learner = make_learner(trial, corpus, device)
            validation, _ = make_loader(config, corpus, "validation", trial.seed)
            if trial.continues:
                continuation = Continuation(trial, corpus, device, learner)
                progress = continuation.take_up()
        work = _learning(trial, learner, cycle_steps, len(loader)) if learner else _pacing(trial)
        setup = _setup(trial, device, corpus, len(loader)) | (_recipe(trial, corpus) if learner else {})
        gauge.expect(setup["batch_bytes"])
        emit(setup | progress.origin())
        for record in progress.records:
            emit(record | {"again": True})

        began = time.perf_counter()
        for epoch in range(len(progress.epochs), config.sgdr.epochs):
            order.epoch = epoch
            if config.corpus.cache == "cold":
                page_cache.drop(clips.files())
            metrics, raw, epoch_began = run_epoch(loader, work, epoch, learner, gauge, log)
            if learner:
                scores, labels, found = _validate(learner, validation, gauge)
                last_step = (epoch + 1) * len(loader) - 1
                metrics |= found | {"lr": sgdr.learning_rate(last_step, cycle_steps, config.sgdr.lr, config.sgdr.lr_min)}
            head = {"kind": "epoch", "epoch": epoch, "warmup": epoch < trial.warmup_epochs, "began_s": round(epoch_began - began, 6)}
            emit(progress.noted(head | {"metrics": metrics} | raw))
            cycle = sgdr.cycle_ended((epoch + 1) * len(loader) - 1, cycle_steps)
            if learner and cycle is not None:
                progress.ensemble = progress.ensemble or snapshots.Ensemble(labels)
                progress.ensemble.add(scores)
                emit(progress.noted(_take_snapshot(learner, progress.ensemble, Path(trial.folder), cycle, epoch)))
                if continuation:
                    continuation.keep(progress)
        end: Record = {"kind": "end", "summary": _summary(progress.epochs, trial.warmup_epochs, progress.ensemble)}
        emit(end | ({"confusion": progress.ensemble.confusion()} if progress.ensemble else {}))


def _validate(learner: Learner, validation: DataLoader, gauge: Gauge) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Scores and labels of the validation split, and the metrics of having predicted it."""
    began = time.perf_counter()
    scores, labels, loss = learner.predict(watched(validation, gauge))
    found = {"loss/validation": loss, "accuracy/validation": snapshots.accuracy(scores, labels)}
    return scores, labels, found | {"time/eval_s": time.perf_counter() - began}


def _pacing(trial: Trial) -> Work:
    return lambda batch, epoch, step: (None, accelerator.work_paced(trial.config.device))


def _learning(trial: Trial, learner: Learner, cycle_steps: list[int], epoch_steps: int) -> Work:
    keys, alpha = trial.config.sgdr, trial.config.augment.mixup

    def learn(batch: Any, epoch: int, step: int) -> tuple[torch.Tensor, None]:
        lr = sgdr.learning_rate(epoch * epoch_steps + step, cycle_steps, keys.lr, keys.lr_min)
        mixup = mixup_weight(alpha, draws(trial.seed, epoch, step, MIXUP_STREAM)) if alpha else 1.0
        return learner.learn(batch, lr, mixup), None

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
    head = {"kind": "snapshot", "cycle": cycle, "epoch": epoch, "file": path.name}
    return head | {"metrics": metrics, "disagreements": ensemble.disagreements()}


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


def _recipe(trial: Trial, corpus: corpora.PreparedCorpus) -> Record:
    """What makes predictions of the trial's snapshots, months later and without the corpus: see speech/prediction.py."""
    picture = picture_of(trial.config, corpus)
    statistics = {"mean": picture.mean.tolist(), "deviation": picture.deviation.tolist()}  # exact: a float32 is a float
    return {"config": trial.config.model_dump(mode="json"), "statistics": statistics}


MEDIANS = {  # of the summary -> the series that it is the median of, over warm epochs that have it
    **{f"{span}_s": f"time/{span}_s" for span in ("epoch", *SPANS)},
    "clips_per_s": "rate/clips_per_s",
    "busy_fraction": "accelerator/busy_fraction",
    "stall_steps": "stall/steps",
    "max_gap_s": "stall/max_gap_s",
    "occupancy": "loader/occupancy",
    "main_cpu_s": "cpu/main_s",
    "worker_cpu_s": "cpu/worker_s",
    "read_bytes": "io/read_bytes",
}


def _summary(epochs: list[dict[str, float]], warmup_epochs: int, ensemble: snapshots.Ensemble | None) -> dict[str, float]:
    """The trial in a score of numbers: medians over warm epochs, the most of /dev/shm over all, accuracies on validation."""
    warm = epochs[warmup_epochs:]
    summary = {"train_s": sum(epoch["time/epoch_s"] for epoch in epochs)}
    for name, metric in MEDIANS.items():
        values = [epoch[metric] for epoch in warm if metric in epoch]
        if values:
            summary[name] = statistics.median(values)
    if warm:
        waits = [(epoch["time/fill_s"] + epoch["time/wait_s"]) / epoch["time/epoch_s"] for epoch in warm]
        summary["wait_fraction"] = statistics.median(waits)
    outside = [(epoch["cpu/outside_fraction"], epoch["time/epoch_s"]) for epoch in warm if "cpu/outside_fraction" in epoch]
    if outside:
        summary["outside_fraction"] = sum(share * seconds for share, seconds in outside) / sum(seconds for _, seconds in outside)
    peaks = [epoch["shm/peak_bytes"] for epoch in epochs if "shm/peak_bytes" in epoch]
    if peaks:
        summary["shm_peak_bytes"] = max(peaks)
    if ensemble:
        alone = ensemble.accuracies()
        summary |= {"accuracy": alone[-1], "best_snapshot_accuracy": max(alone)}
        summary["ensemble_accuracy"] = snapshots.accuracy(ensemble.mean(), ensemble.labels)
    return summary
