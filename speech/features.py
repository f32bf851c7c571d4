"""Waveform to picture: (B, S) -> (B, C, M, T), one channel a kind, normalised.

One short-time power spectrum feeds every kind: log-mel bands, linear bands of the same number (`spectrogram`), and the cosine
transform of the log-mel bands (MFCC). M rows and T frames follow from the rate, window and hop (`speech.config.Features`).
Rows are normalised with the mean and deviation of the training split, computed once a corpus and kept in the cache.

A worker's core is bound by memory before arithmetic: the frames of 64 clips take 13 MB, and their spectra as much again. So a processor
takes a few clips at a time through every stage, while they lie in its cache (`BLOCK_SAMPLES`); a GPU takes the batch at once. Powers
are never written down: the filters stand twice in their table, once for the square of a real part and once for that of the imaginary
part, and are cut into blocks of rows without the bins that no row of the block hears (`_blocks`).
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
import torchaudio

from speech.config import SAMPLE_RATE, Features, cache_dir

LOG_FLOOR = 1e-6  # added before every logarithm, as torchaudio's MFCC(log_mels=True) does; about the power of 16-bit rounding noise
INT16_SCALE = 2.0**-15  # full scale +-1, as soundfile decodes 16-bit samples; a power of two, so it changes no digit
BLOCK_SAMPLES = 420_000  # of frames that go through all stages together: 8 clips of 1 s. Fewer cost more calls, more leave the cache
BLOCK_ROWS = 16  # of filters in one matrix product: fewer skip more zeros, and cost more calls


class _Block(NamedTuple):
    rows: slice  # of the M that these filters make
    squares: slice  # of the 2 * bins squared parts that any of them hears
    weights: torch.Tensor  # (squares, rows)


class _Tables(NamedTuple):
    """What follows from a Picture's buffers, laid out for one device."""

    window: torch.Tensor  # (fft_size,): zeros around the window
    filters: dict[str, list[_Block]]  # 'linear' and 'mel', those that a kind needs


class Picture(torch.nn.Module):
    """(B, S) waveforms -> (B, C, M, T) float32, normalised once `mean` and `deviation` (C, M, 1) are set.

    Waveforms are float in [-1, 1], or int16 of which 32768 is full scale. Frames are centred on every hop, the ends mirrored.
    """

    window: torch.Tensor
    linear: torch.Tensor
    mel: torch.Tensor
    dct: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: Features):
        super().__init__()
        self.kinds, self.hop, self.fft_size = features.kinds, features.hop_samples, features.fft_size
        bins, rows = features.fft_size // 2 + 1, features.n_mels
        self.register_buffer("window", torch.hann_window(features.window_samples))
        linear = torchaudio.functional.linear_fbanks(bins, 0.0, SAMPLE_RATE / 2, rows, SAMPLE_RATE)
        self.register_buffer("linear", linear)  # (bins, M)
        self.register_buffer("mel", torchaudio.functional.melscale_fbanks(bins, 0.0, SAMPLE_RATE / 2, rows, SAMPLE_RATE))  # (bins, M)
        self.register_buffer("dct", torchaudio.functional.create_dct(rows, rows, norm="ortho"))  # (M, M)
        self.register_buffer("mean", torch.zeros(len(self.kinds), rows, 1))
        self.register_buffer("deviation", torch.ones(len(self.kinds), rows, 1))
        self._tables: _Tables | None = None

    def __getstate__(self) -> dict:
        """Tables are derived again where a copy is used: on its way to a worker they would take /dev/shm that no forecast knows of."""
        return self.__dict__ | {"_tables": None}

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        tables, half = self._tables_on(waveforms.device), self.fft_size // 2
        window = tables.window * INT16_SCALE if waveforms.dtype == torch.int16 else tables.window
        frames = 1 + waveforms.shape[1] // self.hop
        pictures = waveforms.new_empty((len(waveforms), *self.mean.shape[:2], frames), dtype=torch.float32)
        clips = max(1, BLOCK_SAMPLES // (frames * self.fft_size)) if waveforms.device.type == "cpu" else max(1, len(waveforms))
        before, after = waveforms[:, 1 : half + 1].flip(1), waveforms[:, -half - 1 : -1].flip(1)
        for *parts, out in zip(*(tensor.split(clips) for tensor in (before, waveforms, after, pictures)), strict=True):
            self._fill(out, self._squares(torch.cat(parts, dim=1), window), tables)
        return pictures

    def _squares(self, padded: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """(b, S + fft_size) -> (b * T, 2 * bins): squares of each bin's real and imaginary part, in turn; their sum is its power."""
        frames = padded.float().unfold(1, self.fft_size, self.hop) * window
        parts = torch.view_as_real(torch.fft.rfft(frames))  # (b, T, bins, 2)
        return parts.mul_(parts).view(-1, parts.shape[2] * 2)

    def _fill(self, pictures: torch.Tensor, squares: torch.Tensor, tables: _Tables) -> None:
        """pictures (b, C, M, T) of squares (b * T, 2 * bins). Products write to given tensors: so no autocast rounds them."""
        clips, _, rows, frames = pictures.shape
        logs = {name: _log_bands(squares, blocks) for name, blocks in tables.filters.items()}  # (b * T, M) each
        for channel, kind in enumerate(self.kinds):
            bands = logs[_filters_of(kind)]
            if kind == "mfcc":
                bands = torch.mm(bands, self.dct, out=torch.empty_like(bands))
            picture = torch.sub(bands.view(clips, frames, rows).mT, self.mean[channel], out=pictures[:, channel])
            picture.div_(self.deviation[channel])

    def _tables_on(self, device: torch.device) -> _Tables:
        if self._tables is None or self._tables.window.device != device:
            missing = self.fft_size - len(self.window)
            window = torch.nn.functional.pad(self.window, (missing // 2, missing - missing // 2))
            self._tables = _Tables(
                window, {name: _blocks(getattr(self, name)) for name in sorted({_filters_of(kind) for kind in self.kinds})}
            )
        return self._tables


def _filters_of(kind: str) -> str:
    return "linear" if kind == "spectrogram" else "mel"


def _blocks(filters: torch.Tensor) -> list[_Block]:
    """(bins, M) -> BLOCK_ROWS rows at a time, every bin's weight twice."""
    blocks = []
    for first in range(0, filters.shape[1], BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        heard = filters[:, rows].any(1).nonzero()
        low, high = int(heard[0]), int(heard[-1]) + 1
        blocks.append(_Block(rows, slice(2 * low, 2 * high), filters[low:high, rows].repeat_interleave(2, 0)))
    return blocks


def _log_bands(squares: torch.Tensor, blocks: list[_Block]) -> torch.Tensor:
    """(b * T, 2 * bins) -> (b * T, M)"""
    bands = squares.new_empty(len(squares), sum(block.weights.shape[1] for block in blocks))
    for rows, parts, weights in blocks:
        torch.mm(squares[:, parts], weights, out=bands[:, rows])
    return bands.add_(LOG_FLOOR).log_()


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


def save_atomically(tensors: dict[str, Any], path: Path) -> None:
    """torch.save that leaves either the whole file or none, whenever the process or the machine stops."""
    with whole_file(path) as file:
        torch.save(tensors, file)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that has its name, and replaces what had it, only once all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
