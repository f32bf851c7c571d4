"""Converts waveforms (B, S) to normalised pictures (B, C, M, T), one channel per kind.

One short-time power spectrum feeds every kind: log-mel bands, linear bands of the same number
(`spectrogram`), and the cosine transform of the log-mel bands (MFCC). M rows and T frames follow
from the rate, window and hop (`speech.features_config`). Rows are normalised with the mean and
deviation of the training split, which are computed once per corpus and cached.

Memory limits a worker's core before arithmetic does: the frames of 64 clips take 13 MB, and their
spectra as much again. Therefore a processor takes a few clips at a time through every stage, while
they lie in its cache (`BLOCK_SAMPLES`). A GPU takes the batch at once.

Powers are never stored. The filter table holds every weight twice, for the square of the real part
and for that of the imaginary part. It is cut into blocks of rows, without the bins that have weight
zero in all rows of the block (`_split_filters`).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torchaudio

from speech.atomic_files import save_atomically
from speech.cache_folder import cache_dir
from speech.corpus_config import SAMPLE_RATE
from speech.features_config import Features

# added before every logarithm, as in torchaudio's MFCC(log_mels=True); about the power of 16-bit
# rounding noise
LOG_FLOOR = 1e-6
# full scale +-1, as soundfile decodes 16-bit samples; a power of two, so scaling is exact
INT16_SCALE = 2.0**-15
# of frames per pass through all stages: 8 clips of 1 s. Fewer cost more calls, more exceed the
# cache
BLOCK_SAMPLES = 420_000
BLOCK_ROWS = 16  # filter rows per matrix product: fewer skip more zeros, and cost more calls


class NotFinite(ValueError):
    """The picture of the clip at `index` holds values that are not finite."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the picture of clip {index} holds values that are not finite")
        self.index = index


class _Block(NamedTuple):
    """The filters of a few rows, without the bins in which all of them are zero."""

    rows: slice  # range within the M rows
    squares: slice  # range within the 2 * bins squared parts that has nonzero weights
    weights: torch.Tensor  # (squares, rows)


class _Tables(NamedTuple):
    """The tables that follow from a Picture's buffers, laid out for one device."""

    window: torch.Tensor  # (fft_size,): the window between zeros
    filters: dict[str, list[_Block]]  # 'linear' and 'mel', as far as a kind needs them


class Picture(torch.nn.Module):
    """Converts waveforms (B, S) to pictures (B, C, M, T) float32.

    The pictures are normalised once `mean` and `deviation` (C, M, 1) are set. Waveforms are float
    in [-1, 1], or int16 with a full scale of 32768. Frames are centred on every hop, and the ends
    are mirrored.
    """

    window: torch.Tensor
    linear: torch.Tensor
    mel: torch.Tensor
    dct: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: Features):
        super().__init__()
        self.kinds, self.hop, self.fft_size = (
            features.kinds,
            features.hop_samples,
            features.fft_size,
        )
        bins, rows = features.fft_size // 2 + 1, features.n_mels
        self.register_buffer("window", torch.hann_window(features.window_samples))
        linear = torchaudio.functional.linear_fbanks(bins, 0.0, SAMPLE_RATE / 2, rows, SAMPLE_RATE)
        self.register_buffer("linear", linear)  # (bins, M)
        # (bins, M)
        self.register_buffer(
            "mel",
            torchaudio.functional.melscale_fbanks(bins, 0.0, SAMPLE_RATE / 2, rows, SAMPLE_RATE),
        )
        # (M, M)
        self.register_buffer("dct", torchaudio.functional.create_dct(rows, rows, norm="ortho"))
        self.register_buffer("mean", torch.zeros(len(self.kinds), rows, 1))
        self.register_buffer("deviation", torch.ones(len(self.kinds), rows, 1))
        self._tables: _Tables | None = None

    def __getstate__(self) -> dict:
        """Returns the state without the tables, which a copy derives again.

        In transfer to a worker, tables would take /dev/shm that no forecast includes.
        """
        return self.__dict__ | {"_tables": None}

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        tables, half = self._tables_on(waveforms.device), self.fft_size // 2
        window = tables.window * INT16_SCALE if waveforms.dtype == torch.int16 else tables.window
        frames = 1 + waveforms.shape[1] // self.hop
        pictures = waveforms.new_empty(
            (len(waveforms), *self.mean.shape[:2], frames), dtype=torch.float32
        )
        clips = (
            max(1, BLOCK_SAMPLES // (frames * self.fft_size))
            if waveforms.device.type == "cpu"
            else max(1, len(waveforms))
        )
        before, after = waveforms[:, 1 : half + 1].flip(1), waveforms[:, -half - 1 : -1].flip(1)
        for *parts, out in zip(
            *(tensor.split(clips) for tensor in (before, waveforms, after, pictures)), strict=True
        ):
            self._fill(out, self._squares(torch.cat(parts, dim=1), window), tables)
        return pictures

    def _squares(self, padded: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Converts (b, S + fft_size) to (b * T, 2 * bins).

        The result alternates the squares of a bin's real and imaginary part; their sum is its
        power.
        """
        frames = padded.float().unfold(1, self.fft_size, self.hop) * window
        parts = torch.view_as_real(torch.fft.rfft(frames))  # (b, T, bins, 2)
        return parts.mul_(parts).view(-1, parts.shape[2] * 2)

    def _fill(self, pictures: torch.Tensor, squares: torch.Tensor, tables: _Tables) -> None:
        """Computes pictures (b, C, M, T) from squares (b * T, 2 * bins), in place.

        Products use `out=`, so that autocast does not round them.
        """
        clips, _, rows, frames = pictures.shape
        # (b * T, M) each
        logs = {name: _log_bands(squares, blocks) for name, blocks in tables.filters.items()}
        for channel, kind in enumerate(self.kinds):
            bands = logs[_filter_bank(kind)]
            if kind == "mfcc":
                bands = torch.mm(bands, self.dct, out=torch.empty_like(bands))
            picture = torch.sub(
                bands.view(clips, frames, rows).mT, self.mean[channel], out=pictures[:, channel]
            )
            picture.div_(self.deviation[channel])

    def _tables_on(self, device: torch.device) -> _Tables:
        if self._tables is None or self._tables.window.device != device:
            missing = self.fft_size - len(self.window)
            window = torch.nn.functional.pad(self.window, (missing // 2, missing - missing // 2))
            self._tables = _Tables(
                window,
                {
                    name: _split_filters(getattr(self, name))
                    for name in sorted({_filter_bank(kind) for kind in self.kinds})
                },
            )
        return self._tables


def _filter_bank(kind: str) -> str:
    return "linear" if kind == "spectrogram" else "mel"


def _split_filters(filters: torch.Tensor) -> list[_Block]:
    """Splits filters (bins, M) into blocks of BLOCK_ROWS rows, with every bin's weight twice."""
    blocks = []
    for first in range(0, filters.shape[1], BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        nonzero_bins = filters[:, rows].any(1).nonzero()
        low, high = int(nonzero_bins[0]), int(nonzero_bins[-1]) + 1
        blocks.append(
            _Block(rows, slice(2 * low, 2 * high), filters[low:high, rows].repeat_interleave(2, 0))
        )
    return blocks


def _log_bands(squares: torch.Tensor, blocks: list[_Block]) -> torch.Tensor:
    """Converts squares (b * T, 2 * bins) to the logarithms of band powers (b * T, M)."""
    bands = squares.new_empty(len(squares), sum(block.weights.shape[1] for block in blocks))
    for rows, parts, weights in blocks:
        torch.mm(squares[:, parts], weights, out=bands[:, rows])
    return bands.add_(LOG_FLOOR).log_()


def training_statistics(
    picture: Picture, waveforms: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes mean and standard deviation of every row over clips (S,) and frames.

    Returns two (C, M, 1) tensors. `picture` must not normalise yet. Raises NotFinite where a clip's
    picture holds values that are not finite.
    """
    total = torch.zeros_like(picture.mean, dtype=torch.float64)
    squares = torch.zeros_like(total)
    count = 0
    for index, waveform in enumerate(waveforms):
        rows = picture(waveform[None])[0].double()  # (C, M, T)
        if not rows.isfinite().all():
            raise NotFinite(index)
        total += rows.sum(-1, keepdim=True)
        squares += rows.square().sum(-1, keepdim=True)
        count += rows.shape[-1]
    mean = total / count
    # a silent row must not divide by zero
    variance = (squares / count - mean.square()).clamp_min(1e-6)
    return mean.float(), variance.sqrt().float()


def prepare_picture(
    features: Features, fingerprint: str, waveforms: Iterable[torch.Tensor]
) -> Picture:
    """Returns a Picture with the training split's statistics.

    The first call computes them in one pass over `waveforms`; later calls read them from the cache.
    Raises NotFinite.
    """
    picture = Picture(features)
    name = hashlib.sha256(
        f"{fingerprint} {features.model_dump_json()} {SAMPLE_RATE}".encode()
    ).hexdigest()[:16]
    path = cache_dir() / "statistics" / f"{name}.pt"
    statistics = _load_statistics(path)
    if statistics is None:
        statistics = dict(
            zip(("mean", "deviation"), training_statistics(picture, waveforms), strict=True)
        )
        save_atomically(statistics, path)
    picture.mean.copy_(statistics["mean"])
    picture.deviation.copy_(statistics["deviation"])
    return picture


def _load_statistics(path: Path) -> dict[str, torch.Tensor] | None:
    """Reads statistics from the cache.

    Returns None where the file is missing, unreadable or not finite; they are then computed anew.
    """
    try:
        statistics = torch.load(path, weights_only=True)
        return (
            statistics
            if all(statistics[name].isfinite().all() for name in ("mean", "deviation"))
            else None
        )
    except Exception:  # torch.load raises exceptions of any type on a damaged file
        return None
