import pickle

import numpy as np
import pytest
import torch
import torchaudio

from speech.features import (
    LOG_FLOOR,
    NotFinite,
    Picture,
    prepare_picture,
    training_statistics,
)
from speech.features_config import Features

KINDS = ["spectrogram", "log_mel", "mfcc"]


def noise(samples: int, clips: int = 1) -> torch.Tensor:
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)) * 0.1


def with_statistics(features: Features) -> Picture:
    """Normalising, by statistics that are no corpus's."""
    picture = Picture(features)
    picture.mean.normal_(generator=torch.Generator().manual_seed(1))
    picture.deviation.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return picture


def test_constants_follow_from_rate_window_and_hop() -> None:
    features = Features(window_ms=25.0, hop_ms=10.0)
    assert (
        features.window_samples,
        features.hop_samples,
        features.fft_size,
        features.frames(16_000),
    ) == (400, 160, 512, 101)


def test_shape_is_batch_kinds_rows_frames() -> None:
    features = Features(kinds=KINDS, n_mels=40)
    assert Picture(features)(noise(16_000, clips=2)).shape == (2, 3, 40, features.frames(16_000))


def test_log_mel_is_the_log_of_mel_bands_computed_with_numpy() -> None:
    waveform = noise(4_000)
    picture = Picture(Features(n_mels=20))(waveform)[0, 0]
    padded = np.pad(waveform[0].numpy(), 256, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack(
        [padded[start : start + 512] * window for start in range(0, len(padded) - 511, 160)]
    )
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = torchaudio.functional.melscale_fbanks(257, 0.0, 8000.0, 20, 16_000).numpy()
    np.testing.assert_allclose(picture.numpy(), np.log(power @ bands + LOG_FLOOR).T, atol=2e-4)


def test_mfcc_is_torchaudios() -> None:
    waveform = noise(8_000)
    settings = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 24}
    oracle = torchaudio.transforms.MFCC(16_000, n_mfcc=24, log_mels=True, melkwargs=settings)
    torch.testing.assert_close(
        Picture(Features(kinds=["mfcc"], n_mels=24))(waveform)[:, 0],
        oracle(waveform),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("clips", [1, 27])  # one clip, and more than go through the stages together
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"window_ms": 20.0625, "hop_ms": 7.0625, "n_mels": 40},
        {"window_ms": 64.0, "n_mels": 128},
    ],
)
def test_every_kind_is_torchaudios_at_any_window_hop_and_number_of_clips(
    keys: dict, clips: int
) -> None:
    features, waveforms = Features(kinds=KINDS, **keys), noise(9_999, clips)
    sizes = {
        "n_fft": features.fft_size,
        "win_length": features.window_samples,
        "hop_length": features.hop_samples,
    }
    power = torchaudio.transforms.Spectrogram(**sizes)(waveforms)
    linear = torchaudio.functional.linear_fbanks(
        features.fft_size // 2 + 1, 0.0, 8000.0, features.n_mels, 16_000
    )
    mels = {**sizes, "n_mels": features.n_mels}
    oracle = [
        torch.log((power.mT @ linear).mT + LOG_FLOOR),
        torch.log(torchaudio.transforms.MelSpectrogram(16_000, **mels)(waveforms) + LOG_FLOOR),
        torchaudio.transforms.MFCC(16_000, n_mfcc=features.n_mels, log_mels=True, melkwargs=mels)(
            waveforms
        ),
    ]
    torch.testing.assert_close(
        Picture(features)(waveforms), torch.stack(oracle, dim=1), atol=1e-4, rtol=1e-4
    )


def test_statistics_act_on_rows() -> None:
    features, waveforms = Features(kinds=KINDS, n_mels=16), noise(4_000, clips=6)
    picture = with_statistics(features)
    expected = (Picture(features)(waveforms) - picture.mean) / picture.deviation
    torch.testing.assert_close(picture(waveforms), expected, atol=1e-5, rtol=1e-5)


def test_int16_and_the_floats_it_decodes_to_give_the_same_bits() -> None:
    samples = (noise(16_000, clips=9) * 32768).to(torch.int16)
    picture = with_statistics(Features(kinds=KINDS))
    assert torch.equal(picture(samples), picture(samples.float() / 32768))


def test_a_batch_gives_the_same_bits_again_at_any_number_of_threads() -> None:
    picture, waveforms, threads = (
        with_statistics(Features(kinds=KINDS)),
        noise(16_000, clips=9),
        torch.get_num_threads(),
    )
    pictures = []
    try:
        for count in (1, 2, 1, 3):
            torch.set_num_threads(count)
            pictures.append(picture(waveforms))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(pictures[0], again) for again in pictures[1:])


def test_a_clip_is_the_same_alone_and_in_a_batch() -> None:
    picture, waveforms = with_statistics(Features(kinds=KINDS)), noise(16_000, clips=9)
    alone = torch.cat([picture(waveform[None]) for waveform in waveforms])
    torch.testing.assert_close(picture(waveforms), alone, atol=1e-5, rtol=1e-5)


def test_a_copy_makes_the_same_and_takes_along_its_buffers_alone() -> None:
    picture, waveforms = with_statistics(Features(kinds=KINDS, n_mels=16)), noise(4_000, clips=2)
    fresh = len(pickle.dumps(picture))
    pictures = picture(waveforms)
    sent = pickle.dumps(picture)
    assert len(sent) == fresh
    assert torch.equal(pickle.loads(sent)(waveforms), pictures)


def test_autocast_rounds_nothing() -> None:
    picture, waveforms = with_statistics(Features(kinds=KINDS)), noise(16_000, clips=2)
    expected = picture(waveforms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(picture(waveforms), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_same_pictures() -> None:
    picture, samples = (
        with_statistics(Features(kinds=KINDS)),
        (noise(16_000, clips=64) * 32768).to(torch.int16),
    )
    expected = picture(samples)
    picture = picture.to("cuda")
    torch.testing.assert_close(picture(samples.to("cuda")).cpu(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(picture.cpu()(samples), expected, atol=0, rtol=0)


def test_a_tone_lights_the_spectrogram_row_of_its_frequency() -> None:
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(16_000) / 16_000)[None]
    rows = Picture(Features(kinds=["spectrogram"], n_mels=64))(tone)[0, 0].mean(dim=1)
    centres = 8000 / 65 * (1 + torch.arange(64))  # Hz: 64 triangles share 65 steps up to 8 kHz
    assert rows.argmax() == (centres - 2000).abs().argmin()


def test_statistics_make_the_training_split_normal(tmp_path) -> None:
    features, clips = Features(n_mels=16), list(noise(4_000, clips=5))
    picture = prepare_picture(features, f"planted {tmp_path}", clips)
    rows = picture(torch.stack(clips)).transpose(0, 2).flatten(1)  # (M, everything else)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(dim=1, correction=0), torch.ones(16), atol=1e-4, rtol=0)


def test_statistics_are_computed_once_a_corpus(tmp_path) -> None:
    features = Features(n_mels=16)
    first = prepare_picture(features, f"once {tmp_path}", noise(4_000, clips=3))
    again = prepare_picture(features, f"once {tmp_path}", iter(()))  # reads nothing
    torch.testing.assert_close(first.mean, again.mean, rtol=0, atol=0)
    assert not torch.equal(
        first.mean, prepare_picture(features, f"other {tmp_path}", 2 * noise(4_000, clips=3)).mean
    )


def test_a_silent_row_does_not_divide_by_zero() -> None:
    mean, deviation = training_statistics(Picture(Features(n_mels=16)), torch.zeros(2, 4_000))
    assert (deviation > 0).all()
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hop_ms": 10.01}, "not a whole number of samples"),
        ({"hop_ms": 30.0}, "skips samples"),
        ({"window_ms": 5.0, "hop_ms": 5.0}, "at most 32 bands"),
        ({"kinds": ["mfcc", "mfcc"]}, "twice"),
    ],
)
def test_settings_that_can_not_work_are_faults(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(**keys)


def test_a_clip_whose_power_is_beyond_a_float_is_named_and_leaves_no_statistics(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    features = Features(n_mels=16)
    clips = [torch.randn(16_000), torch.randn(16_000) * 1e25]
    with pytest.raises(NotFinite) as told:
        prepare_picture(features, "planted", iter(clips))
    assert told.value.index == 1
    assert not list(tmp_path.rglob("*.pt"))
    made = prepare_picture(features, "planted", iter(clips[:1]))
    (kept,) = tmp_path.rglob("*.pt")
    for broken in (b"torn", None):
        if broken is None:
            torch.save({"mean": made.mean, "deviation": made.deviation * torch.nan}, kept)
        else:
            kept.write_bytes(broken)
        again = prepare_picture(features, "planted", iter(clips[:1]))
        assert torch.equal(again.deviation, made.deviation)
