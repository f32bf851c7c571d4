"""Predicts the word in a wav file with the snapshots of a finished trial.

A clip is processed like a validation clip. speech/audio.py checks and reads it. It is converted to
a picture with the statistics of the training split, in the loader format of the trial. Every
snapshot predicts probabilities, and their plain mean is the ensemble's prediction. The trial's
setup record, the first line of its records.jsonl, holds all other inputs. Neither the corpus nor a
cache is needed. Predictions run on the CPU. They use the trial's precision if the trial ran on a
CPU, and float32 otherwise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from speech.audio import check_clip, count_samples, read_clip, to_int16
from speech.config import RuntimeSettings, TrialConfig
from speech.corpus_config import SAMPLE_RATE
from speech.evaluation import build_ensemble
from speech.features import Picture
from speech.images import image_to_picture, picture_to_image
from speech.learner import Learner
from speech.shapes import clip_samples, picture_shape
from speech.training_config import Model


class PredictedClip(NamedTuple):
    """Holds a clip that is to be predicted."""

    waveform: np.ndarray  # (S,) float32, as a validation clip is read
    part: str  # how a longer or shorter file was cut or padded; else empty


def read_wav(path: Path, config: TrialConfig) -> PredictedClip:
    """Reads a wav file of any depth, length and number of channels.

    The rate may be any that speech/audio.py reads. Raises BadClip for the same files as a corpus.
    """
    samples = clip_samples(config)
    check_clip(path)
    return PredictedClip(read_clip(path, samples), _describe_part(count_samples(path), samples))


def predict(
    record: Mapping[str, Any],
    folder: Path,
    waveforms: Sequence[np.ndarray],
    members: Sequence[int] | None = None,
) -> torch.Tensor:
    """Predicts N waveforms with the snapshots in `folder`; returns probabilities (N, K).

    `record` is the setup record of the trial, and the K labels are `record["labels"]`. `members`
    are the cycles whose snapshots form the ensemble; None means all. Raises WeightsError if a
    snapshot is unusable. Raises KeyError if the record was written before setup records held the
    inputs of a prediction.
    """
    config, statistics = TrialConfig.model_validate(record["config"]), record["statistics"]
    on_cpu = record["device"] == "cpu"
    runtime = RuntimeSettings(
        precision=record["precision"] if on_cpu else "float32",
        channels_last=on_cpu and record["channels_last"],
    )
    picture = Picture(config.features)
    picture.mean.copy_(torch.tensor(statistics["mean"]))
    picture.deviation.copy_(torch.tensor(statistics["deviation"]))
    bare = config.model_copy(update={"model": Model()})  # does not load training's initial weights
    learner = Learner(bare, runtime, "cpu", len(record["labels"]), picture_shape(config)[0])
    size = config.loader.batch_size
    batches = [
        _build_batch(config, picture, waveforms[first : first + size])
        for first in range(0, len(waveforms), size)
    ]
    return build_ensemble(learner, folder, len(config.sgdr.cycles()), batches, members).mean()


@torch.no_grad()
def _build_batch(
    config: TrialConfig, picture: Picture, waveforms: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts waveforms (S,) to pictures (B, C, M, T), as the trial's loader format does.

    Returns them with labels (B,) that are not used.
    """
    stacked = np.stack(waveforms)
    if config.loader.format in ("packed", "on_device"):
        stacked = to_int16(stacked)
    pictures = picture(torch.from_numpy(stacked))
    if config.loader.format == "png":
        pictures = torch.stack([image_to_picture(picture_to_image(one)) for one in pictures])
    return pictures, torch.zeros(len(waveforms), dtype=torch.int64)


def _describe_part(file_samples: int, samples: int) -> str:
    """Returns how a file of `file_samples` samples was fitted to a clip of `samples` samples.

    Examples are '0.50 to 1.50 of 2.00 s' for a longer file, and '0.40 s, padded to 1.00' for a
    shorter one. Both lengths are counted at SAMPLE_RATE.
    """
    seconds, clip_seconds = file_samples / SAMPLE_RATE, samples / SAMPLE_RATE
    if file_samples > samples:
        first = (file_samples - samples) // 2 / SAMPLE_RATE  # as speech.audio.pad_or_cut cuts
        return f"{first:.2f} to {first + clip_seconds:.2f} of {seconds:.2f} s"
    return f"{seconds:.2f} s, padded to {clip_seconds:.2f}" if file_samples < samples else ""
