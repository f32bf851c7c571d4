"""Writes and reads the packed format's file: all clips of a corpus in one array of int16.

A wav file costs an open, a header and a decoder per clip; a row of a memory-mapped array costs a
copy of its pages. The array stores clips as the rest of the project uses them: at SAMPLE_RATE,
mono, of one length and on the grid of 16 bits. Therefore a row is exact.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speech.atomic_files import name_file_in_errors, write_once
from speech.audio import BadClip, to_int16
from speech.cache_folder import cache_dir
from speech.config import TrialConfig
from speech.prepared_corpus import PreparedCorpus
from speech.shapes import clip_samples


def packed_file(config: TrialConfig, corpus: PreparedCorpus) -> Path:
    """Returns the file with the rows of this corpus, in the order of its clips."""
    name = hashlib.sha256(f"{corpus.fingerprint} {clip_samples(config)}".encode()).hexdigest()[:16]
    return cache_dir() / "packed" / f"{name}.npy"


def write_packed(config: TrialConfig, corpus: PreparedCorpus, path: Path) -> None:
    """Reads every clip once, one at a time, and writes the packed file, unless it exists.

    The file appears complete or not at all, whenever the process stops. Raises BadClip.
    """
    samples = clip_samples(config)
    with write_once(path) as partial:
        if partial is None:
            return
        with name_file_in_errors(path), partial.open("wb") as file:
            header = {"descr": "<i2", "fortran_order": False, "shape": (len(corpus.clips), samples)}
            np.lib.format.write_array_header_1_0(file, header)
            for clip in corpus.clips:
                file.write(to_int16(corpus.read(clip, samples)).tobytes())
            file.flush()
            os.fsync(file.fileno())


def read_rows(path: Path, rows: Sequence[int]) -> np.ndarray:
    """Returns a copy of the clips' rows, (B, S) int16.

    Raises BadClip for a file that is missing, cut off or of another content. The file is mapped
    only for this call, since mapped pages can't be dropped from the cache; that costs about a
    microsecond per clip.
    """
    try:
        # refuses a file that is shorter than its header promises
        mapped = np.lib.format.open_memmap(path, mode="r")
        if mapped.dtype != np.dtype("<i2") or mapped.ndim != 2:
            raise ValueError(
                f"it holds {mapped.dtype} of shape {mapped.shape}, not one row of int16 per clip"
            )
        return mapped[rows]
    except (OSError, ValueError, IndexError) as error:
        raise BadClip(
            f"{path}: the packed clips can't be read ({error}). Delete the file; the next launch"
            " writes it anew."
        ) from None
