"""The formats in which clips travel, held against each other, and reads that take time."""

import time

import numpy as np
import pytest
import torch

from speech import corpora
from speech.augment import apply_masks
from speech.config import RuntimeSettings, Trial
from speech.dataset import build_picture
from speech.features import LOG_FLOOR, Picture
from speech.fetches import FetchLog
from speech.learner import make_learner
from speech.loading import make_loader, prepare_forms
from speech.train import fit

ON_WAVEFORM = {"shift_ms": 50.0, "speed": 0.1, "noise": 0.5}
MASKS = {"freq_mask": 4, "time_mask": 4}


def batches_of(config, split: str = "training") -> list[list[torch.Tensor]]:
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, lambda line: None)
    loader, order = make_loader(config, corpus, split, 1)
    found = []
    for order.epoch in range(2):
        found += [list(batch) for batch in loader]
    return found


def waveforms_of(config, form: str) -> torch.Tensor:
    """(clips, samples) of an epoch, as its pictures are made of them."""
    config = config.model_copy(update={"loader": config.loader.model_copy(update={"format": form})})
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, lambda line: None)
    loader, _ = make_loader(config, corpus, "training", 1)
    loader.dataset.picture = None
    return torch.cat([waveforms for waveforms, _ in loader])


def pictures_of(config, split: str = "training") -> list[torch.Tensor]:
    """What the network is given, wherever the pictures are made."""
    if config.loader.format != "on_device":
        return [pictures for pictures, _ in batches_of(config, split)]
    make = build_picture(config, corpora.prepare_corpus(config.corpus))
    made = [(make(waveforms), masks) for waveforms, _, *masks in batches_of(config, split)]
    return [apply_masks(pictures, *masks) if masks else pictures for pictures, masks in made]


@pytest.mark.parametrize(
    "features", [{}, {"kinds": ["spectrogram", "log_mel", "mfcc"], "n_mels": 24}]
)
@pytest.mark.parametrize("augment", [{}, MASKS])
@pytest.mark.parametrize("form", ["packed", "on_device"])
def test_the_network_is_given_the_same_in_every_form_of_sound(
    tone_trial, form: str, augment: dict, features: dict
) -> None:
    for split in ("training", "validation"):
        wav, other = (
            pictures_of(
                tone_trial(loader={"format": each}, augment=augment, features=features), split
            )
            for each in ("wav", form)
        )
        assert len(wav) == len(other) == 2 * (3 if split == "training" else 2)
        for a, b in zip(wav, other, strict=True):
            torch.testing.assert_close(b, a, atol=1e-4, rtol=0)
    assert (
        not augment
        or (pictures_of(tone_trial(loader={"format": form}, augment=augment))[0] == 0).any()
    )


def test_changes_of_the_waveform_are_the_same_up_to_the_rounding_of_16_bits(tone_trial) -> None:
    """The planted tones carry no noise, so rounding is all there is in their quiet bands; loud ones
    agree."""
    wav = [batch[0] for batch in batches_of(tone_trial(augment=ON_WAVEFORM))]
    packed = [
        batch[0]
        for batch in batches_of(tone_trial(augment=ON_WAVEFORM, loader={"format": "packed"}))
    ]
    for a, b in zip(wav, packed, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=0)
    shipped = batches_of(tone_trial(augment=ON_WAVEFORM, loader={"format": "on_device"}))
    plain = batches_of(tone_trial(loader={"format": "on_device"}))
    assert shipped[0][0].dtype == torch.int16
    assert not torch.equal(shipped[0][0], plain[0][0])


@pytest.mark.parametrize(
    "snr_db", [(5.0, 30.0), (-25.0, -5.0)], ids=["usual noise", "noise so loud that it is clipped"]
)
def test_changed_waveforms_are_the_same_in_every_form_but_for_half_a_step_of_16_bits(
    tone_trial, snr_db: tuple[float, float]
) -> None:
    """And so are their pictures, but for what it can do: a band's root is a length, and changes by
    that of the rounding at most."""
    config = tone_trial(augment=ON_WAVEFORM | {"noise": 1.0, "noise_snr_db": snr_db})
    wav, packed, device = (waveforms_of(config, form) for form in ("wav", "packed", "on_device"))
    assert device.dtype == torch.int16
    assert torch.equal(wav, packed)
    rounding = device / 32_768 - wav
    assert rounding.abs().max() <= 0.5 / 32_768
    assert (wav.abs().max() >= 32_767 / 32_768) == (snr_db[0] < 0), "the loud ones reach full scale"
    make, raw = (
        build_picture(config, corpora.prepare_corpus(config.corpus)),
        Picture(config.features),
    )
    roots, change = (
        (raw(waveforms).exp() - LOG_FLOOR).clamp_min(0).sqrt() for waveforms in (wav, rounding)
    )
    ends = [
        ((root.square() + LOG_FLOOR).log() - make.mean) / make.deviation
        for root in ((roots - change).clamp_min(0), roots + change)
    ]
    for picture in (make(wav), make(device)):
        assert (ends[0] - 1e-4 <= picture).all()
        assert (picture <= ends[1] + 1e-4).all()
    assert (make(wav) - make(device)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        ("packed", {"num_workers": 2}),
        ("packed", {"num_workers": 1, "start_method": "spawn"}),
        ("on_device", {"num_workers": 2}),
        ("on_device", {"num_workers": 8}),
    ],
)
def test_batches_are_bit_for_bit_the_same_however_they_are_loaded(
    tone_trial, form: str, keys: dict
) -> None:
    alone = batches_of(tone_trial(augment=ON_WAVEFORM | MASKS, loader={"format": form}))
    shared = batches_of(tone_trial(augment=ON_WAVEFORM | MASKS, loader={"format": form} | keys))
    assert all(
        torch.equal(a, b)
        for one, other in zip(alone, shared, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_the_device_form_ships_the_samples_of_the_file(tone_trial) -> None:
    config = tone_trial(loader={"format": "on_device"})
    corpus = corpora.prepare_corpus(config.corpus)
    (waveforms, labels), *_ = batches_of(config, "validation")
    for waveform, label, clip in zip(waveforms, labels, corpus.split("validation"), strict=False):
        assert np.array_equal(waveform.numpy(), np.rint(corpus.read(clip, 16_000) * 32_768))
        assert label == clip.label


def test_a_learner_makes_the_pictures_of_the_device_form(tone_trial, tmp_path) -> None:
    scores = []
    for form in ("wav", "on_device"):
        config = tone_trial(loader={"format": form})
        corpus = corpora.prepare_corpus(config.corpus)
        torch.manual_seed(0)
        learner = make_learner(
            Trial(config=config, seed=1, runtime=RuntimeSettings(), folder=str(tmp_path)),
            corpus,
            "cpu",
        )
        scores.append(learner.predict(make_loader(config, corpus, "validation", 1)[0])[0])
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["wav", "png", "packed", "on_device"])
def test_every_read_waits_as_long_as_it_is_told(tone_trial, tmp_path, form: str) -> None:
    config = tone_trial(loader={"format": form}, corpus={"read_latency_s": 0.05})
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, print)
    log, began = FetchLog(tmp_path / "log"), time.perf_counter()
    for _ in make_loader(config, corpus, "training", 1, log=log)[0]:
        pass
    fetches = log.take(began)
    took = [end - begin for begin, end in zip(fetches["begin_s"], fetches["end_s"], strict=True)]
    assert all(4 * 0.05 <= seconds < 4 * 0.05 + 0.3 for seconds in took)
    assert all(seconds < 0.3 for seconds in fetches["cpu_s"]), "a wait is not work"


@pytest.mark.parametrize("form", ["wav", "png", "packed"])
def test_the_files_of_a_split_are_what_its_epoch_reads(tone_trial, form: str) -> None:
    config = tone_trial(loader={"format": form})
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, print)
    files = make_loader(config, corpus, "training", 1)[0].dataset.files()
    assert all(file.is_file() for file in files)
    assert len(set(files)) == len(files) == (1 if form == "packed" else 12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_same_pictures(tone_trial) -> None:
    config = tone_trial(
        loader={"format": "on_device"},
        features={"kinds": ["spectrogram", "log_mel", "mfcc"], "n_mels": 24},
    )
    make = build_picture(config, corpora.prepare_corpus(config.corpus))
    (waveforms, _), *_ = batches_of(config, "validation")
    torch.testing.assert_close(
        make.to("cuda")(waveforms.to("cuda")).cpu(), make.to("cpu")(waveforms), atol=1e-4, rtol=1e-4
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("form", ["wav", "packed", "on_device"])
def test_a_gpu_trains_on_every_form_and_keeps_its_own_axis_within_the_epoch(
    tone_trial, tmp_path, form: str
) -> None:
    config = tone_trial(
        device="cuda",
        loader={"format": form, "num_workers": 2, "pin_memory": True},
        sgdr={"epochs": 2},
        augment=MASKS,
    )
    prepare_forms(config, corpora.prepare_corpus(config.corpus), print)
    records: list[dict] = []
    fit(
        Trial(config=config, seed=1, runtime=RuntimeSettings(), folder=str(tmp_path)),
        records.append,
    )
    for epoch in (record for record in records if record["kind"] == "epoch"):
        assert len(epoch["busy"]["begin_s"]) == 3
        assert epoch["busy"]["begin_s"][0] > 0
        assert epoch["busy"]["end_s"][-1] < epoch["metrics"]["time/epoch_s"] * 1.01
