"""Tests table 2, cell by cell, with planted trials."""

import functools
import math
import re

import pytest

from analysis import tradeoff_table
from analysis.epochs import epoch_parts, tables
from analysis.runs import join_sweep_runs, sweep_runs
from tests.conftest import CONFIG, make_trial_id, plant_trial, tracking_in

SIMULATED = {
    "device": "simulated",
    "device_name": "simulated accelerator: 25 ms a step, 0 ms of host CPU",
    "cpu_name": "Planted CPU",
    "batch_bytes": 640 << 10,
}
MB = 1 << 20

TABLE = """\
workers  start  first  wait  step  other  epoch  clips  busy  stall   gap  ready  cores   peak  read
                batch                               /s     %  steps     s      %           MiB   MiB
-------  -----  -----  ----  ----  -----  -----  -----  ----  -----  ----  -----  -----  -----  ----
      0   0.00   0.10  1.80  1.00   0.10   3.00    480    33     44  0.05      -   1.00    0.0   0.0
      2   0.02   0.08  0.40  1.00   0.50   2.00    720    50     22  0.25     75   1.50   40.0   0.0
      4   0.04   0.16  0.20  1.00   0.60   2.00    720    50     11  0.50     90   1.50  1,024   2.5

"""


def spans(start, fill, wait, step, other, **figures):
    return (
        dict(
            zip(
                ("start_s", "first_batch_s", "data_wait_s", "step_s", "other_s"),
                (start, fill, wait, step, other),
                strict=True,
            )
        )
        | figures
    )


NONE = spans(
    0.0,
    0.1,
    1.8,
    1.0,
    0.1,
    epoch_s=3.0,
    clips_per_s=480,
    busy_fraction=1 / 3,
    stall_steps=44,
    max_gap_s=0.05,
)
# no workers: no prefetch_hit_rate, and no CPU time of theirs
NONE |= {"main_cpu_s": 3.0, "shm_peak_bytes": 0, "read_bytes": 0}
TWO = spans(
    0.02,
    0.08,
    0.4,
    1.0,
    0.5,
    epoch_s=2.0,
    clips_per_s=720,
    busy_fraction=0.5,
    stall_steps=22,
    max_gap_s=0.25,
)
TWO |= {
    "main_cpu_s": 1.0,
    "worker_cpu_s": 2.0,
    "prefetch_hit_rate": 0.75,
    "shm_peak_bytes": 40 * MB,
    "read_bytes": 0,
}
FOUR = TWO | spans(
    0.04,
    0.16,
    0.2,
    1.0,
    0.6,
    stall_steps=11,
    max_gap_s=0.5,
    prefetch_hit_rate=0.9,
    shm_peak_bytes=1024 * MB,
    read_bytes=2.5 * MB,
)


def plant_sweep(tracking, trials, name="first-look"):
    """Returns the runs of a sweep of these trials: (num_workers, shm_size, outcome, figures)."""
    points = [
        ({"loader.num_workers": workers, "loader.shm_size": size}, *rest)
        for workers, size, *rest in trials
    ]
    keys = [
        {"trial_id": make_trial_id("workers", swept, repeat)}
        for swept, _, repeats in points
        for repeat in range(1, len(repeats) + 1)
    ]
    parent = tracking.start_sweep(name, "", keys, "")
    for swept, outcome, repeats in points:
        for repeat, figures in enumerate(repeats, 1):
            plant_trial(tracking, parent, swept, repeat, outcome, tags=SIMULATED, **figures)
    return sweep_runs(name, tracking.uri)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, empty_database):
    return plant_sweep(
        tracking_in(tmp_path_factory.mktemp("epochs"), empty_database),
        [
            (0, 64 * MB, "completed", [NONE | {"epoch_s": 9.0}]),
            (
                0,
                1024 * MB,
                "completed",
                [
                    NONE,
                    NONE | {"data_wait_s": 99.0, "stall_steps": 45},
                    NONE | {"data_wait_s": 1.0, "main_cpu_s": 2.4},
                ],
            ),
            (2, 64 * MB, "shm_exhausted", [{}]),
            (2, 1024 * MB, "completed", [TWO, TWO | {"read_bytes": 9 * MB}, TWO]),
            (4, 1024 * MB, "completed", [FOUR]),
        ],
    )


def test_rows_hold_medians_over_trials_of_the_largest_shm(runs):
    rows = epoch_parts(runs).set_index("num_workers")
    none, two, four = (rows.loc[workers] for workers in (0, 2, 4))
    assert rows["n"].to_dict() == {0: 3, 2: 3, 4: 1}
    assert set(rows["shm_size"]) == {"1G"}
    assert (none["data_wait_s"], none["epoch_s"], none["stall_steps"], none["cores"]) == (
        1.8,
        3.0,
        44,
        1.0,
    )
    assert math.isnan(none["prefetch_hit_rate"])
    assert (two["read_bytes"], two["cores"], two["prefetch_hit_rate"]) == (0, 1.5, 0.75)
    assert (four["first_batch_s"], four["shm_peak_bytes"]) == (0.16, 1024 * MB)


def test_the_page_has_every_cell_within_a_hundred_columns(runs):
    (text,) = tables(runs)
    title, surroundings, table = text.split("\n", 2)
    assert "shm 1G" in title
    assert title.endswith(", block workers")
    device, *hardware = surroundings.split(" · ")
    assert device == SIMULATED["device_name"]
    assert hardware == ["Planted CPU", "2 cores", "2 threads", "float32"]
    assert table.startswith(f"\n{TABLE}")
    assert max(map(len, text.splitlines())) <= 100
    assert "add up" not in text


def test_the_note_has_the_numbers_of_trials_behind_the_medians(runs, tracking):
    (text,), (markdown,) = tables(runs), tables(runs, markdown=True)
    assert " 3 trials (1 at 4 workers). " in text
    assert " 3 trials (1 at 4 workers). " in markdown
    alike = plant_sweep(tracking, [(0, None, "completed", [NONE]), (2, None, "completed", [TWO])])
    assert " 1 trial. " in tables(alike)[0]


def test_markdown_holds_the_same_cells(runs):
    (text,) = tables(runs, markdown=True)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    cells = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert cells["4"]["clips /s"] == "720"
    assert cells["4"]["ready %"] == "90"
    assert cells["4"]["peak MiB"] == "1,024"
    assert cells["0"]["ready %"] == "-"


def test_long_epochs_put_the_two_axes_below_each_other(tracking):
    slow = [
        figures
        | {
            name: 1000 * figures[name]
            for name in ("data_wait_s", "step_s", "epoch_s", "clips_per_s")
        }
        for figures in (NONE, TWO)
    ]
    (text,) = tables(
        plant_sweep(
            tracking, [(0, None, "completed", [slow[0]]), (2, None, "completed", [slow[1]])]
        )
    )
    assert max(map(len, text.splitlines())) <= 100
    headers = [line.split() for line in text.splitlines() if line.startswith("workers")]
    assert headers == [
        ["workers", "start", "first", "wait", "step", "other", "epoch", "clips"],
        ["workers", "busy", "stall", "gap", "ready", "cores", "peak", "read"],
    ]


def test_a_count_with_times_at_a_smaller_shm_only_has_a_note_with_that_size(tracking):
    trials = [
        (0, 64 * MB, "completed", [NONE]),
        (2, 64 * MB, "completed", [TWO]),
        (2, 1024 * MB, "oom", [{}]),
    ]
    runs = plant_sweep(
        tracking,
        [
            *trials,
            (4, 1024 * MB, "completed", [FOUR]),
            (8, 1024 * MB, "completed", [FOUR]),
            (16, 1024 * MB, "completed", [FOUR]),
        ],
    )
    (text,) = tables(runs)
    assert "shm 1G" in text.splitlines()[0]
    notes = re.findall(r"^(\d+) workers: .*\bshm (\w+)", text, re.MULTILINE)
    assert notes == [("0", "64M"), ("2", "64M")]


def test_medians_that_do_not_add_up_are_explained(tracking):
    odd = [
        TWO | {"data_wait_s": wait, "other_s": other}
        for wait, other in ((0.1, 0.8), (0.8, 0.1), (0.45, 0.45))
    ]
    (text,) = tables(
        plant_sweep(
            tracking,
            [
                (0, None, "completed", [NONE]),
                (2, None, "completed", [*odd, TWO | {"data_wait_s": 0.0, "other_s": 0.0}]),
            ],
        )
    )
    assert "add up" in text


def test_a_figure_that_was_not_measured_is_a_dash_and_never_zero(tracking):
    unmeasured = {
        name: value
        for name, value in TWO.items()
        if name not in ("worker_cpu_s", "read_bytes", "busy_fraction", "stall_steps")
    }
    runs = plant_sweep(
        tracking, [(0, None, "completed", [NONE]), (2, None, "completed", [unmeasured])]
    )
    assert (
        epoch_parts(runs)
        .set_index("num_workers")
        .loc[2, ["cores", "read_bytes", "busy_fraction"]]
        .isna()
        .all()
    )
    row = next(
        line.split() for line in tables(runs)[0].splitlines() if line.lstrip().startswith("2 ")
    )
    assert row[8:] == ["-", "-", "0.25", "75", "-", "40.0", "-"]


def test_runs_older_than_these_figures_have_no_table_and_are_not_pooled_with_newer(tracking):
    old = [
        (workers, None, "completed", [{"epoch_s": 2.0, "first_batch_s": 0.1}]) for workers in (0, 2)
    ]
    assert tables(plant_sweep(tracking, old)) == []
    runs = plant_sweep(
        tracking,
        [
            (0, None, "completed", [{"epoch_s": 2.0}, NONE]),
            (2, None, "completed", [{"epoch_s": 1.0}, TWO, TWO]),
        ],
    )
    assert epoch_parts(runs)["n"].tolist() == [1, 2]
    assert epoch_parts(runs)["older"].tolist() == [1, 1]
    assert "\nExcluded: 2 trials" in tables(runs)[0]


def test_the_bytes_of_a_batch_and_of_a_clip_are_a_note(tracking, monkeypatch):
    monkeypatch.setitem(CONFIG["loader"], "batch_size", 20)
    (text,) = tables(
        plant_sweep(tracking, [(0, None, "completed", [NONE]), (2, None, "completed", [TWO])])
    )
    (note,) = [line for line in text.splitlines() if "KiB" in line]
    assert re.findall(r"\d[\d.]* \w+", note) == ["20 clips", "0.6 MiB", "32.0 KiB"]


def test_disturbed_trials_are_listed_once_below_table_1(tracking):
    plant = functools.partial(plant_trial, tracking)
    parent = tracking.start_sweep("first-look", "", [{"trial_id": "a"}, {"trial_id": "b"}], "")
    plant(parent, {"loader.num_workers": 0}, trial_id="a", **NONE)
    plant(parent, {"loader.num_workers": 2}, trial_id="b", tags={"disturbed": "a compiler"}, **TWO)
    plant(parent, {"loader.num_workers": 2}, trial_id="b", **TWO)
    runs = sweep_runs("first-look", tracking.uri)
    (first,), (second,) = tradeoff_table.tables(runs), tables(runs)
    (note,) = [line for line in first.splitlines() if "disturbed" in line]
    assert note.startswith("1 of 2 ")
    assert "disturbed" not in second


def test_joined_sweeps_of_which_one_has_no_batch_size_have_a_table(tracking, monkeypatch):
    trials = [(0, None, "completed", [NONE]), (2, None, "completed", [TWO])]
    monkeypatch.setitem(CONFIG["loader"], "batch_size", 20)
    plant_sweep(tracking, trials)
    monkeypatch.delitem(CONFIG["loader"], "batch_size")
    plant_sweep(tracking, trials, "without")
    joined = join_sweep_runs(["first-look", "without"], tracking.uri)
    assert [text.count(" 20 clips ") for text in tables(joined)] == [1, 0]
