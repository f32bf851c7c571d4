"""Text of the advice on a measured loader: the recommendation, the next bottleneck, the costs and
the width of the page."""

import re
from dataclasses import replace

import pytest

from speech.calibration.costs import Calibration, StepCosts
from speech.calibration.worker_memory import WorkerMemory
from sweeps.commands.advise.costs_text import format_costs
from sweeps.commands.advise.figures import WIDTH, format_mib, format_seconds
from sweeps.commands.advise.forecast_text import (
    bottleneck_text,
    format_forecasts,
    format_table,
    recommendation_text,
)
from sweeps.commands.advise.loader_forecast import Row, forecast_rows, recommended_row, time_bounds
from tests.measured_loaders import COSTS, LOADER, MEMORY, MIB, calibration


def settings_in(text: str) -> list[tuple[str, str]]:
    """Returns each number of workers in a recommendation, with its seconds an epoch."""
    return re.findall(r"num_workers=(\d+)\D+([\d.,]+) s\b", text)


def epochs_of(rows: list[Row], *workers: int) -> list[tuple[str, str]]:
    """Returns these numbers of workers with their forecast, as `settings_in` finds them."""
    forecasts = {row.workers: row.forecast.epoch_s for row in rows}
    return [(str(number), format_seconds(forecasts[number])) for number in workers]


def bottleneck_in(text: str) -> str:
    """Returns the resource that a sentence on the next bottleneck names."""
    return re.match(r"[^:]+: (?:the )?(\w+)", text)[1]


def test_the_recommended_and_the_loaders_own_number_are_compared() -> None:
    found = forecast_rows(LOADER, calibration(0.025), 1 << 40)
    assert settings_in(recommendation_text(found, LOADER)) == epochs_of(found, 2, 4)


def test_the_shm_that_faster_workers_lack_is_stated() -> None:
    found = forecast_rows(LOADER, calibration(0.025), 4 * MIB)
    text = recommendation_text(found, LOADER)
    assert settings_in(text) == epochs_of(found, 1, 4)
    assert re.search(r"num_workers=4:[^.]+\.\d+ s, [^.]*overflow [^.]*/dev/shm", text)
    fastest = min(found, key=lambda row: row.forecast.epoch_s)
    lacking = format_mib(fastest.shm.max_bytes)
    assert re.search(rf" {lacking} MiB of /dev/shm [^.]*, {fastest.workers} workers", text)


def test_the_memory_that_faster_workers_lack_is_stated() -> None:
    loader = replace(LOADER, memory=MEMORY)
    found = forecast_rows(loader, calibration(0.025), 1 << 40, 640 * MIB)
    text = recommendation_text(found, loader)
    assert settings_in(text) == epochs_of(found, 1, 4)
    assert re.search(r"num_workers=4:[^.]+\.\d+ s, [^.]*memory", text)
    fastest = min(found, key=lambda row: row.forecast.epoch_s)
    lacking = format_mib(fastest.memory.total_bytes)
    assert re.search(rf" {lacking} MiB of memory [^.]*, {fastest.workers} workers", text)


def test_where_no_number_fits_none_is_recommended() -> None:
    loader = replace(LOADER, memory=MEMORY)
    text = format_forecasts(loader, calibration(0.025), 1 << 40, 100 * MIB)
    assert settings_in(text) == []
    assert "Nothing" in text


@pytest.mark.parametrize(
    ("step_s", "costs", "loader", "bottleneck", "figures"),
    [
        (0.025, {}, {}, "preparation", ["640", "2", "2", "1,280", "4", "50%"]),
        (0.0, {}, {}, "preparation", ["640", "2", "2", "--step"]),
        (0.4, {}, {}, "accelerator", ["80", "1", "2", "320"]),
        (0.01, {"read_s": 2.0}, {}, "reads", ["256", "16", "2", "640"]),
        (0.0, {"fork_s": 3.0}, {"persistent": False, "num_workers": 0, "batches": 900}, "preparation",
         ["640", "2", "2", "--step"]),
    ],
)  # fmt: skip
def test_the_next_bottleneck_is_the_resource_that_would_take_longest_alone(
    step_s, costs, loader, bottleneck, figures
) -> None:
    of, made = replace(LOADER, **loader), calibration(step_s, **costs)
    row = recommended_row(forecast_rows(of, made, 1 << 40))
    alone_s = time_bounds(of, made, row)
    assert max(alone_s, key=lambda name: alone_s[name]) == bottleneck
    text = bottleneck_text(of, made, row)
    assert bottleneck_in(text) == bottleneck
    assert re.findall(r"\d[\d,]*\b%?|--\w+", text) == figures


def test_where_dev_shm_has_no_room_for_enough_workers_it_is_named() -> None:
    made = calibration(0.08)
    found = forecast_rows(LOADER, made, MIB)
    assert recommended_row(found).workers == 0
    text = bottleneck_text(LOADER, made, recommended_row(found), found)
    assert bottleneck_in(text) == "preparation"
    assert "400 samples/s" in text
    assert "/dev/shm" in text
    assert "memory" not in text


def test_where_memory_has_no_room_for_enough_workers_dev_shm_is_not_named() -> None:
    made, loader = (
        calibration(0.08),
        replace(
            LOADER,
            memory=WorkerMemory(own_bytes=8 * MIB, samples=1280, read_samples=100, main_bytes=MIB),
        ),
    )
    found = forecast_rows(loader, made, 1 << 40, 6 * MIB)
    assert recommended_row(found).workers == 0
    text = bottleneck_text(loader, made, recommended_row(found), found)
    assert bottleneck_in(text) == "preparation"
    assert "memory" in text
    assert "/dev/shm" not in text


def test_the_cores_are_the_bottleneck_of_a_step_on_the_host() -> None:
    made = Calibration(loader=COSTS, step=StepCosts(cpu_s=0.1, threads=2), took_s=1)
    row = next(row for row in forecast_rows(LOADER, made, 1 << 40) if row.workers == 2)
    assert bottleneck_in(bottleneck_text(LOADER, made, row)) == "cores"


def test_starting_is_the_bottleneck_of_a_short_epoch() -> None:
    made = calibration(0.0, fork_s=2.0, prepare_s=0.01)
    loader = replace(LOADER, persistent=False)
    row = next(row for row in forecast_rows(loader, made, 1 << 40) if row.workers == 1)
    text = bottleneck_text(loader, made, row)
    assert bottleneck_in(text) == "starting"
    assert "persistent_workers=True" in text


def test_the_page_is_as_wide_as_a_terminal() -> None:
    large = MEMORY.model_copy(update={"main_bytes": 300 << 30, "growth_bytes": 1e6})
    huge = replace(LOADER, batch_bytes=900 * MIB, batches=40_000, memory=large)
    for free in (64 * MIB, 2 << 30):
        found = forecast_rows(huge, calibration(0.025), free, 64 << 30)
        assert max(map(len, format_table(found).splitlines())) <= WIDTH
        assert (
            max(
                map(
                    len,
                    format_forecasts(huge, calibration(0.025), free, 64 << 30).splitlines(),
                )
            )
            <= WIDTH
        )
    short = replace(LOADER, persistent=False, first_read_bytes=987 * MIB, first_wait_s=12.3)
    for loader, with_step in ((LOADER, False), (huge, True), (short, True)):
        assert (
            max(map(len, format_costs(loader, calibration(0.0), with_step).splitlines())) <= WIDTH
        )


def test_memory_that_was_not_measured_has_no_column_and_a_note() -> None:
    text = format_forecasts(LOADER, calibration(0.025), 1 << 30, 1 << 34)
    assert "smaps_rollup" in text
    assert "all MiB" not in text
    measured = format_forecasts(
        replace(LOADER, memory=MEMORY), calibration(0.025), 1 << 30, 1 << 34
    )
    assert "smaps_rollup" not in measured
    assert "all MiB" in measured


def test_the_error_of_a_data_set_that_works_only_in_workers_is_stated() -> None:
    loader = replace(LOADER, only_workers="TypeError: not open", num_workers=0)
    assert "TypeError: not open" in format_forecasts(loader, calibration(0.025), 1 << 40)
    assert "without" not in format_costs(loader, calibration(0.025), False).splitlines()[1]
