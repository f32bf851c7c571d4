"""What one clip and one batch take up, from the configuration alone.

Kept free of torch, so that a plan can foresee the /dev/shm of a thousand trials before anything is started.
"""

import mmap

from speech.config import SAMPLE_RATE, TrialConfig

IMAGE_SIDE = 224  # pixels; what ImageNet networks and the article's pictures use
IMAGE_CHANNELS = 3
PAGE = mmap.PAGESIZE  # bytes; every tensor in /dev/shm fills whole pages
PICTURE_BYTES, LABEL_BYTES = 4, 8  # of a float32 and of an int64


def clip_samples(config: TrialConfig) -> int:
    return round(config.corpus.seconds * SAMPLE_RATE)


def picture_shape(config: TrialConfig) -> tuple[int, int, int]:
    """(C, M, T) of what one clip ships through /dev/shm, in float32."""
    if config.loader.form == "png":
        return IMAGE_CHANNELS, IMAGE_SIDE, IMAGE_SIDE
    return len(config.features.kinds), config.features.n_mels, config.features.frames(clip_samples(config))


def batch_bytes(config: TrialConfig, clips: int) -> int:
    """Bytes of /dev/shm that a batch of `clips` clips takes: pictures (B, C, M, T) float32 and labels (B,) int64, in whole pages."""
    channels, rows, frames = picture_shape(config)
    return whole_pages(PICTURE_BYTES * clips * channels * rows * frames) + whole_pages(LABEL_BYTES * clips)


def dataset_bytes(config: TrialConfig) -> int:
    """Bytes of /dev/shm that the tensors of one split's dataset take once it was sent to workers that are not forked.

    The wav form holds a `features.Picture`: the window, two filter banks, the cosine transform, a mean and a deviation of each row.
    """
    if config.loader.form == "png":
        return 0
    features = config.features
    bins, rows, channels = features.fft_size // 2 + 1, features.n_mels, len(features.kinds)
    values = [features.window_samples, bins * rows, bins * rows, rows * rows, channels * rows, channels * rows]
    return sum(whole_pages(PICTURE_BYTES * count) for count in values)


def whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE
