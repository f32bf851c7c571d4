"""make bench-formats: how many clips a core prepares in a second, by the format of the data, beside
librosa and torchaudio.

1,024 clips of 1 s (16 kHz, 16-bit, mono wav), read in batches of 64 in one shuffled order, the page
cache warm, one thread on one core. This project's formats are fetched as a loader's worker does it
(speech/dataset.py), up to collating. librosa and torchaudio take one clip at a time: soundfile
reads it as float32, and what they can keep from clip to clip is kept. All make the log of the same
64 mel bands (512 samples an FFT, 400 a window, 160 a hop, HTK's scale), which is asserted first.
The floor is the frames of a batch and their FFT alone, with the waveforms at hand: torch's (MKL), a
few clips at a time, was the fastest of torch, SciPy and NumPy.

The ways take turns, forth and back, so that a drift of the machine hits all alike; ratios are
medians of the rounds' own. The figure is clips a second of CPU time, all threads counted: on a core
that nothing else uses that is clips a second. Last line: the figures as one JSON object.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import soundfile
import torch
import torchaudio
from tabulate import tabulate

from speech import corpora
from speech.config import TrialConfig
from speech.corpus_config import SAMPLE_RATE
from speech.dataset import BatchRequest, ClipDataset, build_picture
from speech.features import LOG_FLOOR
from speech.loading import prepare_forms
from speech.prepared_corpus import PreparedCorpus
from sweeps.host.hygiene import wait_until_idle
from tests.benchmarks.report import at_least, print_report

CLIPS, BATCH, ROUNDS = 1024, 64, 7
FFT, WINDOW, HOP, MELS = 512, 400, 160, 64
# that are framed and transformed together: fewer cost more calls, more leave the core's cache
FLOOR_CLIPS = 4
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
FORMS = ("wav", "png", "packed", "on_device")

Batch = list[int]  # indices of clips in the training split


class Way(NamedTuple):
    name: str
    # what a batch holds, a value a clip
    prepare: Callable[[Batch], list[torch.Tensor] | list[np.ndarray]]


def main() -> int:
    # libraries read them when they are imported: begin anew
    if not ONE_THREAD.items() <= os.environ.items():
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.benchmarks.formats"],
            os.environ | ONE_THREAD,
        )
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, torch.inference_mode():
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        write_noise(Path(scratch) / "corpus")
        configs = {form: trial(Path(scratch) / "corpus", form) for form in FORMS}
        corpus = corpora.prepare_corpus(configs["wav"].corpus)
        for config in configs.values():
            prepare_forms(config, corpus, print)
        sets = {
            form: ClipDataset(config, corpus, "training", seed=0)
            for form, config in configs.items()
        }
        files = [corpus.root / clip.path for clip in sets["wav"].clips]
        ways = [
            *libraries(files),
            *(Way(form, fetch(clips)) for form, clips in sets.items()),
            floor(files),
        ]
        check({way.name: way.prepare for way in ways}, configs["wav"], corpus)
        rates, disturbances = race(ways)
        shipped = {way.name: way.prepare([0])[0].nbytes for way in ways[:-1]}
    rows = [_row(way.name, rates, shipped.get(way.name)) for way in ways]
    print(
        tabulate(
            rows,
            headers="keys",
            floatfmt=("", ",.0f", ",.0f", ",.0f", ".2f", ".2f", ".2f", ",.0f"),
            missingval="-",
        )
    )
    print(f"{CLIPS:,} clips a round, {ROUNDS} rounds, medians; one thread on one core")
    packed = next(row for row in rows if row["format"] == "packed")
    print_report(
        "formats",
        rows,
        [
            at_least(f"packed, clips/s over {library}", 1.0, packed[f"of {library}"], "{:.2f}")
            for library in ("torchaudio", "librosa")
        ],
        ["torch", "torchaudio", "librosa", "numpy", "soundfile"],
        disturbances,
    )
    return 0


def trial(corpus: Path, form: str) -> TrialConfig:
    features = {
        "window_ms": 1000 * WINDOW / SAMPLE_RATE,
        "hop_ms": 1000 * HOP / SAMPLE_RATE,
        "n_mels": MELS,
    }
    return TrialConfig.model_validate(
        {
            "corpus": {"name": "folder", "path": str(corpus)},
            "loader": {"format": form, "batch_size": BATCH},
            "features": features,
        }
    )


def write_noise(root: Path) -> None:
    """Noise, louder in the middle: CLIPS clips to train on, and one of each of the two words for
    either other split."""
    loudness = 0.2 * np.hanning(SAMPLE_RATE) + 0.01
    for index in range(CLIPS + 4):
        path = root / f"word{index % 2}" / f"speaker{index // 2}_nohash_0.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = np.random.default_rng(index).standard_normal(SAMPLE_RATE) * loudness
        soundfile.write(path, wave.clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")
    for number, name in enumerate(("validation_list.txt", "testing_list.txt")):
        (root / name).write_text(
            "".join(f"word{word}/speaker{CLIPS // 2 + number}_nohash_0.wav\n" for word in range(2))
        )


def fetch(clips: ClipDataset) -> Callable[[Batch], list[torch.Tensor]]:
    return lambda batch: [sample[0] for sample in clips.__getitems__(BatchRequest(0, 0, batch))]


def libraries(files: list[Path]) -> Iterator[Way]:
    """One clip at a time. librosa's function makes its filters anew for each clip and can't be
    given any; the second way keeps them."""
    frames = {"n_fft": FFT, "win_length": WINDOW, "hop_length": HOP, "pad_mode": "reflect"}
    scale = {"sr": SAMPLE_RATE, "n_mels": MELS, "htk": True, "norm": None}
    filters = librosa.filters.mel(n_fft=FFT, **scale)
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, FFT, WINDOW, HOP, n_mels=MELS)

    def read(index: int) -> np.ndarray:
        return soundfile.read(files[index], dtype="float32")[0]

    def of_librosa(index: int) -> np.ndarray:
        return np.log(
            librosa.feature.melspectrogram(y=read(index), **frames, **scale) + np.float32(LOG_FLOOR)
        )

    def of_librosa_kept(index: int) -> np.ndarray:
        return np.log(
            filters @ np.abs(librosa.stft(read(index), **frames)) ** 2 + np.float32(LOG_FLOOR)
        )

    def of_torchaudio(index: int) -> torch.Tensor:
        return torch.log(mel(torch.from_numpy(read(index))) + LOG_FLOOR)

    yield Way("librosa", lambda batch: [of_librosa(index) for index in batch])
    yield Way("librosa, filters kept", lambda batch: [of_librosa_kept(index) for index in batch])
    yield Way("torchaudio", lambda batch: [of_torchaudio(index) for index in batch])


def floor(files: list[Path]) -> Way:
    waves = torch.stack(
        [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files[:BATCH]]
    )
    padded = torch.nn.functional.pad(waves, (FFT // 2, FFT // 2), mode="reflect")
    margin = (FFT - WINDOW) // 2
    window = torch.nn.functional.pad(torch.hann_window(WINDOW), (margin, margin))

    def transform(batch: Batch) -> list[torch.Tensor]:
        for block in padded[: len(batch)].split(FLOOR_CLIPS):
            torch.fft.rfft(block.unfold(1, FFT, HOP) * window)
        # kept, the spectra of a batch are 13 MB, and the time is that of getting fresh pages
        return []

    return Way("floor: frames and FFT", transform)


def check(prepare: dict[str, Callable], config: TrialConfig, corpus: PreparedCorpus) -> None:
    """All make the same features, to 1e-4; the libraries' are not normalised, the png format's are
    rounded and of another size."""
    picture, batch = build_picture(config, corpus), list(range(BATCH))
    features = {
        name: torch.stack([torch.as_tensor(value) for value in make(batch)])
        for name, make in prepare.items()
        if "floor" not in name
    }
    features["on_device"] = picture(features["on_device"])
    plain = features["wav"] * picture.deviation + picture.mean
    for name in ("packed", "on_device"):
        torch.testing.assert_close(
            features[name],
            features["wav"],
            atol=1e-4,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    for name in ("librosa", "librosa, filters kept", "torchaudio"):
        torch.testing.assert_close(
            features[name][:, None],
            plain,
            atol=1e-4,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def race(ways: list[Way]) -> tuple[dict[str, list[float]], list[str]]:
    """Clips per second of CPU time of each way in each round, after one round untimed; and what
    else the machine did before a round."""
    order = np.random.default_rng(0).permutation(CLIPS).reshape(-1, BATCH).tolist()
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    disturbances = []
    for turn in range(-1, ROUNDS):
        if turn >= 0 and (unsettled := wait_until_idle().get("unsettled")):
            disturbances.append(f"round {turn + 1}: {unsettled}")
        for way in ways if turn % 2 == 0 else reversed(ways):
            began = time.process_time()
            for batch in order:
                way.prepare(batch)
            rates[way.name] += [CLIPS / (time.process_time() - began)] if turn >= 0 else []
    return rates, disturbances


def _row(
    name: str, rates: dict[str, list[float]], shipped_bytes: int | None
) -> dict[str, str | float | int | None]:
    def over(other: str) -> float:
        return statistics.median(
            ours / theirs for ours, theirs in zip(rates[name], rates[other], strict=True)
        )

    return {
        "format": name,
        "clips/s per core": statistics.median(rates[name]),
        "fastest": max(rates[name]),
        "slowest": min(rates[name]),
        "of torchaudio": over("torchaudio"),
        "of librosa": over("librosa"),
        "of the floor": over("floor: frames and FFT"),
        "bytes shipped per clip": shipped_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
