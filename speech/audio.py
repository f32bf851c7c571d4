"""A wav file to the waveform the rest of the project works on: float32 (S,), mono, SAMPLE_RATE samples per second, exactly S long.

The one idea: a clip is read whole and fitted around its centre; a stretch of a long recording (background noise) is read alone, and
comes out as it would if the whole recording had been read and cut. Any depth and number of channels that libsndfile reads is legal, and
any rate in RATES. Files already at SAMPLE_RATE in mono cost a plain soundfile.read and nothing more, since this runs inside timed loaders.
"""

import hashlib
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from speech.config import SAMPLE_RATE

ZERO_CROSSINGS = 16  # half-length of the resampling filter, in periods of the lower rate: flat to 7 kHz, -65 dB from 9 kHz at 16 kHz
KAISER_BETA = 6.5
RATES = range(1_000, 1_000_001)  # of a file, in Hz: beyond, a damaged header would ask for a filter or a waveform of gigabytes
UNREADABLE = (soundfile.LibsndfileError, OSError, TypeError)  # the last: of a name that ends in .raw
_STREAMED = (0, 0xFFFFFFFF)  # sizes a RIFF header carries when its writer couldn't seek back to fill it in


class BadClip(ValueError):
    """A file that can't be used as audio. The message starts with its path and says what is wrong."""


def read_clip(path: str | Path, samples: int, start: int | None = None) -> np.ndarray:
    """float32 (samples,) of a file, mono (mean of the channels) at SAMPLE_RATE, full scale +-1.

    Without `start` the whole file is read; a shorter one is padded with zeros and a longer one cut, both centred. With `start`,
    counted in samples at SAMPLE_RATE, only that stretch is read. Raises BadClip for an unreadable or empty file, and for a stretch
    that reaches past the end.
    """
    if start is not None:
        return _read_stretch(path, samples, start)
    waveform, rate = _decode(path)
    if rate != SAMPLE_RATE:
        waveform = resample(waveform, rate)
    return fit(waveform, samples)


def fit(waveform: np.ndarray, samples: int) -> np.ndarray:
    """(S,) -> (samples,): padded with zeros or cut, equally at both ends (an odd sample goes to the end)."""
    missing = samples - len(waveform)
    if missing == 0:
        return waveform
    if missing > 0:
        return np.pad(waveform, (missing // 2, missing - missing // 2))
    return waveform[-missing // 2 :][:samples].copy()


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """(S,) at `rate` -> float32 (ceil(S * SAMPLE_RATE / rate),), low-pass filtered below the lower Nyquist frequency."""
    from scipy.signal import resample_poly

    up, down = _ratio(rate)
    return resample_poly(waveform.astype(np.float32, copy=False), up, down, window=_low_pass(max(up, down)))


def length(path: str | Path) -> int:
    """Samples at SAMPLE_RATE that the file holds, from its header alone. Raises BadClip."""
    try:
        info = soundfile.info(path)
    except UNREADABLE as error:
        raise BadClip(_unreadable(path, error)) from None
    _check_rate(path, info.samplerate)
    up, down = _ratio(info.samplerate)
    return math.ceil(info.frames * up / down)


def check_clip(path: str | Path) -> str:
    """SHA-256 of the file's bytes, after decoding all of it. Raises BadClip for whatever would fail, or pass for silence, later."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadClip(_unreadable(path, error)) from None
    if not content:
        raise BadClip(f"{path}: the file is empty (0 bytes)")
    waveform, _ = _decode(path)
    if content[:4] == b"RIFF":  # libsndfile reads a file that was cut off as a shorter one
        promised = int.from_bytes(content[4:8], "little")
        if promised not in _STREAMED and promised + 8 > len(content) + 1:  # some writers count a pad byte they don't write
            raise BadClip(f"{path}: cut off, its header promises {promised + 8:,} bytes and it has {len(content):,}")
    if not np.isfinite(waveform).all():
        raise BadClip(f"{path}: holds samples that are not numbers (NaN or infinity)")
    return hashlib.sha256(content).hexdigest()


def _decode(path: str | Path) -> tuple[np.ndarray, int]:
    try:
        waveform, rate = soundfile.read(path, dtype="float32")
    except UNREADABLE as error:
        raise BadClip(_unreadable(path, error)) from None
    _check_rate(path, rate)
    if len(waveform) == 0:
        raise BadClip(f"{path}: holds no samples")
    return (waveform if waveform.ndim == 1 else waveform.mean(axis=1)), rate


def _read_stretch(path: str | Path, samples: int, start: int) -> np.ndarray:
    """Read whole blocks (`down` samples of the file, `up` of the result) around the stretch, with a margin for the filter's ends."""
    try:
        with soundfile.SoundFile(path) as file:
            _check_rate(path, file.samplerate)
            up, down = _ratio(file.samplerate)
            if not 0 <= start <= start + samples <= math.ceil(file.frames * up / down):
                raise BadClip(f"{path}: samples {start:,} to {start + samples:,} reach past its {file.frames * up // down:,}")
            margin = 0 if up == down else math.ceil(ZERO_CROSSINGS / min(up, down)) + 1
            first = max(0, start // up - margin)
            last = math.ceil((start + samples) / up) + margin
            file.seek(first * down)
            waveform = file.read((last - first) * down, dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except UNREADABLE as error:
        raise BadClip(_unreadable(path, error)) from None
    if rate != SAMPLE_RATE:
        waveform = resample(waveform, rate)
    offset = start - first * up
    return waveform[offset : offset + samples]


def _ratio(rate: int) -> tuple[int, int]:
    """SAMPLE_RATE / rate in lowest terms (up, down)."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    return SAMPLE_RATE // divisor, rate // divisor


@lru_cache
def _low_pass(period: int) -> np.ndarray:
    """FIR taps at the common multiple of both rates; kept, since designing them costs more than a clip's filtering."""
    from scipy.signal import firwin

    return firwin(2 * ZERO_CROSSINGS * period + 1, 1 / period, window=("kaiser", KAISER_BETA)).astype(np.float32)


def _check_rate(path: str | Path, rate: int) -> None:
    if rate not in RATES:
        legal = f"{RATES[0]:,} to {RATES[-1]:,} Hz are legal"
        raise BadClip(f"{path}: its header says {rate:,} samples per second; {legal}. Resample it, or write it anew if the header is wrong")


def _unreadable(path: str | Path, error: soundfile.LibsndfileError | OSError | TypeError) -> str:
    if isinstance(error, TypeError):
        return f"{path}: can't be read as audio (a raw file doesn't say its rate and depth). Write it as a wav file, which does"
    if isinstance(error, soundfile.LibsndfileError):
        return f"{path}: can't be read as audio ({error.error_string.rstrip('.')})"
    return f"{path}: can't be opened ({error.strerror})"
