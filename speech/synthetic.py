"""Generates the embedded corpus: words spoken by eSpeak NG, offline and in seconds.

A speaker is an (accent, variant) pair. Speakers are disjoint between the splits, so validation
tests voices that training has never used. Every clip draws a rate, a pitch, a room, a noise and a
level. The constants below set their ranges, and thereby the difficulty of the corpus. The result
has the layout of Speech Commands, the official archive:

    <word>/<accent>+<variant>_nohash_<n>.wav   16 kHz, 16-bit, mono
    _background_noise_/{white,pink,babble}.wav
    validation_list.txt, testing_list.txt

On one machine, equal words, counts, seed and version of this file give equal bytes.
"""

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile

from speech.audio import pad_or_cut, resample
from speech.config import SAMPLE_RATE

RATE_WPM = (120, 260)  # words per minute in eSpeak's count; 175 is its normal rate
PITCH = (20, 80)  # eSpeak's scale around a voice's own pitch; 50 is normal
SNR_DB = (8.0, 25.0)  # power of the word relative to that of the room noise
# noise power falls with frequency to the minus this: 0 white, 1 pink, 2 brown
NOISE_SLOPE = (0.0, 2.0)
REVERB_S = (0.1, 0.5)  # time in which the room's echo decays by 60 dB
REVERB_DB = (-20.0, -3.0)  # energy of the echo relative to the direct sound
LEVEL_DB = (-36.0, -16.0)  # root mean square of the finished clip relative to full scale

# of the speakers, and of every word's clips; the rest is training
SHARES = {"validation": 0.15, "testing": 0.15}
NOISE_SECONDS = 30
BABBLE_VOICES = 8  # number of simultaneous voices
SEED = 0

# English accents of the bundled data, without en-shaw, which reads the Shavian alphabet.
ACCENTS = (
    "en",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-x-rp",
    "en-us",
    "en-us-nyc",
)

# Variants whose ten default words a nearest-neighbour classifier on MFCC separates from those of
# the other voices. Robots, whispers and demons are excluded. The voices that set `breath` (Alicia,
# f2, f3, f5, sandro, victor) are excluded too: eSpeak reads uninitialised memory for them, so they
# sound different in every process.
VARIANTS = (
    *("Andrea", "Annie", "anika", "aunty", "belinda", "f1", "f4", "grandma", "linda", "steph"),
    *(
        "Alex",
        "Denis",
        "Diogo",
        "Gene",
        "Mario",
        "Michael",
        "Mike",
        "Nguyen",
        "adam",
        "benjamin",
        "boris",
        "david",
        "ed",
        "edward",
    ),
    *(
        "grandpa",
        "gustave",
        "ian",
        "iven",
        "john",
        "m1",
        "m2",
        "m3",
        "m4",
        "m5",
        "m6",
        "m7",
        "m8",
        "marcelo",
        "max",
        "miguel",
        "mike2",
    ),
    *("pablo", "paul", "pedro", "quincy", "rob", "robert", "travis"),
)
# no speaker of a clip takes part in the babble
BABBLE_VARIANTS = ("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6")

# Spoken for the label unknown: words of the official archive.
OTHER_WORDS = (
    *(
        "backward",
        "bed",
        "bird",
        "cat",
        "dog",
        "eight",
        "five",
        "follow",
        "forward",
        "four",
        "happy",
    ),
    *("house", "marvin", "nine", "one", "seven", "six", "three", "tree", "two", "wow"),
)
BABBLE_WORDS = (
    "about",
    "because",
    "garden",
    "morning",
    "people",
    "really",
    "something",
    "summer",
    "table",
    "under",
    "water",
    "window",
)

# (voice, text, rate, pitch) -> float32 (S,) at SAMPLE_RATE
Speak = Callable[[str, str, int, int], np.ndarray]


class SynthesisError(RuntimeError):
    """eSpeak NG can't be loaded, or can't speak the requested words."""


def speak_corpus(folder: Path, clips: Mapping[str, int], seconds: float, seed: int = SEED) -> None:
    """Writes the corpus to `folder`, which must not exist: `clips[word]` clips of every word.

    A clip is `seconds` long. The corpus is spoken beside `folder` and renamed when complete, so an
    interrupted run never produces an incomplete corpus under that name. Raises SynthesisError when
    eSpeak can't load, when a word can't be a folder's name or is longer than a clip, or when a word
    gets fewer than three clips (one per split).
    """
    for word, count in clips.items():
        _check_word(word, count)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary,
        _open_espeak(seed) as speak,
    ):
        root = Path(temporary) / "corpus"
        lists: dict[str, list[str]] = {split: [] for split in SHARES}
        for word, count in sorted(clips.items()):
            for split, path in _speak_word(
                root, speak, word, count, round(seconds * SAMPLE_RATE), seed
            ):
                if split in lists:
                    lists[split].append(path)
        for split, paths in lists.items():
            (root / f"{split}_list.txt").write_text("".join(f"{path}\n" for path in sorted(paths)))
        _write_noises(root / "_background_noise_", speak, set(clips), seed)
        root.rename(folder)


def corpus_key(clips: Mapping[str, int], seconds: float, seed: int = SEED) -> str:
    """Returns the hex digits that name the corpus.

    They depend on the arguments, this file's text with its constants, and the version of eSpeak's
    package.
    """
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return hashlib.sha256(
        repr((sorted(clips.items()), seconds, seed, source, version("espeakng-loader"))).encode()
    ).hexdigest()[:16]


def speakers_by_split(seed: int = SEED) -> dict[str, list[str]]:
    """Returns split -> voices '<accent>+<variant>', shuffled by the seed; no voice is in two."""
    voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS]
    np.random.default_rng(seed).shuffle(voices)
    return _divide(voices)


def _divide(items: list[str]) -> dict[str, list[str]]:
    """Divides a list by SHARES: at least one item per held-out split, the rest for training."""
    dealt, begin = {}, 0
    for split, share in SHARES.items():
        count = max(1, round(share * len(items)))
        dealt[split] = items[begin : begin + count]
        begin += count
    return {"training": items[begin:], **dealt}


def _check_word(word: str, count: int) -> None:
    if (
        not word.strip()
        or word != word.strip()
        or word.startswith(("_", "."))
        or "/" in word
        or "\0" in word
    ):
        raise SynthesisError(
            f"the word {word!r} can't name a folder: no / in it, no _ or . before it, no space"
            " around it"
        )
    if count < 3:
        raise SynthesisError(
            f"{count} clips of {word!r} don't reach all three splits: raise corpus.clips to 3 a"
            " word or more"
        )


def _speak_word(
    root: Path, speak: Speak, word: str, count: int, samples: int, seed: int
) -> Iterator[tuple[str, str]]:
    """Writes `count` clips of a word and yields (split, path relative to root) for every clip."""
    (root / word).mkdir(parents=True)
    rng = np.random.default_rng([seed, *hashlib.sha256(word.encode()).digest()])
    reference = speak(ACCENTS[0], word, 175, 50)
    if not 0 < len(reference) <= samples:
        cause = (
            f"lasts {len(reference) / SAMPLE_RATE:.1f} s, a clip {samples / SAMPLE_RATE:g} s: raise"
            " corpus.seconds"
        )
        raise SynthesisError(
            f"the word {word!r}"
            f" {cause if len(reference) else 'makes no sound: eSpeak finds nothing to say in it'}"
        )
    speakers = speakers_by_split(seed)
    for split, clips in _divide([str(number) for number in range(count)]).items():
        order = rng.permutation(speakers[split])
        for number in range(len(clips)):
            voice = str(order[number % len(order)])
            path = f"{word}/{voice}_nohash_{number // len(order)}.wav"
            spoken = speak(
                voice,
                word,
                int(rng.integers(*RATE_WPM, endpoint=True)),
                int(rng.integers(*PITCH, endpoint=True)),
            )
            _write(root / path, _place_in_room(spoken, samples, rng))
            yield split, path


def _place_in_room(spoken: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Converts the dry word (S,) to a clip (samples,).

    It draws a position in the clip, an echo, a noise and a level.
    """
    from scipy.signal import fftconvolve

    power = np.mean(spoken**2)
    free = samples - len(spoken)
    dry = (
        pad_or_cut(spoken, samples)
        if free <= 0
        else np.pad(spoken, (shift := int(rng.integers(free, endpoint=True)), free - shift))
    )
    clip = fftconvolve(dry, _draw_impulse_response(rng))[:samples]
    clip += (
        _draw_coloured_noise(samples, rng.uniform(*NOISE_SLOPE), rng)
        * np.sqrt(power)
        * _gain(-rng.uniform(*SNR_DB))
    )
    return clip * (_gain(rng.uniform(*LEVEL_DB)) / np.sqrt(np.mean(clip**2)))


def _draw_impulse_response(rng: np.random.Generator) -> np.ndarray:
    """Draws the impulse response of a room.

    After the direct sound, noise decays by 60 dB in a time drawn from REVERB_S.
    """
    decay_s = rng.uniform(*REVERB_S)
    time_s = np.arange(int(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / decay_s)
    echo *= _gain(rng.uniform(*REVERB_DB)) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    return echo


def _draw_coloured_noise(samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Draws (samples,) noise of root mean square 1, with power falling as frequency to -`slope`."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    # flat below 50 Hz, since brown noise would otherwise be all rumble
    spectrum *= np.maximum(frequency, 50.0) ** (-slope / 2)
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


def _gain(decibel: float) -> float:
    return 10 ** (decibel / 20)


def _write_noises(folder: Path, speak: Speak, corpus_words: set[str], seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng([seed, 1])
    samples = NOISE_SECONDS * SAMPLE_RATE
    babble = np.zeros(samples)
    for _ in range(BABBLE_VOICES):
        waveforms = [
            _speak_babble_word(
                speak, [word for word in BABBLE_WORDS if word not in corpus_words], rng
            )
            for _ in range(2 * NOISE_SECONDS)
        ]
        babble += np.resize(np.concatenate(waveforms), samples)
    noises = {
        "white": _draw_coloured_noise(samples, 0, rng),
        "pink": _draw_coloured_noise(samples, 1, rng),
        "babble": babble / np.sqrt(np.mean(babble**2)),
    }
    for name, noise in noises.items():
        _write(folder / f"{name}.wav", noise * _gain(-20.0))


def _speak_babble_word(speak: Speak, words: list[str], rng: np.random.Generator) -> np.ndarray:
    """Speaks one word of the babble, followed by a pause."""
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(BABBLE_VARIANTS)}"
    spoken = speak(
        voice, str(rng.choice(words)), int(rng.integers(*RATE_WPM)), int(rng.integers(*PITCH))
    )
    return np.concatenate(
        [spoken / np.sqrt(np.mean(spoken**2)), np.zeros(int(rng.integers(SAMPLE_RATE // 4)))]
    )


def _write(path: Path, waveform: np.ndarray) -> None:
    soundfile.write(path, np.rint(np.clip(waveform, -1, 1) * 32767).astype(np.int16), SAMPLE_RATE)


# Values of espeak-ng/speak_lib.h.
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _RATE, _PITCH = 2, 0x8000, 1, 1, 3
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@contextmanager
def _open_espeak(seed: int) -> Iterator[Speak]:
    """Loads a private instance of eSpeak NG and yields the function that speaks.

    Its voices carry state from word to word, which espeak_Initialize does not reset. Therefore
    every corpus loads a private copy of the library (another inode is another instance) and seeds
    the C library's rand(), which the Klatt voices use. The copy lies in a temporary folder with a
    link to the data. The link also limits the data's path to the 160 characters that eSpeak can
    hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        library, rate_hz = _load_espeak(Path(folder))
        ctypes.CDLL(None).srand(seed)
        pieces: list[bytes] = []

        @_SYNTH_CALLBACK
        def on_samples(waveform: int | None, samples: int, _events: int | None) -> int:
            if waveform and samples > 0:
                pieces.append(ctypes.string_at(waveform, 2 * samples))
            return 0

        library.espeak_SetSynthCallback(on_samples)

        def speak(voice: str, text: str, rate: int, pitch: int) -> np.ndarray:
            pieces.clear()
            encoded = text.encode() + b"\0"
            failed = library.espeak_SetVoiceByName(voice.encode())
            library.espeak_SetParameter(_RATE, rate, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            if failed or library.espeak_Synth(
                encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _UTF8, None, None
            ):
                raise SynthesisError(f"eSpeak NG can't speak {text!r} with the voice {voice}")
            return _trim(
                resample(np.frombuffer(b"".join(pieces), "<i2").astype(np.float32) / 32768, rate_hz)
            )

        try:
            yield speak
        finally:
            library.espeak_Terminate()


def _load_espeak(folder: Path) -> tuple[ctypes.CDLL, int]:
    """Copies the library to `folder`, initialises it and returns it with its sample rate in Hz.

    Raises SynthesisError.
    """
    try:
        import espeakng_loader

        library_path = Path(espeakng_loader.get_library_path())
        shutil.copy(library_path, folder / library_path.name)
        os.symlink(espeakng_loader.get_data_path(), folder / "espeak-ng-data")
        library = ctypes.CDLL(str(folder / library_path.name))
    except (ImportError, OSError, RuntimeError) as error:
        raise SynthesisError(
            f"eSpeak NG can't be loaded ({error}), so the synthetic corpus can't be spoken. Run pip"
            " install espeakng-loader on Linux (x86-64 or arm64) or macOS, or name another corpus."
        ) from None
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), _DONT_EXIT)
    if rate_hz <= 0:
        raise SynthesisError(
            f"eSpeak NG finds no voices under {folder}: run pip install --force-reinstall"
            " espeakng-loader"
        )
    return library, rate_hz


def _trim(waveform: np.ndarray) -> np.ndarray:
    """Cuts the near-silence (40 dB under the peak) that eSpeak adds before and after a word.

    Returns (0,) where nothing else remains.
    """
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max(initial=0.0))
    return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform[:0]
