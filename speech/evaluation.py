"""Evaluates a trial's finished ensemble on the test split, and predicts any batches with it.

No other module reads the test split.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from speech import accelerator, corpora, snapshots
from speech.config import Trial
from speech.learner import Learner, make_learner
from speech.loading import make_loader
from speech.model import WeightsError


def evaluate_test_split(trial: Trial, members: Sequence[int] | None = None) -> dict[str, float]:
    """Evaluates the snapshots in `trial.folder` on the testing split.

    `members` are the cycles whose snapshots form the ensemble; None means all. Returns `clips` (the
    size of the split), `accuracy` (of the last of these snapshots alone) and `ensemble_accuracy`.
    If known, `largest_label_fraction` is the share of the split's largest label. Raises
    WeightsError if the snapshots are unusable.
    """
    config = trial.config
    torch.set_num_threads(trial.runtime.threads)
    corpus = corpora.prepare_corpus(config.corpus)
    corpora.check_unchanged(corpus, trial.fingerprint)
    device = accelerator.choose_device(config.device)
    learner = make_learner(trial, corpus, device)
    loader, _ = make_loader(config, corpus, "testing", trial.seed)
    ensemble = build_ensemble(
        learner, Path(trial.folder), len(config.sgdr.cycles()), loader, members
    )
    accuracy = snapshots.accuracy(ensemble.mean(), ensemble.labels)
    clips = len(ensemble.labels)
    last = [value for value in ensemble.accuracies() if not math.isnan(value)][-1]
    figures = {"clips": clips, "accuracy": last, "ensemble_accuracy": accuracy}
    share = corpus.account.largest_fraction("testing")
    return figures if share is None else figures | {"largest_label_fraction": share}


def build_ensemble(
    learner: Learner,
    folder: Path,
    cycles: int,
    batches: Iterable[Sequence[torch.Tensor]],
    members: Sequence[int] | None = None,
) -> snapshots.Ensemble:
    """Predicts the batches with the snapshots in `folder`; returns the ensemble of the predictions.

    It iterates over the batches once per snapshot. `members` are the cycles of the snapshots to
    use; None means all. Raises WeightsError if a snapshot is unusable, if there is none, or if no
    snapshot's predictions are all finite.
    """
    predictions = []
    for cycle in range(cycles) if members is None else members:
        snapshots.load_snapshot(learner.model, folder, cycle)
        predictions.append(learner.predict(batches))
    if not predictions:
        raise WeightsError(
            f"{folder}: no snapshot is a member of the ensemble, as training diverged"
        )
    ensemble = snapshots.Ensemble(predictions[0][1], [scores for scores, _, _ in predictions])
    if not any(ensemble.finite()):
        raise WeightsError(
            f"{folder}: no snapshot's predictions are all finite numbers, as training diverged"
        )
    return ensemble
