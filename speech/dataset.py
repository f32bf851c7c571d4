"""Defines the data set and the formats of its batches.

wav      a clip's file is read, augmented and converted to a picture: C x M x T float32 per clip
png      a clip's image, written once, is decoded: 3 x 224 x 224 float32 per clip
packed   the batch's rows of one memory-mapped int16 file are converted to pictures together:
         C x M x T float32 per clip
device   the rows are transferred unchanged, S int16 per clip; the accelerator converts them

A request to the data set names a whole batch, its epoch and its step. A persistent worker learns
the epoch from it, every random draw follows from (seed, epoch, clip index), and the fetch log
records the batch under its step.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from speech import packed
from speech.audio import FULL_SCALE, BadClip, read_clip, to_int16
from speech.augment import apply_masks, augment_waveform, draw_masks, random_stream
from speech.config import TrialConfig
from speech.features import NotFinite, Picture, prepare_picture
from speech.fetches import FetchLog
from speech.images import image_folder, read_image
from speech.prepared_corpus import PreparedCorpus
from speech.shapes import clip_samples, picture_shape


class BatchRequest(NamedTuple):
    """The request for one batch."""

    epoch: int
    step: int  # in the epoch
    clips: list[int]  # their indices in the split


# Picture (C, M, T) and label; in on_device format waveform (S,), label and, if applied, masks
Sample = tuple[torch.Tensor | int, ...]


def build_picture(config: TrialConfig, corpus: PreparedCorpus) -> Picture:
    """Returns the module that converts the corpus's waveforms to normalised pictures.

    The training split's statistics are computed once and then read from the cache. Raises BadClip
    for a clip whose picture holds values that are not finite.
    """
    clips = corpus.split("training")
    waveforms = (torch.from_numpy(corpus.read(clip, clip_samples(config))) for clip in clips)
    try:
        return prepare_picture(
            config.features, f"{corpus.fingerprint} {config.corpus.seconds}", waveforms
        )
    except NotFinite as error:
        path = corpus.root / clips[error.index].path
        raise BadClip(
            f"{path}: its picture holds values that are not finite, as its samples are too large."
            " Scale it, or remove it"
        ) from None


class ClipDataset(Dataset[Sample]):
    """The data set of one split, which converts a BatchRequest to its samples.

    Only the training split is changed by `augment`.
    """

    def __init__(
        self,
        config: TrialConfig,
        corpus: PreparedCorpus,
        split: str,
        seed: int,
        log: FetchLog | None = None,
    ):
        self.config, self.corpus, self.seed, self.log = config, corpus, seed, log
        self.clips, self.format = corpus.split(split), config.loader.format
        augment = config.augment
        self.augment = (
            augment if split == "training" and (augment.on_waveform or augment.on_picture) else None
        )
        self.samples = clip_samples(config)
        self.picture = build_picture(config, corpus) if self.format in ("wav", "packed") else None
        if self.format in ("packed", "on_device"):
            rows = {clip: row for row, clip in enumerate(corpus.clips)}
            self.packed, self.rows = (
                packed.packed_file(config, corpus),
                [rows[clip] for clip in self.clips],
            )
        elif self.format == "png":
            self.images = image_folder(config, corpus) / split

    def __len__(self) -> int:
        return len(self.clips)

    def files(self) -> list[Path]:
        """Returns the files that an epoch reads, without background noise."""
        if self.format == "png":
            return [self.images / f"{index}.png" for index in range(len(self.clips))]
        if self.format == "wav":
            return [
                self.corpus.root / path for path in dict.fromkeys(clip.path for clip in self.clips)
            ]
        return [self.packed]

    @torch.no_grad()
    def __getitems__(self, request: BatchRequest) -> list[Sample]:
        if self.log:
            self.log.begin(request.step)
        # 20 us per clip
        streams = (
            [random_stream(self.seed, request.epoch, index) for index in request.clips]
            if self.augment
            else []
        )
        inputs = (
            self._read_images(request.clips)
            if self.format == "png"
            else self._make_inputs(self._read_waveforms(request.clips, streams))
        )
        samples: list[Sequence] = [inputs, [self.clips[index].label for index in request.clips]]
        if self.augment and self.augment.on_picture:
            shape = picture_shape(self.config)
            masks = [draw_masks(self.augment, *shape[1:], rng) for rng in streams]
            if self.format == "on_device":
                samples.append(masks)
            else:
                samples[0] = [
                    apply_masks(picture[None], mask[None])[0]
                    for picture, mask in zip(inputs, masks, strict=True)
                ]
        return list(zip(*samples, strict=True))

    def _read_images(self, clips: list[int]) -> list[torch.Tensor]:
        self._simulate_latency(len(clips))
        return [read_image(self.images / f"{index}.png") for index in clips]

    def _read_waveforms(self, clips: list[int], streams: list[np.random.Generator]) -> torch.Tensor:
        """Reads and augments the waveforms (B, S) of clips.

        The result is float32, or int16 where it comes from the packed file and is used unchanged or
        transferred.
        """
        self._simulate_latency(len(clips))
        if self.format == "wav":
            waveforms = np.stack(
                [self.corpus.read(self.clips[index], self.samples) for index in clips]
            )
        else:
            waveforms = packed.read_rows(self.packed, [self.rows[index] for index in clips])
        if self.augment and self.augment.on_waveform:
            originals = (
                waveforms if self.format == "wav" else waveforms.astype(np.float32) / FULL_SCALE
            )
            changed = [
                augment_waveform(original, self.augment, rng, self._read_noise)
                for original, rng in zip(originals, streams, strict=True)
            ]
            waveforms = np.stack(changed)
            if self.format == "on_device":
                waveforms = to_int16(waveforms)
        return torch.from_numpy(waveforms)

    def _make_inputs(self, waveforms: torch.Tensor) -> Sequence[torch.Tensor]:
        """Converts (B, S) to the tensors of a batch: pictures, or in on_device format the
        waveforms.
        """
        if self.picture is None:
            return waveforms.unbind()
        if self.format == "packed":
            return self.picture(waveforms).unbind()
        return [self.picture(waveform[None])[0] for waveform in waveforms]

    def _read_noise(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        stretches = self.corpus.noise
        path, first, length = stretches[int(rng.integers(len(stretches)))]
        start = first + int(rng.integers(max(length - samples, 0), endpoint=True))
        self._simulate_latency(1)
        return read_clip(self.corpus.root / path, samples, start=start)

    def _simulate_latency(self, reads: int) -> None:
        """Sleeps for corpus.read_latency_s per read, to simulate a slow drive.

        The clips of a packed file are not adjacent, so they count as one read per clip too.
        """
        if self.config.corpus.read_latency_s:
            time.sleep(reads * self.config.corpus.read_latency_s)
