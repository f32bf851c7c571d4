"""The test split, read by one trial's finished ensemble: the only place that opens it."""

from pathlib import Path

import torch

from speech import accelerator, corpora, snapshots
from speech.config import Trial
from speech.learner import make_learner
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
    ensemble = None
    for cycle in range(len(config.sgdr.cycles())):
        weights = torch.load(snapshots.snapshot_path(Path(trial.folder), cycle), map_location=learner.device, weights_only=True)
        learner.model.load_state_dict(weights)
        scores, labels, _ = learner.predict(loader)
        ensemble = ensemble or snapshots.Ensemble(labels)
        ensemble.add(scores)
    assert ensemble is not None  # a schedule has at least one cycle
    accuracy = snapshots.accuracy(ensemble.mean(), ensemble.labels)
    clips = len(ensemble.labels)
    return {"clips": clips, "correct": round(accuracy * clips), "accuracy": ensemble.accuracies()[-1], "ensemble_accuracy": accuracy}
