"""Tests the database of a tracker: its names, and that readers change nothing."""

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from sweeps.output import mask_passwords
from sweeps.tracking.database import (
    TrackerUnusable,
    check_writable,
    database_file,
    database_of,
    mlflow_uri,
    resolve_uri,
)
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.run_queries import find_sweep

ODD = "50% #1? 'q\"; é ~ %20"


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Returns the content and the time of change of every file of a folder, by name."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in files
    }


def test_readers_write_nothing_and_make_nothing(tmp_path, tracking):
    tracking.start_sweep("here", "name: here\n", [], "")
    before = fingerprint(tmp_path)
    client, run = find_sweep("here", tracking.uri, "speech")
    with pytest.raises(Exception, match="readonly"):
        client.set_tag(run.info.run_id, "a", "b")
    for absent in (tmp_path / "no" / "mlflow.db", tmp_path / "empty.db"):
        if absent.name == "empty.db":
            absent.touch()
            before = fingerprint(tmp_path)
        with pytest.raises(LookupError):
            find_sweep("here", f"sqlite:///{absent}", "speech")
    assert fingerprint(tmp_path) == before
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_what_a_killed_writer_left_half_done_is_read_and_left(tmp_path, tracking, mode):
    tracking.start_sweep("here", "name: here\n", [], "")
    file = tmp_path / "mlflow.db"
    child = os.fork()
    if not child:  # is killed by itself within a change that has reached the disk
        database = sqlite3.connect(file, isolation_level=None)
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("PRAGMA cache_size = 1")
        database.execute("CREATE TABLE ballast (a)")
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO ballast VALUES (?)", [("x" * 3000,)] * 100)
        database.execute("UPDATE runs SET name = 'half'")
        if mode == "wal":
            database.execute("COMMIT")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert Path(f"{file}-{'wal' if mode == 'wal' else 'journal'}").stat().st_size
    before = fingerprint(tmp_path)
    client, run = find_sweep("here", tracking.uri, "speech")
    assert run.info.run_name == ("half" if mode == "wal" else "here")
    assert database_of(client) == file
    assert fingerprint(tmp_path) == before


def test_a_path_of_any_letters_is_one_database_for_readers_and_writers(tmp_path, monkeypatch):
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    tracking = RunLogger("sqlite:///mlflow.db", "speech")
    parent = tracking.start_sweep("here", "name: here\n", [], "")
    assert [file.name for file in tmp_path.iterdir()] == [ODD]
    assert {file.name for file in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    client, run = find_sweep("here", "sqlite:///mlflow.db", "speech")
    assert run.info.run_id == parent
    assert database_of(client) == database_of(tracking.client) == folder / "mlflow.db"
    # as MLflow's own pages find it
    assert (
        Path(tracking.client.download_artifacts(parent, "sweep.yaml")).read_text() == "name: here\n"
    )


def test_uris_and_paths_are_turned_in_one_place(tmp_path):
    from sqlalchemy import make_url

    for name in (
        "plain.db",
        "a b.db",
        "50%.db",
        "%20.db",
        "q?x=1.db",
        "#.db",
        "new\nline.db",
        " .db",
    ):
        uri = resolve_uri(f"sqlite:///{tmp_path}/{name}")
        assert database_file(uri) == tmp_path / name
        sqlite3.connect(make_url(mlflow_uri(uri)).database, uri=True).execute("CREATE TABLE t (a)")
        assert (tmp_path / name).exists()
    with pytest.raises(ValueError, match=r"Remove \?timeout=60:"):
        resolve_uri(f"sqlite:///{tmp_path}/new.db?timeout=60")
    (tmp_path / "there.db?mode=ro").touch()
    assert (
        database_file(resolve_uri(f"sqlite:///{tmp_path}/there.db?mode=ro"))
        == tmp_path / "there.db?mode=ro"
    )
    assert resolve_uri("sqlite:///~/x.db") == f"sqlite:///{Path.home()}/x.db"
    assert resolve_uri("sqlite+pysqlite:////a/x.db") == "sqlite:////a/x.db"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            "postgresql+psycopg://me:se:cr@et@host:5432/mlflow?password=secret",
            "postgresql+psycopg://me:***@host:5432/mlflow?password=***",
        ),
        (
            "tracking: {uri: 'https://me:secret@host:5000'}\n# me:you@home",
            "tracking: {uri: 'https://me:***@host:5000'}\n# me:you@home",
        ),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
    ],
)
def test_passwords_are_masked(text, masked):
    assert mask_passwords(text) == masked


def test_a_database_with_two_names_is_not_written_to(tmp_path, empty_database):
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    os.link(tmp_path / "mlflow.db", tmp_path / "other.db")
    with pytest.raises(TrackerUnusable):
        check_writable(tmp_path / "mlflow.db")
    with pytest.raises(TrackerUnusable):
        check_writable(tmp_path)


def test_relative_sqlite_uris_are_resolved_once_and_folders_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri(resolve_uri("sqlite:///mlflow.db")) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("http://server:5000") == "http://server:5000"
    with pytest.raises(ValueError, match=r"sqlite:///mlflow\.db"):
        resolve_uri("mlruns")
