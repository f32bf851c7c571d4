"""The /dev/shm requirement of a trial before it runs: fits, overflows, or depends on rates.

The requirement counts whole batches. A loader of W workers that prefetch P batches has at most
P * W batches in progress. The loop holds one more, which it releases before it requests the next.
An epoch cannot have more batches in /dev/shm than it has in total. The semaphores of the loader's
queues occupy a page each beside the batches.

    bound     P * W batches in progress and the one held   reached if the training loop is slower
    typical   one batch per worker                         about the usage if workers are slower
    floor     one batch                                    below it, no batch can be built

A trial certainly fits if the limit is at or above the bound, and certainly overflows below the
floor. In between, it depends on which side is faster. Every epoch of a trial that learns is
followed by validation through a loader of its own. Beside that loader, only semaphores of the
training loader's persistent workers remain. With 0 workers, nothing passes through /dev/shm.

Several ranks have a training loader each, on the same /dev/shm, and rank 0 validates. All but the
floor then count the batches and semaphores of every loader.

With a slow loop, the measured peak equals the bound to the page if workers persist. If they do not
persist, up to two pages per worker of the bound are the last loader's queues from the second pass
on; these may or may not be released yet.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from speech.config import TrialConfig
from speech.shapes import batch_bytes, dataset_bytes
from speech.shm_usage import PAGE_BYTES
from sweeps.trial_states import ShmVerdict

VERDICTS = {  # text for one trial, and for several
    ShmVerdict.FITS: ("fits", "fit"),
    ShmVerdict.OVERFLOWS: ("overflows", "overflow"),
    ShmVerdict.DEPENDS: ("depends on rates", "depend on rates"),
}


@dataclass(frozen=True)
class ShmRequirement:
    """The /dev/shm that a trial requires and the limit that it has, in bytes."""

    batch_bytes: int
    min_bytes: int
    expected_bytes: int
    max_bytes: int
    limit_bytes: int

    @property
    def verdict(self) -> ShmVerdict:
        """Returns whether the trial fits, overflows, or depends on rates."""
        if self.limit_bytes >= self.max_bytes:
            return ShmVerdict.FITS
        if self.limit_bytes < self.min_bytes:
            return ShmVerdict.OVERFLOWS
        return ShmVerdict.DEPENDS

    def metrics(self) -> dict[str, int]:
        """Returns the requirement under the names of sweeps.metrics, for the trial's record."""
        return {
            "forecast_shm_min_bytes": self.min_bytes,
            "forecast_shm_expected_bytes": self.expected_bytes,
            "forecast_shm_max_bytes": self.max_bytes,
        }


def count_verdicts(requirements: Iterable[ShmRequirement]) -> str:
    """Returns the number of trials by verdict, as in '20 fit, 6 overflow, 7 depend on rates'."""
    counts = Counter(requirement.verdict for requirement in requirements)
    return ", ".join(
        f"{counts[verdict]} {words[counts[verdict] > 1]}"
        for verdict, words in VERDICTS.items()
        if counts[verdict]
    )


class _Pass(NamedTuple):
    """One pass over a split: its loaders, the clips of each, and what else occupies /dev/shm."""

    loaders: int
    base_bytes: int
    # Semaphores that the closed queues of the previous loader may still hold, for milliseconds
    lingering_bytes: int
    clips: int
    reads_last: bool  # validation reads an incomplete last batch, training drops it


class _Bytes(NamedTuple):
    """The required bytes of a trial on one device."""

    floor: int
    typical: int
    bound: int


def shm_requirement(
    config: TrialConfig, training_clips: int, validation_clips: int, limit_bytes: int
) -> ShmRequirement:
    """Returns the requirement of `config` in a /dev/shm of which it may fill `limit_bytes`.

    If `device.prefer` allows several devices, the bound is the largest and the floor the smallest
    over these devices. With `pin_memory` on a GPU the bound still holds, because the pinning thread
    only takes batches out earlier (not measured on CUDA).
    """
    loader_config = config.loader
    batch = batch_bytes(config, loader_config.batch_size)
    if loader_config.num_workers == 0:
        return ShmRequirement(batch, 0, 0, 0, limit_bytes)
    by_device = [
        _required_bytes(config, _passes(config, device, training_clips, validation_clips))
        for device in config.device.prefer
    ]
    floor, typical, bound = (
        min(n.floor for n in by_device),
        max(n.typical for n in by_device),
        max(n.bound for n in by_device),
    )
    return ShmRequirement(batch, floor, typical, bound, limit_bytes)


def _required_bytes(config: TrialConfig, passes: list[_Pass]) -> _Bytes:
    """Returns the largest requirement of these passes."""
    workers, ahead = (
        config.loader.num_workers,
        config.loader.num_workers * config.loader.prefetch_factor,
    )
    floor = max(one.base_bytes + _first_batches_bytes(config, one, 1) for one in passes)
    typical = max(
        one.base_bytes + one.loaders * _first_batches_bytes(config, one, workers) for one in passes
    )
    bound = max(
        one.base_bytes
        + one.lingering_bytes
        + one.loaders * _first_batches_bytes(config, one, ahead + 1)
        for one in passes
    )
    return _Bytes(floor, typical, bound)


def queue_bytes(workers: int) -> int:
    """Returns the bytes of the semaphores of a loader's queues, which occupy a page each.

    Every worker and the results have a queue of 3 semaphores; an event has 5.
    """
    return PAGE_BYTES * (3 * (workers + 1) + 5)


def closed_queue_bytes(workers: int) -> int:
    """Returns the bytes that closed queues may still hold.

    The thread that feeds a worker's queue ends after the queue, and then releases 2 semaphores.
    """
    return PAGE_BYTES * 2 * workers


def _passes(
    config: TrialConfig, device: str, training_clips: int, validation_clips: int
) -> list[_Pass]:
    """Returns the first epoch, and a later one if the trial has more than one epoch.

    On a device that learns, the first epoch is followed by validation.
    """
    loader_config, ranks = config.loader, config.device.ranks
    semaphores = queue_bytes(loader_config.num_workers)
    closed = closed_queue_bytes(loader_config.num_workers)
    # The data set is pickled to the workers through /dev/shm, where it stays
    dataset = 0 if loader_config.start_method == "fork" else dataset_bytes(config)
    learns, persistent = device != "simulated", loader_config.persistent_workers
    loader_bytes, rank_clips = semaphores + dataset, training_clips // ranks
    passes = [_Pass(ranks, ranks * loader_bytes, 0, rank_clips, False)]
    if learns:
        datasets = (ranks + 1) * dataset
        beside, lingering = (ranks * semaphores, 0) if persistent else (0, ranks * closed)
        base = semaphores + datasets + beside
        passes.append(_Pass(1, base, lingering, validation_clips, True))
        if config.sgdr.epochs > 1:
            passes.append(_Pass(ranks, ranks * semaphores + datasets, closed, rank_clips, False))
    elif config.sgdr.epochs > 1 and not persistent:
        passes.append(_Pass(ranks, ranks * loader_bytes, ranks * closed, rank_clips, False))
    return passes


def _first_batches_bytes(config: TrialConfig, one: _Pass, batches: int) -> int:
    """Returns the bytes of the first `batches` batches of a pass; no other sequence is larger."""
    size = config.loader.batch_size
    full, rest = divmod(one.clips, size)
    last = (
        batch_bytes(config, rest, training=False)
        if one.reads_last and rest and batches > full
        else 0
    )
    return min(batches, full) * batch_bytes(config, size, training=not one.reads_last) + last
