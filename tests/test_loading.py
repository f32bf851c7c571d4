import numpy as np
import pytest
import torch

from speech import corpora
from speech.audio import read_clip
from speech.dataset import BatchRequest
from speech.features import Picture
from speech.images import picture_to_image, read_image
from speech.loading import EpochBatches, make_loader, prepare_forms
from speech.shapes import picture_shape

ALL_AUGMENTS = {"shift_ms": 50.0, "speed": 0.1, "noise": 0.5, "freq_mask": 4, "time_mask": 4}


def batches_of_two_epochs(config, seed: int = 1) -> list[torch.Tensor]:
    loader, order = make_loader(config, corpora.prepare_corpus(config.corpus), "training", seed)
    batches = []
    for order.epoch in range(2):
        batches += [tensor for batch in loader for tensor in batch]
    return batches


@pytest.mark.parametrize("workers", [2, 8])
def test_batches_are_bit_for_bit_the_same_at_any_number_of_workers(
    tone_trial, workers: int
) -> None:
    alone = batches_of_two_epochs(tone_trial(augment=ALL_AUGMENTS))
    shared = batches_of_two_epochs(
        tone_trial(augment=ALL_AUGMENTS, loader={"num_workers": workers})
    )
    assert len(alone) == 2 * 2 * 3  # tensors a batch, epochs, batches an epoch
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize(
    "keys", [{"start_method": "spawn"}, {"persistent_workers": False}, {"prefetch_factor": 4}]
)
def test_how_workers_run_changes_nothing_they_make(tone_trial, keys: dict) -> None:
    usual = batches_of_two_epochs(tone_trial(augment=ALL_AUGMENTS))
    other = batches_of_two_epochs(
        tone_trial(augment=ALL_AUGMENTS, loader={"num_workers": 1} | keys)
    )
    assert all(torch.equal(a, b) for a, b in zip(usual, other, strict=True))


def test_epochs_and_seeds_differ(tone_trial) -> None:
    config = tone_trial(augment=ALL_AUGMENTS)
    first, *_ = one = batches_of_two_epochs(config)
    assert not torch.equal(first, one[len(one) // 2])
    assert not torch.equal(first, batches_of_two_epochs(config, seed=2)[0])


def test_an_item_is_the_clips_normalised_picture_and_its_label(tone_trial) -> None:
    config = tone_trial()
    corpus = corpora.prepare_corpus(config.corpus)
    loader, _ = make_loader(config, corpus, "validation", 0)
    clip, [(picture, label)] = (
        corpus.split("validation")[1],
        loader.dataset.__getitems__(BatchRequest(epoch=0, step=0, clips=[1])),
    )
    waveforms = [
        torch.from_numpy(read_clip(corpus.root / c.path, 16_000)) for c in corpus.split("training")
    ]
    raw = Picture(config.features)
    # (C, M, all frames)
    training = torch.cat([raw(waveform[None])[0] for waveform in waveforms], dim=-1)
    expected = raw(torch.from_numpy(read_clip(corpus.root / clip.path, 16_000))[None])[0]
    expected = (expected - training.mean(-1, keepdim=True)) / training.std(
        -1, correction=0, keepdim=True
    )
    assert label == clip.label
    assert picture.shape == picture_shape(config)
    torch.testing.assert_close(picture, expected, atol=1e-3, rtol=1e-3)


def test_validation_clips_are_never_changed(tone_trial) -> None:
    changed, plain = tone_trial(augment=ALL_AUGMENTS), tone_trial()
    pictures = [
        next(iter(make_loader(c, corpora.prepare_corpus(c.corpus), "validation", 0)[0]))[0]
        for c in (changed, plain)
    ]
    assert torch.equal(*pictures)


def test_an_epoch_is_every_clip_once_but_for_an_incomplete_last_batch() -> None:
    batches = EpochBatches(clips=10, batch_size=4, seed=3)
    batches.epoch = 5
    requests = list(batches)
    clips = [clip for request in requests for clip in request.clips]
    assert len(batches) == 2
    assert [(request.epoch, request.step) for request in requests] == [(5, 0), (5, 1)]
    assert len(set(clips)) == 8
    assert list(batches) == requests, "the same epoch comes in the same order"
    batches.epoch = 6
    assert [clip for request in batches for clip in request.clips] != clips


def test_evaluation_reads_every_clip_in_order() -> None:
    assert [request.clips for request in EpochBatches(clips=5, batch_size=2, seed=None)] == [
        [0, 1],
        [2, 3],
        [4],
    ]


def test_images_hold_the_picture_up_to_8_bits(tmp_path) -> None:
    # no change of size, so no interpolation
    rows = torch.linspace(-3, 3, 224)[None, :, None].expand(1, 224, 224)
    path = tmp_path / "0.png"
    picture_to_image(rows).save(path)
    read = read_image(path)
    assert read.shape == (3, 224, 224)
    # low frequencies at the bottom
    torch.testing.assert_close(read, rows.flip(1).expand(3, -1, -1), atol=4 / 127.5, rtol=0)


def test_the_png_form_reads_pictures_written_once(tone_trial, capsys) -> None:
    config = tone_trial(loader={"format": "png", "num_workers": 1}, features={"n_mels": 24})
    corpus, said = corpora.prepare_corpus(config.corpus), []
    prepare_forms(config, corpus, said.append)
    prepare_forms(config, corpus, said.append)
    assert len(said) == 1, "the second call finds them"
    loader, _ = make_loader(config, corpus, "training", 0)
    pictures, labels = next(iter(loader))
    assert pictures.shape == (4, *picture_shape(config)) == (4, 3, 224, 224)
    wav = make_loader(tone_trial(), corpus, "training", 0)[0]
    assert torch.equal(labels, next(iter(wav))[1]), (
        "the order of an epoch does not depend on the form"
    )


def test_a_batch_larger_than_the_corpus_is_an_error_that_names_both(tone_trial) -> None:
    config = tone_trial(loader={"batch_size": 64})
    with pytest.raises(ValueError, match=r"batch_size 64 .* 12 training clips"):
        make_loader(config, corpora.prepare_corpus(config.corpus), "training", 0)


def test_noise_comes_from_the_training_stretch_alone(tone_trial) -> None:
    config = tone_trial(augment={"noise": 1.0})
    corpus = corpora.prepare_corpus(config.corpus)
    clips = make_loader(config, corpus, "training", 0)[0].dataset
    (path, start, length), *_ = corpus.noise
    noise = read_clip(corpus.root / path, length, start=start)
    for draw in range(20):
        piece = clips._read_noise(np.random.default_rng(draw), 16_000)
        matches = np.flatnonzero(noise[: length - 15_999] == piece[0])
        assert any(np.array_equal(noise[at : at + 16_000], piece) for at in matches)


def test_the_batches_of_all_ranks_are_those_of_one_process_with_batches_of_all() -> None:
    alone = EpochBatches(23, 6, seed=3)
    first = EpochBatches(23, 3, seed=3, ranks=2)
    together = [first, first.of_rank(1)]
    for epoch in range(3):
        for batches in (alone, *together):
            batches.epoch = epoch
        joined = [one.clips + other.clips for one, other in zip(*together, strict=True)]
        assert joined == [request.clips for request in alone]
    assert len(alone) == len(together[0]) == len(together[1]) == 3
    assert [request.clips for request in together[0].of_rank(1)] == [
        request.clips for request in together[1]
    ]
