"""The word in a wav file, said by the snapshots of a finished trial.

The one idea: a clip goes the way of a validation clip. It is checked and read by speech/audio.py, becomes a picture with the statistics of
the training split, in the form that the trial learned from, and every snapshot names its probabilities, of which the plain mean is the
ensemble's. What that takes besides the snapshots stands in the trial's setup record, the first line of its records.jsonl, so neither
the corpus nor a cache is needed. It is done on the CPU, in the trial's precision if that ran on one and in float32 otherwise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from speech import packed
from speech.audio import check_clip, length, read_clip
from speech.config import SAMPLE_RATE, Model, Pinned, TrialConfig
from speech.evaluation import heard
from speech.features import Picture
from speech.images import from_pixels, to_image
from speech.learner import Learner
from speech.shapes import clip_samples, picture_shape


class Clip(NamedTuple):
    waveform: np.ndarray  # (S,) float32, as a validation clip is read
    part: str  # of a file that is longer or shorter than a clip, what became of it; else empty


def read(path: Path, config: TrialConfig) -> Clip:
    """A wav file of any rate that speech/audio.py reads, any depth, length and number of channels. Raises BadClip, as the corpus would."""
    samples = clip_samples(config)
    check_clip(path)
    return Clip(read_clip(path, samples), _part(length(path), samples))


def predict(record: Mapping[str, Any], folder: Path, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
    """(N, K) probabilities of N waveforms, by the ensemble of the snapshots in `folder`; K as `record["labels"]`. Raises WeightsError.

    `record`: the setup record of the trial. KeyError: it was written before setup records held what a prediction takes.
    """
    config, statistics = TrialConfig.model_validate(record["config"]), record["statistics"]
    on_cpu = record["device"] == "cpu"
    pinned = Pinned(precision=record["precision"] if on_cpu else "float32", channels_last=on_cpu and record["channels_last"])
    picture = Picture(config.features)
    picture.mean.copy_(torch.tensor(statistics["mean"]))
    picture.deviation.copy_(torch.tensor(statistics["deviation"]))
    bare = config.model_copy(update={"model": Model()})  # the weights that training began with are not wanted again
    learner = Learner(bare, pinned, "cpu", len(record["labels"]), picture_shape(config)[0])
    size = config.loader.batch_size
    batches = [_batch(config, picture, waveforms[at : at + size]) for at in range(0, len(waveforms), size)]
    return heard(learner, folder, len(config.sgdr.cycles()), batches).mean()


@torch.no_grad()
def _batch(config: TrialConfig, picture: Picture, waveforms: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, C, M, T) as the trial's form makes them of waveforms (S,), and labels (B,) that nobody reads."""
    stacked = np.stack(waveforms)
    if config.loader.form in ("packed", "device"):
        stacked = packed.to_int16(stacked)
    pictures = picture(torch.from_numpy(stacked))
    if config.loader.form == "png":
        pictures = torch.stack([from_pixels(to_image(one)) for one in pictures])
    return pictures, torch.zeros(len(waveforms), dtype=torch.int64)


def _part(found: int, samples: int) -> str:
    """'0.50 to 1.50 of 2.00 s' of a longer file, '0.40 s, padded to 1.00' of a shorter one; of lengths in samples at SAMPLE_RATE."""
    seconds, wanted = found / SAMPLE_RATE, samples / SAMPLE_RATE
    if found > samples:
        first = (found - samples) // 2 / SAMPLE_RATE  # as speech.audio.fit cuts
        return f"{first:.2f} to {first + wanted:.2f} of {seconds:.2f} s"
    return f"{seconds:.2f} s, padded to {wanted:.2f}" if found < samples else ""
