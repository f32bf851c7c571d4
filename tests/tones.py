"""A planted corpus: every word is a tone of its own, so a network can learn it in seconds and an
answer can be worked out by hand."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WORDS = {"low": 300.0, "high": 2400.0}  # Hz


def write_tones(root: Path, clips: int = 12, words: dict[str, float] | None = None) -> Path:
    """<root>/<word>/<speaker>_nohash_0.wav with official lists: clip n is speaker n's; the last two
    quarters are held out."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word, hertz in (words or WORDS).items():
        (root / word).mkdir(parents=True)
        for clip in range(clips):
            rng = np.random.default_rng([clip, int(hertz)])
            seconds = np.arange(RATE) / RATE
            wave = 0.3 * np.sin(
                2 * np.pi * hertz * rng.uniform(0.9, 1.1) * seconds
            ) + 0.02 * rng.standard_normal(RATE)
            name = f"{word}/speaker{clip}_nohash_0.wav"
            soundfile.write(root / name, wave.astype(np.float32), RATE, subtype="PCM_16")
            if clip >= clips * 3 // 4:
                lists["testing_list.txt"].append(name)
            elif clip >= clips // 2:
                lists["validation_list.txt"].append(name)
    for name, paths in lists.items():
        (root / name).write_text("".join(f"{path}\n" for path in paths))
    noise = root / "_background_noise_"
    noise.mkdir()
    soundfile.write(
        noise / "hiss.wav",
        np.random.default_rng(0).normal(0, 0.1, 30 * RATE),
        RATE,
        subtype="PCM_16",
    )
    return root
