"""Saves snapshots at cycle ends, and computes their ensemble.

The source is Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR 2017 (arXiv
1704.00109). The weights at the end of every cycle are one member. The ensemble's probability is the
plain mean of the members' softmax outputs (section 3). A member predicts at the moment it is taken,
and the ensemble needs no second pass. Files are written atomically.

A snapshot has diverged if its predictions are not all finite. It is excluded from the mean, and no
figure is computed from it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from speech.atomic_files import save_atomically
from speech.model import WeightsError, read_weights


def snapshot_path(folder: Path, cycle: int) -> Path:
    """Returns the file of the snapshot of cycle `cycle`, counted from 0."""
    return folder / f"snapshot-{cycle}.pt"


def save_snapshot(model: torch.nn.Module, folder: Path, cycle: int) -> Path:
    """Writes the weights of `model` after cycle `cycle` (from 0) atomically; returns the file.

    The file holds float32 tensors of the CPU in contiguous memory order.
    """
    path = snapshot_path(folder, cycle)
    weights = {
        key: value.detach().to("cpu", memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    save_atomically(weights, path)
    return path


def load_snapshot(model: torch.nn.Module, folder: Path, cycle: int) -> None:
    """Loads the weights that `save_snapshot` wrote into `model`.

    No code from the file is executed. Raises WeightsError if the file is unusable or
    holds the weights of another network.
    """
    path = snapshot_path(folder, cycle)
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise WeightsError(
            f"{path} holds weights of another network than this trial's ({error})."
        ) from error


@dataclass
class Ensemble:
    """Holds the predictions of all snapshots on one split.

    A prediction is an (N, K) tensor of probabilities; `labels` are the true labels (N,). Only
    snapshots with finite predictions count as members of the ensemble.
    """

    labels: torch.Tensor
    members: list[torch.Tensor] = field(default_factory=list)

    def add(self, probabilities: torch.Tensor) -> None:
        """Adds the predictions of the next snapshot."""
        self.members.append(probabilities)

    def finite(self) -> list[bool]:
        """Returns for every snapshot whether its predictions are all finite, in cycle order."""
        return [bool(torch.isfinite(member).all()) for member in self.members]

    def mean(self) -> torch.Tensor:
        """Returns the mean probabilities (N, K) of all snapshots with finite predictions.

        Without such a snapshot all values are NaN.
        """
        members = [
            member for member, finite in zip(self.members, self.finite(), strict=True) if finite
        ]
        return (
            torch.stack(members).mean(dim=0)
            if members
            else torch.full_like(self.members[0], math.nan)
        )

    def accuracies(self) -> list[float]:
        """Returns the accuracy of every snapshot alone, in cycle order; NaN if it has diverged."""
        return [accuracy(member, self.labels) for member in self.members]

    def disagreement(self) -> float | None:
        """Returns the share of clips for which two members predict different labels.

        It is the mean over all pairs of members; None without two members.
        """
        votes = [vote for vote in self._votes() if vote is not None]
        pairs = [
            (a != b).double().mean().item() for i, a in enumerate(votes) for b in votes[i + 1 :]
        ]
        return sum(pairs) / len(pairs) if pairs else None

    def disagreements(self) -> list[float | None]:
        """Returns the shares of clips for which the latest and an earlier snapshot differ in label.

        There is one share for every earlier snapshot, in cycle order. It is None if one of the two
        has diverged.
        """
        *before, latest = self._votes()
        return [
            None if vote is None or latest is None else (latest != vote).double().mean().item()
            for vote in before
        ]

    def _votes(self) -> list[torch.Tensor | None]:
        """Returns the labels (N,) that every snapshot predicts.

        The entry of a diverged snapshot is None, as argmax would return the first label for it.
        """
        return [
            member.argmax(dim=1) if finite else None
            for member, finite in zip(self.members, self.finite(), strict=True)
        ]

    def confusion(self) -> list[list[int]]:
        """Returns K x K counts: the row is the true label, the column the ensemble's label.

        Raises ValueError if the ensemble has no member.
        """
        mean = self.mean()
        if not torch.isfinite(mean).all():
            raise ValueError(
                "every snapshot has diverged: there is no ensemble, and so no confusion matrix"
            )
        kinds = mean.shape[1]
        cells = self.labels * kinds + mean.argmax(dim=1)
        return torch.bincount(cells, minlength=kinds * kinds).view(kinds, kinds).tolist()


def accuracy(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of rows (N, K) whose largest entry is at the label (N,).

    Returns NaN if an entry is not finite, because argmax would select a NaN.
    """
    if not torch.isfinite(probabilities).all():
        return math.nan
    return (probabilities.argmax(dim=1) == labels).double().mean().item()
