"""The data set, and the forms in which a batch leaves it.

wav      each clip's file is read, changed and made a picture: C x M x T float32 a clip
png      an image of it, written once, is decoded: 3 x 224 x 224 float32
packed   the batch's rows of one memory-mapped int16 file become pictures together: the same C x M x T float32
device   the rows travel as they are, S int16 a clip; the accelerator's side makes pictures of them

A data set is asked for a whole batch at once, which names its epoch and its step: a persistent worker learns the epoch from it, every
random draw follows from (seed, epoch, clip index), and the log of fetches knows which step the batch is for.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from speech import packed
from speech.audio import read_clip
from speech.augment import augment_waveform, draw_masks, draws, lay_masks
from speech.config import TrialConfig
from speech.corpora import PreparedCorpus
from speech.features import Picture, normalised
from speech.fetches import FetchLog
from speech.images import from_image, image_folder
from speech.shapes import clip_samples, picture_shape


class Request(NamedTuple):
    """A batch to be fetched."""

    epoch: int
    step: int  # in the epoch
    clips: list[int]  # their indices in the split


# Picture (C, M, T) and label; in device form waveform (S,), label and, where any are laid, masks
Sample = tuple[torch.Tensor | int, ...]


def picture_of(config: TrialConfig, corpus: PreparedCorpus) -> Picture:
    """What makes pictures of the corpus's waveforms, with the training split's statistics: computed once, then from the cache."""
    waveforms = (torch.from_numpy(corpus.read(clip, clip_samples(config))) for clip in corpus.split("training"))
    return normalised(config.features, f"{corpus.fingerprint} {config.corpus.seconds}", waveforms)


class Clips(Dataset[Sample]):
    """One split. A Request -> its samples; only the training split is changed by `augment`."""

    def __init__(self, config: TrialConfig, corpus: PreparedCorpus, split: str, seed: int, log: FetchLog | None = None):
        self.config, self.corpus, self.seed, self.log = config, corpus, seed, log
        self.clips, self.form = corpus.split(split), config.loader.form
        augment = config.augment
        self.augment = augment if split == "training" and (augment.on_waveform or augment.on_picture) else None
        self.samples = clip_samples(config)
        self.picture = picture_of(config, corpus) if self.form in ("wav", "packed") else None
        if self.form in ("packed", "device"):
            rows = {clip: row for row, clip in enumerate(corpus.clips)}
            self.packed, self.rows = packed.packed_file(config, corpus), [rows[clip] for clip in self.clips]
        elif self.form == "png":
            self.images = image_folder(config, corpus) / split

    def __len__(self) -> int:
        return len(self.clips)

    def files(self) -> list[Path]:
        """What is read in an epoch, background noise aside."""
        if self.form == "png":
            return [self.images / f"{index}.png" for index in range(len(self.clips))]
        if self.form == "wav":
            return [self.corpus.root / path for path in dict.fromkeys(clip.path for clip in self.clips)]
        return [self.packed]

    @torch.no_grad()
    def __getitems__(self, request: Request) -> list[Sample]:
        if self.log:
            self.log.begin(request.step)
        streams = [draws(self.seed, request.epoch, index) for index in request.clips] if self.augment else []  # 20 us a clip
        inputs = self._images(request.clips) if self.form == "png" else self._of_waveforms(self._waveforms(request.clips, streams))
        samples: list[Sequence] = [inputs, [self.clips[index].label for index in request.clips]]
        if self.augment and self.augment.on_picture:
            shape = picture_shape(self.config)
            masks = [draw_masks(self.augment, *shape[1:], rng) for rng in streams]
            if self.form == "device":
                samples.append(masks)
            else:
                samples[0] = [lay_masks(picture[None], mask[None])[0] for picture, mask in zip(inputs, masks, strict=True)]
        return list(zip(*samples, strict=True))

    def _images(self, clips: list[int]) -> list[torch.Tensor]:
        self._wait(len(clips))
        return [from_image(self.images / f"{index}.png") for index in clips]

    def _waveforms(self, clips: list[int], streams: list[np.random.Generator]) -> torch.Tensor:
        """(B, S) float32, or int16 where they come from the packed file and travel or are used as they are."""
        self._wait(len(clips))
        if self.form == "wav":
            waveforms = np.stack([self.corpus.read(self.clips[index], self.samples) for index in clips])
        else:
            waveforms = packed.read_rows(self.packed, [self.rows[index] for index in clips])
        if self.augment and self.augment.on_waveform:
            given = waveforms if self.form == "wav" else waveforms.astype(np.float32) / packed.FULL_SCALE
            changed = [augment_waveform(one, self.augment, rng, self._read_noise) for one, rng in zip(given, streams, strict=True)]
            waveforms = np.stack(changed)
            if self.form == "device":
                waveforms = packed.to_int16(waveforms)
        return torch.from_numpy(waveforms)

    def _of_waveforms(self, waveforms: torch.Tensor) -> Sequence[torch.Tensor]:
        """What travels of (B, S): pictures, or in device form the waveforms themselves."""
        if self.picture is None:
            return waveforms.unbind()
        if self.form == "packed":
            return self.picture(waveforms).unbind()
        return [self.picture(waveform[None])[0] for waveform in waveforms]

    def _read_noise(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        stretches = self.corpus.noise
        path, first, length = stretches[int(rng.integers(len(stretches)))]
        start = first + int(rng.integers(max(length - samples, 0), endpoint=True))
        self._wait(1)
        return read_clip(self.corpus.root / path, samples, start=start)

    def _wait(self, reads: int) -> None:
        """As a drive would that is not at hand. A packed file's clips lie apart from one another, so each is a read there too."""
        if self.config.corpus.read_latency_s:
            time.sleep(reads * self.config.corpus.read_latency_s)
