"""Frames of epochs, snapshots and pairs of snapshots against series planted through the real
tracker."""

import pytest

from analysis.filters import filter_trials
from analysis.runs import join_sweep_runs, sweep_runs
from analysis.series import TRIAL_COLUMNS, disagreements, epoch_rows, snapshot_rows, trial_records
from analysis.tradeoff import epoch_times
from analysis.tradeoff_table import tables
from sweeps.metrics import SERIES
from sweeps.tracking.mlflow_runs import TrialDescription
from tests.conftest import make_trial_id
from tests.planted_sweep import ENSEMBLES, row


@pytest.fixture(scope="module")
def cycles(first_look):
    return filter_trials(sweep_runs("first-look", first_look.uri), ["block=cycles"])


def test_a_row_an_epoch_of_every_trial(cycles):
    rows = epoch_rows(cycles)
    assert list(rows) == [
        *TRIAL_COLUMNS,
        "epoch",
        "warmup",
        *(name for name in SERIES if "snapshot" not in name),
    ]
    assert len(rows) == 6 * 8
    first = rows[rows["run_id"] == cycles.trials["run_id"].iloc[0]]
    assert (first["epoch"].tolist(), first["warmup"].tolist()) == (
        list(range(8)),
        [True] + 7 * [False],
    )
    assert first["loss/training"].iloc[0] == 2.0
    assert first["stall/steps"].isna().all()
    assert [rows[name].dtype for name in ("epoch", "warmup", "lr", "stall/steps")] == [
        "int64",
        "bool",
        "float64",
        "float64",
    ]


def test_only_the_series_asked_for(cycles):
    assert list(epoch_rows(cycles.with_trials(cycles.trials.iloc[:1]), ["lr"]))[-2:] == [
        "warmup",
        "lr",
    ]


def test_a_row_a_snapshot_with_the_epochs_trained_by_then(cycles):
    rows = snapshot_rows(cycles)
    trials = cycles.trials
    short = rows[rows["run_id"] == trials.loc[trials["sgdr.cycle_epochs"] == 2, "run_id"].iloc[0]]
    assert (short["cycle"].tolist(), short["snapshots"].tolist(), short["epochs"].tolist()) == (
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [2, 4, 6, 8],
    )
    assert short["snapshot/ensemble_accuracy"].iloc[-1] == ENSEMBLES[2][0]
    assert short["snapshot/disagreement"].isna().tolist() == [True, False, False, False]
    assert len(rows) == 3 * (4 + 1)


def test_a_row_a_pair_of_snapshots(cycles):
    pairs = disagreements(cycles)
    assert len(pairs) == 3 * 6
    found = pairs[pairs["run_id"] == pairs["run_id"].iloc[0]].set_index(["cycle", "other"])["share"]
    assert found.to_dict() == pytest.approx(
        {(1, 0): 0.25, (2, 0): 0.3, (2, 1): 0.25, (3, 0): 0.35, (3, 1): 0.3, (3, 2): 0.25}
    )


def test_of_a_step_written_twice_the_later_value_and_a_failed_trial_has_its_epochs(tracking):
    trial = TrialDescription(
        trial_id="a",
        block="w",
        repeat=1,
        seed=1,
        swept={},
        config={"sgdr": {"epochs": 2}},
        tags={},
    )
    run = tracking.start_trial(tracking.start_sweep("s", "", [{"trial_id": "a"}], ""), trial)
    tracking.log_epoch(run, 0, {"lr": 1.0})
    tracking.log_epoch(run, 0, {"lr": 0.5})
    tracking.finish_trial(run, "crashed", "planted", {})
    rows = epoch_rows(sweep_runs("s", tracking.uri), ["lr"])
    assert (rows["lr"].tolist(), rows["outcome"].tolist()) == ([0.5], ["crashed"])


def test_a_frame_without_rows_has_the_columns(tracking):
    tracking.start_sweep("empty", "", [], "")
    runs = sweep_runs("empty", tracking.uri)
    for rows in (epoch_rows(runs, ["lr"]), snapshot_rows(runs), disagreements(runs)):
        assert (len(rows), list(rows)[: len(TRIAL_COLUMNS)]) == (0, list(TRIAL_COLUMNS))


def test_a_trial_without_records_has_none(tracking, plant):
    run = plant(tracking.start_sweep("s", "", [], ""), {})
    assert trial_records(tracking.client, run) == []


def test_filters_read_as_names_do_and_keep_what_the_sweep_knows(first_look):
    runs = sweep_runs("first-look", first_look.uri)
    assert len(filter_trials(runs, ["outcome=shm_exhausted"]).trials) == 6
    few = filter_trials(runs, ["block=workers", "num_workers=2", "shm_size=64M", "cores=2"])
    assert (len(few.trials), few.planned_count, few.name, few.trials["trial_id"].is_unique) == (
        3,
        3,
        "first-look",
        True,
    )
    assert runs.planned_count == 36, "the whole sweep is left as it was"
    with pytest.raises(LookupError, match=r"^num_workers=3: .*: 0, 1, 2, 4, 8$"):
        filter_trials(runs, ["num_workers=3"])
    with pytest.raises(LookupError, match="wrkers=3: 'wrkers' "):
        filter_trials(runs, ["wrkers=3"])


def test_several_sweeps_are_one_frame_and_are_never_pooled(tracking, plant):
    for name, by in (("a", 1.0), ("b", 2.0)):
        trials = [
            ({"loader.num_workers": workers}, repeat) for workers in (0, 2) for repeat in (1, 2, 3)
        ]
        plan = [row("workers", *trial) for trial in (*trials, ({"loader.num_workers": 4}, 1))]
        parent = tracking.start_sweep(name, "", plan, "")
        for swept, repeat in trials:
            plant(parent, swept, repeat, epoch_s=by)
    joined = join_sweep_runs(["a", "b", "a"], tracking.uri)
    assert joined.trials["sweep"].value_counts().to_dict() == {"a": 6, "b": 6}
    assert (joined.name, joined.planned_count, len(joined.not_run)) == (
        "a + b",
        14,
        2,
    )
    cells = epoch_times(joined).set_index(["sweep", "num_workers"])
    assert cells["varied"].unique().tolist() == ["sweep=a", "sweep=b"]
    assert cells["median_s"].dropna().to_dict() == {
        ("a", 0): 1.0,
        ("a", 2): 1.0,
        ("b", 0): 2.0,
        ("b", 2): 2.0,
    }
    assert cells.loc[("b", 4), ["trials", "not_run"]].tolist() == [0, 1]


def test_planned_cells_without_a_run_are_shown(tracking, plant):
    sizes = [{"loader.num_workers": 2, "loader.shm_size": size} for size in (None, 64 << 20)]
    plan = [
        row("workers", swept, 1)
        for swept in (*sizes, {"loader.num_workers": 4, "loader.shm_size": None})
    ]
    parent = tracking.start_sweep("first-look", "", plan, "")
    plant(parent, sizes[1], trial_id=make_trial_id("workers", sizes[1], 1), epoch_s=1.0)
    runs = sweep_runs("first-look", tracking.uri)
    assert [
        (missing["loader.num_workers"], missing["loader.shm_size"]) for missing in runs.not_run
    ] == [(2, None), (4, None)]
    (text,) = tables(runs)
    rows = [line.split() for line in text.splitlines() if line.lstrip()[:2] in ("2 ", "4 ")]
    assert rows == [["2", "1.00", "1", "not", "run", "yet"], ["4", "-", "not", "run", "yet"]]
