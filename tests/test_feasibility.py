"""Checks which trials are refused before training, against what torch itself refuses."""

import itertools
from dataclasses import replace

import pytest
import torch

from speech import corpora
from speech.audio import BadClip
from speech.feasibility import batch_norm_obstacle, find_obstacle
from speech.images import read_image
from speech.model import WeightsError, build_model
from speech.shapes import picture_shape
from speech.tasks import Infeasible, prepare
from speech.timing import Gauge


def test_a_batch_is_refused_where_torch_would(tone_trial) -> None:
    """0.77 s make 31 frames of 25 ms, 0.8 s make 33."""
    model, refused = build_model(2, 1, "none"), 0
    for batch_size, seconds, n_mels in itertools.product((1, 2), (0.3, 0.77, 0.8), (16, 32, 33)):
        config = tone_trial(
            loader={"batch_size": batch_size},
            corpus={"seconds": seconds},
            features={"n_mels": n_mels},
        )
        pictures = torch.randn(batch_size, *picture_shape(config))
        if why := batch_norm_obstacle(config):
            refused += 1
            assert why.startswith("loader.batch_size 1")
            with pytest.raises(ValueError, match="value per channel"):
                model(pictures)
        else:
            model(pictures)
    assert refused == 4


def test_each_obstacle_names_its_key(tone_trial, tmp_path) -> None:
    sound, short = tone_trial(), {"corpus": {"seconds": 0.3}, "loader": {"batch_size": 1}}
    corpus = replace(corpora.prepare_corpus(sound.corpus), noise=[])
    assert find_obstacle(sound, corpus, learns=True) is None
    found = {
        "loader.batch_size 99": tone_trial(loader={"batch_size": 99}),
        "loader.batch_size 1": tone_trial(**short),
        "model.weights": tone_trial(model={"weights": str(tmp_path / "absent.pt")}),
        "augment.noise 0.5": tone_trial(augment={"noise": 0.5}),
    }
    for key, config in found.items():
        assert find_obstacle(config, corpus, learns=True).startswith(key)
        if key.startswith("augment"):
            continue  # the planted corpus has recordings of noise
        with pytest.raises(Infeasible, match=key):
            prepare(config.model_dump(), lambda record: None, Gauge())
    assert find_obstacle(found["loader.batch_size 1"], corpus, learns=False) is None, (
        "the simulated device has no BatchNorm"
    )


def test_a_window_longer_than_its_clip_is_a_fault_of_the_file(tone_trial) -> None:
    tone_trial(corpus={"seconds": 0.13}, features={"window_ms": 200.0})
    with pytest.raises(
        ValueError,
        match=r"features.window_ms 200 .*corpus.seconds 0.1.* 0.129 ",
    ):
        tone_trial(corpus={"seconds": 0.1}, features={"window_ms": 200.0})


def test_weights_of_a_training_that_diverged_are_refused(tmp_path) -> None:
    weights = build_model(2, 1, "none").state_dict()
    weights["layer1.0.conv1.weight"][0] = torch.nan
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"model.weights: .*nan.pt .*layer1.0.conv1.weight"):
        build_model(2, 1, str(tmp_path / "nan.pt"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no picture"])
def test_a_picture_that_can_not_be_read_is_named(tmp_path, content: bytes) -> None:
    path = tmp_path / "training" / "0.png"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BadClip, match=str(path)):
        read_image(path)
    path.unlink()
    with pytest.raises(BadClip, match=str(path)):
        read_image(path)
