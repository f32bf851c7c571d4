"""Holds a corpus that is ready for training: its clips, labels, noise and account."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speech.account import Account
from speech.audio import read_clip


@dataclass(frozen=True)
class Clip:
    """A clip of a corpus: a file, or a silence cut from a background noise."""

    path: str  # relative to the corpus's root
    label: int  # index into labels
    speaker: str
    split: str  # training, validation or testing
    start: int | None = None  # a silence cut's first sample, at SAMPLE_RATE; None: the whole file


class Stretch(NamedTuple):
    """A part of a background noise, in samples at SAMPLE_RATE."""

    path: str  # relative to the corpus's root
    start: int
    samples: int


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus after its files were checked, labelled and split."""

    root: Path
    labels: tuple[str, ...]  # words, then unknown, then silence
    clips: tuple[Clip, ...]  # by path, then start
    fingerprint: str  # SHA-256 of the content of clips and noise, in hex
    skipped: tuple[str, ...]  # '<path>: <fault>' of every file that on_bad_clip: skip excludes
    # training's share of _background_noise_, stretches of at least a clip's length
    noise: tuple[Stretch, ...]
    account: Account = field(default_factory=Account)

    def read(self, clip: Clip, samples: int) -> np.ndarray:
        """Reads a clip as (samples,) float32 with `speech.audio.read_clip`. Raises BadClip."""
        return read_clip(self.root / clip.path, samples, start=clip.start)

    def split(self, name: str) -> tuple[Clip, ...]:
        """Returns the clips of one split."""
        return tuple(clip for clip in self.clips if clip.split == name)
