"""Reads sound files as float32 (S,): mono, SAMPLE_RATE samples per second, exactly S long.

There is one reader for the corpus check, for training and for predictions. Its samples lie between
-1 and 1 on the grid of 16 bits, as every format holds them. A clip is read whole, then padded or
cut around its centre. A stretch of a long recording (background noise) is read alone, and equals
the same stretch of the whole recording.

Any format, depth and number of channels that libsndfile reads is legal, whatever the file's name,
and any rate in LEGAL_RATES. Wav files are judged by their content (speech/truncated_sound.py). Mono
files of 16 bits at SAMPLE_RATE cost a plain soundfile.read and nothing more, since timed loaders
run this code.
"""

import hashlib
import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speech.corpus_config import SAMPLE_RATE
from speech.truncated_sound import DamagedFile, check_end, find_sound, is_canonical

# half-length of the resampling filter, in periods of the lower rate: flat to 7 kHz, -65 dB from 9
# kHz at 16 kHz
ZERO_CROSSINGS = 16
KAISER_BETA = 6.5
# in Hz: beyond, a damaged header would require a filter or a waveform of gigabytes
LEGAL_RATES = range(1_000, 1_000_001)
FULL_SCALE = 1 << 15  # the int16 value of amplitude 1
# highest legal peak of a float file, full scale 1: beyond, its samples are in other units, such as
# int16
MAX_PEAK = 8.0
INT16_SUBTYPES = ("PCM_16", "PCM_U8", "PCM_S8")  # sample types that 16 bits hold exactly
READ_ERRORS = (soundfile.LibsndfileError, OSError)
# libsndfile reports at least so many frames for a stream whose header lacks their number
UNKNOWN_FRAMES = 1 << 40
BLOCK_FRAMES = 1 << 16  # frames of such a stream per read


class BadClip(ValueError):
    """A file can't be used as audio. The message starts with its path and names the fault."""


class ClipCheck(NamedTuple):
    """The result of decoding a whole file."""

    content: str  # SHA-256 of the file's bytes, in hex
    # SHA-256 of the decoded samples and their rate: equal for the same recording in another file
    sound: str
    peak: float  # largest amplitude, full scale 1
    offset: float  # mean of the samples
    streamed: bool  # its writer never filled in its length

    @property
    def silent(self) -> bool:
        """Returns whether all samples are zero after rounding to 16 bits."""
        return self.peak <= 0.5 / FULL_SCALE


def read_clip(path: str | Path, samples: int, start: int | None = None) -> np.ndarray:
    """Reads a file as float32 (samples,): mono at SAMPLE_RATE, full scale +-1, on the 16-bit grid.

    Several channels are averaged. Without `start` the whole file is read; a shorter one is padded
    with zeros and a longer one cut, both centred. With `start`, counted in samples at SAMPLE_RATE,
    only that stretch is read. Raises BadClip for an unreadable or empty file, and for a stretch
    that reaches past the end.
    """
    if start is not None:
        return _read_stretch(path, samples, start)
    with _open_clip(path) as (file, _):
        waveform, exact, rate = (
            _read_all(path, file),
            file.channels == 1 and file.subtype in INT16_SUBTYPES,
            file.samplerate,
        )
    if rate != SAMPLE_RATE:
        waveform = resample(waveform, rate)
    elif exact:
        return pad_or_cut(waveform, samples)
    return pad_or_cut(_round_to_int16_grid(waveform), samples)


def pad_or_cut(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Pads (S,) with zeros, or cuts it, to (samples,), equally at both ends.

    An odd sample goes to the end.
    """
    missing = samples - len(waveform)
    if missing == 0:
        return waveform
    if missing > 0:
        return np.pad(waveform, (missing // 2, missing - missing // 2))
    return waveform[-missing // 2 :][:samples].copy()


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Converts (S,) at `rate` to float32 (ceil(S * SAMPLE_RATE / rate),).

    The waveform is low-pass filtered below the lower of both Nyquist frequencies.
    """
    from scipy.signal import resample_poly

    up, down = _resampling_ratio(rate)
    return resample_poly(
        waveform.astype(np.float32, copy=False), up, down, window=_design_low_pass(max(up, down))
    )


def count_samples(path: str | Path) -> int:
    """Returns the length of a file in samples at SAMPLE_RATE. Raises BadClip."""
    with _open_clip(path) as (file, _):
        up, down = _resampling_ratio(file.samplerate)
        return math.ceil(
            (file.frames if file.frames < UNKNOWN_FRAMES else len(_read_all(path, file)))
            * up
            / down
        )


def check_clip(path: str | Path) -> ClipCheck:
    """Decodes a whole file and returns a summary of its content.

    Raises BadClip for every fault that would fail later, or would pass for valid audio.
    """
    with _open_clip(path) as (file, streamed):
        waveform, rate, frames, container = (
            _read_all(path, file),
            file.samplerate,
            file.frames,
            file.format,
        )
    try:
        content = Path(path).read_bytes()
        check_end(content)
    except OSError as error:
        raise BadClip(_unreadable_message(path, error)) from None
    except DamagedFile as damage:
        raise BadClip(f"{path}: {damage}") from None
    # Without such a header the length of an MP3 file is an estimate
    length_known = (
        container not in ("MP3", "MPEG") or b"Xing" in content[:8192] or b"Info" in content[:8192]
    )
    if length_known and len(waveform) + 3_000 < 0.98 * frames < UNKNOWN_FRAMES:
        raise BadClip(
            f"{path}: cut off: its header states {frames:,} samples and the file has"
            f" {len(waveform):,}"
        )
    if not np.isfinite(waveform).all():
        raise BadClip(f"{path}: holds samples that are not numbers (NaN or infinity)")
    peak = float(np.abs(waveform).max())
    if peak > MAX_PEAK:
        raise BadClip(
            f"{path}: its samples are out of range: their peak is {peak:,.0f}, and full scale is 1."
            " Divide them by the full scale of their units (32,768 for int16), or write the file"
            " as 16-bit PCM"
        )
    sound = hashlib.sha256(f"{rate} ".encode() + to_int16(waveform).tobytes()).hexdigest()
    return ClipCheck(
        hashlib.sha256(content).hexdigest(), sound, peak, float(waveform.mean()), streamed
    )


def to_int16(waveforms: np.ndarray) -> np.ndarray:
    """Rounds float32 in [-1, 1] to int16.

    Samples that were decoded from int16 regain their exact values.
    """
    return np.rint(waveforms * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")


def _round_to_int16_grid(waveform: np.ndarray) -> np.ndarray:
    """Rounds to the values that int16 holds, so that all formats give the same samples."""
    return to_int16(waveform).astype(np.float32) / FULL_SCALE


@contextmanager
def _open_clip(path: str | Path) -> Iterator[tuple[soundfile.SoundFile, bool]]:
    """Opens a file and yields its SoundFile, and whether its header lacks the length.

    Every read error until the file is closed is raised as BadClip.
    """
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would block otherwise
        status, streamed = os.fstat(fd), False
        source: int | io.BytesIO = fd
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
            raise BadClip(f"{path}: can't be read as audio (it is a {kind}, not a file)")
        if not is_canonical(os.pread(fd, 44, 0), status.st_size):
            source, streamed = _choose_source(path, fd, status.st_size)
        with soundfile.SoundFile(source, closefd=False) as file:
            _check_rate(path, file.samplerate)
            if file.frames >= UNKNOWN_FRAMES:
                # soundfile seeks after every read, which fails past the end of such a file
                vars(file)["seekable"] = lambda: False
            yield file, streamed
    except DamagedFile as damage:
        raise BadClip(f"{path}: {damage}") from None
    except READ_ERRORS as error:
        raise BadClip(_unreadable_message(path, error)) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _choose_source(path: str | Path, fd: int, size: int) -> tuple[int | io.BytesIO, bool]:
    """Chooses what libsndfile reads of a file whose header isn't canonical.

    Returns the descriptor or the bytes of a repaired file, and whether the header lacks the length.
    Raises BadClip for an empty file, and DamagedFile for a wav file that is not whole.
    """
    if not size:
        raise BadClip(f"{path}: the file is empty (0 bytes)")

    def read(count: int, offset: int) -> bytes:
        return os.pread(fd, count, offset)

    wave = find_sound(read, size)
    return (
        (fd, False)
        if wave is None or wave.standard
        else (io.BytesIO(wave.with_valid_header(read)), wave.streamed)
    )


def _read_all(path: str | Path, file: soundfile.SoundFile) -> np.ndarray:
    """Reads a file as (S,) float32 at its own rate: the mean of its channels."""
    if file.seekable():
        waveform = file.read(dtype="float32")
    else:
        blocks = [file.read(BLOCK_FRAMES, dtype="float32")]
        while len(blocks[-1]):
            blocks.append(file.read(BLOCK_FRAMES, dtype="float32"))
        waveform = np.concatenate(blocks)
    if len(waveform) == 0:
        raise BadClip(f"{path}: holds no samples")
    return waveform if waveform.ndim == 1 else waveform.mean(axis=1)


def _read_stretch(path: str | Path, samples: int, start: int) -> np.ndarray:
    """Reads a stretch of a file, with a margin for the ends of the resampling filter.

    It reads whole blocks of `down` samples of the file, which give `up` samples of the result.
    """
    with _open_clip(path) as (file, _):
        up, down = _resampling_ratio(file.samplerate)
        if not 0 <= start <= start + samples <= math.ceil(file.frames * up / down):
            raise BadClip(
                f"{path}: samples {start:,} to {start + samples:,} reach past the end,"
                f" {file.frames * up // down:,}"
            )
        margin = 0 if up == down else math.ceil(ZERO_CROSSINGS / min(up, down)) + 1
        first = max(0, start // up - margin)
        last = math.ceil((start + samples) / up) + margin
        if file.seekable():
            file.seek(first * down)
            waveform = file.read((last - first) * down, dtype="float32", always_2d=True).mean(
                axis=1
            )
        else:
            waveform = _read_all(path, file)[first * down : last * down]
        rate = file.samplerate
    if rate != SAMPLE_RATE:
        waveform = resample(waveform, rate)
    offset = start - first * up
    return _round_to_int16_grid(waveform[offset : offset + samples])


def _resampling_ratio(rate: int) -> tuple[int, int]:
    """Returns SAMPLE_RATE / rate in lowest terms as (up, down)."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    return SAMPLE_RATE // divisor, rate // divisor


@lru_cache
def _design_low_pass(period: int) -> np.ndarray:
    """Returns the FIR taps at the common multiple of both rates.

    They are cached, since their design costs more than filtering a clip.
    """
    from scipy.signal import firwin

    return firwin(
        2 * ZERO_CROSSINGS * period + 1, 1 / period, window=("kaiser", KAISER_BETA)
    ).astype(np.float32)


def _check_rate(path: str | Path, rate: int) -> None:
    if rate not in LEGAL_RATES:
        legal = f"{LEGAL_RATES[0]:,} to {LEGAL_RATES[-1]:,} Hz are legal"
        raise BadClip(
            f"{path}: its header states {rate:,} samples per second; {legal}. Resample it, or"
            " correct the header if it is wrong"
        )


def _unreadable_message(path: str | Path, error: soundfile.LibsndfileError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{path}: can't be opened ({error.strerror})"
    if str(path).lower().endswith(".raw"):
        return (
            f"{path}: can't be read as audio (a raw file doesn't state its rate and depth)."
            " Convert it to a wav file"
        )
    reason = error.error_string.rstrip(".")
    return f"{path}: can't be read as audio ({reason or 'its data are damaged or cut off'})"
