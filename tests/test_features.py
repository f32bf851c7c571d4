import numpy as np
import pytest
import torch
import torchaudio

from speech.config import Features
from speech.features import LOG_FLOOR, Picture, normalised, save_atomically, training_statistics


def noise(samples: int, clips: int = 1) -> torch.Tensor:
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)) * 0.1


def test_constants_follow_from_rate_window_and_hop() -> None:
    features = Features(window_ms=25.0, hop_ms=10.0)
    assert (features.window_samples, features.hop_samples, features.fft_size, features.frames(16_000)) == (400, 160, 512, 101)


def test_shape_is_batch_kinds_rows_frames() -> None:
    features = Features(kinds=["spectrogram", "log_mel", "mfcc"], n_mels=40)
    assert Picture(features)(noise(16_000, clips=2)).shape == (2, 3, 40, features.frames(16_000))


def test_log_mel_is_the_log_of_mel_bands_computed_with_numpy() -> None:
    waveform = noise(4_000)
    picture = Picture(Features(n_mels=20))(waveform)[0, 0]
    padded = np.pad(waveform[0].numpy(), 256, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[start : start + 512] * window for start in range(0, len(padded) - 511, 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = torchaudio.functional.melscale_fbanks(257, 0.0, 8000.0, 20, 16_000).numpy()
    np.testing.assert_allclose(picture.numpy(), np.log(power @ bands + LOG_FLOOR).T, atol=2e-4)


def test_mfcc_is_torchaudios() -> None:
    waveform = noise(8_000)
    settings = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 24}
    oracle = torchaudio.transforms.MFCC(16_000, n_mfcc=24, log_mels=True, melkwargs=settings)
    torch.testing.assert_close(Picture(Features(kinds=["mfcc"], n_mels=24))(waveform)[:, 0], oracle(waveform), atol=1e-4, rtol=1e-4)


def test_a_tone_lights_the_spectrogram_row_of_its_frequency() -> None:
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(16_000) / 16_000)[None]
    rows = Picture(Features(kinds=["spectrogram"], n_mels=64))(tone)[0, 0].mean(dim=1)
    centres = 8000 / 65 * (1 + torch.arange(64))  # Hz: 64 triangles share 65 steps up to 8 kHz
    assert rows.argmax() == (centres - 2000).abs().argmin()


def test_statistics_make_the_training_split_normal(tmp_path) -> None:
    features, clips = Features(n_mels=16), list(noise(4_000, clips=5))
    picture = normalised(features, f"planted {tmp_path}", clips)
    rows = picture(torch.stack(clips)).transpose(0, 2).flatten(1)  # (M, everything else)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(dim=1, correction=0), torch.ones(16), atol=1e-4, rtol=0)


def test_statistics_are_computed_once_a_corpus(tmp_path) -> None:
    features = Features(n_mels=16)
    first = normalised(features, f"once {tmp_path}", noise(4_000, clips=3))
    again = normalised(features, f"once {tmp_path}", iter(()))  # reads nothing
    torch.testing.assert_close(first.mean, again.mean, rtol=0, atol=0)
    assert not torch.equal(first.mean, normalised(features, f"other {tmp_path}", 2 * noise(4_000, clips=3)).mean)


def test_a_silent_row_does_not_divide_by_zero() -> None:
    mean, deviation = training_statistics(Picture(Features(n_mels=16)), torch.zeros(2, 4_000))
    assert (deviation > 0).all()
    assert torch.isfinite(mean).all()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "weights.pt"
    save_atomically({"a": torch.ones(3)}, path)

    def fail(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"a": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))


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
