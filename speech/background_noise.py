"""Divides a corpus's background noise among the splits, and cuts clips of silence from it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from speech.audio import count_samples
from speech.listing import NOISE_FOLDER
from speech.prepared_corpus import Clip, Stretch
from speech.splits import SPLITS

# parts of every recording's duration
NOISE_SHARES = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "testing": (0.9, 1.0)}
# silence cuts start at least a tenth of a clip apart; closer ones count as copies
CUTS_PER_CLIP = 10


def divide_noise(root: Path, recordings: list[str], samples: int) -> dict[str, list[Stretch]]:
    """Returns split -> its share of every recording, without overlap.

    A stretch shorter than `samples`, the length of a clip, is not used.
    """
    stretches: dict[str, list[Stretch]] = {split: [] for split in NOISE_SHARES}
    for path in recordings:
        total = count_samples(root / path)
        for split, (begin, end) in NOISE_SHARES.items():
            stretch = Stretch(path, int(begin * total), int(end * total) - int(begin * total))
            if stretch.samples >= samples:
                stretches[split].append(stretch)
    return stretches


def cut_silence(
    stretches: Mapping[str, list[Stretch]], samples: int, count: int, label: int, faults: list[str]
) -> list[Clip]:
    """Returns `count` clips of silence per split, each of `samples` samples.

    A split whose recordings give fewer cuts gets none, and a fault is added.
    """
    clips = []
    for split in SPLITS:
        starts = [stretch.samples - samples + 1 for stretch in stretches[split]]
        max_cuts = sum(starts) * CUTS_PER_CLIP // samples
        if max_cuts >= count:
            clips += _spread_cuts(stretches[split], starts, split, count, label)
            continue
        remedy = f"Write corpus.silence: {max_cuts}" if max_cuts else "Write corpus.silence: 0"
        faults.append(
            f"corpus.silence: {split}'s share of {NOISE_FOLDER} gives {max_cuts} cuts, not {count}."
            f" {remedy}, or add recordings there."
        )
    return clips


def _spread_cuts(
    stretches: list[Stretch], starts: list[int], split: str, count: int, label: int
) -> list[Clip]:
    """Returns `count` clips whose starts are spread evenly over all possible starts.

    `starts` holds the number of possible starts in every stretch.
    """
    ends = np.cumsum(starts)
    clips = []
    for position in np.linspace(0, ends[-1] - 1, count).astype(int):
        index = int(np.searchsorted(ends, position, side="right"))
        path, begin, _ = stretches[index]
        start = begin + int(position - ends[index]) + starts[index]
        clips.append(Clip(path, label, f"{path}:{split}", split, start))
    return clips
