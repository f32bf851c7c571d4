"""How long an epoch will take, said before it runs: a calibration and what a trial sweeps -> seconds, fill, stalls, /dev/shm.

The one idea is that nothing is fitted. A calibration holds what one batch costs (speech/costs.py), the simulation plays the loader's
rules with it (sweeps/simulation.py), and the number of workers, the prefetch and the length of the epoch are all that differs from one
forecast to the next. A forecast comes with an interval: the same epoch played with every measured second at the low and at the high end
of what the calibration saw, widened by what the simulation itself is known to miss.

    foresee(calibration, batches=45, workers=4, prefetch=2, persistent=True, bound_bytes=173_000_000).epoch_s

Free of torch; a thousand forecasts take seconds.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

from speech.config import TrialConfig
from speech.costs import Calibration, LoaderCosts, paced_step
from sweeps.shm_fit import ShmFit
from sweeps.simulation import Epoch, Simulated, simulate

MODEL_ERROR = 0.1  # relative: what simulation and machine were off by while the forecast was made, on png, packed and wav batches
PLAYED = 1024  # batches of a long epoch that are played at least, and WINDOWS times as many as may be under way
WINDOWS = 8
OF_A_START = ("fork_s", "ready_s", "cold_s")  # of LoaderCosts; its other seconds are a batch's, and Epoch calls them by the same names


@dataclass(frozen=True)
class Forecast:
    """Of a warm epoch. The interval is low_s to high_s, that of fill_s fill_low_s to fill_high_s."""

    epoch_s: float
    low_s: float
    high_s: float
    start_s: float
    fill_s: float
    fill_low_s: float
    fill_high_s: float
    wait_fraction: float
    stall_steps: float
    shm_peak_bytes: int
    closed_form_s: float  # the naive rival: the slower side's seconds, as if nothing ever waited for anything else

    def metrics(self) -> dict[str, float]:
        """What stands in the trial's record, under the names of sweeps.metrics."""
        return {
            "forecast_epoch_s": self.epoch_s,
            "forecast_epoch_low_s": self.low_s,
            "forecast_epoch_high_s": self.high_s,
            "forecast_fill_s": self.fill_s,
            "forecast_fill_low_s": self.fill_low_s,
            "forecast_fill_high_s": self.fill_high_s,
            "forecast_wait_fraction": self.wait_fraction,
            "forecast_stall_steps": self.stall_steps,
            "forecast_shm_peak_bytes": self.shm_peak_bytes,
            "forecast_closed_form_s": self.closed_form_s,
        }


def forecast(config: TrialConfig, calibration: Calibration, training_clips: int, fit: ShmFit) -> Forecast:
    """Of a trial that trains on so many clips; `fit` is what it needs of /dev/shm."""
    keys = config.loader
    if calibration.modelled:
        calibration = calibration.model_copy(update={"step": paced_step(config.device)})
    return foresee(
        calibration,
        batches=training_clips // keys.batch_size,
        workers=keys.num_workers,
        prefetch=keys.prefetch_factor,
        persistent=keys.persistent_workers,
        bound_bytes=fit.bound_bytes,
        base_bytes=max(fit.floor_bytes - fit.batch_bytes, 0),  # the floor is one batch beside what lies there all the time
    )


def foresee(
    calibration: Calibration, *, batches: int, workers: int, prefetch: int, persistent: bool, bound_bytes: int, base_bytes: int = 0
) -> Forecast:
    """An epoch of `batches` batches. /dev/shm holds `base_bytes` beside them, and never more than `bound_bytes` in all."""
    low, likely, high = (_play(_epoch(calibration, side, batches, workers, prefetch, persistent)) for side in (-1, 0, 1))
    epoch_low_s, epoch_high_s = _widened(low.epoch_s, likely.epoch_s, high.epoch_s)
    fill_low_s, fill_high_s = _widened(low.fill_s, likely.fill_s, high.fill_s)
    return Forecast(
        epoch_s=likely.epoch_s,
        low_s=epoch_low_s,
        high_s=epoch_high_s,
        start_s=likely.start_s,
        fill_s=likely.fill_s,
        fill_low_s=fill_low_s,
        fill_high_s=fill_high_s,
        wait_fraction=likely.wait_fraction,
        stall_steps=likely.stalled_steps,
        shm_peak_bytes=min(base_bytes + likely.peak_batches * calibration.loader.batch_bytes, bound_bytes) if workers else 0,
        closed_form_s=closed_form_s(calibration, batches, workers),
    )


def closed_form_s(calibration: Calibration, batches: int, workers: int) -> float:
    """The textbook's epoch: without workers everything in turn, with workers a fill and then the slowest of step, cores and reads."""
    costs, cores = calibration.loader, calibration.loader.cores
    step_s = calibration.step.wait_s + calibration.step.cpu_s * max(1.0, calibration.step.threads / cores)
    if workers == 0:
        return batches * (costs.inline_s + costs.read_s + step_s)
    fill_s = costs.read_s + costs.prepare_s * max(1.0, workers / cores)
    return fill_s + batches * max(step_s, costs.prepare_s / min(workers, cores), costs.read_s / workers)


def _epoch(calibration: Calibration, side: int, batches: int, workers: int, prefetch: int, persistent: bool) -> Epoch:
    """`side` -1, 0, 1: what was measured, at its low end, as it is, at its high end. Workers that persist have started before."""
    costs, step = calibration.loader, calibration.step
    by, by_step = (max(1 + side * spread, 0.0) for spread in (costs.spread, step.spread))
    of_a_batch = {name: getattr(costs, name) for name in LoaderCosts.model_fields if name.endswith("_s") and name not in OF_A_START}
    return Epoch(
        batches=batches,
        workers=workers,
        prefetch=prefetch,
        cores=costs.cores,
        **{name: _times(by, measured) for name, measured in of_a_batch.items()},
        step_cpu_s=by_step * step.cpu_s,
        step_threads=step.threads,
        step_wait_s=by_step * step.wait_s,
        start_s=0.0 if persistent else by * workers * costs.fork_s,
        ready_s=by * (costs.cold_s if persistent or not workers else costs.ready_s),
        shared=tuple(costs.shared),
        read_slower=tuple(costs.read_slower),
        step_beside=tuple(step.beside),
        beside_step=tuple(step.prepare_beside),
    )


def _times(factor: float, measured: Any) -> Any:
    """Seconds, or a table of them by the number of processes, that many times as long."""
    return tuple((count, factor * seconds) for count, seconds in measured) if isinstance(measured, list) else factor * measured


@functools.lru_cache(maxsize=4096)
def _play(epoch: Epoch) -> Simulated:
    """The epoch simulated, once for all trials that repeat it. A long one goes on as the later half of what is played of it went."""
    most = max(PLAYED, WINDOWS * epoch.prefetch * epoch.workers)
    if epoch.batches <= most or not epoch.workers:
        return simulate(epoch)
    half = most // 2
    long, short = (simulate(replace(epoch, batches=batches)) for batches in (most, half))
    times = (epoch.batches - most) / (most - half)
    return replace(
        long,
        wait_s=long.wait_s + times * (long.wait_s - short.wait_s),
        step_s=long.step_s + times * (long.step_s - short.step_s),
        other_s=long.other_s + times * (long.other_s - short.other_s),
        stalled_steps=round(long.stalled_steps + times * (long.stalled_steps - short.stalled_steps)),
    )


def _widened(low_s: float, likely_s: float, high_s: float) -> tuple[float, float]:
    """Costs that are all lower may, by a turn of the order, make a slower epoch: the likely one is always inside."""
    return (1 - MODEL_ERROR) * min(low_s, likely_s), (1 + MODEL_ERROR) * max(likely_s, high_s)
