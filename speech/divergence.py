"""Detects that training has diverged: its loss or its weights are no longer finite.

The check runs after an epoch's clock has stopped. Weights that are not finite never recover, and
the same seed leads to the same result. A diverged trial is therefore not trained further, unless
its epoch times are needed. A picture that is not finite has the same effect, but is a defect of its
clip. The first batch with a non-finite loss is therefore checked again.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from speech.audio import BadClip
from speech.config import Trial
from speech.dataset import BatchRequest, ClipDataset
from speech.learner import Learner
from speech.loading import EpochBatches
from speech.prepared_corpus import PreparedCorpus

MEND = "lower sgdr.lr or optimizer.momentum"


class Divergence(NamedTuple):
    """Describes a divergence: its epoch and its cause."""

    epoch: int
    cause: str

    def __str__(self) -> str:
        return f"{self.cause} in epoch {self.epoch}"


def find_divergence(
    learner: Learner, metrics: dict[str, float], epoch: int, scores: torch.Tensor
) -> Divergence | None:
    """Checks the epoch that has just been trained; returns its divergence, or None.

    `scores` are the predictions on validation. They are not finite if the weights are not.
    """
    loss = torch.tensor(metrics["loss/training"])
    if not loss.isfinite():
        return Divergence(epoch, f"the training loss was {loss.item()}")
    if not torch.isfinite(scores).all() and not learner.has_finite_weights():
        return Divergence(epoch, "weights were not finite")
    return None


def check_inputs(
    trial: Trial, corpus: PreparedCorpus, learner: Learner, order: EpochBatches, step: int
) -> None:
    """Checks the pictures of a training step's batch.

    Raises BadClip if one of them is not finite, since the clip then causes the non-finite loss.
    """
    request = next(itertools.islice(order, step, None))
    _check_pictures(ClipDataset(trial.config, corpus, "training", trial.seed), request, learner)


def check_validation(
    trial: Trial, corpus: PreparedCorpus, learner: Learner, scores: torch.Tensor
) -> None:
    """Checks the pictures of validation clips whose predictions are not finite.

    Raises BadClip if one of the pictures is not finite.
    """
    rows = (~scores.isfinite().all(dim=1)).nonzero().flatten().tolist()
    clips = ClipDataset(trial.config, corpus, "validation", trial.seed)
    for first in range(0, len(rows), trial.config.loader.batch_size):
        _check_pictures(
            clips, BatchRequest(0, 0, rows[first : first + trial.config.loader.batch_size]), learner
        )


@torch.no_grad()
def _check_pictures(clips: ClipDataset, request: BatchRequest, learner: Learner) -> None:
    """Raises BadClip if a picture of the batch is not finite."""
    samples: Sequence[Any] = clips.__getitems__(request)
    pictures = torch.stack([sample[0] for sample in samples])
    if learner.picture:
        pictures = learner.picture(pictures.to(learner.device))
    bad_clips = [
        index
        for index, picture in zip(request.clips, pictures, strict=True)
        if not picture.isfinite().all()
    ]
    if bad_clips:
        path = clips.corpus.root / clips.clips[bad_clips[0]].path
        others = (
            f", as do those of {len(bad_clips) - 1} more clips of its batch"
            if len(bad_clips) > 1
            else ""
        )
        raise BadClip(
            f"{path}: its picture holds values that are not finite{others}. Repair or remove"
            " the clip"
        )
