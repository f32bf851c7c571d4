"""A database that this MLflow can't use is left as it is, unless an upgrade is asked for."""

import sqlite3
from pathlib import Path

import pytest

from sweeps.tracking.database import TrackerUnusable
from sweeps.tracking.database_schema import upgrade
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.run_queries import find_sweep
from tests.test_database import fingerprint


def set_revision(file: Path, revision: str) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def make_older(file: Path) -> None:
    """As MLflow 2 would have left it: without a table that MLflow 3 makes, at the revision before
    that."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    file.unlink(missing_ok=True)
    import sqlalchemy
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = _get_alembic_config(f"sqlite:///{file}")
        config.attributes["connection"] = connection
        command.upgrade(config, "0584bdc529eb")  # the schema of MLflow 2.22
    engine.dispose()


@pytest.mark.parametrize("kind", ["older", "newer", "foreign", "text"])
def test_what_this_mlflow_cannot_use_is_left_byte_for_byte(tmp_path, empty_database, kind):
    file = tmp_path / "mlflow.db"
    if kind == "older":
        make_older(file)
    elif kind == "newer":
        file.write_bytes(empty_database.read_bytes())
        set_revision(file, "ffffffffffff")
    elif kind == "foreign":
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE photos (name)")
    else:
        file.write_text("no database, but a text that is long enough")
    before = fingerprint(tmp_path)
    with pytest.raises(LookupError):
        find_sweep("any", f"sqlite:///{file}", "speech")
    with pytest.raises(TrackerUnusable):
        RunLogger(f"sqlite:///{file}", "speech")
    if kind != "older":
        with pytest.raises(TrackerUnusable):
            upgrade(f"sqlite:///{file}")
    assert fingerprint(tmp_path) == before


def test_an_upgrade_that_is_asked_for_keeps_a_copy(tmp_path):
    file = tmp_path / "mlflow.db"
    make_older(file)
    with sqlite3.connect(file) as database:
        database.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (0, 'Default',"
            " 'active'), (7, 'mine', 'active')"
        )
    kept = upgrade(f"sqlite:///{file}")
    assert kept
    assert kept != file
    with sqlite3.connect(kept) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("0584bdc529eb",)
        ]
    assert (
        connect(f"sqlite:///{file}", read_only=True).get_experiment_by_name("mine").experiment_id
        == "7"
    )
    assert upgrade(f"sqlite:///{file}") is None
