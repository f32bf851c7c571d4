"""Checks the reading of clips against sines in closed form and against scipy's FFT resampler."""

import hashlib
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from speech.audio import (
    BadClip,
    check_clip,
    count_samples,
    pad_or_cut,
    read_clip,
    resample,
    to_int16,
)
from speech.corpus_config import SAMPLE_RATE

STEP = 1.01 / 32_768  # of 16 bits
INTERIOR = slice(400, -400)  # where the filter sees no end of the clip


def sine(frequency_hz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    ("depth", "tolerance"),
    [("PCM_U8", 0.01), ("PCM_16", 1e-3), ("PCM_24", 1e-3), ("PCM_32", 1e-3), ("FLOAT", 1e-3)],
)
def test_every_rate_and_depth_gives_the_same_sine(
    tmp_path: Path, rate: int, depth: str, tolerance: float
) -> None:
    soundfile.write(tmp_path / "a.wav", sine(440, rate), rate, subtype=depth)
    clip = read_clip(tmp_path / "a.wav", SAMPLE_RATE)
    assert (clip.dtype, clip.shape) == (np.float32, (SAMPLE_RATE,))
    assert np.abs(clip - sine(440, SAMPLE_RATE))[INTERIOR].max() < tolerance


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_are_averaged(tmp_path: Path, rate: int) -> None:
    soundfile.write(
        tmp_path / "a.wav",
        np.stack([sine(300, rate), sine(1_700, rate)], axis=1),
        rate,
        subtype="PCM_24",
    )
    expected = (sine(300, SAMPLE_RATE) + sine(1_700, SAMPLE_RATE)) / 2
    assert np.abs(read_clip(tmp_path / "a.wav", SAMPLE_RATE) - expected)[INTERIOR].max() < 1e-3


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_agrees_with_the_fft_on_band_limited_noise(rate: int) -> None:
    spectrum = np.zeros(rate // 2 + 1, complex)
    rng = np.random.default_rng(0)
    # 50 to 3000 Hz in one second
    spectrum[50:3_000] = rng.standard_normal(2_950) + 1j * rng.standard_normal(2_950)
    noise = np.fft.irfft(spectrum, rate)
    noise /= np.abs(noise).max()
    resampled = resample(noise, rate)
    assert np.abs(resampled - signal.resample(noise, SAMPLE_RATE))[INTERIOR].max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_filtered_out() -> None:
    assert np.abs(resample(sine(9_500, 44_100), 44_100))[INTERIOR].max() < 1e-3
    assert np.abs(resample(sine(6_500, 44_100), 44_100))[INTERIOR].max() == pytest.approx(
        0.5, rel=0.01
    )


@pytest.mark.parametrize(
    ("given", "wanted", "peak"), [(5, 9, 4), (9, 5, 2), (4, 7, 3), (7, 4, 2), (6, 6, 3)]
)
def test_fit_keeps_the_centre_in_the_centre(given: int, wanted: int, peak: int) -> None:
    waveform = np.zeros(given)
    waveform[given // 2] = 1
    fitted = pad_or_cut(waveform, wanted)
    assert len(fitted) == wanted
    assert fitted.sum() == 1
    assert fitted.argmax() == peak


@pytest.mark.parametrize(
    ("rate", "channels"), [(16_000, 1), (8_000, 1), (44_100, 2), (48_000, 1), (22_050, 2)]
)
@pytest.mark.parametrize("start", [0, 1, 4_321, 31_999])
def test_a_stretch_is_what_the_whole_file_holds_there(
    tmp_path: Path, rate: int, channels: int, start: int
) -> None:
    soundfile.write(
        tmp_path / "a.wav", np.random.default_rng(1).uniform(-0.5, 0.5, (3 * rate, channels)), rate
    )
    whole = read_clip(tmp_path / "a.wav", 3 * SAMPLE_RATE)
    assert count_samples(tmp_path / "a.wav") == 3 * SAMPLE_RATE
    assert np.allclose(
        read_clip(tmp_path / "a.wav", 16_000, start=start),
        whole[start : start + 16_000],
        atol=1.01 / 32_768,
    )  # a step of 16 bits


def test_a_stretch_past_the_end_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(440, 16_000), 16_000)
    with pytest.raises(BadClip, match=r"a\.wav.*16,001.*past.* 16,000"):
        read_clip(tmp_path / "a.wav", 16_000, start=1)
    with pytest.raises(BadClip, match=r"-1 to 99"):
        read_clip(tmp_path / "a.wav", 100, start=-1)


def test_check_returns_the_hash_of_the_bytes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(440, 16_000), 16_000)
    assert (
        check_clip(tmp_path / "a.wav").content
        == hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()
    )


def test_every_kind_of_bad_file_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    good, rng = tmp_path / "good.wav", np.random.default_rng(2)
    soundfile.write(good, rng.uniform(-1, 1, 1_000), 16_000)
    faults = {
        "empty": "0 bytes",
        "text": "can't be read",
        "no_samples": "no samples",
        "cut_off": "cut off",
        "nan": "not numbers",
        "gone": "No such",
    }
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text(
        "these are words, not sound, and more than a header's worth of them"
    )
    soundfile.write(tmp_path / "no_samples.wav", np.zeros(0), 16_000)
    (tmp_path / "cut_off.wav").write_bytes(good.read_bytes()[:1_000])
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    for name, what in faults.items():
        with pytest.raises(BadClip, match=what) as caught:
            check_clip(tmp_path / f"{name}.wav")
        assert str(caught.value).startswith(f"{tmp_path / name}.wav: ")
    for name in ("empty", "text", "no_samples", "gone"):
        with pytest.raises(BadClip):
            read_clip(tmp_path / f"{name}.wav", 16_000)


def wav_of_rate(path: Path, rate: int, samples: int = 2_000) -> Path:
    """Writes a valid file of 16-bit silence whose header states `rate`."""
    data = bytes(2 * samples)
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    path.write_bytes(
        struct.pack(
            "<4sI4s4sI16s4sI",
            b"RIFF",
            36 + len(data),
            b"WAVE",
            b"fmt ",
            16,
            form,
            b"data",
            len(data),
        )
        + data
    )
    return path


READERS = (
    check_clip,
    count_samples,
    lambda path: read_clip(path, 16_000),
    lambda path: read_clip(path, 1, start=0),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rate", [1, 999, 1_000_003, 99_999_989])
def test_a_rate_that_would_take_gigabytes_is_refused_with_what_is_legal(
    tmp_path: Path, reader, rate: int
) -> None:
    path = wav_of_rate(tmp_path / "a.wav", rate)
    assert soundfile.info(path).samplerate == rate
    with pytest.raises(
        BadClip,
        match=rf"^{path}: .*{rate:,}.*1,000 to 1,000,000 Hz",
    ):
        reader(path)


@pytest.mark.parametrize("rate", [1_000, 384_000, 1_000_000])
def test_rates_up_to_the_limits_are_read(tmp_path: Path, rate: int) -> None:
    path = wav_of_rate(tmp_path / "a.wav", rate)
    check_clip(path)
    assert count_samples(path) == math.ceil(2_000 * 16_000 / rate)
    assert len(read_clip(path, 16_000)) == 16_000


@pytest.mark.parametrize("reader", READERS)
def test_a_raw_file_is_named_with_what_it_lacks(tmp_path: Path, reader) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(4_000))
    with pytest.raises(BadClip, match=r"a\.raw: .*rate.*wav"):
        reader(tmp_path / "a.raw")


def test_a_bad_clip_survives_pickling_as_between_a_loader_worker_and_the_trial() -> None:
    assert str(pickle.loads(pickle.dumps(BadClip("a.wav: empty")))) == "a.wav: empty"


@pytest.mark.parametrize("peak", [10_000.0, 255.0, 2.0**31])
def test_floats_in_other_units_are_refused(tmp_path: Path, peak: float) -> None:
    soundfile.write(tmp_path / "a.wav", peak * 2 * sine(440, 16_000), 16_000, subtype="FLOAT")
    with pytest.raises(BadClip, match="out of range"):
        check_clip(tmp_path / "a.wav")


def test_a_little_beyond_full_scale_is_clipped_and_told_by_its_peak(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 2.4 * sine(440, 16_000), 16_000, subtype="FLOAT")
    assert check_clip(tmp_path / "a.wav").peak == pytest.approx(1.2, abs=1e-3)
    clip = read_clip(tmp_path / "a.wav", 16_000)
    assert (clip.min(), clip.max()) == (-1, 32_767 / 32_768)
    assert np.array_equal(clip, to_int16(clip) / np.float32(32_768)), "what the packed formats hold"


def test_copies_sound_alike_in_another_format_and_silence_is_known(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        soundfile.write(
            tmp_path / name, np.rint(30_000 * sine(440, 16_000)).astype(np.int16), 16_000
        )
    one, other = (check_clip(tmp_path / name) for name in ("a.wav", "a.flac"))
    assert one.sound == other.sound
    assert one.content != other.content
    soundfile.write(tmp_path / "b.wav", np.full(100, 1e-5), 16_000, subtype="FLOAT")
    assert check_clip(tmp_path / "b.wav").silent
    assert not one.silent


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(BadClip, match="not a file"):
        check_clip(tmp_path / "a.wav")
