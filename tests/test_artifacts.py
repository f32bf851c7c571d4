"""The files of runs lie beside their database, wherever both have come to; and a copy of a project
is one of its own."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sweeps.config.sweep_file import load
from sweeps.execution.sweep_lock import lock_file
from sweeps.tracking import artifacts
from sweeps.tracking.artifacts import MissingArtifact, new_location, resolve_location
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.outbox_recovery import flush_all
from sweeps.tracking.run_queries import find_sweep, plan_rows
from tests.outboxes import filled
from tests.test_database import fingerprint


@pytest.fixture
def project(tmp_path, empty_database) -> Path:
    """p: a database with a sweep of one trial, its files, and a trial's outbox that waits."""
    p = tmp_path / "p"
    p.mkdir()
    shutil.copy(empty_database, p / "mlflow.db")
    tracking = RunLogger(f"sqlite:///{p}/mlflow.db", "speech")
    parent = tracking.start_sweep("s", "name: s\n", [{"trial_id": "k", "block": "b"}], "")
    filled(p / ".sweeps" / "s", tracking, parent)
    return p


def locations(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = [uri for (uri,) in database.execute("SELECT artifact_uri FROM runs")]
        return runs + [
            uri for (uri,) in database.execute("SELECT artifact_location FROM experiments")
        ]


def test_a_copy_reads_and_writes_its_own_files_and_leaves_the_original(project, tmp_path):
    before = fingerprint(project)
    c = tmp_path / "c"
    shutil.copytree(project, c)
    (next((c / "mlartifacts").rglob("plan.json"))).write_text('[{"trial_id": "of the copy"}]')
    client, run = find_sweep("s", f"sqlite:///{c}/mlflow.db", "speech")
    assert plan_rows(client, run) == [{"trial_id": "of the copy"}]
    tracking = RunLogger(f"sqlite:///{c}/mlflow.db", "speech")
    assert artifacts.relocate(c / "mlflow.db") == {project}
    assert artifacts.relocate(c / "mlflow.db") == set()
    assert not [uri for uri in locations(c) if str(project) in uri]
    tracking.start_sweep("s", "name: again\n", [{"trial_id": "new", "block": "b"}], "")
    assert flush_all(c / ".sweeps" / "s") == []
    assert fingerprint(project) == before
    assert [file.read_text() for file in (c / "mlartifacts").rglob("sweep.yaml")] == [
        "name: again\n"
    ]
    (trial,) = tracking.trials(run.info.run_id)
    assert artifacts.list_names(tracking.client, trial.info.run_id, "files") == [
        "files/records.jsonl"
    ]


def test_a_moved_project_and_one_seen_under_two_names_are_whole(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    assert artifacts.relocate(tmp_path / "link" / "mlflow.db") == set()
    before = locations(project)
    moved = project.rename(tmp_path / "m d")
    client, run = find_sweep("s", f"sqlite:///{moved}/mlflow.db", "speech")
    assert plan_rows(client, run)[0]["trial_id"] == "k"
    assert locations(moved) == before  # readers write nothing
    tracking = RunLogger(f"sqlite:///{moved}/mlflow.db", "speech")
    artifacts.relocate(moved / "mlflow.db")
    # as MLflow's pages do
    assert (
        Path(tracking.client.download_artifacts(run.info.run_id, "sweep.yaml")).read_text()
        == "name: s\n"
    )
    assert flush_all(moved / ".sweeps" / "s") == []
    assert not project.exists()


def test_a_database_without_its_files_says_what_is_missing(project, tmp_path):
    (tmp_path / "c").mkdir()
    shutil.copy(project / "mlflow.db", tmp_path / "c")
    client, run = find_sweep("s", f"sqlite:///{tmp_path}/c/mlflow.db", "speech")
    with pytest.raises(MissingArtifact, match="mlartifacts"):
        plan_rows(client, run)
    assert {file.name for file in (tmp_path / "c").iterdir()} == {"mlflow.db"}
    (line,) = artifacts.relocation_messages(
        artifacts.relocate(tmp_path / "c" / "mlflow.db"), tmp_path / "c" / "mlflow.db"
    )  # as a launch does
    assert f"copy {project}/mlartifacts to {tmp_path}/c/mlartifacts" in line


def test_the_outbox_of_a_copy_without_its_database_is_for_no_other(project, tmp_path):
    before = fingerprint(project)
    shutil.copytree(project / ".sweeps", tmp_path / "c" / ".sweeps")
    (refused,) = flush_all(tmp_path / "c" / ".sweeps" / "s")
    assert not refused.unavailable
    assert fingerprint(project) == before
    outbox = Outbox(tmp_path / "c" / ".sweeps" / "s" / "k")
    assert outbox.head["uri"] == f"sqlite:///{tmp_path}/c/mlflow.db"
    outbox.close()


def test_what_lies_elsewhere_on_purpose_stays_there(tmp_path):
    database = tmp_path / "p" / "mlflow.db"
    (tmp_path / "data" / "mlartifacts").mkdir(parents=True)
    assert (
        resolve_location(f"{tmp_path}/data/mlartifacts/1", database)
        == tmp_path / "data" / "mlartifacts" / "1"
    )
    assert resolve_location("/srv/big/1", database) == Path("/srv/big/1")
    assert resolve_location("s3://bucket/mlartifacts/1", database) is None
    assert (
        resolve_location("/gone/mlartifacts/speech", database)
        == tmp_path / "p" / "mlartifacts" / "speech"
    )
    assert (
        resolve_location("file:///gone/50%25/mlruns/1", database) == tmp_path / "p" / "mlruns" / "1"
    )
    assert (
        resolve_location("mlflow-artifacts:/1/r/artifacts", database)
        == tmp_path / "p" / "mlartifacts" / "1" / "r" / "artifacts"
    )


@pytest.mark.parametrize("experiment", ["a/b", "..", "/abs", "100% 'q' \"?#", "x" * 300])
def test_an_experiment_of_any_name_has_a_folder_of_its_own(tracking, tmp_path, experiment):
    made = RunLogger(tracking.uri, experiment)
    parent = made.start_sweep("s", "name: s\n", [], "")
    folder = artifacts.run_folder(made.client, parent)
    assert folder
    assert folder.parent.parent.parent == tmp_path / "mlartifacts"
    assert find_sweep("s", tracking.uri, experiment)[1].info.run_id == parent


def test_one_database_has_one_lock_by_whatever_name(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    (tmp_path / "sweep.yaml").write_text(
        "name: s\nparameters: {corpus: {name: synthetic, words: [yes, no]}}\n"
    )
    config = load(tmp_path / "sweep.yaml")
    files = [lock_file(f"sqlite:///{tmp_path}/{name}/mlflow.db", config) for name in ("p", "link")]
    shutil.copytree(project, tmp_path / "c")
    assert files[0] == files[1] != lock_file(f"sqlite:///{tmp_path}/c/mlflow.db", config)


def test_a_copy_is_known_by_any_database_beside_the_original_whatever_its_name(tmp_path) -> None:
    for name in ("p", "c"):
        (tmp_path / name / "mlartifacts" / "e").mkdir(parents=True)
        with closing(sqlite3.connect(tmp_path / name / "runs.sqlite")) as database:
            database.execute("CREATE TABLE t (x)")
    recorded = str(tmp_path / "p" / "mlartifacts" / "e")
    assert (
        resolve_location(recorded, tmp_path / "c" / "runs.sqlite")
        == tmp_path / "c" / "mlartifacts" / "e"
    )
    assert new_location(tmp_path / "c" / "runs.sqlite", "mlruns") != str(
        tmp_path / "c" / "mlartifacts" / "mlruns"
    )
    (tmp_path / "p" / "runs.sqlite").rename(tmp_path / "elsewhere.sqlite")
    (tmp_path / "p" / "runs.sqlite").symlink_to(tmp_path / "elsewhere.sqlite")
    assert (
        resolve_location(recorded, tmp_path / "p" / "runs.sqlite")
        == tmp_path / "p" / "mlartifacts" / "e"
    ), "the link is ours"
