"""Forecasts from planted calibrations, against schedules worked out by hand and against the bounds
that no epoch can break."""

import itertools
import time

import pytest

from speech.calibration.costs import Calibration, Slowdown, StepCosts
from sweeps.forecast.forecast import (
    MIN_SIMULATED_BATCHES,
    MODEL_ERROR,
    EpochSettings,
    Forecast,
    forecast_epoch,
    forecast_trial,
)
from sweeps.forecast.shm_fit import ShmRequirement, shm_requirement
from sweeps.forecast.simulation import simulate
from sweeps.forecast.simulation_types import Epoch
from sweeps.metrics import SUMMARY
from tests.planted_calibrations import MIB, planted


def foreseen(
    calibration: Calibration,
    workers: int,
    batches: int = 10,
    prefetch: int = 2,
    persistent: bool = True,
    **room,
) -> Forecast:
    room = {"max_bytes": 1 << 40, "uncertainty": 0.0} | room
    return forecast_epoch(
        calibration,
        EpochSettings(batches, workers, prefetch, persistent),
        **room,
    )


def test_without_workers_an_epoch_is_the_sum_of_its_parts() -> None:
    found = foreseen(planted(inline_s=0.05, read_s=0.02, release_s=0.001), 0)
    assert found.epoch_s == pytest.approx(10 * (0.05 + 0.02 + 0.01 + 0.001))
    assert (found.first_batch_s, found.start_s, found.shm_peak_bytes) == (pytest.approx(0.07), 0, 0)
    assert found.wait_fraction == pytest.approx(0.7 / 0.81)
    assert found.stall_steps == 9, "every step but the first comes late"


def test_one_worker_that_is_the_slow_side_gives_a_batch_each_time_it_has_made_one() -> None:
    """Ten batches of 80 ms one after the other, and the last step; the worker was started before."""
    found = foreseen(planted(), 1)
    assert found.epoch_s == pytest.approx(10 * 0.08 + 0.01)
    assert found.first_batch_s == pytest.approx(0.08)


def test_a_worker_that_does_not_persist_is_started_and_gets_ready_each_epoch() -> None:
    found = foreseen(planted(), 2, persistent=False)
    assert found.start_s == pytest.approx(2 * 0.01)
    assert found.first_batch_s == pytest.approx(0.03 + 0.08)
    assert found.epoch_s == pytest.approx(0.02 + 0.03 + 5 * 0.08 + 2 * 0.01), (
        "two batches at a time, and then two steps"
    )


def test_where_the_step_is_the_slow_side_the_window_fills_dev_shm_up_to_the_bound() -> None:
    slow = planted(StepCosts(wait_s=1.0))
    found = foreseen(slow, 2)
    assert found.epoch_s == pytest.approx(0.08 + 10 * 1.0)
    assert found.shm_peak_bytes == 5 * MIB, (
        "twice two on their way, and the one in the loop's hands"
    )
    assert foreseen(slow, 2, base_bytes=7).shm_peak_bytes == 5 * MIB + 7
    assert foreseen(slow, 2, max_bytes=4 * MIB, base_bytes=7).shm_peak_bytes == 4 * MIB


def test_a_step_on_the_hosts_threads_takes_the_cores_that_workers_would_have() -> None:
    """Without workers two threads of 100 ms each have a core each; on one core they would take
    turns."""
    step = StepCosts(cpu_s=0.1, threads=2)
    assert foreseen(planted(step), 0).epoch_s == pytest.approx(10 * (0.08 + 0.1))
    assert foreseen(planted(step, cores=1), 0).epoch_s == pytest.approx(10 * (0.08 + 0.2))
    assert foreseen(planted(step), 2).epoch_s >= 10 * (0.08 + 0.2) / 2, (
        "the cores have to do it all"
    )


def test_what_was_measured_of_a_step_beside_workers_slows_it() -> None:
    alone, beside = (
        StepCosts(cpu_s=0.1, threads=2, beside=measured) for measured in ([], [(1, 1.5), (2, 1.5)])
    )
    assert foreseen(planted(beside), 2).epoch_s > 1.05 * foreseen(planted(alone), 2).epoch_s


def test_the_closed_form_is_the_textbooks() -> None:
    """On 2 cores; T = N (c + s) without workers, otherwise a fill and N times the slowest of step,
    cores and reads."""
    costs = planted(read_s=0.3)
    assert foreseen(costs, 0).closed_form_s == pytest.approx(10 * (0.08 + 0.3 + 0.01))
    assert foreseen(costs, 1).closed_form_s == pytest.approx(0.38 + 10 * 0.3)
    assert foreseen(costs, 4).closed_form_s == pytest.approx(0.3 + 0.16 + 10 * 0.075)
    assert foreseen(costs, 8).closed_form_s == pytest.approx(0.3 + 0.32 + 10 * 0.04)
    assert foreseen(planted(StepCosts(cpu_s=0.1, threads=4)), 8).closed_form_s == pytest.approx(
        0.32 + 10 * 0.2
    )


def test_the_interval_is_the_calibrations_spread_and_the_simulations_error() -> None:
    exact, loose = foreseen(planted(), 0), foreseen(planted(spread=0.1), 0)
    assert (exact.low_s, exact.high_s) == pytest.approx(
        (0.9 * (1 - MODEL_ERROR), 0.9 * (1 + MODEL_ERROR))
    )
    assert loose.epoch_s == exact.epoch_s
    assert (loose.low_s, loose.high_s) == pytest.approx(
        ((0.72 + 0.1) * (1 - MODEL_ERROR), (0.88 + 0.1) * (1 + MODEL_ERROR))
    )
    assert (loose.first_batch_low_s, loose.first_batch_high_s) == pytest.approx(
        (0.072 * (1 - MODEL_ERROR), 0.088 * (1 + MODEL_ERROR))
    )
    step = foreseen(planted(StepCosts(wait_s=0.01, spread=0.5)), 0)
    assert (step.low_s, step.high_s) == pytest.approx(
        ((0.8 + 0.05) * (1 - MODEL_ERROR), (0.8 + 0.15) * (1 + MODEL_ERROR))
    )


def test_the_uncertainty_of_the_cores_speed_widens_what_cores_do_and_not_the_accelerator() -> None:
    step = StepCosts(cpu_s=0.1, wait_s=0.01)
    sure, unsure = foreseen(planted(step), 0), foreseen(planted(step), 0, uncertainty=0.2)
    assert unsure.epoch_s == sure.epoch_s
    assert unsure.low_s == pytest.approx((0.8 * 1.8 + 0.1) * (1 - MODEL_ERROR))
    assert unsure.high_s == pytest.approx((1.2 * 1.8 + 0.1) * (1 + MODEL_ERROR))


def test_at_another_speed_the_costs_of_cores_are_scaled_apart_and_waits_are_not() -> None:
    step = StepCosts(cpu_s=0.1, wait_s=0.01)
    slow = planted(step, read_s=0.02, release_s=0.001).at(Slowdown(prepare=1.5, step=2.0))
    found = foreseen(slow, 0)
    assert found.epoch_s == pytest.approx(10 * (1.5 * 0.08 + 0.001 + 0.02 + 2.0 * 0.1 + 0.01))
    assert found.batch_cpu_s == pytest.approx(1.5 * 0.08)


def test_a_step_on_the_hosts_cores_makes_batches_dearer_and_is_delayed_by_workers() -> None:
    plain = StepCosts(cpu_s=1.0, threads=1)
    dear = plain.model_copy(update={"inline_s": 0.1, "worker_cpu_s": 0.12, "resume_s": 0.05})
    without = foreseen(planted(dear), 0)
    assert without.epoch_s == pytest.approx(10 * (0.1 + 1.0))
    assert without.batch_cpu_s == 0.1
    one, before = foreseen(planted(dear), 1), foreseen(planted(plain), 1)
    assert one.batch_cpu_s == 0.12
    assert one.epoch_s == pytest.approx(before.epoch_s + 10 * 0.05 + (0.12 - 0.08)), (
        "every step is delayed, and the first batch takes longer"
    )


def test_the_cpu_time_of_a_batch_follows_how_many_workers_prepare_at_once() -> None:
    paces = [(1, 0.06), (2, 0.07), (4, 0.09)]
    costs = planted(prepare_s=0.08, sending=0.25, pace_cpu_s=paces)
    assert foreseen(costs, 1).batch_cpu_s == pytest.approx(0.06 + 0.02)
    assert foreseen(costs, 4, batches=400).batch_cpu_s == pytest.approx(0.09 + 0.02, rel=0.02)
    idle = planted(StepCosts(wait_s=9.0), prepare_s=0.08, sending=0.25, pace_cpu_s=paces)
    assert foreseen(idle, 4, batches=400).batch_cpu_s == pytest.approx(0.06 + 0.02, rel=0.02), (
        "workers that wait for the loop prepare one after the other"
    )


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.5])
def test_the_forecast_is_inside_its_interval_and_above_every_lower_bound(spread: float) -> None:
    step = StepCosts(cpu_s=0.03, threads=2, wait_s=0.01)
    for workers, prefetch, read_s in itertools.product([0, 1, 2, 3, 8], [1, 4], [0.0, 0.2]):
        found = foreseen(planted(step, read_s=read_s, spread=spread), workers, 24, prefetch)
        assert 0 <= found.low_s < found.epoch_s < found.high_s
        assert found.first_batch_low_s < found.first_batch_s < found.first_batch_high_s
        bounds = 24 * (0.08 + 2 * 0.03) / 2, 24 * (read_s + 0.08) / max(workers, 1), 24 * 0.04
        assert found.epoch_s >= max(bounds) - 1e-9


@pytest.mark.parametrize(
    ("workers", "prefetch", "read_s"), [(1, 2, 0.0), (4, 2, 0.0), (4, 1, 0.3), (8, 4, 0.05)]
)
def test_a_long_epoch_goes_on_as_it_went(workers: int, prefetch: int, read_s: float) -> None:
    batches = 4 * MIN_SIMULATED_BATCHES + 3
    step = StepCosts(wait_s=0.03)
    found = foreseen(planted(step, read_s=read_s), workers, batches, prefetch)
    whole = simulate(
        Epoch(batches, workers, prefetch, 2, prepare_s=0.08, read_s=read_s, step_wait_s=0.03)
    )
    assert found.epoch_s == pytest.approx(whole.epoch_s, rel=0.002)
    assert (found.first_batch_s, found.shm_peak_bytes) == (
        pytest.approx(whole.first_batch_s),
        whole.peak_batches * MIB,
    )
    assert found.stall_steps == pytest.approx(whole.stalled_steps, rel=0.02, abs=2)
    assert foreseen(planted(step), 0, batches).epoch_s == pytest.approx(batches * 0.11)


def test_a_trials_batches_and_its_room_in_dev_shm_are_its_own(tone_trial) -> None:
    """13 clips make 3 batches of 4. The step is slow, so all three lie there, beside the loader's
    semaphores."""
    config = tone_trial(
        loader={"num_workers": 2, "batch_size": 4}, device={"prefer": ["simulated"], "step_s": 1.0}
    )
    room = shm_requirement(config, 13, 6, 1 << 30)
    found = forecast_trial(
        config, planted(StepCosts(wait_s=1.0), batch_bytes=room.batch_bytes), 13, room
    )
    assert found.epoch_s == pytest.approx(0.08 + 3 * 1.0)
    assert found.shm_peak_bytes == room.max_bytes
    inline = config.model_copy(
        update={"loader": config.loader.model_copy(update={"num_workers": 0})}
    )
    assert (
        forecast_trial(
            inline, planted(), 13, shm_requirement(inline, 13, 6, 1 << 30)
        ).shm_peak_bytes
        == 0
    )
    fresh = config.model_copy(
        update={"loader": config.loader.model_copy(update={"persistent_workers": False})}
    )
    assert forecast_trial(
        fresh, planted(), 13, ShmRequirement(MIB, 0, 0, MIB, MIB)
    ).start_s == pytest.approx(2 * 0.01)
    # Four ranks fork their workers at once, on two cores
    four = fresh.model_copy(update={"device": fresh.device.model_copy(update={"ranks": 4})})
    assert forecast_trial(
        four, planted(), 13, ShmRequirement(MIB, 0, 0, MIB, MIB)
    ).start_s == pytest.approx(2 * 2 * 0.01)


def test_the_metrics_of_a_forecast_have_a_unit_and_a_meaning() -> None:
    found = foreseen(planted(), 2)
    names = {name for name in SUMMARY if name.startswith("forecast_")}
    of_dev_shm = {f"forecast_shm_{which}_bytes" for which in ("min", "expected", "max")}
    afterwards = {"forecast_at_speed_s"}
    assert found.metrics().keys() | found.start_metrics().keys() == names - of_dev_shm - afterwards
    assert found.metrics()["forecast_epoch_s"] == found.epoch_s
    assert found.metrics()["forecast_closed_form_s"] == found.closed_form_s


def test_a_thousand_forecasts_take_less_than_five_seconds() -> None:
    """None like another, so that nothing is remembered; most as long as the default sweep's epochs,
    some of 85,000 clips."""
    began = time.process_time()
    for number in range(1000):
        workers, batches = number % 9, (45, 45, 45, 2651)[number % 4]
        foreseen(
            planted(prepare_s=0.05 + number / 1e6, shared=[(2, 1.05), (4, 1.1)]), workers, batches
        )
    assert time.process_time() - began < 5
