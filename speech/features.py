"""Waveform to picture: (B, S) -> (B, C, M, T), one channel a kind, normalised.

One short-time power spectrum feeds every kind: log-mel bands, linear bands of the same number (`spectrogram`), and the cosine
transform of the log-mel bands (MFCC). M rows and T frames follow from the rate, window and hop (`speech.config.Features`).
Rows are normalised with the mean and deviation of the training split, computed once a corpus and kept in the cache.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torchaudio

from speech.config import SAMPLE_RATE, Features, cache_dir

LOG_FLOOR = 1e-6  # added before every logarithm, as torchaudio's MFCC(log_mels=True) does; about the power of 16-bit rounding noise


class Picture(torch.nn.Module):
    """(B, S) float waveforms in [-1, 1] -> (B, C, M, T) float32, normalised once `mean` and `deviation` (C, M, 1) are set."""

    linear: torch.Tensor
    dct: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: Features):
        super().__init__()
        self.kinds = features.kinds
        bins, rows = features.fft_size // 2 + 1, features.n_mels
        self.power = torchaudio.transforms.Spectrogram(features.fft_size, features.window_samples, features.hop_samples)
        self.mel = torchaudio.transforms.MelScale(rows, SAMPLE_RATE, n_stft=bins)
        linear = torchaudio.functional.linear_fbanks(bins, 0.0, SAMPLE_RATE / 2, rows, SAMPLE_RATE)  # (bins, M)
        self.register_buffer("linear", linear)
        self.register_buffer("dct", torchaudio.functional.create_dct(rows, rows, norm="ortho"))  # (M, M)
        self.register_buffer("mean", torch.zeros(len(self.kinds), rows, 1))
        self.register_buffer("deviation", torch.ones(len(self.kinds), rows, 1))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        power = self.power(waveforms)  # (B, bins, T)
        channels = torch.stack([self._channel(kind, power) for kind in self.kinds], dim=1)  # (B, C, M, T)
        return (channels - self.mean) / self.deviation

    def _channel(self, kind: str, power: torch.Tensor) -> torch.Tensor:
        if kind == "spectrogram":
            return torch.log((power.mT @ self.linear).mT + LOG_FLOOR)
        log_mel = torch.log(self.mel(power) + LOG_FLOOR)
        return log_mel if kind == "log_mel" else (log_mel.mT @ self.dct).mT


def training_statistics(picture: Picture, waveforms: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every row over clips (S,) and frames: two (C, M, 1) tensors. `picture` must not normalise yet."""
    total = torch.zeros_like(picture.mean, dtype=torch.float64)
    squares = torch.zeros_like(total)
    count = 0
    for waveform in waveforms:
        rows = picture(waveform[None])[0].double()  # (C, M, T)
        total += rows.sum(-1, keepdim=True)
        squares += rows.square().sum(-1, keepdim=True)
        count += rows.shape[-1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(1e-6)  # a silent row must not divide by zero
    return mean.float(), variance.sqrt().float()


def normalised(features: Features, fingerprint: str, waveforms: Iterable[torch.Tensor]) -> Picture:
    """The picture with the training split's statistics, from the cache or, the first time, from one pass over `waveforms`."""
    picture = Picture(features)
    name = hashlib.sha256(f"{fingerprint} {features.model_dump_json()} {SAMPLE_RATE}".encode()).hexdigest()[:16]
    path = cache_dir() / "statistics" / f"{name}.pt"
    if not path.exists():
        save_atomically(dict(zip(("mean", "deviation"), training_statistics(picture, waveforms), strict=True)), path)
    statistics = torch.load(path, weights_only=True)
    picture.mean.copy_(statistics["mean"])
    picture.deviation.copy_(statistics["deviation"])
    return picture


def save_atomically(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """torch.save that leaves either the whole file or none, whenever the process or the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
