"""The embedded corpus: words spoken by eSpeak NG, in the layout of Speech Commands, made offline in seconds.

The one idea: a speaker is an (accent, variant) pair, and speakers are disjoint between the splits, so validation asks for voices that
training never heard. Every clip draws a rate, a pitch, a room, a noise and a level; the constants below say how far they range, and
with that how hard the corpus is. What comes out is a folder like the official archive's:

    <word>/<accent>+<variant>_nohash_<n>.wav   16 kHz, 16-bit, mono
    _background_noise_/{white,pink,babble}.wav
    validation_list.txt, testing_list.txt

The same words, counts, seed and version of this file give the same bytes on the same machine.
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

from speech.audio import fit, resample
from speech.config import SAMPLE_RATE

RATE_WPM = (120, 260)  # words a minute, as eSpeak counts them; 175 is its normal rate
PITCH = (20, 80)  # eSpeak's scale around a voice's own pitch; 50 is normal
SNR_DB = (8.0, 25.0)  # power of the word over power of the room noise
NOISE_SLOPE = (0.0, 2.0)  # noise power falls with frequency to the minus this: 0 white, 1 pink, 2 brown
REVERB_S = (0.1, 0.5)  # time in which the room's echo falls by 60 dB
REVERB_DB = (-20.0, -3.0)  # energy of the echo against the direct sound
LEVEL_DB = (-36.0, -16.0)  # root mean square of the finished clip against full scale

SHARES = {"validation": 0.15, "testing": 0.15}  # of the speakers, and of each word's clips; the rest is training
NOISE_SECONDS = 30
BABBLE_VOICES = 8  # speaking at once
SEED = 0

# English accents of the bundled data; en-shaw is left out, since it reads the Shavian alphabet.
ACCENTS = ("en", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc")

# Variants whose ten default words are told apart from the other voices' by nearest neighbours on MFCC. Robots, whispers and demons are
# left out, and so are the voices that set `breath` (Alicia, f2, f3, f5, sandro, victor): eSpeak reads memory it never wrote for
# them, and they sound different in every process.
VARIANTS = (
    *("Andrea", "Annie", "anika", "aunty", "belinda", "f1", "f4", "grandma", "linda", "steph"),
    *("Alex", "Denis", "Diogo", "Gene", "Mario", "Michael", "Mike", "Nguyen", "adam", "benjamin", "boris", "david", "ed", "edward"),
    *("grandpa", "gustave", "ian", "iven", "john", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "miguel", "mike2"),
    *("pablo", "paul", "pedro", "quincy", "rob", "robert", "travis"),
)
BABBLE_VARIANTS = ("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6")  # no speaker of a clip is heard in the babble

# Spoken for the label unknown: words of the official archive.
OTHER_WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward", "four", "happy"),
    *("house", "marvin", "nine", "one", "seven", "six", "three", "tree", "two", "wow"),
)
BABBLE_WORDS = ("about", "because", "garden", "morning", "people", "really", "something", "summer", "table", "under", "water", "window")

Say = Callable[[str, str, int, int], np.ndarray]  # (voice, text, rate, pitch) -> float32 (S,) at SAMPLE_RATE


class SynthesisError(RuntimeError):
    """eSpeak NG can't be loaded, or can't speak what it is asked to."""


def speak_corpus(folder: Path, clips: Mapping[str, int], seconds: float, seed: int = SEED) -> None:
    """Write the corpus to `folder`, which must not exist: `clips[word]` clips of each word, each `seconds` long.

    It is spoken beside `folder` and renamed when complete, so an interrupted run leaves nothing that looks finished. Raises
    SynthesisError when eSpeak can't load, a word can't be a folder's name or doesn't fit into a clip, or a word gets fewer than
    three clips (one a split).
    """
    for word, count in clips.items():
        _check_word(word, count)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished, _espeak(seed) as say:
        root = Path(unfinished) / "corpus"
        lists: dict[str, list[str]] = {split: [] for split in SHARES}
        for word, count in sorted(clips.items()):
            for split, path in _speak_word(root, say, word, count, round(seconds * SAMPLE_RATE), seed):
                if split in lists:
                    lists[split].append(path)
        for split, paths in lists.items():
            (root / f"{split}_list.txt").write_text("".join(f"{path}\n" for path in sorted(paths)))
        _write_noises(root / "_background_noise_", say, set(clips), seed)
        root.rename(folder)


def corpus_key(clips: Mapping[str, int], seconds: float, seed: int = SEED) -> str:
    """Hex digits that name the corpus: its arguments, this file's text (its constants too) and the version of eSpeak's package."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return hashlib.sha256(repr((sorted(clips.items()), seconds, seed, source, version("espeakng-loader"))).encode()).hexdigest()[:16]


def speakers_by_split(seed: int = SEED) -> dict[str, list[str]]:
    """training, validation and testing -> voices '<accent>+<variant>', shuffled by the seed; no voice is in two."""
    voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS]
    np.random.default_rng(seed).shuffle(voices)
    return _deal(voices)


def _deal(items: list[str]) -> dict[str, list[str]]:
    """Split a list by SHARES, at least one item each."""
    dealt, begin = {}, 0
    for split, share in SHARES.items():
        count = max(1, round(share * len(items)))
        dealt[split] = items[begin : begin + count]
        begin += count
    return {"training": items[begin:], **dealt}


def _check_word(word: str, count: int) -> None:
    if not word.strip() or word != word.strip() or word.startswith(("_", ".")) or "/" in word or "\0" in word:
        raise SynthesisError(f"the word {word!r} can't name a folder: no / in it, no _ or . before it, no space around it")
    if count < 3:
        raise SynthesisError(f"{count} clips of {word!r} don't reach all three splits: raise corpus.clips to 3 a word or more")


def _speak_word(root: Path, say: Say, word: str, count: int, samples: int, seed: int) -> Iterator[tuple[str, str]]:
    """Write `count` clips of a word; yields (split, path relative to root) of each."""
    (root / word).mkdir(parents=True)
    rng = np.random.default_rng([seed, *hashlib.sha256(word.encode()).digest()])
    natural = say(ACCENTS[0], word, 175, 50)
    if not 0 < len(natural) <= samples:
        lasts = f"lasts {len(natural) / SAMPLE_RATE:.1f} s, a clip {samples / SAMPLE_RATE:g} s: raise corpus.seconds"
        raise SynthesisError(f"the word {word!r} {lasts if len(natural) else 'makes no sound: eSpeak finds nothing to say in it'}")
    speakers = speakers_by_split(seed)
    for split, clips in _deal([str(number) for number in range(count)]).items():
        order = rng.permutation(speakers[split])
        for number in range(len(clips)):
            voice = str(order[number % len(order)])
            path = f"{word}/{voice}_nohash_{number // len(order)}.wav"
            spoken = say(voice, word, int(rng.integers(*RATE_WPM, endpoint=True)), int(rng.integers(*PITCH, endpoint=True)))
            _write(root / path, _in_a_room(spoken, samples, rng))
            yield split, path


def _in_a_room(spoken: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """(S,) the dry word -> float32 (samples,): echo, a random place in the clip, noise, level."""
    from scipy.signal import fftconvolve

    power = np.mean(spoken**2)
    free = samples - len(spoken)
    dry = fit(spoken, samples) if free <= 0 else np.pad(spoken, (shift := int(rng.integers(free, endpoint=True)), free - shift))
    clip = fftconvolve(dry, _room(rng))[:samples]
    clip += _coloured(samples, rng.uniform(*NOISE_SLOPE), rng) * np.sqrt(power) * _gain(-rng.uniform(*SNR_DB))
    return clip * (_gain(rng.uniform(*LEVEL_DB)) / np.sqrt(np.mean(clip**2)))


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response: the direct sound, then noise that decays by 60 dB in a time drawn from REVERB_S."""
    decay_s = rng.uniform(*REVERB_S)
    time_s = np.arange(int(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / decay_s)
    echo *= _gain(rng.uniform(*REVERB_DB)) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    return echo


def _coloured(samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """(samples,) noise of root mean square 1 whose power falls with frequency to the minus `slope`."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency, 50.0) ** (-slope / 2)  # flat below 50 Hz, or brown noise would be all rumble
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


def _gain(decibel: float) -> float:
    return 10 ** (decibel / 20)


def _write_noises(folder: Path, say: Say, spoken: set[str], seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng([seed, 1])
    samples = NOISE_SECONDS * SAMPLE_RATE
    babble = np.zeros(samples)
    for _ in range(BABBLE_VOICES):
        talk = [_talk(say, [word for word in BABBLE_WORDS if word not in spoken], rng) for _ in range(2 * NOISE_SECONDS)]
        babble += np.resize(np.concatenate(talk), samples)
    noises = {"white": _coloured(samples, 0, rng), "pink": _coloured(samples, 1, rng), "babble": babble / np.sqrt(np.mean(babble**2))}
    for name, noise in noises.items():
        _write(folder / f"{name}.wav", noise * _gain(-20.0))


def _talk(say: Say, words: list[str], rng: np.random.Generator) -> np.ndarray:
    """A word of the babble and the pause after it."""
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(BABBLE_VARIANTS)}"
    spoken = say(voice, str(rng.choice(words)), int(rng.integers(*RATE_WPM)), int(rng.integers(*PITCH)))
    return np.concatenate([spoken / np.sqrt(np.mean(spoken**2)), np.zeros(int(rng.integers(SAMPLE_RATE // 4)))])


def _write(path: Path, waveform: np.ndarray) -> None:
    soundfile.write(path, np.rint(np.clip(waveform, -1, 1) * 32767).astype(np.int16), SAMPLE_RATE)


# Values of espeak-ng/speak_lib.h.
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _RATE, _PITCH = 2, 0x8000, 1, 1, 3
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@contextmanager
def _espeak(seed: int) -> Iterator[Say]:
    """eSpeak NG in a state of its own: yields the function that speaks.

    Its voices carry state from word to word that espeak_Initialize does not reset, so each corpus loads a private copy of the library
    (another inode is another instance) and seeds the C library's rand(), which the Klatt voices use. The copy lies in the temporary folder
    with a link to the data, which also keeps the data's path under the 160 characters that eSpeak has room for.
    """
    with tempfile.TemporaryDirectory() as folder:
        library, rate_hz = _load_espeak(Path(folder))
        ctypes.CDLL(None).srand(seed)
        pieces: list[bytes] = []

        @_SYNTH_CALLBACK
        def keep(waveform: int | None, samples: int, _events: int | None) -> int:
            if waveform and samples > 0:
                pieces.append(ctypes.string_at(waveform, 2 * samples))
            return 0

        library.espeak_SetSynthCallback(keep)

        def say(voice: str, text: str, rate: int, pitch: int) -> np.ndarray:
            pieces.clear()
            encoded = text.encode() + b"\0"
            failed = library.espeak_SetVoiceByName(voice.encode())
            library.espeak_SetParameter(_RATE, rate, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            if failed or library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _UTF8, None, None):
                raise SynthesisError(f"eSpeak NG can't speak {text!r} with the voice {voice}")
            return _trim(resample(np.frombuffer(b"".join(pieces), "<i2").astype(np.float32) / 32768, rate_hz))

        try:
            yield say
        finally:
            library.espeak_Terminate()


def _load_espeak(folder: Path) -> tuple[ctypes.CDLL, int]:
    """The private copy of the library in `folder`, initialised, and its sample rate in Hz."""
    try:
        import espeakng_loader

        library_path = Path(espeakng_loader.get_library_path())
        shutil.copy(library_path, folder / library_path.name)
        os.symlink(espeakng_loader.get_data_path(), folder / "espeak-ng-data")
        library = ctypes.CDLL(str(folder / library_path.name))
    except (ImportError, OSError, RuntimeError) as error:
        raise SynthesisError(
            f"eSpeak NG can't be loaded ({error}), so the synthetic corpus can't be spoken. Run pip install espeakng-loader on "
            f"Linux (x86-64 or arm64) or macOS, or name another corpus."
        ) from None
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), _DONT_EXIT)
    if rate_hz <= 0:
        raise SynthesisError(f"eSpeak NG finds no voices under {folder}: run pip install --force-reinstall espeakng-loader")
    return library, rate_hz


def _trim(waveform: np.ndarray) -> np.ndarray:
    """Without the near-silence (40 dB under the peak) that eSpeak leaves before and after a word; (0,) where there is nothing else."""
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max(initial=0.0))
    return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform[:0]
