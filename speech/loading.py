"""Builds the DataLoader of a split, and computes the cached data that loaders read.

The sampler yields whole batches together with their epoch and step; speech/dataset.py gives the
reason.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from speech import packed
from speech.augment import random_stream
from speech.config import TrialConfig
from speech.dataset import BatchRequest, ClipDataset, build_picture
from speech.feasibility import batch_size_obstacle, noise_obstacle
from speech.fetches import Collate, FetchLog
from speech.images import image_folder, write_images
from speech.prepared_corpus import PreparedCorpus
from speech.shapes import IMAGE_SIDE
from speech.sources import CorpusError

ORDER_STREAM = 1  # an epoch's order draws from (seed, epoch, 0, 1), separate from clips' streams

# torch advises against more workers than cores, which is what a sweep examines
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)


def prepare_forms(
    config: TrialConfig, corpus: PreparedCorpus, report: Callable[[str], None]
) -> None:
    """Computes the cached data of this corpus: row statistics, images and the packed file.

    It runs before any trial, and skips data that the cache already holds. `report` receives a line
    before each long step. Raises CorpusError if background noise is configured but missing.
    """
    if obstacle := noise_obstacle(config, corpus):
        raise CorpusError(obstacle)
    picture = build_picture(config, corpus)
    folder = image_folder(config, corpus)
    if config.loader.format == "png" and not folder.exists():
        report(
            f"writing {len(corpus.clips):,} pictures of {IMAGE_SIDE} x {IMAGE_SIDE} once, for"
            " loader.format: png"
        )
        write_images(config, corpus, picture, folder)
    file = packed.packed_file(config, corpus)
    if config.loader.format in ("packed", "on_device") and not file.exists():
        report(
            f"packing {len(corpus.clips):,} clips into one file once, for loader.format:"
            f" {config.loader.format}"
        )
        packed.write_packed(config, corpus, file)


class EpochBatches(Sampler[BatchRequest]):
    """Yields the batches of an epoch.

    Set `epoch`, and `rank` of several, before iterating. A shuffled order depends on (seed, epoch)
    only. Every step takes the next clips of that order for each of `ranks` ranks in turn, so that
    all ranks together see the epoch of a single process with batches of all ranks.
    """

    def __init__(self, clips: int, batch_size: int, seed: int | None, ranks: int = 1):
        """Prepares the batches of rank 0 over `clips` clips.

        With `seed` None the order is that of the clips, and all clips are included. Otherwise the
        order is shuffled, and the clips of a last incomplete step are dropped.
        """
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.ranks = ranks
        self.epoch = self.rank = 0

    def of_rank(self, rank: int) -> "EpochBatches":
        """Returns the batches of another rank in the same epoch."""
        other = copy.copy(self)
        other.rank = rank
        return other

    def __len__(self) -> int:
        step_clips = self.batch_size * self.ranks
        return self.clips // step_clips if self.seed is not None else -(-self.clips // step_clips)

    def __iter__(self) -> Iterator[BatchRequest]:
        order = (
            range(self.clips)
            if self.seed is None
            else random_stream(self.seed, self.epoch, 0, ORDER_STREAM)
            .permutation(self.clips)
            .tolist()
        )
        for step in range(len(self)):
            first = (step * self.ranks + self.rank) * self.batch_size
            yield BatchRequest(self.epoch, step, list(order[first : first + self.batch_size]))


def choose_fetch(loader: DataLoader) -> Callable[[Iterator[Any]], Any]:
    """Returns the function that fetches the next batch from an iterator of `loader`.

    With workers it is `next`. Without workers the calling process prepares the batch, on one
    thread, as a worker does. On two cores more threads are no faster (docs/benchmarks.md), and
    beside one busy process they wait for each other so long that a batch takes 3 to 4 times as
    long.
    """
    return next if loader.num_workers else _fetch_on_one_thread


def _fetch_on_one_thread(batches: Iterator[Any]) -> Any:
    """Returns the next batch, and restores the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return next(batches)
    finally:
        torch.set_num_threads(threads)


def make_loader(
    config: TrialConfig,
    corpus: PreparedCorpus,
    split: str,
    seed: int,
    pin_memory: bool = False,
    log: FetchLog | None = None,
) -> tuple[DataLoader, EpochBatches]:
    """Returns the loader of one split, and the sampler through which epoch and rank are set.

    `log` records every batch that is prepared. Batches are pictures (B, C, M, T) float32 and labels
    (B,) int64. In loader format `on_device` they are waveforms (B, S) int16 and labels. If
    SpecAugment is on, masks (B, 2, 2, 2) int32 follow. Raises ValueError if the training split is
    smaller than a step.
    """
    clips, loader_config = ClipDataset(config, corpus, split, seed, log), config.loader
    if split == "training" and (obstacle := batch_size_obstacle(config, corpus)):
        raise ValueError(obstacle)
    batches = (
        EpochBatches(len(clips), loader_config.batch_size, seed, config.device.ranks)
        if split == "training"
        else EpochBatches(len(clips), loader_config.batch_size, None)
    )
    if log:
        log.allocate(len(batches))
    workers = loader_config.num_workers
    loader = DataLoader(
        clips,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch passes its items to the dataset
        num_workers=workers,
        prefetch_factor=loader_config.prefetch_factor if workers else None,
        persistent_workers=bool(workers)
        and loader_config.persistent_workers
        and split == "training",
        multiprocessing_context=loader_config.start_method if workers else None,
        collate_fn=Collate(log) if log else None,
        pin_memory=pin_memory,
    )
    return loader, batches
