"""Tests that the analysis of random trials makes a page with figures of these trials only."""

import math
import re
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from hypothesis import HealthCheck, Phase, given, settings

from analysis import epoch_parts_plot, epoch_time_plot, shm_plot
from analysis.cycle_recommendation import cycle_recommendations
from analysis.cycles import cycle_accuracies
from analysis.recommendation import recommendations
from analysis.report import build_report
from analysis.tables import body, write_csv
from analysis.timed_trials import RAN_THROUGH
from analysis.tradeoff import epoch_times
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.trial_states import SETTLED
from tests.conftest import plant_trial
from tests.random_runs import Drawn, runs_of, sweeps

EVERY = {"deadline": None, "derandomize": True, "phases": [Phase.generate]}
some = settings(max_examples=20, **EVERY)
few = settings(max_examples=4, **EVERY, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cell_of(trials: list[Drawn], cell) -> list[Drawn]:
    """Returns the trials that a row of table 1 may combine: those of its block, size and workers.
    Hardware may divide them further."""
    size = {"node": None, "64M": 64 << 20, "1G": 1 << 30}[cell.shm_size]
    where = {"loader.num_workers": cell.num_workers, "loader.shm_size": size}
    return [
        trial
        for trial in trials
        if trial.block == cell.block and trial.swept == where and trial.outcome
    ]


@some
@given(sweeps())
def test_each_cell_of_table_1_is_of_its_trials_and_no_others(trials):
    cells = epoch_times(runs_of(trials))
    for cell in cells.itertuples():
        there = cell_of(trials, cell)
        times = [
            trial.summary["epoch_s"]
            for trial in there
            if trial.outcome in RAN_THROUGH and "epoch_s" in trial.summary
        ]
        assert cell.n <= len(times)
        assert cell.trials <= len(there)
        assert math.isnan(cell.median_s) == (cell.n == 0)
        if cell.n:
            assert {cell.min_s, cell.max_s} <= set(times)
            assert cell.min_s <= cell.median_s <= cell.max_s
        if cell.n < 3:
            assert math.isnan(cell.change)
    for block in {trial.block for trial in trials} if len(cells) else ():
        counted = cells[cells["block"] == block]
        ran = [trial for trial in trials if trial.block == block and trial.outcome]
        assert counted.empty or counted["trials"].sum() == len(ran), (
            "each trial is in exactly one cell"
        )


@some
@given(sweeps())
def test_what_is_recommended_ran_to_its_end_in_three_repeats(trials):
    runs = runs_of(trials)
    for choice in recommendations(runs).itertuples():
        if pd.isna(choice.num_workers):
            continue
        cell = pd.Series(
            {"block": choice.block, "shm_size": choice.shm_size, "num_workers": choice.num_workers}
        )
        times = [
            trial.summary["epoch_s"]
            for trial in cell_of(trials, cell)
            if trial.outcome == "completed" and "epoch_s" in trial.summary
        ]
        assert len(times) >= 3
        assert min(times) <= choice.epoch_s <= max(times)
        assert choice.epoch_s >= choice.fastest_s
    for choice in cycle_recommendations(runs).itertuples():
        assert (choice.schedule == "") == pd.isna(choice.snapshots)
    for row in cycle_accuracies(runs).itertuples():
        assert row.trials - row.n == sum(
            int(part.split()[0]) for part in row.outcomes.split(", ") if part
        )
        assert (row.n == 0) == math.isnan(row.last)


@some
@given(sweeps())
def test_the_page_fits_and_counts_the_trials(trials):
    runs = runs_of(trials)
    text = body(runs)
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    ran = [trial for trial in trials if trial.outcome]
    failed = [trial for trial in ran if trial.outcome not in (*SETTLED, "running")]
    diverged = [trial for trial in ran if trial.outcome == "diverged"]
    assert len(re.findall(r"(?<!diverged), planted <", text)) == min(len(failed), 5)
    # and those that diverged after some snapshots
    assert text.count("diverged, planted <") >= min(len(diverged), 5)
    if ran and (missing := len(trials) - len(ran)):
        assert f"{missing} of {len(trials)} planned " in text
    assert body(runs, markdown=True).count("\n### ") >= len(
        epoch_times(runs)["block"].unique() if len(epoch_times(runs)) else ()
    )


@few
@given(sweeps())
def test_csv_files_and_pictures_are_made(trials):
    runs = runs_of(trials)
    with tempfile.TemporaryDirectory() as folder:
        for file in write_csv(runs, Path(folder)):
            assert len(pd.read_csv(file))
    for draw in (
        epoch_time_plot.epoch_seconds,
        epoch_parts_plot.where_epochs_go,
        shm_plot.shm_peaks,
    ):
        try:
            figure = draw(runs)
        except LookupError:
            continue
        figure.draw_without_rendering()


@few
@given(trials=sweeps(most=5))
def test_a_report_of_whatever_ran_is_made_through_the_tracker(trials, empty_database):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_database, folder)
        tracking = RunLogger(f"sqlite:///{folder}/mlflow.db", "speech")
        parent = tracking.start_sweep(
            "random", "name: random\n", [trial.row for trial in trials], ""
        )
        for trial in trials:
            if trial.outcome and trial.outcome != "running":
                plant_trial(
                    tracking,
                    parent,
                    trial.swept,
                    trial.repeat,
                    trial.outcome,
                    trial.block,
                    tags=trial.tags,
                    **trial.summary,
                )
        made = build_report("random", tracking.uri)
    assert made.count("<h1>") == 1
    assert "name: random" in made
    assert not re.search(r"\bnan\b", re.sub('src="data:[^"]*"', "", made), re.IGNORECASE)
