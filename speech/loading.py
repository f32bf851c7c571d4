"""The DataLoader of a split, and what is computed once before any loader runs.

The sampler hands out whole batches with the epoch and the step they are for (speech/clips.py says why).
"""

import warnings
from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Sampler

from speech import packed
from speech.augment import draws
from speech.clips import Clips, Request, picture_of
from speech.config import TrialConfig
from speech.corpora import NOISE_FOLDER, CorpusError, PreparedCorpus
from speech.fetches import Collate, FetchLog
from speech.images import image_folder, write_images
from speech.shapes import IMAGE_SIDE

ORDER_STREAM = 1  # the order of an epoch draws from (seed, epoch, 0, 1), apart from every clip's stream

# torch advises against more workers than cores; here that is the question
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)


def prepare_forms(config: TrialConfig, corpus: PreparedCorpus, report: Callable[[str], None]) -> None:
    """Computes once, before any trial, what trials of this corpus read from the cache: row statistics, images, the packed file."""
    if config.augment.noise and not corpus.noise:
        raise CorpusError(
            f"augment.noise {config.augment.noise:g} mixes in background noise, but {corpus.root} has none: put recordings of at least "
            f"{config.corpus.seconds / 0.8:g} s into {NOISE_FOLDER}/, or write augment.noise: 0."
        )
    picture = picture_of(config, corpus)
    folder = image_folder(config, corpus)
    if config.loader.form == "png" and not folder.exists():
        report(f"writing {len(corpus.clips):,} pictures of {IMAGE_SIDE} x {IMAGE_SIDE} once, for loader.form: png")
        write_images(config, corpus, picture, folder)
    file = packed.packed_file(config, corpus)
    if config.loader.form in ("packed", "device") and not file.exists():
        report(f"packing {len(corpus.clips):,} clips into one file once, for loader.form: {config.loader.form}")
        packed.write_packed(config, corpus, file)


class EpochBatches(Sampler[Request]):
    """The batches of an epoch. Set `epoch` before iterating; a shuffled order follows from (seed, epoch) alone."""

    def __init__(self, clips: int, batch_size: int, seed: int | None):
        """`seed` None: in order and to the last clip. Otherwise shuffled, and a last incomplete batch is left out."""
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.clips // self.batch_size if self.seed is not None else -(-self.clips // self.batch_size)

    def __iter__(self) -> Iterator[Request]:
        order = range(self.clips) if self.seed is None else draws(self.seed, self.epoch, 0, ORDER_STREAM).permutation(self.clips).tolist()
        for step in range(len(self)):
            yield Request(self.epoch, step, list(order[step * self.batch_size : (step + 1) * self.batch_size]))


def make_loader(
    config: TrialConfig, corpus: PreparedCorpus, split: str, seed: int, pin_memory: bool = False, log: FetchLog | None = None
) -> tuple[DataLoader, EpochBatches]:
    """The loader of one split and the sampler that tells it the epoch; `log` is to hear of every batch that is prepared.

    Batches: pictures (B, C, M, T) float32 and labels (B,) int64; in device form waveforms (B, S) int16, labels, and where SpecAugment
    is on its masks (B, 2, 2, 2) int32.
    """
    clips, keys = Clips(config, corpus, split, seed, log), config.loader
    if split == "training" and len(clips) < keys.batch_size:
        held = f"the {len(clips)} training clips of {corpus.root}"
        raise ValueError(f"loader.batch_size {keys.batch_size} is more than {held}: write a smaller one")
    batches = EpochBatches(len(clips), keys.batch_size, seed if split == "training" else None)
    if log:
        log.make_room(len(batches))
    workers = keys.num_workers
    loader = DataLoader(
        clips,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch only hands what it yields to the data set
        num_workers=workers,
        prefetch_factor=keys.prefetch_factor if workers else None,
        persistent_workers=bool(workers) and keys.persistent_workers and split == "training",
        multiprocessing_context=keys.start_method if workers else None,
        collate_fn=Collate(log) if log else None,
        pin_memory=pin_memory,
    )
    return loader, batches
