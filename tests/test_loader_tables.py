"""Tests tables 1 and 2 of a block that sweeps the format, with planted trials."""

import re

import pytest

from analysis.loader_tables import key_times, tables
from analysis.tables import body
from tests.planted_sweep import SIMULATED, figures
from tests.random_runs import Drawn, runs_of

# a format takes the time of so many workers in the planted sweep
AS = {"png": 1, "wav": 2, "packed": 4}

CELLS = [
    ["format=packed", "1.71 (1.69-1.74)", "3", "+11% (+11% to +11%)"],
    ["format=png", "2.87 s, 1 of 3 crashed", "2", "not enough data"],
    ["format=wav", "1.54 (1.52-1.57)", "3", "the fastest"],
]


@pytest.fixture(scope="module")
def runs():
    trials = [
        ({"loader.format": form, "loader.num_workers": 2}, repeat)
        for form in AS
        for repeat in (1, 2, 3)
    ]
    crashed = ({"loader.format": "png", "loader.num_workers": 2}, 2)
    ended = [
        (
            ("crashed", {})
            if trial == crashed
            else ("completed", figures(AS[trial[0]["loader.format"]], trial[1]))
        )
        for trial in trials
    ]
    return runs_of(
        [
            Drawn("formats", *trial, *end, SIMULATED)
            for trial, end in zip(trials, ended, strict=True)
        ]
    )


def test_each_format_has_a_row_and_is_compared_with_the_fastest(runs):
    rows = key_times(runs).set_index("point")
    assert rows["n"].to_dict() == {"format=packed": 3, "format=png": 2, "format=wav": 3}
    assert rows["median_s"].to_dict() == pytest.approx(
        {"format=packed": 1.71, "format=png": 2.88 * 0.995, "format=wav": 1.54}
    )
    assert rows.loc[
        "format=packed", ["change", "change_low", "change_high"]
    ].tolist() == pytest.approx([1.71 / 1.54 - 1] * 3)
    assert rows.loc[["format=png", "format=wav"], "change"].isna().all()
    assert rows.loc["format=png", "outcomes"] == "1 of 3 crashed"
    assert rows.loc["format=wav", ["part_data_wait_s", "part_n"]].tolist() == pytest.approx(
        [0.40, 3]
    )


def test_the_cells_of_both_tables(runs):
    times, parts = tables(runs)
    for text in (times, parts):
        assert text.splitlines()[0].endswith(" format, block formats")
    cells = [
        re.split(r"  +", line.strip()) for line in times.splitlines() if line.startswith("format=")
    ]
    assert cells == CELLS
    (medians,) = [line for line in parts.splitlines() if line.startswith("Medians")]
    assert re.findall(r"\d+", medians) == ["2", "3"]
    wav = next(line.split() for line in parts.splitlines() if "format=wav" in line)
    assert wav == ["format=wav", "0.00", "0.09", "0.40", "0.99", "0.06", "1.54", "805"]
    assert max(map(len, body(runs).splitlines())) <= 100
    assert "| format=wav | 1.54 (1.52-1.57)" in " ".join(tables(runs, markdown=True)[0].split())


def test_blocks_that_sweep_workers_or_nothing_of_the_loader_are_left_out():
    workers = [
        Drawn(
            "workers", {"loader.num_workers": count}, 1, "completed", figures(count, 1), SIMULATED
        )
        for count in (0, 2)
    ]
    cycles = [
        Drawn("cycles", {"sgdr.cycle_epochs": epochs}, 1, "completed", figures(0, 1), SIMULATED)
        for epochs in (2, 8)
    ]
    assert key_times(runs_of([*workers, *cycles])).empty


def test_a_format_that_has_not_run_yet_has_a_row():
    trials = [Drawn("formats", {"loader.format": form}, 1, outcome, figures(AS[form], 1), SIMULATED)
              for form, outcome in (("png", "completed"), ("wav", "completed"), ("packed", None))]  # fmt: skip
    runs = runs_of(trials)
    assert key_times(runs).set_index("point")["not_run"].to_dict() == {
        "format=png": 0,
        "format=wav": 0,
        "format=packed": 1,
    }
    line = next(line for line in tables(runs)[0].splitlines() if line.startswith("format=packed"))
    assert "not run" in line
    assert line.split()[-2:] == ["0", "-"]
