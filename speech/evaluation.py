"""What a trial's finished ensemble says: of the test split, which is opened nowhere else, or of any batches."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from speech import accelerator, corpora, snapshots
from speech.config import Trial
from speech.learner import Learner, make_learner
from speech.loading import make_loader


def read_test_split(trial: Trial) -> dict[str, float]:
    """Accuracy on the testing split of the last snapshot and of the ensemble of all snapshots in `trial.folder`, and its size.

    Returns clips, correct (by the ensemble), accuracy (the last snapshot alone) and ensemble_accuracy.
    """
    config = trial.config
    torch.set_num_threads(trial.pinned.threads)
    corpus = corpora.prepare(config.corpus)
    device = accelerator.choose(config.device)
    learner = make_learner(trial, corpus, device)
    loader, _ = make_loader(config, corpus, "testing", trial.seed)
    ensemble = heard(learner, Path(trial.folder), len(config.sgdr.cycles()), loader)
    accuracy = snapshots.accuracy(ensemble.mean(), ensemble.labels)
    clips = len(ensemble.labels)
    return {"clips": clips, "correct": round(accuracy * clips), "accuracy": ensemble.accuracies()[-1], "ensemble_accuracy": accuracy}


def heard(learner: Learner, folder: Path, cycles: int, batches: Iterable[Sequence[torch.Tensor]]) -> snapshots.Ensemble:
    """What each of the snapshots in `folder` says of the batches, which are gone through once for each. Raises WeightsError."""
    members = []
    for cycle in range(cycles):
        snapshots.load(learner.model, folder, cycle)
        members.append(learner.predict(batches))
    return snapshots.Ensemble(members[0][1], [scores for scores, _, _ in members])
