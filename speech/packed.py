"""The packed form's file: all clips of a corpus in one array of int16, written once and read by rows.

A wav file costs an open, a header and a decoder a clip; a row of a memory-mapped array costs a copy of its pages. Clips are stored as the
rest of the project hears them, at SAMPLE_RATE, mono and of one length, so that a row is exact where the source has 16 bits.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
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
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = clip_samples(config)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.stem}.", suffix=".partial", delete=False) as file:
        partial = Path(file.name)
        try:
            header = {"descr": "<i2", "fortran_order": False, "shape": (len(corpus.clips), samples)}
            np.lib.format.write_array_header_1_0(file, header)
            for clip in corpus.clips:
                file.write(to_int16(corpus.read(clip, samples)).tobytes())
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


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
