"""Trains one trial: fit(trial, emit), in reading order.

`fit` reads batches and learns from them, or waits on the simulated accelerator. It validates after
every epoch and takes a snapshot at every cycle end. It reports through one callable. Records are
plain dicts that can be written as one JSON object a line:

    setup     hardware, runtime settings and data of the trial, and the machine's speed if it was
              probed (speech/calibration/speed.py); once, before the first batch
    epoch     `metrics` (units in their names) and the raw `steps`, `busy` and `fetches`
              of speech/epoch.py, and `ranks`, those of further ranks (speech/rank_records.py);
              after every epoch
    snapshot  accuracy of a member alone and of the ensemble so far; after every cycle
    end       the trial's `summary`, the ensemble's confusion matrix, and the cause of a
              divergence, if any; once

A trial may continue an interrupted attempt (speech/continuation.py). It then first repeats that
attempt's epochs and snapshots, marked `replayed` and without raw steps. Its records thus cover the
whole trial; the setup record holds the number of repeated epochs. Evaluation and snapshots are
outside the epoch's clock. A metric that was not measured is absent, never 0.

A trial has diverged if its loss or its weights are no longer finite (speech/divergence.py).
Training then stops, unless the trial's times are compared. A diverged trial takes no further
snapshots; its ensemble consists of the earlier ones. Without any, the trial has no accuracy.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader

from speech import accelerator, corpora, page_cache, sgdr, snapshots
from speech.augment import mixup_weight, random_stream
from speech.calibration.speed import probe_speed
from speech.config import Trial
from speech.continuation import Continuation, Progress
from speech.dataset import ClipDataset
from speech.divergence import Divergence, check_inputs, check_validation, find_divergence
from speech.end_record import end_record
from speech.epoch import Accelerator, EpochResult, Record, StepFunction, run_epoch
from speech.fetches import FetchLog
from speech.learner import Learner, make_learner
from speech.loading import choose_fetch, make_loader
from speech.rank_records import combine_ranks
from speech.ranks import Member, Ranks, single_rank
from speech.setup_record import prediction_inputs, setup_record
from speech.simulated_accelerator import SimulatedAccelerator
from speech.timing import Gauge, watch_batches

MIXUP_STREAM = 3  # mixup draws from (seed, epoch, step, 3), separate from every clip's stream


def fit(trial: Trial, emit: Callable[[Record], None], gauge: Gauge | None = None) -> None:
    """Trains one trial to the end of its schedule, and passes its records to `emit`.

    Every error is raised; the caller records it. `gauge` receives the trial's progress.
    """
    gauge = gauge or Gauge()
    with tempfile.TemporaryDirectory(prefix="trial-") as scratch:
        if trial.config.device.ranks == 1:
            _lead(trial, emit, gauge, Path(scratch), None)
            return
        ranks = Ranks(
            trial.config.device.ranks,
            Path(scratch),
            lambda member, epochs, send: _follow(trial, gauge, member, epochs, send),
        )
        emit = ranks.watch(emit)
        try:
            _lead(trial, emit, gauge, Path(scratch), ranks)
        except BaseException:
            ranks.emit_failure(emit)
            raise
        ranks.end()


def _lead(
    trial: Trial,
    emit: Callable[[Record], None],
    gauge: Gauge,
    scratch: Path,
    ranks: Ranks | None,
) -> None:
    """Runs rank 0, which is the whole trial without other `ranks`."""
    device, corpus = _prepare(trial)
    speed = probe_speed(trial, corpus) if trial.probe_speed else None
    if ranks:
        ranks.release()
    member = ranks.member if ranks else single_rank()
    training = _Training(trial, corpus, device, FetchLog(scratch / "log"), gauge, member)
    emit(training.begin() | ({"speed": speed.model_dump()} if speed else {}))
    for record in training.progress.records:
        emit(record | {"replayed": True})
    training.run_epochs(emit, ranks)
    emit(training.end())


def _follow(
    trial: Trial,
    gauge: Gauge,
    member: Member,
    epochs: Iterator[int],
    send: Callable[[Any], None],
) -> None:
    """Runs another rank than 0: trains the commanded epochs, and sends what was measured."""
    device, corpus = _prepare(trial)
    with tempfile.TemporaryDirectory(prefix="rank-") as scratch:
        log = FetchLog(Path(scratch, "log"))
        training = _Training(trial, corpus, device, log, gauge.of_rank(member.rank), member)
        for epoch in epochs:
            send(training.train(epoch))


def _prepare(trial: Trial) -> tuple[str, corpora.PreparedCorpus]:
    """Returns the device and the corpus of a trial."""
    device = accelerator.choose_device(trial.config.device)
    corpus = corpora.prepare_corpus(trial.config.corpus)
    corpora.check_unchanged(corpus, trial.fingerprint)
    return device, corpus


class _Training:
    """Holds the state of one rank of a trial between its epochs, and runs them."""

    def __init__(
        self,
        trial: Trial,
        corpus: corpora.PreparedCorpus,
        device: str,
        log: FetchLog,
        gauge: Gauge,
        member: Member,
    ):
        """Builds the loaders and the learner, and restores an interrupted attempt's progress."""
        self.trial, self.corpus, self.device = trial, corpus, device
        self.log, self.gauge, self.member = log, gauge, member
        torch.manual_seed(trial.seed)  # a probe of the speed has drawn from it
        torch.set_num_threads(max(trial.runtime.threads // self.member.count, 1))
        pinning = trial.config.loader.pin_memory and device == "cuda"
        self.loader, self.order = make_loader(
            trial.config, corpus, "training", trial.seed, pinning, log
        )
        self.order.rank = member.rank
        schedule = trial.config.sgdr
        self.cycle_steps = [epochs * len(self.loader) for epochs in schedule.cycles()]
        self.learning_rate = functools.partial(
            sgdr.learning_rate,
            cycle_steps=self.cycle_steps,
            lr=schedule.lr,
            lr_min=schedule.lr_min,
        )
        self.progress = Progress()
        self.divergence: Divergence | None = None
        self.learning = None if device == "simulated" else self._make_learning()
        self.accelerator: Accelerator
        if self.learning:
            self.accelerator = self.learning.learner
            self.run_step = _make_learning_step(
                trial, self.learning.learner, self.learning_rate, len(self.loader)
            )
        else:
            self.accelerator = simulated = SimulatedAccelerator(trial.config.device, self.member)
            self.run_step = lambda batch, epoch, step: simulated.run_step()

    def _make_learning(self) -> "_Learning":
        """Builds what a trial has that learns, and restores its progress if it continues."""
        trial, corpus, member = self.trial, self.corpus, self.member
        device = self.device
        if device == "cuda":
            device = f"cuda:{member.rank}"
            torch.cuda.set_device(member.rank)
        learner = make_learner(trial, corpus, device)
        validation, _ = make_loader(trial.config, corpus, "validation", trial.seed)
        continuation = None
        if trial.continues:
            continuation = Continuation(trial, corpus, self.device, learner)
            self.progress = continuation.restore(member.rank)
        if member.count > 1:
            learner.join_ranks(member)
        return _Learning(learner, validation, continuation)

    def begin(self) -> Record:
        """Announces the size of a batch, and returns the setup record."""
        setup = setup_record(self.trial, self.device, self.corpus, len(self.loader))
        if self.learning:
            setup |= prediction_inputs(self.trial, self.corpus)
        self.gauge.set_batch_bytes(setup["batch_bytes"])
        return setup | self.progress.origin()

    def run_epochs(self, emit: Callable[[Record], None], ranks: Ranks | None) -> None:
        """Runs the epochs that are not completed, with the other `ranks`, and emits their records.

        Ends early if the trial has diverged and its times are not compared.
        """
        began = time.perf_counter()
        for epoch in range(len(self.progress.epochs), self.trial.config.sgdr.epochs):
            metrics, raw, epoch_began = self._train_ranks(epoch, ranks)
            predicted = None
            if self.learning:
                predicted, more = self._validate(self.learning, epoch, metrics, raw)
                metrics |= more
            head = {
                "kind": "epoch",
                "epoch": epoch,
                "warmup": epoch < self.trial.warmup_epochs,
                "began_s": round(epoch_began - began, 6),
            }
            emit(self.progress.add_record(head | {"metrics": metrics} | raw))
            if self.divergence and not self.trial.timed:
                return
            cycle = sgdr.cycle_ending_at(self._last_step(epoch), self.cycle_steps)
            if self.learning and predicted and cycle is not None and not self.divergence:
                emit(self._take_snapshot(self.learning.learner, predicted, cycle, epoch))
                if self.learning.continuation:
                    self.learning.continuation.save(self.progress)

    def _last_step(self, epoch: int) -> int:
        """Returns the number of an epoch's last step, counted from the start of the trial."""
        return (epoch + 1) * len(self.loader) - 1

    def _train_ranks(self, epoch: int, ranks: Ranks | None) -> EpochResult:
        """Runs the timed part of an epoch on all ranks; returns what `run_epoch` returns."""
        if self.trial.config.corpus.cache == "cold":
            page_cache.drop(cast(ClipDataset, self.loader.dataset).files())
        if not ranks:
            return self.train(epoch)
        ranks.start_epoch(epoch)
        return combine_ranks([self.train(epoch), *ranks.collect()])

    def train(self, epoch: int) -> EpochResult:
        """Runs the timed part of an epoch on this rank; returns what `run_epoch` returns."""
        self.order.epoch = epoch
        return run_epoch(self.loader, self.run_step, epoch, self.accelerator, self.gauge, self.log)

    def _validate(
        self, learning: "_Learning", epoch: int, metrics: dict[str, float], raw: Record
    ) -> tuple["_Predicted", dict[str, float]]:
        """Predicts the validation split, and detects whether the trial has diverged.

        `metrics` and `raw` are those of the epoch that has just been trained. Returns the
        predictions and further metrics of the epoch. Raises BadClip if a clip causes values that
        are not finite.
        """
        trial, corpus, learner = self.trial, self.corpus, learning.learner
        if self.divergence is None and "first_not_finite" in raw:
            order = self.order.of_rank(raw.get("not_finite_rank", 0))
            check_inputs(trial, corpus, learner, order, raw["first_not_finite"])
        predicted, more = _predict(learner, learning.validation, self.gauge)
        if self.divergence is None:
            self.divergence = find_divergence(learner, metrics, epoch, predicted.scores)
            if self.divergence is None:
                check_validation(trial, corpus, learner, predicted.scores)
        return predicted, more | {"lr": self.learning_rate(self._last_step(epoch))}

    def _take_snapshot(
        self, learner: Learner, predicted: "_Predicted", cycle: int, epoch: int
    ) -> Record:
        """Adds the snapshot of a cycle to the ensemble, saves it, and returns its record."""
        progress = self.progress
        progress.ensemble = progress.ensemble or snapshots.Ensemble(predicted.labels)
        progress.ensemble.add(predicted.scores)
        folder = Path(self.trial.folder)
        return progress.add_record(_save_snapshot(learner, progress.ensemble, folder, cycle, epoch))

    def end(self) -> Record:
        """Returns the end record."""
        return end_record(
            self.trial,
            self.progress,
            self.divergence,
            self.learning is not None,
            self.corpus.account,
        )


class _Learning(NamedTuple):
    """Holds what a trial has that learns."""

    learner: Learner
    validation: DataLoader
    continuation: Continuation | None  # None if the trial never continues


class _Predicted(NamedTuple):
    """Holds the predictions of the validation split."""

    scores: torch.Tensor  # (N, K) probabilities
    labels: torch.Tensor  # (N,)


def _predict(
    learner: Learner, validation: DataLoader, gauge: Gauge
) -> tuple[_Predicted, dict[str, float]]:
    """Predicts the validation split; returns its predictions and the resulting metrics."""
    began = time.perf_counter()
    scores, labels, loss = learner.predict(
        watch_batches(validation, gauge, choose_fetch(validation))
    )
    accuracy = snapshots.accuracy(scores, labels)
    metrics = {"loss/validation": loss} | (
        {} if math.isnan(accuracy) else {"accuracy/validation": accuracy}
    )
    return _Predicted(scores, labels), metrics | {"time/eval_s": time.perf_counter() - began}


def _make_learning_step(
    trial: Trial, learner: Learner, learning_rate: Callable[[int], float], epoch_steps: int
) -> StepFunction:
    """Returns the step function that trains `learner` at the scheduled learning rate.

    `learning_rate` returns the rate of a step, counted from the start of the trial. With
    `sync_every_step` the function reads the loss, and so waits until the step has ended.
    """
    alpha, reads_loss = trial.config.augment.mixup, trial.config.device.sync_every_step

    def learn(batch: Any, epoch: int, step: int) -> torch.Tensor:
        lr = learning_rate(epoch * epoch_steps + step)
        mixup = (
            mixup_weight(alpha, random_stream(trial.seed, epoch, step, MIXUP_STREAM))
            if alpha
            else 1.0
        )
        loss = learner.learn(batch, lr, mixup)
        if reads_loss:
            loss.item()
        return loss

    return learn


def _save_snapshot(
    learner: Learner, ensemble: snapshots.Ensemble, folder: Path, cycle: int, epoch: int
) -> Record:
    """Saves the learner's weights as a snapshot, and returns the snapshot's record."""
    began = time.perf_counter()
    path = snapshots.save_snapshot(learner.model, folder, cycle)
    accuracies = {
        "snapshot/accuracy": ensemble.accuracies()[-1],
        "snapshot/ensemble_accuracy": snapshots.accuracy(ensemble.mean(), ensemble.labels),
    }
    metrics = {name: value for name, value in accuracies.items() if not math.isnan(value)} | {
        "time/snapshot_s": time.perf_counter() - began
    }
    disagreement = ensemble.disagreement()
    if disagreement is not None:
        metrics["snapshot/disagreement"] = disagreement
    head = {"kind": "snapshot", "cycle": cycle, "epoch": epoch, "file": path.name}
    return head | {"metrics": metrics, "disagreements": ensemble.disagreements()}
