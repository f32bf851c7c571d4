import pytest
import torch

from speech.snapshots import Ensemble, accuracy, save


def planted() -> Ensemble:
    """Three members on four clips of two labels, 0 0 1 1. Votes: 0 1 1 1, 0 0 0 1 and 1 0 1 1."""
    ensemble = Ensemble(torch.tensor([0, 0, 1, 1]))
    for p in ([0.1, 0.6, 0.9, 0.8], [0.2, 0.1, 0.4, 0.7], [0.8, 0.2, 0.7, 0.6]):
        second = torch.tensor(p)
        ensemble.add(torch.stack([1 - second, second], dim=1))
    return ensemble


def test_members_alone_and_together() -> None:
    ensemble = planted()
    assert ensemble.accuracies() == [0.75, 0.75, 0.75]
    assert accuracy(ensemble.mean(), ensemble.labels) == 1.0  # means of the second column: .367 .3 .667 .7


def test_disagreement_is_the_mean_over_pairs() -> None:
    assert planted().disagreement() == pytest.approx((2 / 4 + 2 / 4 + 2 / 4) / 3)


def test_the_latest_member_is_compared_with_each_before_it() -> None:
    assert planted().disagreements() == pytest.approx([2 / 4, 2 / 4])
    assert Ensemble(torch.tensor([0]), [torch.tensor([[1.0, 0.0]])]).disagreements() == []


def test_a_single_member_has_no_disagreement() -> None:
    ensemble = Ensemble(torch.tensor([0]), [torch.tensor([[1.0, 0.0]])])
    assert ensemble.disagreement() is None


def test_confusion_counts_true_by_said() -> None:
    ensemble = Ensemble(torch.tensor([0, 0, 1, 2]), [torch.eye(3)[[0, 1, 1, 0]]])
    assert ensemble.confusion() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_saved_weights_are_contiguous_float32_and_load_without_code(tmp_path) -> None:
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    path = save(model, tmp_path, 2)
    weights = torch.load(path, weights_only=True)
    assert path.name == "snapshot-2.pt"
    assert weights["weight"].is_contiguous()
    assert torch.equal(weights["weight"], model.weight.detach())
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot-2.pt"], "no partial file is left"
