"""Finds what prevents a trial from being trained, before anything is started.

It needs only the configuration and the corpus. The module does not import torch, and a plan of a
thousand trials is therefore checked at once. Every obstacle names the key, its value and a remedy.
"""

from pathlib import Path

from speech.config import TrialConfig
from speech.listing import NOISE_FOLDER
from speech.prepared_corpus import PreparedCorpus
from speech.shapes import picture_shape

REDUCTION = 32  # ResNet34 halves a picture's rows and columns five times, rounding up


def find_obstacle(config: TrialConfig, corpus: PreparedCorpus, learns: bool) -> str | None:
    """Returns why no batch of this trial can be prepared or trained on, or None if it can.

    `learns` is whether the device trains, which the simulated one does not.
    """
    obstacles = [batch_size_obstacle(config, corpus), noise_obstacle(config, corpus)]
    return next(
        filter(None, obstacles + [batch_norm_obstacle(config), weights_obstacle(config)] * learns),
        None,
    )


def batch_size_obstacle(config: TrialConfig, corpus: PreparedCorpus) -> str | None:
    """Returns the obstacle if the training split does not fill a step, else None.

    The clips of a last incomplete step are dropped, and at least one step is needed.
    """
    size, ranks = config.loader.batch_size, config.device.ranks
    clips = len(corpus.split("training"))
    if size * ranks <= clips:
        return None
    for_ranks = f" for each of {ranks} ranks" if ranks > 1 else ""
    return (
        f"loader.batch_size {size}{for_ranks} is more than the {clips} training clips of"
        f" {corpus.root}: write a smaller one"
    )


def noise_obstacle(config: TrialConfig, corpus: PreparedCorpus) -> str | None:
    """Returns the obstacle if noise is to be mixed in and the corpus has none, else None."""
    if not config.augment.noise or corpus.noise:
        return None
    return (
        f"augment.noise {config.augment.noise:g} mixes in background noise, but {corpus.root} has"
        f" none: put recordings of at least {config.corpus.seconds / 0.8:g} s into {NOISE_FOLDER}/,"
        " or write augment.noise: 0."
    )


def batch_norm_obstacle(config: TrialConfig) -> str | None:
    """Returns the obstacle if BatchNorm would receive a single value a channel, else None.

    BatchNorm needs two values of a channel in a batch. For a small picture, the last feature map of
    the network has only one.
    """
    _, rows, frames = picture_shape(config)
    if config.loader.batch_size > 1 or max(rows, frames) > REDUCTION:
        return None
    return (
        f"loader.batch_size 1: for a picture of {rows} x {frames}, ResNet34's last layers hold a"
        " single value per channel, and BatchNorm needs two. Write loader.batch_size: 2"
        f" or more, or use more than {REDUCTION} rows or frames: features.n_mels, corpus.seconds,"
        " a shorter features.hop_ms"
    )


def weights_obstacle(config: TrialConfig) -> str | None:
    """Returns the obstacle if the file of weights does not exist, else None."""
    weights = config.model.weights
    if weights in ("none", "imagenet") or Path(weights).exists():
        return None
    return (
        f"model.weights: {weights} does not exist. Write the path of a saved state_dict, imagenet"
        " or none."
    )
