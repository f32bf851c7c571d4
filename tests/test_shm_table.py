"""Tests the forecasts of /dev/shm beside the outcomes, against planted trials.

The page in the terminal is tests/golden/shm_table.txt.
"""

import pytest

from analysis.runs import sweep_runs
from analysis.shm_table import fits, tables
from tests.conftest import make_trial_id, plant_trial, tracking_in

MB = 1 << 20
BATCH, PEAK = 20 * MB, 60 * MB

OVER, THROUGH = ("shm_exhausted", 45 * MB), ("completed", PEAK)
# Number of workers, size of /dev/shm, verdict, bound, and the outcomes of the repeats with their
# peaks
TRIALS = [
    (0, 16 * MB, "fits", 0, [("completed", 0)]),
    (0, 1024 * MB, "fits", 0, [("completed", 0)]),
    (2, 16 * MB, "overflows", PEAK, [OVER, OVER, OVER]),
    (2, 50 * MB, "depends", PEAK, [("completed", 49 * MB), OVER, ("completed", 50 * MB)]),
    (2, 1024 * MB, "fits", PEAK, [THROUGH, ("completed", 41 * MB), ("oom", 700 * MB)]),
    (4, 16 * MB, "overflows", 100 * MB, [("completed", 90 * MB)]),
    (4, 1024 * MB, "fits", 100 * MB, [("shm_exhausted", 100 * MB)]),
]


def plant_shm_sweep(tracking, trials):
    """Writes a sweep with `trials`, as in TRIALS, and returns its runs; a verdict may be None."""
    cells = [
        ({"loader.num_workers": workers, "loader.shm_size": size}, *rest)
        for workers, size, *rest in trials
    ]
    keys = [
        {"trial_id": make_trial_id("workers", swept, repeat)}
        for swept, *_, ended in cells
        for repeat in range(1, len(ended) + 1)
    ]
    parent = tracking.start_sweep("shm", "", keys, "")
    for swept, verdict, bound, ended in cells:
        for repeat, (outcome, peak) in enumerate(ended, 1):
            tags = {"batch_bytes": BATCH} | ({"forecast_fit": verdict} if verdict else {})
            foreseen = {"forecast_shm_max_bytes": bound} if verdict else {}
            plant_trial(
                tracking, parent, swept, repeat, outcome, tags=tags, shm_peak_bytes=peak, **foreseen
            )
    return sweep_runs("shm", tracking.uri)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, empty_database):
    return plant_shm_sweep(tracking_in(tmp_path_factory.mktemp("fit"), empty_database), TRIALS)


def test_cells_hold_the_forecast_the_peak_and_what_happened(runs):
    cells = fits(runs).set_index(["num_workers", "shm_size"])
    two = cells.loc[(2, "50M")]
    assert (two["batch_bytes"], two["max_bytes"], two["peak_bytes"]) == (
        BATCH,
        PEAK,
        PEAK,
    ), "the peak is that of all sizes"
    assert (two["verdict"], two["outcomes"]) == ("depends", "2 completed, 1 overflowed")
    assert cells.index[cells["wrong"]].tolist() == [(4, "16M"), (4, "1G")]


def test_in_markdown_a_cell_is_one_line(runs):
    (text,) = tables(runs, markdown=True)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    cells = {row[0]: row[1:4] + [cell.split(", ") for cell in row[4:]] for row in rows}
    assert cells["2"] == [
        "20.0",
        "60.0",
        "60.0",
        ["overflows", "3 overflowed"],
        ["depends", "2 completed", "1 overflowed"],
        ["fits", "2 completed", "1 out of memory"],
    ]
    assert cells["4"] == [
        "20.0",
        "100.0",
        "90.0",
        ["WRONG: overflows", "1 completed"],
        ["-"],
        ["WRONG: fits", "1 overflowed"],
    ]


def test_runs_older_than_the_forecast_show_their_outcomes(tracking):
    runs = plant_shm_sweep(
        tracking,
        [
            (2, 16 * MB, None, 0, [("shm_exhausted", 16 * MB)]),
            (2, None, None, 0, [("completed", PEAK)]),
        ],
    )
    cells = fits(runs).set_index("shm_size")
    assert cells.loc["16M", ["verdict", "outcomes", "wrong"]].tolist() == [
        "",
        "1 overflowed",
        False,
    ]
    (text,) = tables(runs)
    assert "      2   20.0          -  60.0  1 overflowed  1 completed" in text


def test_one_size_alone_is_no_table(tracking):
    runs = plant_shm_sweep(
        tracking, [(workers, 16 * MB, "fits", PEAK, [THROUGH]) for workers in (1, 2)]
    )
    assert fits(runs).empty
    assert tables(runs) == []


def test_sizes_that_do_not_fit_side_by_side_follow_below(tracking):
    runs = plant_shm_sweep(
        tracking,
        [
            (8, size * MB, "depends", PEAK, [("completed", PEAK), ("timeout", PEAK)])
            for size in range(20, 27)
        ],
    )
    (text,) = tables(runs)
    assert max(map(len, text.splitlines())) <= 100
    headers = [line.split("shm ")[1:] for line in text.splitlines() if line.startswith("workers")]
    assert [size.strip() for line in headers for size in line] == [
        f"{size}M" for size in range(20, 27)
    ]
    assert len(headers) == 2
