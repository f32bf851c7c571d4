"""Tests what RunLogger writes, read back through MLflow's own client from a real database."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import ViewType

from speech.config import TrialConfig
from sweeps.metrics import METRICS
from sweeps.names import run_name
from sweeps.tracking.mlflow_runs import (
    MLFLOW_STATUS,
    Report,
    RunLogger,
    TrialDescription,
    digest,
)
from sweeps.tracking.run_queries import settled_outcomes
from sweeps.trial_states import SETTLED

SWEPT = {"loader.num_workers": 4, "loader.shm_size": 64 << 20}


def open_trial(tracking, parent, trial_id="k", config=None, tags=None):
    return tracking.start_trial(
        parent,
        TrialDescription(
            trial_id=trial_id,
            block="workers",
            repeat=1,
            seed=42,
            swept=SWEPT,
            config=config or {},
            tags=tags or {},
        ),
    )


def open_sweep(tracking, name="first-look"):
    return tracking.start_sweep(
        name, "name: first-look\n", [{"trial_id": "k"}], f"python -m analysis {name}"
    )


def test_a_report_is_kept_only_for_the_tables_and_the_file_that_it_shows(tracking):
    parent, file = open_sweep(tracking), "name: first-look\n"
    assert not tracking.has_report(parent, digest("tables 1", file))
    tracking.finish_sweep(
        parent, "FINISHED", "tables 1", Report("page 1", digest("tables 1", file))
    )
    assert tracking.has_report(parent, digest("tables 1", file))
    assert not tracking.has_report(parent, digest("tables 1", "name: first-look  # edited\n"))
    tracking.finish_sweep(parent, "KILLED", "tables 2")  # no report could be made
    assert not tracking.has_report(parent, digest("tables 2", file))


def test_a_sweep_is_one_parent_run_however_often_it_is_launched(tracking):
    first = open_sweep(tracking)
    tracking.finish_sweep(first, "FINISHED", "| a table |\n")
    other = open_sweep(tracking, "other")
    again = open_sweep(tracking)
    assert again == first != other
    run = tracking.client.get_run(first)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "first-look")
    assert "python -m analysis first-look" in run.data.tags["mlflow.note.content"]
    assert {file.path for file in tracking.client.list_artifacts(first)} == {
        "sweep.yaml",
        "plan.json",
        "tables.md",
    }


def test_artifacts_lie_beside_the_database(tracking, tmp_path):
    parent = open_sweep(tracking)
    assert json.loads(
        (tmp_path / "mlartifacts/speech" / parent / "artifacts/plan.json").read_text()
    ) == [{"trial_id": "k"}]


def test_a_trial_carries_its_parameters_tags_and_place(tracking):
    parent = open_sweep(tracking)
    config = TrialConfig(
        corpus={"words": ["yes", "no"]}, loader={"num_workers": 4, "shm_size": "64M"}
    ).model_dump()
    run = tracking.client.get_run(
        open_trial(
            tracking,
            parent,
            config=config,
            tags={"node": "box-1", "threads": 2, "device_name": None},
        )
    )
    assert run.info.run_name == "workers · num_workers=4 shm_size=64M · repeat 1"
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert (tags["kind"], tags["trial_id"], tags["block"], tags["repeat"]) == (
        "trial",
        "k",
        "workers",
        "1",
    )
    assert (tags["loader.num_workers"], tags["loader.shm_size"], tags["node"], tags["threads"]) == (
        "4",
        "64M",
        "box-1",
        "2",
    )
    assert json.loads(tags["swept"]) == SWEPT
    assert "device_name" not in tags
    params = run.data.params
    assert (
        params["loader.num_workers"],
        params["loader.shm_size"],
        params["seed"],
        params["repeat"],
    ) == ("4", "67108864", "42", "1")
    assert json.loads(params["corpus.words"]) == ["yes", "no"]
    assert "sgdr.cycle_epochs" not in params


def test_run_names_distinguish_parameters_with_the_same_last_part():
    assert run_name("", {"corpus.name": "folder", "features.name": "mfcc"}, 2).split(" · ") == [
        "corpus.name=folder features.name=mfcc",
        "repeat 2",
    ]
    assert (
        run_name("shm", {"loader.shm_size": None, "sgdr.lr": 1e-4}, 1)
        == "shm · shm_size=node lr=0.0001 · repeat 1"
    )


def test_series_have_epochs_and_cycles_as_steps_and_unmeasured_values_are_absent(tracking):
    run = open_trial(tracking, open_sweep(tracking))
    for epoch in range(3):
        tracking.log_epoch(run, epoch, {"time/epoch_s": 2.0 + epoch, "shm/peak_bytes": None})
    tracking.log_snapshot(run, 0, {"snapshot/accuracy": 0.75})
    tracking.finish_trial(run, "completed", "exit status 0", {"epoch_s": 3.5})
    history = tracking.client.get_metric_history(run, "time/epoch_s")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 3.0), (2, 4.0)]
    data = tracking.client.get_run(run).data
    assert data.metrics == {"time/epoch_s": 4.0, "snapshot/accuracy": 0.75, "epoch_s": 3.5}


def test_a_diverged_loss_is_kept_as_not_a_number(tracking):
    run = open_trial(tracking, open_sweep(tracking))
    for epoch, loss in enumerate([2.3, math.inf, math.nan, -math.inf]):
        tracking.log_epoch(run, epoch, {"loss/training": loss, "time/epoch_s": 1.0})
    values = [metric.value for metric in tracking.client.get_metric_history(run, "loss/training")]
    assert values[0] == 2.3
    assert [math.isnan(value) for value in values] == [False, True, True, True]
    assert len(tracking.client.get_metric_history(run, "time/epoch_s")) == 4


def test_an_unknown_metric_is_refused_with_the_nearest_name(tracking):
    run = open_trial(tracking, open_sweep(tracking))
    with pytest.raises(ValueError, match=r"time/epoch_sec.*time/epoch_s"):
        tracking.log_epoch(run, 0, {"time/epoch_sec": 1.0, "lr": 0.1})
    assert tracking.client.get_run(run).data.metrics == {}


def test_values_beyond_mlflows_limits_are_cut(tracking):
    words = [f"word{index}" for index in range(2000)]
    run = open_trial(
        tracking,
        open_sweep(tracking),
        config={"corpus": {"words": words}},
        tags={"versions": "v" * 9000},
    )
    data = tracking.client.get_run(run).data
    assert (len(data.params["corpus.words"]), len(data.tags["versions"])) == (6000, 8000)
    assert data.params["corpus.words"].endswith("...")


def test_more_than_a_hundred_parameters_are_logged(tracking):
    run = open_trial(
        tracking,
        open_sweep(tracking),
        config={"many": {f"p{index}": index for index in range(230)}},
    )
    assert len(tracking.client.get_run(run).data.params) == 232


@pytest.mark.parametrize("outcome", MLFLOW_STATUS)
def test_every_outcome_has_its_mlflow_status(tracking, outcome):
    parent = open_sweep(tracking)
    run = open_trial(tracking, parent)
    tracking.finish_trial(run, outcome, "why", {}, {"shm_limit_bytes": 1 << 26})
    ended = tracking.client.get_run(run)
    assert (ended.info.status == "FINISHED") == (outcome in SETTLED)
    assert (ended.info.status == "KILLED") == (outcome == "interrupted")
    assert (
        ended.data.tags["outcome"],
        ended.data.tags["evidence"],
        ended.data.tags["shm_limit_bytes"],
    ) == (outcome, "why", str(1 << 26))
    assert settled_outcomes(tracking.trials(parent)) == (
        {"k": outcome} if outcome in SETTLED else {}
    )


def test_artifacts_take_the_place_asked_for(tracking, tmp_path):
    run = open_trial(tracking, open_sweep(tracking))
    (tmp_path / "scratch.tmp").write_text('{"kind": "end"}\n')
    files = {
        "records.jsonl": tmp_path / "scratch.tmp",
        "snapshots/cycle-1.pt": tmp_path / "scratch.tmp",
    }
    tracking.finish_trial(run, "completed", "", {}, artifacts=files)
    place = tmp_path / "mlartifacts/speech" / run / "artifacts"
    assert (place / "records.jsonl").read_text() == '{"kind": "end"}\n'
    assert (place / "snapshots/cycle-1.pt").is_file()
    assert not (place / "records.jsonl").is_symlink()


def test_a_deleted_experiment_is_an_error_that_names_it(tracking):
    tracking.client.delete_experiment(tracking.experiment_id)
    assert tracking.client.search_experiments(view_type=ViewType.DELETED_ONLY)[0].name == "speech"
    with pytest.raises(ValueError, match="'speech' was deleted"):
        RunLogger(tracking.uri, "speech")


def test_every_metric_has_a_unit_and_a_meaning():
    for name, (unit, meaning) in METRICS.items():
        assert meaning, name
        assert name.endswith("_s") is False or unit in ("s", "1/s"), name
        assert name.endswith("_bytes") is False or unit == "B", name


def _write(uri, experiment, parent, key, epochs):
    tracking = RunLogger(uri, experiment)
    run = open_trial(tracking, parent, trial_id=key)
    for epoch in range(epochs):
        tracking.log_epoch(run, epoch, {"time/epoch_s": 1.0, "loss/training": 0.5})
    tracking.finish_trial(run, "completed", "", {"epoch_s": 1.0})


def test_two_processes_write_at_the_same_time(tracking):
    parent = open_sweep(tracking)
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_write, args=(tracking.uri, "speech", parent, "there", 100))
    other.start()
    here = 0
    while other.is_alive():
        _write(tracking.uri, "speech", parent, f"here-{here}", 20)
        here += 1
    other.join()
    assert other.exitcode == 0
    runs = {run.data.tags["trial_id"]: run.info.run_id for run in tracking.trials(parent)}
    assert set(runs) == {"there", *(f"here-{index}" for index in range(here))}
    assert len(tracking.client.get_metric_history(runs["there"], "loss/training")) == 100


def test_first_use_of_a_database_is_silent_and_needs_neither_torch_nor_ray(tmp_path):
    program = """
import sys
from sweeps.tracking.best_ensemble import best_accuracy_so_far
from sweeps.tracking.mlflow_runs import RunLogger
assert "mlflow" not in sys.modules
import analysis.__main__
tracking = RunLogger("sqlite:///mlflow.db", "speech")
tracking.start_sweep("s", "", [], "")
analysis.__main__.main(["s"])
print(sorted({"torch", "ray"} & set(sys.modules)))
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("Sweep s: no trial ")
    assert done.stdout.endswith("[]\n")
