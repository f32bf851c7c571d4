"""Forecast of an epoch before it runs: its seconds, first batch, stalls and /dev/shm.

Nothing is fitted to measured epochs. A calibration holds the cost of one batch
(speech/calibration/costs.py), and the simulation applies the loader's rules to it
(sweeps/forecast/simulation.py). Forecasts differ only in the number of workers, the prefetch and
the length of the epoch.

A forecast comes with an interval. The same epoch is simulated with every measured second at the low
end and at the high end of what the calibration measured, or of what the machine's two speeds make
of it, if that is wider. The interval is then widened by the known error of the simulation itself.

The same trial is forecast three times. The planned forecast is made before the launch's first
trial. The one at its start is scaled by a probe of the machine's speed. Both are registered before
the trial starts. Afterwards the epoch is simulated at the speed that the trial met. The error of
this third figure is the model's alone, without that of the machine's speed.

    settings = EpochSettings(batches=45, workers=4, prefetch=2, persistent=True)
    forecast_epoch(calibration, settings, max_bytes=173_000_000).epoch_s

The module does not import torch; a thousand forecasts take seconds.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from speech.calibration.costs import (
    Calibration,
    LoaderCosts,
    interpolate,
    scale_seconds,
    simulated_step,
)
from speech.config import TrialConfig
from sweeps.forecast.shm_fit import ShmRequirement
from sweeps.forecast.simulation import simulate
from sweeps.forecast.simulation_types import Epoch, SimulatedEpoch

# Relative error of simulation and machine, as observed during development on png, packed and wav
# batches
MODEL_ERROR = 0.1
# Relative uncertainty of the speed of the cores while a trial runs. They have two speeds 1.4 apart,
# each for seconds or minutes: a calibration may have met the one and the trial the other. A probe
# at the trial's start leaves the changes during the trial
PLANNED_UNCERTAINTY, START_UNCERTAINTY = 0.12, 0.06
# Of a long epoch, at least this many batches are simulated, and at least IN_PROGRESS_FACTOR times
# as many as can be in progress
MIN_SIMULATED_BATCHES = 1024
IN_PROGRESS_FACTOR = 8
# Fields of LoaderCosts that are no cost of a batch; Epoch has the same names for its other seconds
NOT_PER_BATCH = ("fork_s", "ready_s", "cold_s", "period_s", "pace_cpu_s")


@dataclass(frozen=True)
class Forecast:
    """Forecast of a warm epoch.

    The interval of epoch_s is low_s to high_s; that of first_batch_s is first_batch_low_s to
    first_batch_high_s.
    """

    epoch_s: float
    low_s: float
    high_s: float
    start_s: float
    first_batch_s: float
    first_batch_low_s: float
    first_batch_high_s: float
    wait_fraction: float
    stall_steps: float
    shm_peak_bytes: int
    closed_form_s: float  # the baseline: seconds of the slower side, as if nothing ever waited
    batch_cpu_s: float  # CPU seconds that the preparation of a batch takes

    def start_metrics(self) -> dict[str, float]:
        """Returns a forecast at the trial's start under the names of sweeps.metrics."""
        return {
            "forecast_at_start_s": self.epoch_s,
            "forecast_at_start_low_s": self.low_s,
            "forecast_at_start_high_s": self.high_s,
        }

    def metrics(self) -> dict[str, float]:
        """Returns the forecast under the names of sweeps.metrics, for the trial's record."""
        return {
            "forecast_epoch_s": self.epoch_s,
            "forecast_epoch_low_s": self.low_s,
            "forecast_epoch_high_s": self.high_s,
            "forecast_first_batch_s": self.first_batch_s,
            "forecast_first_batch_low_s": self.first_batch_low_s,
            "forecast_first_batch_high_s": self.first_batch_high_s,
            "forecast_wait_fraction": self.wait_fraction,
            "forecast_stall_steps": self.stall_steps,
            "forecast_shm_peak_bytes": self.shm_peak_bytes,
            "forecast_closed_form_s": self.closed_form_s,
            "forecast_batch_cpu_s": self.batch_cpu_s,
        }


class EpochSettings(NamedTuple):
    """Length of an epoch, and the settings of its loader that a forecast can vary."""

    batches: int  # of a rank
    workers: int  # of a rank
    prefetch: int  # batches for every worker
    persistent: bool  # the workers have started in an earlier epoch
    ranks: int = 1


def forecast_trial(
    config: TrialConfig,
    calibration: Calibration,
    training_clips: int,
    requirement: ShmRequirement,
    uncertainty: float = PLANNED_UNCERTAINTY,
) -> Forecast:
    """Forecasts a trial that trains on `training_clips` clips and has this /dev/shm requirement.

    `uncertainty` is that of the speed of the cores, relative to the calibration's.
    """
    loader_config = config.loader
    step = simulated_step(config.device) if calibration.simulated else calibration.step
    if config.device.sync_every_step:
        step = step.model_copy(update={"run_ahead": 0})
    calibration = calibration.model_copy(update={"step": step})
    return forecast_epoch(
        calibration,
        EpochSettings(
            batches=training_clips // (loader_config.batch_size * config.device.ranks),
            workers=loader_config.num_workers,
            prefetch=loader_config.prefetch_factor,
            persistent=loader_config.persistent_workers,
            ranks=config.device.ranks,
        ),
        max_bytes=requirement.max_bytes,
        # The floor is one batch beside what occupies /dev/shm all the time
        base_bytes=max(requirement.min_bytes - requirement.batch_bytes, 0),
        uncertainty=uncertainty,
    )


def forecast_epoch(
    calibration: Calibration,
    settings: EpochSettings,
    *,
    max_bytes: int,
    base_bytes: int = 0,
    uncertainty: float = PLANNED_UNCERTAINTY,
) -> Forecast:
    """Forecasts an epoch with these settings.

    /dev/shm holds `base_bytes` beside the batches, and never more than `max_bytes` in total.
    """
    low, likely, high = (
        _simulate_cached(_epoch(calibration, side, settings, uncertainty)) for side in (-1, 0, 1)
    )
    epoch_low_s, epoch_high_s = _interval(low.epoch_s, likely.epoch_s, high.epoch_s)
    first_batch_low_s, first_batch_high_s = _interval(
        low.first_batch_s, likely.first_batch_s, high.first_batch_s
    )
    return Forecast(
        epoch_s=likely.epoch_s,
        low_s=epoch_low_s,
        high_s=epoch_high_s,
        start_s=likely.start_s,
        first_batch_s=likely.first_batch_s,
        first_batch_low_s=first_batch_low_s,
        first_batch_high_s=first_batch_high_s,
        wait_fraction=likely.wait_fraction,
        stall_steps=likely.stalled_steps,
        shm_peak_bytes=(
            min(
                base_bytes + settings.ranks * likely.peak_batches * calibration.loader.batch_bytes,
                max_bytes,
            )
            if settings.workers
            else 0
        ),
        closed_form_s=closed_form_s(calibration, settings),
        batch_cpu_s=_batch_cpu_s(calibration, settings, likely.preparing),
    )


def _batch_cpu_s(calibration: Calibration, settings: EpochSettings, preparing: float) -> float:
    """Returns the CPU seconds a batch, if `preparing` workers prepare at once on average.

    Without workers, the loops of all ranks prepare at once.
    """
    costs = calibration.beside_step().loader
    if settings.workers:
        return costs.batch_cpu_s(preparing)
    alone_s = interpolate(costs.pace_cpu_s, 1, 1.0)
    return costs.inline_s * interpolate(costs.pace_cpu_s, settings.ranks, 1.0) / alone_s


def closed_form_s(calibration: Calibration, settings: EpochSettings) -> float:
    """Returns the seconds of an epoch by the textbook formula; ranks share the cores evenly.

    Without workers, everything happens in turn, except that an accelerator whose loop runs ahead
    works beside the host. With workers, the first batch is followed by the slowest of step, cores
    and reads.
    """
    costs, step, batches, workers = (
        calibration.loader,
        calibration.step,
        settings.batches,
        settings.workers,
    )
    cores = costs.cores / settings.ranks
    step_s = step.alone_s(cores)
    if workers == 0:
        prepare_s = costs.inline_s / min(1.0, cores) + costs.read_s
        if step.run_ahead:
            host_s = prepare_s + step.host_s(cores)
            return batches * max(host_s, step.wait_s) + min(host_s, step.wait_s)
        return batches * (prepare_s + step_s)
    first_batch_s = costs.read_s + costs.prepare_s * max(1.0, workers / cores)
    return first_batch_s + batches * max(
        step_s, costs.prepare_s / min(workers, cores), costs.read_s / workers
    )


def _epoch(
    calibration: Calibration, side: int, settings: EpochSettings, uncertainty: float
) -> Epoch:
    """Returns the epoch with costs at their low end (`side` -1), as measured (0), or high (1)."""
    batches, workers, prefetch, persistent, ranks = settings
    calibration = calibration.beside_step()
    costs, step = calibration.loader, calibration.step
    resume_s = step.resume_s / max(1.0, step.threads / costs.cores)
    factor, step_factor, accelerator_factor = (
        max(1 + side * spread, 0.0)
        for spread in (
            max(costs.spread, uncertainty),
            max(step.spread, uncertainty),
            step.spread,
        )
    )
    per_batch = {
        name: getattr(costs, name)
        for name in LoaderCosts.model_fields
        if name.endswith("_s") and name not in NOT_PER_BATCH
    }
    return Epoch(
        batches=batches,
        workers=workers,
        prefetch=prefetch,
        ranks=ranks,
        cores=costs.cores,
        cpus=costs.cpus,
        period_s=costs.period_s or LoaderCosts.model_fields["period_s"].default,
        **{name: _as_tuple(scale_seconds(factor, value)) for name, value in per_batch.items()},
        step_cpu_s=step_factor * (step.cpu_s + (resume_s if workers else 0.0)),
        step_threads=step.threads,
        step_wait_s=accelerator_factor * step.wait_s,
        run_ahead=step.run_ahead,
        launch_overlaps=step.launch_overlaps,
        start_s=(
            0.0
            if persistent
            else factor * workers * costs.fork_s * max(1.0, ranks / (costs.cpus or costs.cores))
        ),
        ready_s=factor * (costs.cold_s if persistent or not workers else costs.ready_s),
        shared=tuple(costs.shared),
        read_slower=tuple(costs.read_slower),
        step_beside=tuple(step.beside),
        beside_step=tuple(step.prepare_beside),
    )


def _as_tuple(value: Any) -> Any:
    """Returns a list as a tuple, since `_simulate_cached` needs a hash, and other values as is."""
    return tuple(value) if isinstance(value, list) else value


@functools.lru_cache(maxsize=4096)
def _simulate_cached(epoch: Epoch) -> SimulatedEpoch:
    """Simulates the epoch, once for all trials that repeat it.

    Only the start of a long epoch is simulated. The rest is extrapolated from the later half of the
    simulated batches.
    """
    simulated = max(MIN_SIMULATED_BATCHES, IN_PROGRESS_FACTOR * epoch.prefetch * epoch.workers)
    if epoch.batches <= simulated:
        return simulate(epoch)
    half = simulated // 2
    long, short = (simulate(replace(epoch, batches=batches)) for batches in (simulated, half))
    times = (epoch.batches - simulated) / (simulated - half)
    return replace(
        long,
        data_wait_s=long.data_wait_s + times * (long.data_wait_s - short.data_wait_s),
        step_s=long.step_s + times * (long.step_s - short.step_s),
        other_s=long.other_s + times * (long.other_s - short.other_s),
        stalled_steps=round(
            long.stalled_steps + times * (long.stalled_steps - short.stalled_steps)
        ),
    )


def _interval(low_s: float, likely_s: float, high_s: float) -> tuple[float, float]:
    """Returns the interval, widened by MODEL_ERROR, which always contains `likely_s`.

    Lower costs can change the order of batches and so make an epoch slower.
    """
    return (1 - MODEL_ERROR) * min(low_s, likely_s), (1 + MODEL_ERROR) * max(likely_s, high_s)
