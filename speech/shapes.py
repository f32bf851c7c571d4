"""What one clip and one batch take up, from the configuration alone.

Kept free of torch, so that a plan can foresee the /dev/shm of a thousand trials before anything is started.
"""

import math
import mmap

from speech.config import SAMPLE_RATE, TrialConfig

IMAGE_SIDE = 224  # pixels; what ImageNet networks and the article's pictures use
IMAGE_CHANNELS = 3
PAGE = mmap.PAGESIZE  # bytes; every tensor in /dev/shm fills whole pages
PICTURE_BYTES, SAMPLE_BYTES, LABEL_BYTES = 4, 2, 8  # of a float32, an int16 and an int64
MASKS_BYTES = 2 * 2 * 2 * 4  # two bands and two stretches, each a start and a width in int32


def clip_samples(config: TrialConfig) -> int:
    return round(config.corpus.seconds * SAMPLE_RATE)


def picture_shape(config: TrialConfig) -> tuple[int, int, int]:
    """(C, M, T) of the picture that the network takes of a clip."""
    if config.loader.form == "png":
        return IMAGE_CHANNELS, IMAGE_SIDE, IMAGE_SIDE
    return len(config.features.kinds), config.features.n_mels, config.features.frames(clip_samples(config))


def clip_tensors(config: TrialConfig, training: bool = True) -> list[int]:
    """Bytes of a clip in each tensor of a batch: its picture in float32 or, in device form, its waveform in int16; its label; in device
    form, while training with SpecAugment, its masks."""
    if config.loader.form == "device":
        masked = training and config.augment.on_picture
        return [SAMPLE_BYTES * clip_samples(config), LABEL_BYTES] + ([MASKS_BYTES] if masked else [])
    return [PICTURE_BYTES * math.prod(picture_shape(config)), LABEL_BYTES]


def batch_bytes(config: TrialConfig, clips: int, training: bool = True) -> int:
    """Bytes of /dev/shm that a batch of `clips` clips takes: each of its tensors in whole pages."""
    return sum(whole_pages(clips * size) for size in clip_tensors(config, training))


def dataset_bytes(config: TrialConfig) -> int:
    """Bytes of /dev/shm that the tensors of one split's dataset take once it was sent to workers that are not forked.

    Forms whose workers make pictures hold a `features.Picture`: the window, two filter banks, the cosine transform, a mean and a
    deviation of each row.
    """
    if config.loader.form in ("png", "device"):
        return 0
    features = config.features
    bins, rows, channels = features.fft_size // 2 + 1, features.n_mels, len(features.kinds)
    values = [features.window_samples, bins * rows, bins * rows, rows * rows, channels * rows, channels * rows]
    return sum(whole_pages(PICTURE_BYTES * count) for count in values)


def whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE
