import math

import pytest
import torch

from speech.snapshots import Ensemble, accuracy, save_snapshot


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
    # means of the second column: .367 .3 .667 .7
    assert accuracy(ensemble.mean(), ensemble.labels) == 1.0


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
    path = save_snapshot(model, tmp_path, 2)
    weights = torch.load(path, weights_only=True)
    assert path.name == "snapshot-2.pt"
    assert weights["weight"].is_contiguous()
    assert torch.equal(weights["weight"], model.weight.detach())
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot-2.pt"], (
        "no partial file is left"
    )


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_snapshot_that_has_diverged_is_no_member_and_spoils_no_figure(
    at: int, value: float
) -> None:
    """Wherever it stands, all figures are those of the others; argmax alone would have it name the
    first label."""
    spoilt, sound = planted(), planted()
    spoilt.members.insert(at, torch.full((4, 2), value))
    spoilt.members[at][0] = torch.tensor([0.3, 0.7])  # one clip would do
    assert spoilt.finite() == [place != at for place in range(4)]
    assert torch.equal(spoilt.mean(), sound.mean())
    assert spoilt.confusion() == sound.confusion()
    assert spoilt.disagreement() == sound.disagreement()
    assert [each for each in spoilt.accuracies() if not math.isnan(each)] == sound.accuracies()
    assert math.isnan(spoilt.accuracies()[at])
    assert spoilt.disagreements().count(None) == (3 if at == 3 else 1)


def test_an_ensemble_of_none_has_no_figures() -> None:
    ensemble = Ensemble(torch.tensor([0, 1]), [torch.full((2, 2), math.nan)])
    assert math.isnan(accuracy(ensemble.mean(), ensemble.labels))
    assert ensemble.disagreement() is None
    with pytest.raises(ValueError, match="diverged"):
        ensemble.confusion()
