"""make gpu: what it does without a GPU, and the row that it would append with one."""

import pandas as pd
import pytest
import torch

from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from tests.benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_it_says_so_fails_and_writes_nothing(capsys) -> None:
    before = gpu.PAGE.read_text("utf-8")
    assert gpu.main() == 1
    assert "needs a CUDA GPU" in capsys.readouterr().err
    assert gpu.PAGE.read_text("utf-8") == before


def test_the_row_is_the_fastest_completed_cell_on_the_gpu() -> None:
    columns = [
        "outcome",
        "device",
        "device_name",
        "loader.format",
        "loader.num_workers",
        "device.sync_every_step",
        "forecast_epoch_s",
        "epoch_s",
        "clips_per_s",
        "busy_fraction",
    ]
    rows = [
        ("completed", "cuda", "Planted GPU", "wav", 0, False, 9.9, 9.0, 100.0, 0.1),
        ("completed", "cuda", "Planted GPU", "on_device", 4, False, 1.0, 1.0, 1234.5, 0.87),
        ("completed", "cuda", "Planted GPU", "packed", 0, False, 2.4, 3.0, 400.0, 0.3),
        ("completed", "cuda", "Planted GPU", "packed", 0, True, None, 4.0, 300.0, 0.2),
        ("shm_exhausted", "cuda", "Planted GPU", "wav", 4, False, 1.0, 0.1, 9999.0, 1.0),
    ]
    line = gpu.row(pd.DataFrame(rows, columns=columns), "2026-01-02")
    assert line.startswith(
        "| 2026-01-02 | Planted GPU | on_device, 4 workers | 1,234 | 87% | 400 | 300 | 10.0% | 20.0% | "
    )
    assert line.count("|") == gpu.HEADER.count("|")


def test_a_row_goes_to_the_end_of_the_pages_table_and_nothing_else_changes() -> None:
    page = gpu.PAGE.read_text("utf-8")
    longer = gpu.append_row(gpu.append_row(page, "| one |"), "| two |")
    assert longer.replace("| one |\n| two |\n", "") == page
    assert longer.index(gpu.HEADER) < longer.index("| one |\n| two |\n")


def test_a_page_without_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no table"):
        gpu.append_row("# nothing\n", "| one |")


def test_the_sweep_that_it_runs_varies_workers_and_form() -> None:
    trials = plan(load(gpu.SWEEP), lambda corpus: corpus.name).trials
    assert {(trial.config.loader.format, trial.config.loader.num_workers) for trial in trials} == {
        (form, workers) for form in ("wav", "packed", "on_device") for workers in (0, 2, 4)
    }
    devices = {
        (*trial.config.device.prefer, trial.config.device.sync_every_step) for trial in trials
    }
    assert devices == {("cuda", False), ("cuda", True)}
