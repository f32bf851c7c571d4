"""The packed form's file: all clips of a corpus in one array of int16, written once and read by rows.

A wav file costs an open, a header and a decoder a clip; a row of a memory-mapped array costs a copy of its pages. Clips are stored as the
rest of the project hears them, at SAMPLE_RATE, mono and of one length, so that a row is exact where the source has 16 bits.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from speech.audio import BadClip
from speech.config import TrialConfig, cache_dir
from speech.corpora import PreparedCorpus
from speech.shapes import clip_samples

FULL_SCALE = 1 << 15  # int16 of an amplitude of 1


def packed_file(config: TrialConfig, corpus: PreparedCorpus) -> Path:
    """Where the rows of this corpus lie, in the order of its clips."""
    name = hashlib.sha256(f"{corpus.fingerprint} {clip_samples(config)}".encode()).hexdigest()[:16]
    return cache_dir() / "packed" / f"{name}.npy"


def write_packed(config: TrialConfig, corpus: PreparedCorpus, path: Path) -> None:
    """Reads every clip once, a clip at a time. The file is there whole or not at all, whenever the process stops. Raises BadClip."""
    samples = clip_samples(config)
    with written_once(path) as partial:
        if partial is None:
            return
        with partial.open("wb") as file:
            header = {"descr": "<i2", "fortran_order": False, "shape": (len(corpus.clips), samples)}
            np.lib.format.write_array_header_1_0(file, header)
            for clip in corpus.clips:
                file.write(to_int16(corpus.read(clip, samples)).tobytes())
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def written_once(target: Path) -> Iterator[Path | None]:
    """Where to write what is to be `target`, a file or a folder, while other processes wait; None: one of them has written it.

    It gets its name when it is whole. What a killed process left is removed by the next: it has one name, and nobody holds its lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file closes, or its process dies
        if target.exists():
            yield None
            return
        partial = target.with_name(f"{target.name}.partial")
        _remove(partial)
        try:
            yield partial
            partial.rename(target)
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_int16(waveforms: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] -> int16, to the nearest step; what was int16 before is so again, to the bit."""
    return np.rint(waveforms * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")


def read_rows(path: Path, rows: Sequence[int]) -> np.ndarray:
    """(B, S) int16: a copy of the clips' rows. Raises BadClip for a file that is missing, cut off or something else.

    The file is mapped for the moment alone, as mapped pages can't be dropped from the cache; it costs about a microsecond a clip.
    """
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # refuses a file that is shorter than its header promises
        if mapped.dtype != np.dtype("<i2") or mapped.ndim != 2:
            raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}, not a row of int16 a clip")
        return mapped[rows]
    except (OSError, ValueError, IndexError) as error:
        raise BadClip(f"{path}: the packed clips can't be read ({error}). Delete the file; the next launch writes it anew.") from None
