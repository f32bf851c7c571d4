"""Changes to a training clip, drawn anew in every epoch from (seed, epoch, clip index).

No draw touches a global random state, so what a clip becomes does not depend on which worker prepares it, nor on how many there
are: the loss curve is the same bit for bit at 0, 2 and 8 workers. Waveforms are (S,) float32 arrays, pictures (C, M, T) tensors.
"""

from collections.abc import Callable

import numpy as np
import torch

from speech.config import SAMPLE_RATE, Augment

LOUDEST = 1 - 2**-15  # what 16 bits hold at most; at least, they hold -1
MASKS = 2  # bands and stretches blanked per clip (SpecAugment, Park et al., Interspeech 2019, table 1: mF = mT = 2)


def draws(*key: int) -> np.random.Generator:
    """The random stream of `key`: (seed, epoch, clip index) for a clip. Trailing zeros count for nothing in it."""
    return np.random.default_rng(key)


def augment_waveform(
    waveform: np.ndarray, augment: Augment, rng: np.random.Generator, read_noise: Callable[[np.random.Generator, int], np.ndarray]
) -> np.ndarray:
    """Speed, time shift and background noise, in that order. `read_noise(rng, samples)` returns a stretch of noise.

    A mix that is too loud is clipped where a recording of 16 bits is: the device form ships it as that, and all forms are to sound alike.
    """
    if augment.speed:
        waveform = change_speed(waveform, rng.uniform(1 - augment.speed, 1 + augment.speed))
    if augment.shift_ms:
        most = round(augment.shift_ms * SAMPLE_RATE / 1000)
        waveform = shift(waveform, int(rng.integers(-most, most, endpoint=True)))
    if augment.noise and rng.random() < augment.noise:
        snr_db = rng.uniform(*augment.noise_snr_db)
        waveform = mix(waveform, read_noise(rng, len(waveform)), snr_db).clip(-1, LOUDEST)
    return waveform


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """The clip played `factor` times as fast around its middle, by linear interpolation; pitch moves with it, length stays."""
    middle = (len(waveform) - 1) / 2
    positions = middle + (np.arange(len(waveform)) - middle) * factor
    return np.interp(positions, np.arange(len(waveform)), waveform, left=0.0, right=0.0).astype(np.float32)


def shift(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The clip moved later (samples > 0) or earlier; what it leaves is silence."""
    moved = np.zeros_like(waveform)
    length = max(len(waveform) - abs(samples), 0)
    source, target = max(-samples, 0), max(samples, 0)
    moved[target : target + length] = waveform[source : source + length]
    return moved


def mix(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """waveform + noise scaled so that the power ratio is `snr_db`. Silence on either side leaves the waveform as it is."""
    signal_power, noise_power = float(np.mean(waveform**2)), float(np.mean(noise**2))
    if signal_power == 0 or noise_power == 0:
        return waveform
    gain = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return waveform + np.float32(gain) * noise


def draw_masks(augment: Augment, rows: int, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """What SpecAugment blanks in a picture of `rows` x `frames`: (MASKS, 2, 2) int32, start and width of a band and of a stretch."""
    pairs = [(_stretch(rng, augment.freq_mask, rows), _stretch(rng, augment.time_mask, frames)) for _ in range(MASKS)]
    return torch.tensor(pairs, dtype=torch.int32)


def lay_masks(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """SpecAugment on normalised pictures (B, C, M, T), in place: rows and frames in `masks` (B, MASKS, 2, 2) become 0, the mean."""
    rows, frames = (_covered(masks[:, :, axis], length) for axis, length in enumerate(pictures.shape[-2:]))
    return pictures.masked_fill_(rows[:, None, :, None] | frames[:, None, None, :], 0)


def _covered(masks: torch.Tensor, length: int) -> torch.Tensor:
    """(B, MASKS, 2) starts and widths -> (B, length) bool."""
    at = torch.arange(length, device=masks.device)
    start, width = masks[..., :1], masks[..., 1:]  # (B, MASKS, 1)
    return ((at >= start) & (at < start + width)).any(1)


def _stretch(rng: np.random.Generator, most: int, length: int) -> tuple[int, int]:
    width = int(rng.integers(0, min(most, length), endpoint=True))
    return int(rng.integers(0, length - width, endpoint=True)), width


def mixup_weight(alpha: float, rng: np.random.Generator) -> float:
    """lambda ~ Beta(alpha, alpha) (mixup, Zhang et al., ICLR 2018, section 2); at least 1/2, since the two partners are symmetric."""
    weight = float(rng.beta(alpha, alpha))
    return max(weight, 1 - weight)
