"""Checks the spoken corpus: its layout, splits and sound, and that it is reproducible."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech import synthetic
from speech.synthetic import SynthesisError, speak_corpus, speakers_by_split

WORDS = {"yes": 20, "no": 20, "good morning": 20}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    speak_corpus(folder, WORDS, seconds=1.0)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_layout_is_that_of_speech_commands(spoken: Path) -> None:
    assert {path.name for path in spoken.iterdir()} == {
        *WORDS,
        "_background_noise_",
        "validation_list.txt",
        "testing_list.txt",
    }
    listed = [
        (spoken / f"{split}_list.txt").read_text().splitlines()
        for split in ("validation", "testing")
    ]
    for word, count in WORDS.items():
        assert len(list((spoken / word).glob("*_nohash_*.wav"))) == count
        assert [sum(line.startswith(f"{word}/") for line in lines) for lines in listed] == [3, 3]
    assert all((spoken / line).is_file() for lines in listed for line in lines)


def test_no_speaker_is_in_two_splits(spoken: Path) -> None:
    listed = {
        split: set((spoken / f"{split}_list.txt").read_text().splitlines())
        for split in ("validation", "testing")
    }
    paths = {
        path.relative_to(spoken).as_posix() for word in WORDS for path in (spoken / word).iterdir()
    }
    listed["training"] = paths - listed["validation"] - listed["testing"]
    heard = {
        split: {Path(path).name.split("_nohash_")[0] for path in paths}
        for split, paths in listed.items()
    }
    assert all(heard[a].isdisjoint(heard[b]) for a, b in combinations(heard, 2))
    assert all(heard[split] <= set(speakers) for split, speakers in speakers_by_split().items())


def test_speakers_are_divided_about_70_15_15() -> None:
    speakers = speakers_by_split()
    counts = {split: len(voices) for split, voices in speakers.items()}
    total = len(synthetic.ACCENTS) * len(synthetic.VARIANTS)
    assert sum(counts.values()) == len(set().union(*speakers.values())) == total
    assert counts["validation"] == counts["testing"] == round(0.15 * total)


def test_every_clip_is_a_second_of_16_bit_sound(spoken: Path) -> None:
    for path in spoken.glob("[!_]*/*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (
            16_000,
            16_000,
            1,
            "PCM_16",
        )
        level_db = 20 * np.log10(np.sqrt(np.mean(soundfile.read(path)[0] ** 2)))
        assert synthetic.LEVEL_DB[0] - 1 < level_db < synthetic.LEVEL_DB[1] + 1


def test_noises_have_the_spectra_of_their_names(spoken: Path) -> None:
    slopes = {}
    for name in ("white", "pink", "babble"):
        noise, rate = soundfile.read(spoken / "_background_noise_" / f"{name}.wav")
        assert (len(noise), rate) == (synthetic.NOISE_SECONDS * 16_000, 16_000)
        power = np.abs(np.fft.rfft(noise)) ** 2
        octaves = [
            power[(low * len(noise)) // rate : (2 * low * len(noise)) // rate].mean()
            for low in (125, 250, 500, 1_000, 2_000)
        ]
        slopes[name] = np.polyfit(range(5), 10 * np.log10(octaves), 1)[0]  # decibel an octave
    assert slopes["white"] == pytest.approx(0.0, abs=0.2)
    assert slopes["pink"] == pytest.approx(-3.01, abs=0.2)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(
    spoken: Path, tmp_path: Path
) -> None:
    speak_corpus(tmp_path / "again", WORDS, seconds=1.0)
    assert contents(tmp_path / "again") == contents(spoken)
    speak_corpus(tmp_path / "other", {"yes": 3}, seconds=1.0, seed=1)
    assert not contents(tmp_path / "other").items() & contents(spoken).items()


def test_every_voice_is_known_to_espeak_and_none_sounds_like_another() -> None:
    with synthetic._open_espeak(0) as say:
        accents = [
            say(accent, "going home tomorrow", 175, 50).tobytes() for accent in synthetic.ACCENTS
        ]
        plain = say("en", "stop", 175, 50).tobytes()  # what an unknown variant falls back to
        variants = [
            say(f"en+{variant}", "stop", 175, 50).tobytes() for variant in synthetic.VARIANTS
        ]
    assert len(set(accents)) == len(accents)
    assert len({plain, *variants}) == len(variants) + 1


def test_rate_changes_the_length_and_pitch_the_fundamental() -> None:
    def fundamental_hz(waveform: np.ndarray) -> float:
        correlation = np.correlate(waveform, waveform, "full")[len(waveform) :]
        return 16_000 / (np.argmax(correlation[40:250]) + 41)  # 64 to 400 Hz

    with synthetic._open_espeak(0) as say:
        slow, fast, low, high = (
            say("en", "no", rate, pitch)
            for rate, pitch in ((120, 50), (260, 50), (175, 10), (175, 90))
        )
    assert len(slow) > 1.3 * len(fast)
    assert fundamental_hz(high) > 1.2 * fundamental_hz(low)


def test_signal_to_noise_ratio_and_level_are_what_the_constants_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthetic, "SNR_DB", (6.0, 6.0))
    monkeypatch.setattr(synthetic, "LEVEL_DB", (-26.0, -26.0))
    monkeypatch.setattr(synthetic, "REVERB_DB", (-200.0, -200.0))
    monkeypatch.setattr(synthetic, "NOISE_SLOPE", (0.0, 0.0))
    # fills the clip, so it can be taken out of the spectrum
    tone = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    clip = synthetic._place_in_room(tone, 16_000, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(clip)) ** 2
    signal, noise = power[1_000], power.sum() - power[1_000]
    assert 10 * np.log10(signal / noise) == pytest.approx(6.0, abs=0.2)
    assert 20 * np.log10(np.sqrt(np.mean(clip**2))) == pytest.approx(-26.0, abs=0.01)


@pytest.mark.parametrize(
    ("clips", "seconds", "fault"),
    [
        ({"a/b": 5}, 1.0, "'a/b'.*folder"),
        ({"_x": 5}, 1.0, "'_x'.*folder"),
        ({"yes": 2}, 1.0, r"2 .*'yes'.*corpus\.clips to 3\b"),
        ({" ": 5}, 1.0, "' '.*folder"),
        ({"yes": 3, "a word that takes far longer than the clip": 3}, 1.0, r"corpus\.seconds"),
    ],
)
def test_what_cannot_be_spoken_is_named_and_nothing_is_left(
    tmp_path: Path, clips: dict[str, int], seconds: float, fault: str
) -> None:
    with pytest.raises(SynthesisError, match=fault):
        speak_corpus(tmp_path / "corpus", clips, seconds)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_does_not_load_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libespeak-ng.so").write_bytes(b"not a library")
    monkeypatch.setattr(
        "espeakng_loader.get_library_path", lambda: str(tmp_path / "libespeak-ng.so")
    )
    with pytest.raises(SynthesisError, match=r"libespeak-ng\.so.*pip install espeakng-loader"):
        speak_corpus(tmp_path / "made" / "corpus", {"yes": 3}, 1.0)
