"""Snapshots at cycle ends, and their ensemble.

Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR 2017 (arXiv 1704.00109): the weights at the end of every cycle are
one member; the ensemble's probability is the plain mean of the members' softmax outputs (section 3). A member predicts at the moment
it is taken, so the ensemble needs no second pass. Files are written whole or not at all.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from speech.features import save_atomically
from speech.model import WeightsError, read_weights


def snapshot_path(folder: Path, cycle: int) -> Path:
    return folder / f"snapshot-{cycle}.pt"


def save(model: torch.nn.Module, folder: Path, cycle: int) -> Path:
    """Writes the weights of `model` after cycle `cycle` (from 0), atomically; float32 on the CPU, in the usual memory order."""
    path = snapshot_path(folder, cycle)
    weights = {key: value.detach().to("cpu", memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    save_atomically(weights, path)
    return path


def load(model: torch.nn.Module, folder: Path, cycle: int) -> None:
    """Gives `model` the weights that `save` wrote, executing no code from the file. Raises WeightsError where they aren't its own."""
    path = snapshot_path(folder, cycle)
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise WeightsError(f"{path} holds weights of another network than this trial's ({error}).") from error


@dataclass
class Ensemble:
    """The members' predictions on one split: each (N, K) probabilities, and the true labels (N,)."""

    labels: torch.Tensor
    members: list[torch.Tensor] = field(default_factory=list)

    def add(self, probabilities: torch.Tensor) -> None:
        self.members.append(probabilities)

    def mean(self) -> torch.Tensor:
        """(N, K): the plain average of the members' probabilities."""
        return torch.stack(self.members).mean(dim=0)

    def accuracies(self) -> list[float]:
        """Accuracy of every member alone, in the order of their cycles."""
        return [accuracy(member, self.labels) for member in self.members]

    def disagreement(self) -> float | None:
        """Share of clips on which two members name different labels, averaged over all pairs; None with a single member."""
        votes = [member.argmax(dim=1) for member in self.members]
        pairs = [(a != b).double().mean().item() for i, a in enumerate(votes) for b in votes[i + 1 :]]
        return sum(pairs) / len(pairs) if pairs else None

    def disagreements(self) -> list[float]:
        """Share of clips on which the latest member names another label than each one before it, in their order."""
        *before, latest = [member.argmax(dim=1) for member in self.members]
        return [(latest != vote).double().mean().item() for vote in before]

    def confusion(self) -> list[list[int]]:
        """K x K counts: row the true label, column the ensemble's."""
        kinds = self.mean().shape[1]
        cells = self.labels * kinds + self.mean().argmax(dim=1)
        return torch.bincount(cells, minlength=kinds * kinds).view(kinds, kinds).tolist()


def accuracy(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows (N, K) whose largest entry is at the label (N,)."""
    return (probabilities.argmax(dim=1) == labels).double().mean().item()
