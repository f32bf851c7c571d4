"""Tests table 4, cell by cell, with planted trials and numbers worked out by hand."""

import math

import pytest

from analysis.cycles import cycle_accuracies, cycle_lengths, tables
from analysis.runs import sweep_runs
from analysis.tables import body, head
from analysis.text_tables import OUTCOME_LABELS
from speech.training_config import Sgdr
from tests.conftest import make_trial_id

ACCURACIES = {  # cycle epochs -> (last, best, ensemble) by repeat
    2: [(0.80, 0.82, 0.85), (0.82, 0.82, 0.86), (0.84, 0.85, 0.90)],
    8: [(0.84, 0.84, 0.84), (0.86, 0.86, 0.86), (0.88, 0.88, 0.88)],
}


def plant_sweep(tracking, plant, trials):
    """Plants `trials`: (swept, repeat, outcome, (last, best, ensemble) or None)."""
    keys = [{"trial_id": make_trial_id("cycles", swept, repeat)} for swept, repeat, *_ in trials]
    parent = tracking.start_sweep("first-look", "", keys, "")
    for swept, repeat, outcome, accuracies in trials:
        names = ("accuracy", "best_snapshot_accuracy", "ensemble_accuracy")
        summary = (
            dict(zip(names, accuracies, strict=True)) | {"train_s": 60.0 + repeat}
            if accuracies
            else {}
        )
        plant(
            parent,
            swept,
            repeat,
            outcome,
            block="cycles",
            tags={"validation_clips": 300},
            **summary,
        )
    return sweep_runs("first-look", tracking.uri)


def completed(cycle_epochs, accuracies):
    return [
        ({"sgdr.cycle_epochs": cycle_epochs}, repeat, "completed", each)
        for repeat, each in enumerate(accuracies, 1)
    ]


def test_rows_hold_means_spreads_and_the_gain_over_the_long_cosine(tracking, plant):
    runs = plant_sweep(
        tracking, plant, [*completed(8, ACCURACIES[8]), *completed(2, ACCURACIES[2])]
    )
    short, long = cycle_accuracies(runs).itertuples()
    assert (short.schedule, short.cycles, short.n, short.trials, short.train_s) == (
        "2",
        4,
        3,
        3,
        62.0,
    )
    assert (short.last, short.best, short.ensemble) == pytest.approx((0.82, 0.83, 0.87))
    assert (short.last_sd, short.best_sd, short.ensemble_sd) == pytest.approx(
        (0.02, 0.0173205, 0.0264575)
    )
    assert short.long_cosine == pytest.approx(0.86)
    # differences 0.01, 0.00, 0.02: mean 0.01, sd 0.01; t(0.975, 2) = 4.302653, over the root of 3:
    # +- 0.0248414
    assert (short.gain, short.gain_low, short.gain_high) == pytest.approx(
        (0.01, -0.0148414, 0.0348414), abs=1e-6
    )
    assert (long.schedule, long.cycles, long.ensemble) == ("8, long cosine", 1, pytest.approx(0.86))
    assert math.isnan(long.gain)


def test_the_table_fits_a_hundred_columns(tracking, plant):
    (text,) = tables(
        plant_sweep(tracking, plant, [*completed(8, ACCURACIES[8]), *completed(2, ACCURACIES[2])])
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].endswith(", block cycles")
    assert lines[1].split(" · ") == ["Planted CPU", "2 cores", "2 threads", "float32"]
    cells = [line.split("  ") for line in lines if line.startswith(("2 ", "8, "))]
    assert [[cell.strip() for cell in row if cell.strip()] for row in cells] == [
        [
            "2",
            "4",
            "82.0 ± 2.0",
            "83.0 ± 1.7",
            "87.0 ± 2.6",
            "86.0",
            "+1.0 (-1.5 to +3.5),",
            "62",
            "3",
        ],
        ["8, long cosine", "1", "86.0 ± 2.0", "86.0 ± 2.0", "86.0 ± 2.0", "86.0", "-", "62", "3"],
    ]
    # below its interval
    assert [line.strip() for line in lines if "distinguishable" in line] == ["not distinguishable"]
    # Wilson, 261 of 300 by hand: 0.8272 to 0.9034
    assert all(figure in lines[-1] for figure in ("300", "87.0 %", "82.7-90.3 %", "Wilson"))


def test_a_gain_in_every_repeat_is_distinguishable(tracking, plant):
    gained = [
        (last, best, cosine + gain)
        for (last, best, _), (*_, cosine), gain in zip(
            *ACCURACIES.values(), (0.05, 0.06, 0.05), strict=True
        )
    ]
    runs = plant_sweep(tracking, plant, [*completed(8, ACCURACIES[8]), *completed(2, gained)])
    assert "+5.3 (+3.9 to +6.8)" in tables(runs)[0]
    assert "not distinguishable" not in tables(runs)[0]


def test_in_markdown_an_interval_that_holds_zero_says_so_in_its_cell(tracking, plant):
    runs = plant_sweep(
        tracking, plant, [*completed(8, ACCURACIES[8]), *completed(2, ACCURACIES[2])]
    )
    assert "| +1.0 (-1.5 to +3.5), not distinguishable |" in tables(runs, markdown=True)[0]


def test_two_repeats_are_not_enough_data(tracking, plant):
    runs = plant_sweep(
        tracking, plant, [*completed(8, ACCURACIES[8][:2]), *completed(2, ACCURACIES[2][:2])]
    )
    (text,) = tables(runs)
    assert "not enough data" in text
    assert cycle_accuracies(runs)["gain"].isna().all()


def test_only_completed_trials_count_and_the_others_are_named(tracking, plant):
    swept = {"sgdr.cycle_epochs": 4}
    others = [
        (swept, 1, "completed", (0.8, 0.8, 0.9)),
        (swept, 2, "timeout", (0.2, 0.2, 0.2)),
        (swept, 3, "crashed", None),
    ]
    runs = plant_sweep(tracking, plant, [*others, ({"sgdr.cycle_epochs": 2}, 1, "oom", None)])
    failed, mixed = cycle_accuracies(runs).itertuples()
    assert (mixed.n, mixed.trials, mixed.ensemble) == (1, 3, 0.9)
    assert mixed.outcomes == f"1 of 3 {OUTCOME_LABELS['timeout']}, 1 of 3 crashed"
    assert math.isnan(mixed.long_cosine)
    assert (failed.n, failed.outcomes) == (0, f"1 of 1 {OUTCOME_LABELS['oom']}")
    (text,) = tables(runs)
    first, second = (f"cycles of {row.schedule}: {row.outcomes}." for row in (failed, mixed))
    assert -1 < text.find(first) < text.find(second)


def test_one_without_an_ensemble_does_not_count(tracking, plant):
    accuracies = (
        {"accuracy": 0.8},
        {
            "accuracy": 0.7,
            "best_snapshot_accuracy": 0.7,
            "ensemble_accuracy": 0.75,
        },
    )
    parent = tracking.start_sweep("first-look", "", [{"trial_id": "1"}, {"trial_id": "2"}], "")
    for repeat, figures in enumerate(accuracies, 1):
        plant(parent, {"sgdr.cycle_epochs": 2}, repeat, trial_id=str(repeat), **figures)
    (row,) = cycle_accuracies(sweep_runs("first-look", tracking.uri)).itertuples()
    assert (row.trials, row.n, row.last, row.ensemble) == (2, 1, 0.7, 0.75)


def test_budgets_are_never_pooled(tracking, plant):
    trials = [({"sgdr.epochs": epochs}, 1, "completed", (0.5, 0.5, 0.5)) for epochs in (4, 8)]
    rows = cycle_accuracies(plant_sweep(tracking, plant, trials))
    assert sorted(rows["varied"]) == ["epochs=4", "epochs=8"]
    assert sorted(rows["schedule"]) == ["4, long cosine", "8, long cosine"]


def test_a_block_that_learns_nothing_has_no_table(tracking, plant):
    runs = plant_sweep(tracking, plant, [({"sgdr.epochs": 8}, 1, "completed", None)])
    assert cycle_accuracies(runs).empty
    assert tables(runs) == []


@pytest.mark.parametrize(
    ("epochs", "cycle_epochs", "factor"),
    [(8, None, 1), (8, 8, 1), (8, 2, 1), (28, 4, 2), (13, 1, 3), (46, [8, 14, 24], 1)],
)
def test_cycle_lengths_are_those_of_the_schedule(epochs, cycle_epochs, factor):
    stored = str(cycle_epochs) if isinstance(cycle_epochs, list) else cycle_epochs
    assert (
        cycle_lengths(epochs, stored, factor)
        == Sgdr(epochs=epochs, cycle_epochs=cycle_epochs, cycle_factor=factor).cycles()
    )


def test_diverged_trials_are_counted_and_in_no_mean(tracking, plant):
    """Plants schedule 2 with one sound trial and two that diverged, one of them after some
    snapshots, and schedule 4 with three that diverged."""
    trials = [*completed(8, ACCURACIES[8]), *completed(2, ACCURACIES[2][:1])]
    trials += [({"sgdr.cycle_epochs": 4}, repeat, "diverged", None) for repeat in (1, 2, 3)]
    trials.append(({"sgdr.cycle_epochs": 2}, 2, "diverged", None))
    plant_sweep(tracking, plant, trials)
    parent = tracking.start_sweep(
        "first-look",
        "",
        [{"trial_id": make_trial_id("cycles", swept, repeat)} for swept, repeat, *_ in trials],
        "",
    )
    swept = {"sgdr.cycle_epochs": 2}
    plant(
        parent,
        swept,
        3,
        "completed",
        block="cycles",
        ensemble_accuracy=0.1,
        best_snapshot_accuracy=0.1,
        diverged_snapshots=2,
    )
    plan = [
        {"trial_id": make_trial_id("cycles", each, repeat)}
        for each, repeat, *_ in [*trials, (swept, 3)]
    ]
    tracking.start_sweep("first-look", "", plan, "")
    runs = sweep_runs("first-look", tracking.uri)
    rows = {row.schedule: row for row in cycle_accuracies(runs).itertuples()}
    assert (rows["2"].n, rows["2"].trials, rows["2"].ensemble) == (1, 3, 0.85)
    wholly, partly = sorted(rows["2"].outcomes.split(", "), key=len)
    assert wholly == "1 of 3 diverged"
    assert partly.startswith(wholly)
    assert "snapshots" in partly
    assert (rows["4"].n, rows["4"].trials, rows["4"].outcomes) == (0, 3, "3 of 3 diverged")
    assert math.isnan(rows["4"].ensemble)
    assert "diverged" in "".join(tables(runs))
    assert sum("planted" in line for line in head(runs).splitlines()[1:]) == 5, (
        "each with its evidence"
    )


def test_a_block_of_which_all_diverged_has_its_table(tracking, plant):
    trials = [({"sgdr.cycle_epochs": epochs}, 1, "diverged", None) for epochs in (2, 8)]
    runs = plant_sweep(tracking, plant, trials)
    assert [row.outcomes for row in cycle_accuracies(runs).itertuples()] == ["1 of 1 diverged"] * 2
    (text,) = tables(runs)
    assert "nan" not in text.lower()
    assert "nan" not in body(runs).lower()
