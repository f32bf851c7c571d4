"""Whatever trials there are, the analysis ends with a page, and no figure on it is invented."""

import math
import re
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from hypothesis import HealthCheck, Phase, given, settings

from analysis import plots
from analysis.cycle_choice import cycle_recommendations
from analysis.cycles import cycle_accuracies
from analysis.recommendation import recommendations
from analysis.report import report
from analysis.tables import body, write_csv
from analysis.tradeoff import TIMED, epoch_times
from sweeps.tracking import SETTLED, Tracking
from tests.conftest import plant_trial
from tests.random_runs import Drawn, frame_of, sweeps

EVERY = {"deadline": None, "derandomize": True, "phases": [Phase.generate]}
some = settings(max_examples=20, **EVERY)
few = settings(max_examples=4, **EVERY, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cell_of(trials: list[Drawn], cell) -> list[Drawn]:
    """The trials that a row of table 1 may be made of: its block, size and workers. Hardware may divide them further."""
    size = {"node": None, "64M": 64 << 20, "1G": 1 << 30}[cell.shm_size]
    where = {"loader.num_workers": cell.num_workers, "loader.shm_size": size}
    return [trial for trial in trials if trial.block == cell.block and trial.swept == where and trial.outcome]


@some
@given(sweeps())
def test_each_cell_of_table_1_is_of_its_trials_and_no_others(trials):
    cells = epoch_times(frame_of(trials))
    for cell in cells.itertuples():
        there = cell_of(trials, cell)
        times = [trial.summary["epoch_s"] for trial in there if trial.outcome in TIMED and "epoch_s" in trial.summary]
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
        assert counted.empty or counted["trials"].sum() == len(ran), "each trial is in a cell of its own"


@some
@given(sweeps())
def test_what_is_recommended_ran_to_its_end_in_three_repeats(trials):
    frame = frame_of(trials)
    for choice in recommendations(frame).itertuples():
        if pd.isna(choice.num_workers):
            continue
        cell = pd.Series({"block": choice.block, "shm_size": choice.shm_size, "num_workers": choice.num_workers})
        times = [trial.summary["epoch_s"] for trial in cell_of(trials, cell) if trial.outcome == "completed" and "epoch_s" in trial.summary]
        assert len(times) >= 3
        assert min(times) <= choice.epoch_s <= max(times)
        assert choice.epoch_s >= choice.fastest_s
    for choice in cycle_recommendations(frame).itertuples():
        assert (choice.schedule == "") == pd.isna(choice.snapshots)
    for row in cycle_accuracies(frame).itertuples():
        assert row.n + row.trials >= row.n
        assert (row.n == 0) == math.isnan(row.last)


@some
@given(sweeps())
def test_the_page_ends_and_fits_and_counts_what_there_is(trials):
    frame = frame_of(trials)
    text = body(frame)
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    ran = [trial for trial in trials if trial.outcome]
    failed = [trial for trial in ran if trial.outcome not in (*SETTLED, "running")]
    assert text.count(", planted <") == min(len(failed), 5)
    if ran and (missing := len(trials) - len(ran)):
        assert f"{missing} of {len(trials)} planned trials have not run." in text
    assert body(frame, markdown=True).count("\n### ") >= len(epoch_times(frame)["block"].unique() if len(epoch_times(frame)) else ())


@few
@given(sweeps())
def test_csv_and_pictures_end(trials):
    frame = frame_of(trials)
    with tempfile.TemporaryDirectory() as folder:
        for file in write_csv(frame, Path(folder)):
            assert len(pd.read_csv(file))
    for draw in (plots.epoch_seconds, plots.where_epochs_go, plots.shm_peaks):
        try:
            figure = draw(frame)
        except LookupError:
            continue
        figure.draw_without_rendering()


@few
@given(trials=sweeps(most=5))
def test_a_report_of_whatever_ran_is_made_through_the_tracker(trials, empty_database):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_database, folder)
        tracking = Tracking(f"sqlite:///{folder}/mlflow.db", "speech")
        parent = tracking.start_sweep("random", "name: random\n", [trial.row for trial in trials], "")
        for trial in trials:
            if trial.outcome and trial.outcome != "running":
                plant_trial(tracking, parent, trial.swept, trial.repeat, trial.outcome, trial.block, tags=trial.tags, **trial.summary)
        made = report("random", tracking.uri)
    assert made.count("<h1>") == 1
    assert "name: random" in made
    assert not re.search(r"\bnan\b", re.sub('src="data:[^"]*"', "", made), re.IGNORECASE)
