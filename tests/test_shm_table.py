"""What was foreseen of /dev/shm beside what happened, against planted trials."""

import pytest

from analysis.runs import sweep_runs
from analysis.shm_table import fits, tables
from tests.conftest import make_trial_id, plant_trial, tracking_in

MB = 1 << 20
BATCH, PEAK = 20 * MB, 60 * MB

PAGE = """\
/dev/shm: forecast and measured, block workers
Planted CPU · 2 cores · 2 threads · float32

workers  batch  fits from  peak  shm 16M            shm 50M       shm 1G
           MiB        MiB   MiB
-------  -----  ---------  ----  -----------------  ------------  ---------------
      0   20.0        0.0   0.0  fits,              -             fits,
                                 1 completed                      1 completed
      2   20.0       60.0  60.0  overflows,         depends,      fits,
                                 3 overflowed       2 completed,  2 completed,
                                                    1 overflowed  1 out of memory
      4   20.0      100.0  90.0  WRONG: overflows,  -             WRONG: fits,
                                 1 completed                      1 overflowed

Each cell: the verdict, then the outcomes. Fits from: the most that a trial can use.
Peak: the most that a completed or diverged trial used."""


def planted(tracking, trials):
    """trials: (workers, size, verdict or None, bound, outcomes of its repeats and their peaks)."""
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
    over, through = ("shm_exhausted", 45 * MB), ("completed", PEAK)
    return planted(
        tracking_in(tmp_path_factory.mktemp("fit"), empty_database),
        [
            (0, 16 * MB, "fits", 0, [("completed", 0)]),
            (0, 1024 * MB, "fits", 0, [("completed", 0)]),
            (2, 16 * MB, "overflows", PEAK, [over, over, over]),
            (2, 50 * MB, "depends", PEAK, [("completed", 49 * MB), over, ("completed", 50 * MB)]),
            (2, 1024 * MB, "fits", PEAK, [through, ("completed", 41 * MB), ("oom", 700 * MB)]),
            (4, 16 * MB, "overflows", 100 * MB, [("completed", 90 * MB)]),
            (4, 1024 * MB, "fits", 100 * MB, [("shm_exhausted", 100 * MB)]),
        ],
    )


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


def test_the_page_says_it_all(runs):
    assert tables(runs) == [PAGE]


def test_in_markdown_a_cell_is_one_line(runs):
    (text,) = tables(runs, markdown=True)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert [
        "2",
        "20.0",
        "60.0",
        "60.0",
        "overflows, 3 overflowed",
        "depends, 2 completed, 1 overflowed",
        "fits, 2 completed, 1 out of memory",
    ] in rows
    assert [
        "4",
        "20.0",
        "100.0",
        "90.0",
        "WRONG: overflows, 1 completed",
        "-",
        "WRONG: fits, 1 overflowed",
    ] in rows


def test_runs_older_than_the_forecast_say_what_happened(tracking):
    runs = planted(
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
    runs = planted(
        tracking, [(workers, 16 * MB, "fits", PEAK, [("completed", PEAK)]) for workers in (1, 2)]
    )
    assert fits(runs).empty
    assert tables(runs) == []


def test_sizes_that_do_not_fit_side_by_side_follow_below(tracking):
    runs = planted(
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
