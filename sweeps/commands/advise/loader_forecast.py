"""Forecasts an epoch of a measured loader, with its requirements, for each number of workers.

    MeasuredLoader, Calibration -> rows -> recommended row, time bounds

A row covers one number of workers and has three parts:

- the forecast of an epoch (sweeps/forecast/forecast.py)
- the /dev/shm requirement, counted as sweeps/forecast/shm_fit.py counts it for a trial, beside the
  free space of /dev/shm
- the memory of all processes (sweeps/forecast/memory_fit.py)

The recommendation is the fewest workers that certainly fit and are forecast within 2 % of the
fastest that fit.
"""

import math
from dataclasses import dataclass

from speech.calibration.costs import Calibration, interpolate
from speech.calibration.worker_memory import WorkerMemory
from speech.shm_usage import shm_usage
from sweeps.forecast.forecast import EpochSettings, Forecast, forecast_epoch
from sweeps.forecast.memory_fit import MemoryRequirement, memory_requirement
from sweeps.forecast.shm_fit import ShmRequirement, closed_queue_bytes, queue_bytes
from sweeps.sandbox.cgroup import memory_available
from sweeps.trial_states import ShmVerdict

TOLERANCE = 0.02  # relative: a forecast this close to the fastest is as good
# Numbers of workers; the number of cores and the loader's own number are added
WORKER_COUNTS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class MeasuredLoader:
    """An external loader with its own settings, and what was measured of its batches and memory."""

    dataset: str
    clips: int
    batches: int
    batch_bytes: int
    varies: bool  # whether batches differ in size: batch_bytes is then the largest of a few
    held_bytes: int  # size of what its module and the loader itself keep in /dev/shm
    sent_bytes: int  # size of its data set in /dev/shm while workers that are not forked hold it
    num_workers: int
    prefetch_factor: int
    persistent: bool
    first_wait_s: float  # seconds per batch spent waiting for reads, at its first reading
    first_read_bytes: int  # bytes per batch that came from storage at its first reading
    memory: WorkerMemory | None = None  # of a worker; None: this kernel does not report it
    only_workers: str | None = None  # error of its data set outside a worker; None: it has none

    @property
    def fixed_settings(self) -> str:
        """Settings that are the same in the forecasts for all numbers of workers."""
        return f"prefetch_factor={self.prefetch_factor}, persistent_workers={self.persistent}"


@dataclass(frozen=True)
class Row:
    """Forecast and requirements for one number of workers."""

    workers: int
    forecast: Forecast
    shm: ShmRequirement
    memory: MemoryRequirement | None = None

    @property
    def fits(self) -> bool:
        """Returns whether /dev/shm and memory certainly suffice."""
        return self.shm.verdict == ShmVerdict.FITS and (self.memory is None or self.memory.fits)


def free_shm_bytes() -> int:
    """Returns how much of /dev/shm can be filled now: its free space, or free memory if less."""
    usage = shm_usage()
    return min(usage.limit_bytes - usage.used_bytes, memory_available())


def forecast_rows(
    loader: MeasuredLoader, calibration: Calibration, limit_bytes: int, available_bytes: int = 0
) -> list[Row]:
    """Forecasts a warm epoch for every number of workers to choose from.

    /dev/shm has `limit_bytes` free, and `available_bytes` of memory can be used.
    """
    counts = {*WORKER_COUNTS, math.ceil(calibration.loader.cores), loader.num_workers} - (
        {0} if loader.only_workers else set()
    )
    return [
        _row(
            loader,
            calibration,
            workers,
            loader_shm_requirement(loader, workers, limit_bytes),
            available_bytes,
        )
        for workers in sorted(counts)
    ]


def _row(
    loader: MeasuredLoader,
    calibration: Calibration,
    workers: int,
    shm: ShmRequirement,
    available_bytes: int,
) -> Row:
    """Forecasts a warm epoch with `workers` workers."""
    forecast = forecast_epoch(
        calibration,
        EpochSettings(loader.batches, workers, loader.prefetch_factor, loader.persistent),
        max_bytes=shm.max_bytes,
        base_bytes=_base_bytes(loader, workers),
    )
    per_worker = loader.memory
    memory = (
        memory_requirement(per_worker, workers, loader.persistent, shm.max_bytes, available_bytes)
        if per_worker
        else None
    )
    return Row(workers, forecast, shm, memory)


def loader_shm_requirement(
    loader: MeasuredLoader, workers: int, limit_bytes: int
) -> ShmRequirement:
    """Returns the /dev/shm requirement of this loader with `workers` workers."""
    batch = loader.batch_bytes
    if workers == 0:
        return ShmRequirement(
            batch, loader.held_bytes, loader.held_bytes, loader.held_bytes, limit_bytes
        )
    base = _base_bytes(loader, workers)
    # Queues of the previous epoch, which may or may not be released yet
    closed = 0 if loader.persistent else closed_queue_bytes(workers)
    # Beside these, the loop holds one batch
    ahead = min(loader.prefetch_factor * workers, loader.batches - 1)
    return ShmRequirement(
        batch,
        base + batch,
        base + workers * batch,
        base + closed + (ahead + 1) * batch,
        limit_bytes,
    )


def _base_bytes(loader: MeasuredLoader, workers: int) -> int:
    """Returns the bytes of /dev/shm beside the batches: what the loader keeps there, the data set
    if it is sent, and the semaphores of its queues.
    """
    return loader.held_bytes + loader.sent_bytes + queue_bytes(workers)


def recommended_row(rows: list[Row]) -> Row | None:
    """Returns the row with the fewest workers that is within TOLERANCE of the fastest.

    Only rows that fit count; the result is None if none fits. The forecast intervals do not matter,
    because all forecasts come from one calibration and have the same error.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return None
    best_s = min(row.forecast.epoch_s for row in fitting)
    return next(row for row in fitting if row.forecast.epoch_s <= (1 + TOLERANCE) * best_s)


def preparation_rate(calibration: Calibration, workers: int) -> float:
    """Returns the samples per second that `workers` workers prepare.

    With 0 workers, the training process prepares them. More workers than cores gain nothing.
    """
    costs = calibration.loader
    busy = min(workers, costs.cores)
    batch_s = (
        costs.prepare_s * interpolate(tuple(costs.shared), busy, 1.0) / busy
        if workers
        else costs.inline_s / min(1.0, costs.cores)
    )
    return costs.batch_size / batch_s if batch_s else math.inf


def time_bounds(loader: MeasuredLoader, calibration: Calibration, row: Row) -> dict[str, float]:
    """Returns the seconds that an epoch would take with one resource as its only bound."""
    costs, step = calibration.loader, calibration.step
    alone_s = {
        "accelerator": loader.batches * step.alone_s(costs.cores),
        "preparation": (
            loader.batches * costs.batch_size / preparation_rate(calibration, row.workers)
        ),
        "reads": loader.batches * costs.read_s / max(row.workers, 1),
    }
    if row.workers:
        alone_s["starting"] = row.forecast.start_s + row.forecast.first_batch_s
    if row.workers and step.cpu_s:  # workers and the step share the cores
        work_s = costs.prepare_s + costs.release_s + step.cpu_s * step.threads
        alone_s["cores"] = loader.batches * work_s / costs.cores
    return alone_s
