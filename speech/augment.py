"""Random changes to training clips, drawn anew in every epoch from (seed, epoch, clip index).

No draw touches a global random state. Therefore the result does not depend on the worker that
prepares a clip, nor on the number of workers: the loss curve is the same bit for bit at 0, 2 and 8
workers. Waveforms are (S,) float32 arrays; pictures are (C, M, T) tensors.
"""

from collections.abc import Callable

import numpy as np
import torch

from speech.corpus_config import SAMPLE_RATE
from speech.features_config import Augment

MAX_SAMPLE = 1 - 2**-15  # largest sample that 16 bits hold; the smallest is -1
MASKS_PER_AXIS = 2  # per clip (SpecAugment, Park et al., Interspeech 2019, table 1: mF = mT = 2)


def random_stream(*key: int) -> np.random.Generator:
    """Returns a random generator seeded with `key`, which is (seed, epoch, clip index) for a clip.

    Keys that differ only in trailing zeros give the same stream.
    """
    return np.random.default_rng(key)


def augment_waveform(
    waveform: np.ndarray,
    augment: Augment,
    rng: np.random.Generator,
    read_noise: Callable[[np.random.Generator, int], np.ndarray],
) -> np.ndarray:
    """Returns the waveform after changes of speed, time shift and background noise, in that order.

    `read_noise(rng, samples)` returns a stretch of noise. A mix that is too loud is clipped to the
    range of 16-bit samples: the on_device format ships int16, and all formats must give the same
    sound.
    """
    if augment.speed:
        waveform = change_speed(waveform, rng.uniform(1 - augment.speed, 1 + augment.speed))
    if augment.shift_ms:
        max_shift = round(augment.shift_ms * SAMPLE_RATE / 1000)
        waveform = shift(waveform, int(rng.integers(-max_shift, max_shift, endpoint=True)))
    if augment.noise and rng.random() < augment.noise:
        snr_db = rng.uniform(*augment.noise_snr_db)
        waveform = mix(waveform, read_noise(rng, len(waveform)), snr_db).clip(-1, MAX_SAMPLE)
    return waveform


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Returns the clip played `factor` times as fast around its middle, by linear interpolation.

    The pitch changes with the speed; the length stays the same.
    """
    middle = (len(waveform) - 1) / 2
    positions = middle + (np.arange(len(waveform)) - middle) * factor
    return np.interp(positions, np.arange(len(waveform)), waveform, left=0.0, right=0.0).astype(
        np.float32
    )


def shift(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Returns the clip moved later (samples > 0) or earlier; the vacated samples are zero."""
    moved = np.zeros_like(waveform)
    length = max(len(waveform) - abs(samples), 0)
    source, target = max(-samples, 0), max(samples, 0)
    moved[target : target + length] = waveform[source : source + length]
    return moved


def mix(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Returns waveform + noise, with the noise scaled so that the power ratio is `snr_db`.

    Returns the waveform unchanged where either of the two is silent.
    """
    signal_power, noise_power = float(np.mean(waveform**2)), float(np.mean(noise**2))
    if signal_power == 0 or noise_power == 0:
        return waveform
    gain = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return waveform + np.float32(gain) * noise


def draw_masks(augment: Augment, rows: int, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws the SpecAugment masks of a picture of `rows` x `frames`.

    Returns (MASKS_PER_AXIS, 2, 2) int32: start and width of a band of rows and of a stretch of
    frames.
    """
    pairs = [
        (_draw_span(rng, augment.freq_mask, rows), _draw_span(rng, augment.time_mask, frames))
        for _ in range(MASKS_PER_AXIS)
    ]
    return torch.tensor(pairs, dtype=torch.int32)


def apply_masks(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Applies SpecAugment masks to normalised pictures (B, C, M, T) in place, and returns them.

    Rows and frames in `masks` (B, MASKS_PER_AXIS, 2, 2) become 0, which is the mean.
    """
    rows, frames = (
        _mask_cover(masks[:, :, axis], length) for axis, length in enumerate(pictures.shape[-2:])
    )
    return pictures.masked_fill_(rows[:, None, :, None] | frames[:, None, None, :], 0)


def _mask_cover(masks: torch.Tensor, length: int) -> torch.Tensor:
    """Converts starts and widths (B, MASKS_PER_AXIS, 2) to covered positions (B, length) bool."""
    positions = torch.arange(length, device=masks.device)
    start, width = masks[..., :1], masks[..., 1:]  # (B, MASKS_PER_AXIS, 1)
    return ((positions >= start) & (positions < start + width)).any(1)


def _draw_span(rng: np.random.Generator, max_width: int, length: int) -> tuple[int, int]:
    width = int(rng.integers(0, min(max_width, length), endpoint=True))
    return int(rng.integers(0, length - width, endpoint=True)), width


def mixup_weight(alpha: float, rng: np.random.Generator) -> float:
    """Draws lambda ~ Beta(alpha, alpha) (mixup, Zhang et al., ICLR 2018, section 2).

    The result is at least 1/2, since the two partners are symmetric.
    """
    weight = float(rng.beta(alpha, alpha))
    return max(weight, 1 - weight)
