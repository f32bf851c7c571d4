"""How much of /dev/shm a trial will take, worked out before it runs: fits, overflows, or depends on rates.

The one idea is to count whole batches. A loader of W workers that prefetch P keeps at most P * W batches on their way, and the loop holds
one more, which it lets go before it asks for the next; no epoch has more batches than it has. Beside them lie the semaphores of the
loader's queues, a page each.

    bound     the P * W batches on their way and the one held      reached when the training loop is the slow side
    typical   one batch a worker                                   about what there is when the workers are the slow side
    floor     one batch                                            below it not even that can be made

At or above the bound a trial fits for certain, below the floor it overflows for certain; between, it depends on who is quicker. Each
epoch of a trial that learns is followed by validation through a loader of its own, beside which only semaphores of the training loader's
persistent workers are left. At 0 workers nothing travels through /dev/shm.

With a slow loop the measured peak is the bound to the page, but for workers that do not persist: from the second pass on up to two
pages a worker of the bound are the last loader's queues, which may or may not be gone.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from speech.config import TrialConfig
from speech.shapes import PAGE, batch_bytes, dataset_bytes

Verdict = Literal["fits", "overflows", "depends"]
VERDICTS: dict[Verdict, tuple[str, str]] = {  # as it is said of one trial, and of several
    "fits": ("fits", "fit"),
    "overflows": ("overflows", "overflow"),
    "depends": ("depends on rates", "depend on rates"),
}


@dataclass(frozen=True)
class ShmFit:
    """What a trial needs of /dev/shm beside what it has, in bytes."""

    batch_bytes: int
    floor_bytes: int
    typical_bytes: int
    bound_bytes: int
    limit_bytes: int

    @property
    def verdict(self) -> Verdict:
        if self.limit_bytes >= self.bound_bytes:
            return "fits"
        return "overflows" if self.limit_bytes < self.floor_bytes else "depends"

    def metrics(self) -> dict[str, int]:
        """What stands in the trial's record, under the names of sweeps.metrics."""
        return {
            "forecast_shm_floor_bytes": self.floor_bytes,
            "forecast_shm_typical_bytes": self.typical_bytes,
            "forecast_shm_bound_bytes": self.bound_bytes,
        }


def counted(fits: Iterable[ShmFit]) -> str:
    """'20 fit, 6 overflow, 7 depend on rates': trials by verdict."""
    counts = Counter(fit.verdict for fit in fits)
    return ", ".join(f"{counts[verdict]} {words[counts[verdict] > 1]}" for verdict, words in VERDICTS.items() if counts[verdict])


class _Pass(NamedTuple):
    """One pass over a split: what lies in /dev/shm beside its batches, and the batches that come."""

    base_bytes: int
    lingering_bytes: int  # of semaphores that the closed queues of the loader before it may still hold, for milliseconds
    clips: int
    keeps_last: bool  # validation reads an incomplete last batch, training leaves it out


class _Need(NamedTuple):
    floor: int
    typical: int
    bound: int


def fit(config: TrialConfig, training_clips: int, validation_clips: int, limit_bytes: int) -> ShmFit:
    """What `config` needs of a /dev/shm of which it may fill `limit_bytes`.

    Where `device.first_of` leaves the device open the bound is the largest and the floor the smallest of all that the trial may get.
    With `pin_memory` on a GPU the bound still holds, as the pinning thread only takes batches out earlier (not measured on CUDA).
    """
    keys = config.loader
    batch = batch_bytes(config, keys.batch_size)
    if keys.num_workers == 0:
        return ShmFit(batch, 0, 0, 0, limit_bytes)
    needs = [_need(config, _passes(config, device, training_clips, validation_clips)) for device in config.device.first_of]
    return ShmFit(batch, min(n.floor for n in needs), max(n.typical for n in needs), max(n.bound for n in needs), limit_bytes)


def _need(config: TrialConfig, passes: list[_Pass]) -> _Need:
    workers, ahead = config.loader.num_workers, config.loader.num_workers * config.loader.prefetch_factor
    floor = max(each.base_bytes + _first(config, each, 1) for each in passes)
    typical = max(each.base_bytes + _first(config, each, workers) for each in passes)
    bound = max(each.base_bytes + each.lingering_bytes + _first(config, each, ahead + 1) for each in passes)
    return _Need(floor, typical, bound)


def _passes(config: TrialConfig, device: str, training_clips: int, validation_clips: int) -> list[_Pass]:
    """The first epoch, and where there are more a later one; with a validation on a device that learns."""
    keys = config.loader
    semaphores = PAGE * (3 * (keys.num_workers + 1) + 5)  # a queue a worker and one for results, 3 each, and an event of 5
    closed = PAGE * 2 * keys.num_workers  # the thread that feeds a queue ends after the queue, and lets go of 2
    dataset = 0 if keys.start_method == "fork" else dataset_bytes(config)  # pickled to the workers by way of /dev/shm, where it stays
    learns, persistent = device != "paced", keys.persistent_workers
    passes = [_Pass(semaphores + dataset, 0, training_clips, False)]
    if learns:
        base = semaphores + 2 * dataset
        beside, lingering = (semaphores, 0) if persistent else (0, closed)
        passes.append(_Pass(base + beside, lingering, validation_clips, True))
        if config.sgdr.epochs > 1:
            passes.append(_Pass(base, closed, training_clips, False))
    elif config.sgdr.epochs > 1 and not persistent:
        passes.append(_Pass(semaphores + dataset, closed, training_clips, False))
    return passes


def _first(config: TrialConfig, each: _Pass, batches: int) -> int:
    """Bytes of the first so many batches of a pass: no others in a row are larger."""
    size = config.loader.batch_size
    full, rest = divmod(each.clips, size)
    last = batch_bytes(config, rest, training=False) if each.keeps_last and rest and batches > full else 0
    return min(batches, full) * batch_bytes(config, size, training=not each.keeps_last) + last
