"""Computes the size of a clip and of a batch from the configuration alone.

The module does not import torch, so a plan can forecast the /dev/shm usage of a thousand trials
before any of them starts.
"""

import math

from speech.config import TrialConfig
from speech.corpus_config import SAMPLE_RATE
from speech.shm_usage import PAGE_BYTES

IMAGE_SIDE = 224  # pixels; the size of ImageNet networks and of the article's pictures
IMAGE_CHANNELS = 3
PICTURE_BYTES, SAMPLE_BYTES, LABEL_BYTES = 4, 2, 8  # of a float32, an int16 and an int64
MASKS_BYTES = 2 * 2 * 2 * 4  # two bands and two stretches, with a start and a width in int32


def clip_samples(config: TrialConfig) -> int:
    """Returns the number of samples of a clip at SAMPLE_RATE."""
    return round(config.corpus.seconds * SAMPLE_RATE)


def picture_shape(config: TrialConfig) -> tuple[int, int, int]:
    """Returns the shape (C, M, T) of a clip's picture, the input of the network."""
    if config.loader.format == "png":
        return IMAGE_CHANNELS, IMAGE_SIDE, IMAGE_SIDE
    return (
        len(config.features.kinds),
        config.features.n_mels,
        config.features.frames(clip_samples(config)),
    )


def clip_tensors(config: TrialConfig, training: bool = True) -> list[int]:
    """Returns the bytes of one clip in every tensor of a batch.

    The tensors hold the picture in float32 and the label. In on_device format the waveform in int16
    replaces the picture, and training with SpecAugment adds the masks.
    """
    if config.loader.format == "on_device":
        masked = training and config.augment.on_picture
        return [SAMPLE_BYTES * clip_samples(config), LABEL_BYTES] + (
            [MASKS_BYTES] if masked else []
        )
    return [PICTURE_BYTES * math.prod(picture_shape(config)), LABEL_BYTES]


def batch_bytes(config: TrialConfig, clips: int, training: bool = True) -> int:
    """Returns the bytes of /dev/shm for a batch of `clips` clips, its tensors in whole pages."""
    return sum(whole_pages(clips * size) for size in clip_tensors(config, training))


def dataset_bytes(config: TrialConfig) -> int:
    """Returns the bytes of /dev/shm for the tensors of one split's dataset.

    The dataset takes them once it was sent to workers that are not forked. Where workers compute
    pictures, the dataset holds a `features.Picture`: the window, two filter banks, the cosine
    transform, and a mean and a deviation per row.
    """
    if config.loader.format in ("png", "on_device"):
        return 0
    features = config.features
    bins, rows, channels = features.fft_size // 2 + 1, features.n_mels, len(features.kinds)
    values = [
        features.window_samples,
        bins * rows,
        bins * rows,
        rows * rows,
        channels * rows,
        channels * rows,
    ]
    return sum(whole_pages(PICTURE_BYTES * count) for count in values)


def whole_pages(size_bytes: int) -> int:
    """Rounds a size in bytes up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
