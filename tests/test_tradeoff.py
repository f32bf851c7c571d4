"""Tests table 1, cell by cell, with planted trials and numbers worked out by hand."""

import functools
import math
import re

import pytest
from scipy import stats

from analysis.runs import sweep_runs
from analysis.text_tables import OUTCOME_LABELS
from analysis.tradeoff import epoch_times
from analysis.tradeoff_table import tables
from tests.conftest import make_trial_id, plant_trial, tracking_in
from tests.simulated import simulated_sweep

SIMULATED = {
    "device": "simulated",
    "device_name": "simulated accelerator: 25 ms a step, 0 ms of host CPU",
    "cpu_name": "Planted CPU",
}
MB = 1 << 20

TIMES = """\
workers  shm 64M                     n  shm node             n
-------  --------------------------  -  -------------------  -
      0  11.00 (10.00-12.00)†        3  20.00 (20.00-20.00)  3
      2   5.00 (4.80-8.80)†          3  15.00 (15.00-15.00)  3
      4   4.15 s, 1 of 3 overflowed  2  -
      8  3 of 3 overflowed           0  -
"""
CHANGES = """\
workers  shm 64M                                   shm node
-------  ----------------------------------------  -------------------
      2  -46% (-77% to +31%), not distinguishable  -25% (-25% to -25%)
      4  not enough data                           -
      8  -                                         -
"""


def plant_sweep(tracking, plant, trials):
    """Returns the runs of a sweep of these trials: (swept, repeat, outcome, epoch_s, tags)."""
    keys = [{"trial_id": make_trial_id("workers", swept, repeat)} for swept, repeat, *_ in trials]
    parent = tracking.start_sweep("first-look", "", keys, "")
    for swept, repeat, outcome, epoch_s, tags in trials:
        plant(
            parent,
            swept,
            repeat,
            outcome,
            tags=tags,
            **({} if epoch_s is None else {"epoch_s": epoch_s, "first_batch_s": epoch_s / 10}),
        )
    return sweep_runs("first-look", tracking.uri)


def worker_trials(workers, size, times, tags=SIMULATED):
    """Returns the trials of a cell, one for each time; None stands for an overflow."""
    swept = {"loader.num_workers": workers, "loader.shm_size": size}
    return [
        (swept, repeat, "shm_exhausted" if time is None else "completed", time, tags)
        for repeat, time in enumerate(times, 1)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, empty_database):
    tracking = tracking_in(tmp_path_factory.mktemp("tradeoff"), empty_database)
    return plant_sweep(
        tracking,
        functools.partial(plant_trial, tracking),
        [
            *worker_trials(0, 64 * MB, [10.0, 12.0, 11.0]),
            *worker_trials(2, 64 * MB, [5.0, 4.8, 8.8]),
            *worker_trials(4, 64 * MB, [4.1, None, 4.2]),
            *worker_trials(8, 64 * MB, [None, None, None]),
            *worker_trials(0, None, [20.0, 20.0, 20.0]),
            *worker_trials(2, None, [15.0, 15.0, 15.0]),
        ],
    )


def test_cells_hold_median_spread_count_and_change(runs):
    cells = epoch_times(runs).set_index(["shm_size", "num_workers"])
    assert list(cells.index) == [
        ("64M", 0),
        ("64M", 2),
        ("64M", 4),
        ("64M", 8),
        ("node", 0),
        ("node", 2),
    ]
    two = cells.loc[("64M", 2)]
    assert (
        two["median_s"],
        two["min_s"],
        two["max_s"],
        two["n"],
        two["trials"],
        two["outcomes"],
    ) == (5.0, 4.8, 8.8, 3, 3, "")
    assert (two["first_batch_s"], two["spread"]) == (0.5, pytest.approx(0.8))
    # ratios 0.5, 0.4, 0.8 by repeat; the interval is worked out in test_statistics.py
    assert (two["change"], two["change_low"], two["change_high"]) == pytest.approx(
        (-0.457116, -0.774584, 0.307462), abs=1e-5
    )
    assert cells.loc[
        ("node", 2), ["change", "change_low", "change_high"]
    ].tolist() == pytest.approx([-0.25] * 3)


def test_an_overflow_is_a_cell_and_its_times_are_never_zero(runs):
    cells = epoch_times(runs).set_index(["shm_size", "num_workers"])
    mixed, none = cells.loc[("64M", 4)], cells.loc[("64M", 8)]
    assert (mixed["median_s"], mixed["n"], mixed["trials"], mixed["outcomes"]) == (
        pytest.approx(4.15),
        2,
        3,
        "1 of 3 overflowed",
    )
    assert math.isnan(mixed["change"])  # two pairs
    assert (none["n"], none["trials"], none["outcomes"]) == (0, 3, "3 of 3 overflowed")
    assert math.isnan(none["median_s"])


def test_the_page_has_every_cell_and_its_notes_within_a_hundred_columns(runs):
    (text,) = tables(runs)
    title, surroundings, _, *page = text.splitlines()
    assert title.endswith(", block workers")
    device, *hardware = surroundings.split(" · ")
    assert device == SIMULATED["device_name"]
    assert hardware == ["Planted CPU", "2 cores", "2 threads", "float32"]
    times, changes = ("\n".join(page) + "\n").split(CHANGES)
    assert times.startswith(TIMES)
    notes = times.removeprefix(TIMES)
    assert [line[0] for line in notes.splitlines() if "10 %" in line] == ["†"]
    assert [re.findall(r"\d+ %", line) for line in changes.splitlines() if line] == [["95 %"], []]
    assert "Not distinguishable" in changes
    assert max(map(len, text.splitlines())) <= 100


def test_markdown_holds_the_same_cells(runs):
    (text,) = tables(runs, markdown=True)
    title, _, surroundings, *_ = text.splitlines()
    assert title.startswith("### ")
    assert all(name in title for name in ("num_workers", "shm_size", "block workers"))
    assert surroundings.startswith(f"{SIMULATED['device_name']} · ")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert ["2", "5.00 (4.80-8.80)†", "3", "15.00 (15.00-15.00)", "3"] in rows
    assert ["4", "4.15 s, 1 of 3 overflowed", "2", "-", ""] in rows
    assert ["2", "-46% (-77% to +31%), not distinguishable", "-25% (-25% to -25%)"] in rows


def test_hardware_and_other_parameters_are_never_pooled(tracking, plant):
    box2 = SIMULATED | {"cores": 4}
    form = {"loader.format": "png"}
    trials = [*worker_trials(0, 64 * MB, [10.0]), *worker_trials(2, 64 * MB, [5.0])]
    trials += [(swept, 2, outcome, 2 * time, box2) for swept, _, outcome, time, _ in trials]
    trials += [
        (swept | form, repeat, outcome, time / 10, tags)
        for swept, repeat, outcome, time, tags in trials
    ]
    cells = epoch_times(plant_sweep(tracking, plant, trials))
    medians = {
        (cell.varied, cell.surroundings.split(" · ")[2], cell.num_workers): cell.median_s
        for cell in cells.itertuples()
    }
    assert medians == {
        ("format=wav", "2 cores", 0): 10.0,
        ("format=wav", "2 cores", 2): 5.0,
        ("format=wav", "4 cores", 0): 20.0,
        ("format=wav", "4 cores", 2): 10.0,
        ("format=png", "2 cores", 0): 1.0,
        ("format=png", "2 cores", 2): 0.5,
        ("format=png", "4 cores", 0): 2.0,
        ("format=png", "4 cores", 2): 1.0,
    }
    assert (cells["n"] == 1).all()


def test_two_repeats_are_not_enough_data(tracking, plant):
    runs = plant_sweep(
        tracking, plant, [*worker_trials(0, None, [1.0, 1.1]), *worker_trials(2, None, [0.5, 0.51])]
    )
    (text,) = tables(runs)
    assert "not enough data" in text.splitlines()[-1]
    assert "3 repeats" in text.splitlines()[-1]
    assert "      2  0.505 (0.500-0.510)  2" in text


def test_without_zero_workers_there_is_nothing_to_compare_with(tracking, plant):
    runs = plant_sweep(
        tracking, plant, [*worker_trials(1, None, [1.0]), *worker_trials(2, None, [0.5])]
    )
    assert epoch_times(runs)["change"].isna().all()
    change = tables(runs)[0].splitlines()[-1]
    assert "0 workers" in change
    assert "no trial" in change


def test_other_failures_are_named(tracking, plant):
    swept = {"loader.num_workers": 2, "loader.shm_size": None}
    failures = [
        (swept, repeat, outcome, None, SIMULATED)
        for repeat, outcome in enumerate(["timeout", "oom", "timeout"], 1)
    ]
    cells = epoch_times(plant_sweep(tracking, plant, [*worker_trials(0, None, [1.0]), *failures]))
    assert [text.split(", ") for text in cells["outcomes"]] == [
        [""],
        [f"2 of 3 {OUTCOME_LABELS['timeout']}", f"1 of 3 {OUTCOME_LABELS['oom']}"],
    ]


def test_sizes_that_do_not_fit_side_by_side_follow_below(tracking, plant):
    cells = [
        (workers, size) for size in (None, 1 << 30, 64 * MB, 16 * MB, 4 * MB) for workers in (0, 4)
    ]
    runs = plant_sweep(
        tracking, plant, [trial for cell in cells for trial in worker_trials(*cell, [10.0, 11.0])]
    )
    (text,) = tables(runs)
    assert max(map(len, text.splitlines())) <= 100
    headers = [
        line.replace("shm", "").split() for line in text.splitlines() if line.startswith("workers")
    ]
    assert headers == [
        ["workers", "4M", "n", "16M", "n", "64M", "n", "1G", "n"],
        ["workers", "node", "n"],
    ]


def test_a_lone_overflow_does_not_hide_that_the_rest_lie_far_apart(tracking, plant):
    runs = plant_sweep(
        tracking,
        plant,
        [*worker_trials(0, None, [1.0, 1.04, 1.1]), *worker_trials(2, None, [0.5, None, 0.6])],
    )
    (text,) = tables(runs)
    assert "      2  0.550 s†, 1 of 3 overflowed  2" in text


@pytest.mark.parametrize(("slowest", "marked"), [(0.054, True), (0.048, False)])
def test_a_cell_whose_epochs_met_two_speeds_is_marked(
    tracking, plant, slowest: float, marked: bool
):
    """Plants trials that take the same time, one of whose epochs took more CPU time a batch."""
    swept = [
        ({"loader.num_workers": workers}, repeat) for workers in (0, 2) for repeat in (1, 2, 3)
    ]
    parent = tracking.start_sweep(
        "first-look", "", [{"trial_id": make_trial_id("workers", *each)} for each in swept], ""
    )
    for each, repeat in swept:
        met_both = repeat == 2 and not each["loader.num_workers"]
        plant(
            parent,
            each,
            repeat,
            tags=SIMULATED,
            epoch_s=1.0,
            first_batch_s=0.1,
            batch_cpu_min_s=0.040,
            batch_cpu_max_s=slowest if met_both else 0.041,
        )
    runs = sweep_runs("first-look", tracking.uri)
    assert epoch_times(runs)["two_speeds"].tolist() == [marked, False]
    rows = [line.split()[0] for line in tables(runs)[0].splitlines() if "(1.00-1.00)‡" in line]
    assert rows == ["0"] * marked


def test_disturbed_trials_are_a_footnote(tracking, plant):
    trials = worker_trials(0, None, [1.0, 1.0, 1.0]) + worker_trials(2, None, [0.5, 0.5, 0.5])
    parent = tracking.start_sweep(
        "first-look",
        "",
        [{"trial_id": make_trial_id("workers", swept, repeat)} for swept, repeat, *_ in trials],
        "",
    )
    attempts = {(0, 1): ["a compiler", None], (2, 3): ["a backup", "another backup"]}
    for swept, repeat, outcome, epoch_s, _ in trials:
        for disturbed in attempts.get((swept["loader.num_workers"], repeat), [None]):
            plant(parent, swept, repeat, outcome, tags={"disturbed": disturbed}, epoch_s=epoch_s)
    (text,) = tables(sweep_runs("first-look", tracking.uri))
    (note,) = (line for line in text.split("\n\n") if "disturbed" in line)
    note = " ".join(note.split())
    counts, named = note.split(": ")
    assert re.findall(r"\d+", counts) == ["2", "6", "1"]
    assert "ran again" in counts
    assert "stayed disturbed" in counts
    assert named.startswith("workers · num_workers=2 shm_size=node · repeat 3 ")
    assert named.endswith(" (another backup).")


def test_a_disturbed_trial_that_has_not_run_again_is_named(tracking, plant):
    parent = tracking.start_sweep("first-look", "", [{"trial_id": "a"}, {"trial_id": "b"}], "")
    plant(
        parent,
        {"loader.num_workers": 0},
        trial_id="a",
        epoch_s=1.0,
        tags={"disturbed": "a compiler"},
    )
    plant(parent, {"loader.num_workers": 2}, trial_id="b", epoch_s=1.0)
    (text,) = tables(sweep_runs("first-look", tracking.uri))
    (note,) = (line for line in text.splitlines() if "disturbed" in line)
    counts, named = note.split(": ")
    assert re.findall(r"\d+", counts) == ["1", "2"]
    assert "stayed disturbed" not in counts
    assert "workers · num_workers=0 · repeat 1 " in named
    assert "(a compiler)." in text
    assert "ran again" not in text


FORECAST_PAGE = """\
workers  shm 64M                     n  shm node        n
-------  --------------------------  -  --------------  -
      0  10.00 (10.00-10.00)         3  -
      2   5.00 s, 1 of 3 overflowed  2  ~5.05 forecast
      4  ~4.05 forecast                 ~4.05 forecast
      8  ~overflows forecast            -
"""


def foreseen_row(workers, size, repeat, epoch_s, **more):
    swept = {"loader.num_workers": workers, "loader.shm_size": size}
    parameters = {"corpus.name": "synthetic", "corpus.words": ["yes", "no"], "loader.format": "wav"}
    parameters |= {
        "sgdr.epochs": 8,
        "sgdr.cycle_factor": 1,
        "sgdr.lr": 0.01,
        **{name: value for name, value in swept.items() if value},
    }
    row = {
        "trial_id": make_trial_id("workers", swept, repeat),
        "block": "workers",
        "repeat": repeat,
        "swept": swept,
    }
    return (
        row
        | {"measured": False, "config": parameters, "forecast": {"forecast_epoch_s": epoch_s}}
        | more
    )


def test_cells_that_were_not_measured_show_their_forecast(tracking, plant):
    measured = [
        *worker_trials(0, 64 * MB, [10.0] * 3, {}),
        *worker_trials(2, 64 * MB, [5.0, 5.0, None], {}),
    ]
    rows = [{"trial_id": make_trial_id("workers", swept, repeat)} for swept, repeat, *_ in measured]
    rows += [
        foreseen_row(*cell, repeat, 4.05)
        for cell in ((4, 64 * MB), (4, None))
        for repeat in (1, 2, 3)
    ]
    rows += [
        foreseen_row(2, None, 1, 5.05),
        foreseen_row(8, 64 * MB, 1, 3.0, forecast_fit="overflows"),
    ]
    parent = tracking.start_sweep("first-look", "", rows, "")
    for swept, repeat, outcome, epoch_s, _ in measured:
        plant(parent, swept, repeat, outcome, **({} if epoch_s is None else {"epoch_s": epoch_s}))
    runs = sweep_runs("first-look", tracking.uri)
    (text,) = tables(runs)
    assert FORECAST_PAGE in text
    assert "\n~ Not measured: " in text
    cells = epoch_times(runs).set_index(["shm_size", "num_workers"])
    assert cells["forecast_s"].dropna().to_dict() == {
        ("64M", 4): 4.05,
        ("64M", 8): 3.0,
        ("node", 2): 5.05,
        ("node", 4): 4.05,
    }
    assert cells.loc[("64M", 4), ["trials", "n"]].tolist() == [0, 0]


def test_one_measured_cell_beside_forecasts_is_a_table(tracking, plant):
    swept = {"loader.num_workers": 2, "loader.shm_size": None}
    rows = [
        {"trial_id": make_trial_id("workers", swept, 1)},
        foreseen_row(1, None, 1, 5.05),
        foreseen_row(4, None, 1, 12.5),
    ]
    plant(tracking.start_sweep("first-look", "", rows, ""), swept, epoch_s=4.0)
    cells = epoch_times(sweep_runs("first-look", tracking.uri))
    assert cells["num_workers"].tolist() == [1, 2, 4]


def test_a_cell_with_a_measured_trial_shows_no_forecast(tracking, plant):
    swept = {"loader.num_workers": 2, "loader.shm_size": None}
    rows = [
        {"trial_id": make_trial_id("workers", swept, 1)},
        foreseen_row(2, None, 2, 5.05),
        foreseen_row(4, None, 1, 12.5),
    ]
    plant(tracking.start_sweep("first-look", "", rows, ""), swept, outcome="timeout")
    cells = epoch_times(sweep_runs("first-look", tracking.uri)).set_index("num_workers")
    assert (cells.loc[2, "outcomes"], math.isnan(cells.loc[2, "forecast_s"])) == (
        "1 of 1 timed out",
        True,
    )


@pytest.fixture(scope="module")
def simulated():
    """Returns table 1 of 200 sweeps of three repeats; 0 and 1 workers take the same time, and 2
    workers a fifth less."""
    return epoch_times(
        simulated_sweep(
            {0: 2.0, 1: 2.0, 2: 1.6}, tables=200, repeats=3, drift=0.1, noise=0.015, seed=4
        )
    )


def distinguishable(cells):
    """Returns which changes have an interval without zero."""
    return (cells["change_low"] > 0) | (cells["change_high"] < 0)


def test_equal_points_are_distinguishable_no_more_often_than_the_nominal_share(simulated):
    false = distinguishable(simulated[simulated["num_workers"] == 1])
    assert len(false) == 200
    assert stats.binomtest(int(false.sum()), 200, 0.05, "greater").pvalue > 0.05


def test_a_fifth_is_found_in_nearly_every_table(simulated):
    found = simulated[simulated["num_workers"] == 2]
    assert distinguishable(found).mean() > 0.95
    assert found["change"].mean() == pytest.approx(-0.2, abs=0.005)
    assert ((found["change_low"] < -0.2) & (found["change_high"] > -0.2)).mean() == pytest.approx(
        0.95, abs=0.04
    )


def test_a_block_that_varies_neither_has_no_table(tracking, plant):
    runs = plant_sweep(tracking, plant, worker_trials(2, 64 * MB, [1.0, 1.1, 1.2]))
    assert epoch_times(runs).empty
    assert tables(runs) == []


def test_times_of_trials_that_diverged_count_and_are_marked(tracking, plant):
    swept = {"loader.num_workers": 2, "loader.shm_size": 64 * MB}
    trials = [*worker_trials(0, 64 * MB, [10.0, 10.0, 10.0])]
    trials += [
        (swept, 1, "completed", 5.0, SIMULATED),
        (swept, 2, "diverged", 6.0, SIMULATED),
        (swept, 3, "diverged", 7.0, SIMULATED),
    ]
    cell = epoch_times(plant_sweep(tracking, plant, trials)).set_index("num_workers").loc[2]
    assert (cell["n"], cell["trials"], cell["median_s"], cell["outcomes"]) == (
        3,
        3,
        6.0,
        "2 of 3 diverged",
    )
