"""Forecasts for a measured loader: the /dev/shm that it needs, the numbers of workers to choose
from, the recommended one, and the time of each resource alone."""

from dataclasses import replace

import pytest

from speech.calibration.costs import Calibration, StepCosts
from sweeps.commands.advise.loader_forecast import (
    forecast_rows,
    loader_shm_requirement,
    recommended_row,
    time_bounds,
)
from tests.measured_loaders import COSTS, LOADER, MEMORY, MIB, PAGE, calibration


def test_the_shm_requirement_is_what_a_loader_was_measured_to_take() -> None:
    """4 workers that prefetch 2, batches of 1 MiB and a page of labels: 9.113 MiB, by statvfs under
    a slow loop."""
    need = loader_shm_requirement(replace(LOADER, batch_bytes=MIB + PAGE), 4, 0)
    assert need.max_bytes / MIB == pytest.approx(9.113, abs=0.001)
    assert loader_shm_requirement(LOADER, 0, 0).max_bytes == 0
    assert (
        loader_shm_requirement(replace(LOADER, batches=3), 4, 0).max_bytes == 3 * MIB + 20 * PAGE
    ), "no epoch has more batches than it has"
    assert (
        loader_shm_requirement(replace(LOADER, sent_bytes=MIB), 4, 0).min_bytes
        == 2 * MIB + 20 * PAGE
    )


def test_verdicts_follow_from_the_free_space() -> None:
    found = {
        row.workers: row.shm.verdict for row in forecast_rows(LOADER, calibration(0.025), 5 * MIB)
    }
    assert found == {0: "fits", 1: "fits", 2: "depends", 4: "depends", 8: "depends", 16: "depends"}
    assert {row.shm.verdict for row in forecast_rows(LOADER, calibration(0.025), MIB)} == {
        "fits",
        "overflows",
    }


def test_the_number_of_cores_and_the_loaders_own_number_have_a_row() -> None:
    found = forecast_rows(
        replace(LOADER, num_workers=5),
        calibration(0.025, cores=12, shared=[(1, 1.0), (12, 1.0)]),
        1 << 40,
    )
    assert [row.workers for row in found] == [0, 1, 2, 4, 5, 8, 12, 16]


def test_a_data_set_that_works_only_in_workers_has_no_row_without() -> None:
    loader = replace(LOADER, only_workers="TypeError: not open", num_workers=0)
    found = forecast_rows(loader, calibration(0.025), 1 << 40)
    assert [row.workers for row in found] == [1, 2, 4, 8, 16]


def test_as_many_workers_as_cores_are_recommended_where_preparation_is_the_bottleneck() -> None:
    """Preparing takes 0.1 s a batch on one of 2 cores, a step 25 ms: 40 batches take 5 s at 0
    workers, 4 at one, 2 from two on."""
    found = forecast_rows(LOADER, calibration(0.025), 1 << 40)
    by_workers = {row.workers: row.forecast.epoch_s for row in found}
    assert by_workers[0] == pytest.approx(5.0, rel=0.02)
    assert by_workers[1] == pytest.approx(4.1, rel=0.05)
    assert by_workers[4] == pytest.approx(2.1, rel=0.1)
    assert recommended_row(found).workers == 2


@pytest.mark.parametrize(("free_bytes", "workers"), [(4 * MIB, 1), (MIB, 0)])
def test_workers_that_may_overflow_are_not_recommended(free_bytes, workers) -> None:
    found = forecast_rows(LOADER, calibration(0.025), free_bytes)
    assert recommended_row(found).workers == workers


def test_workers_that_do_not_fit_into_memory_are_not_recommended() -> None:
    loader = replace(LOADER, memory=MEMORY)
    found = forecast_rows(loader, calibration(0.025), 1 << 40, 640 * MIB)
    assert [row.workers for row in found if row.fits] == [0, 1]
    assert recommended_row(found).workers == 1
    assert recommended_row(forecast_rows(loader, calibration(0.025), 1 << 40, 100 * MIB)) is None
    assert recommended_row(forecast_rows(loader, calibration(0.025), 1 << 40, 1 << 40)).workers == 2


def test_workers_and_a_step_on_the_host_share_the_cores() -> None:
    made = Calibration(loader=COSTS, step=StepCosts(cpu_s=0.1, threads=2), took_s=1)
    row = next(row for row in forecast_rows(LOADER, made, 1 << 40) if row.workers == 2)
    assert time_bounds(LOADER, made, row)["cores"] == pytest.approx(40 * (0.1 + 0.001 + 0.2) / 2)
