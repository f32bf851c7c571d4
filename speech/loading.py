"""The DataLoader, and the forms in which the data travels through it.

wav: a worker reads a clip, changes it and computes its picture; C x M x T float32 leave the worker through /dev/shm.
png: pictures were written once as images of 224 x 224; a worker decodes one and normalises it: 3 x 224 x 224 float32 (the form of the
article this project grew from).

The sampler hands out (epoch, clip index) pairs, so a persistent worker knows the epoch, and every random draw follows from the pair.
"""

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from speech.audio import read_clip
from speech.augment import augment_waveform, draws, mask_picture
from speech.config import TrialConfig, cache_dir
from speech.corpora import NOISE_FOLDER, Clip, CorpusError, PreparedCorpus
from speech.features import Picture, normalised
from speech.shapes import IMAGE_CHANNELS, IMAGE_SIDE, clip_samples

ORDER_STREAM = 1  # the order of an epoch draws from (seed, epoch, 0, 1), apart from every clip's stream
IMAGE_RANGE = 4.0  # a picture's brightness spans +-4 deviations of its row

# torch advises against more workers than cores; here that is the question
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)

Key = tuple[int, int]  # (epoch, index of the clip in its split)
Sample = tuple[torch.Tensor, int]  # picture (C, M, T), label


def prepare_forms(config: TrialConfig, corpus: PreparedCorpus, report: Callable[[str], None]) -> None:
    """Computes once, before any trial, what trials of this corpus read from the cache: row statistics, and the png form's images."""
    if config.augment.noise and not corpus.noise:
        raise CorpusError(
            f"augment.noise {config.augment.noise:g} mixes in background noise, but {corpus.root} has none: put recordings of at least "
            f"{config.corpus.seconds / 0.8:g} s into {NOISE_FOLDER}/, or write augment.noise: 0."
        )
    picture = _picture(config, corpus)
    folder = image_folder(config, corpus)
    if config.loader.form == "png" and not folder.exists():
        report(f"writing {len(corpus.clips):,} pictures of {IMAGE_SIDE} x {IMAGE_SIDE} once, for loader.form: png")
        _write_images(config, corpus, picture, folder)


def _picture(config: TrialConfig, corpus: PreparedCorpus) -> Picture:
    training = corpus.split("training")
    waveforms = (torch.from_numpy(_read(corpus, clip, clip_samples(config))) for clip in training)
    return normalised(config.features, f"{corpus.fingerprint} {config.corpus.seconds}", waveforms)


def _read(corpus: PreparedCorpus, clip: Clip, samples: int) -> np.ndarray:
    return read_clip(corpus.root / clip.path, samples, start=clip.start)


def image_folder(config: TrialConfig, corpus: PreparedCorpus) -> Path:
    """Where the images of this corpus and these features lie, one a clip: <split>/<index>.png."""
    text = f"{corpus.fingerprint} {config.corpus.seconds} {config.features.model_dump_json()} {IMAGE_SIDE} {IMAGE_RANGE}"
    return cache_dir() / "png" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_images(config: TrialConfig, corpus: PreparedCorpus, picture: Picture, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    for split in ("training", "validation", "testing"):
        (partial / split).mkdir()
        for index, clip in enumerate(corpus.split(split)):
            waveform = torch.from_numpy(_read(corpus, clip, clip_samples(config)))
            to_image(picture(waveform[None])[0]).save(partial / split / f"{index}.png")
    try:
        partial.rename(folder)
    except OSError:  # another process was quicker; its images are the same
        shutil.rmtree(partial)


def to_image(picture: torch.Tensor) -> Image.Image:
    """A normalised picture (C, M, T) as RGB, low frequencies at the bottom. Fewer than three channels repeat the first."""
    channels = [picture[min(c, len(picture) - 1)] for c in range(IMAGE_CHANNELS)]
    pixels = (torch.stack(channels, dim=-1).flip(0) / IMAGE_RANGE + 1) * 127.5  # (M, T, 3)
    image = Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)


def from_image(path: Path) -> torch.Tensor:
    """(3, 224, 224) float32, in deviations of a row: the inverse of to_image up to 8 bits and the change of size."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return (pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1) * IMAGE_RANGE


class Clips(Dataset[Sample]):
    """One split. Item (epoch, index) -> picture (C, M, T) float32 and label; only the training split is changed by `augment`."""

    def __init__(self, config: TrialConfig, corpus: PreparedCorpus, split: str, seed: int):
        self.corpus, self.clips, self.seed = corpus, corpus.split(split), seed
        self.augment = config.augment if split == "training" else None
        self.samples = clip_samples(config)
        self.images = image_folder(config, corpus) / split if config.loader.form == "png" else None
        self.picture = None if self.images else _picture(config, corpus)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        rng = draws(self.seed, epoch, index)
        picture = from_image(self.images / f"{index}.png") if self.images else self._from_waveform(index, rng)
        if self.augment and (self.augment.freq_mask or self.augment.time_mask):
            picture = mask_picture(picture, self.augment, rng)
        return picture, self.clips[index].label

    @torch.no_grad()
    def _from_waveform(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        assert self.picture is not None
        waveform = _read(self.corpus, self.clips[index], self.samples)
        if self.augment:
            waveform = augment_waveform(waveform, self.augment, rng, self._read_noise)
        return self.picture(torch.from_numpy(waveform)[None])[0]

    def _read_noise(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        stretches = self.corpus.noise
        path, first, length = stretches[int(rng.integers(len(stretches)))]
        start = first + int(rng.integers(max(length - samples, 0), endpoint=True))
        return read_clip(self.corpus.root / path, samples, start=start)


class EpochBatches(Sampler[list[Key]]):
    """Batches of (epoch, index) pairs. Set `epoch` before iterating; a shuffled order follows from (seed, epoch) alone."""

    def __init__(self, clips: int, batch_size: int, seed: int | None):
        """`seed` None: in order and to the last clip. Otherwise shuffled, and a last incomplete batch is left out."""
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.clips // self.batch_size if self.seed is not None else -(-self.clips // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = range(self.clips) if self.seed is None else draws(self.seed, self.epoch, 0, ORDER_STREAM).permutation(self.clips).tolist()
        for batch in range(len(self)):
            yield [(self.epoch, index) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size]]


def make_loader(config: TrialConfig, corpus: PreparedCorpus, split: str, seed: int, pin_memory: bool) -> tuple[DataLoader, EpochBatches]:
    """The loader of one split and the sampler that tells it the epoch. Batches: pictures (B, C, M, T) float32, labels (B,) int64."""
    clips, keys = Clips(config, corpus, split, seed), config.loader
    if split == "training" and len(clips) < keys.batch_size:
        held = f"the {len(clips)} training clips of {corpus.root}"
        raise ValueError(f"loader.batch_size {keys.batch_size} is more than {held}: write a smaller one")
    batches = EpochBatches(len(clips), keys.batch_size, seed if split == "training" else None)
    workers = keys.num_workers
    loader = DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=keys.prefetch_factor if workers else None,
        persistent_workers=bool(workers) and keys.persistent_workers and split == "training",
        multiprocessing_context=keys.start_method if workers else None,
        pin_memory=pin_memory,
    )
    return loader, batches
