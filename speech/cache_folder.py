"""Locates the folder that stores corpora, pictures and statistics between sweeps."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns the path of the folder, which may not exist yet.

    It is $XDG_CACHE_HOME/speech-sweeps, by default under ~/.cache.
    """
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
        / "speech-sweeps"
    )
