"""Checks whether this MLflow can use a database, and migrates that of an older MLflow.

MLflow migrates a database of an older version when it opens it, and adds its tables to a database
of another program. Every database is therefore inspected first, without MLflow. Only a launch with
`tracking: {upgrade: true}` migrates a database, and it stores a copy first.
"""

import functools
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sweeps.output import mask_passwords
from sweeps.tracking.database import (
    LOCK_TIMEOUT_S,
    TrackerUnusable,
    database_file,
    has_write_ahead_log,
    make_readable,
    mlflow_uri,
    sqlite_uri,
)

_ANOTHER = "Name another database with tracking.uri, or --uri."


def check_usable(uri: str) -> bool:
    """Returns whether the database holds any tables.

    Raises TrackerUnusable if this MLflow can't use the database, or would have to migrate it.
    """
    from mlflow.store.db.base_sql_model import Base

    tables, revision = _read_schema(uri)
    data_tables = {name for name in tables if not name.startswith("alembic_")}
    if not data_tables:
        return False
    latest = _latest_revision()
    if revision != latest or not set(Base.metadata.tables) <= data_tables:
        raise TrackerUnusable(_schema_problem(uri, data_tables, revision, latest))
    return True


@functools.cache  # it reads all migrations of MLflow
def _latest_revision() -> str:
    """Returns the revision of the schema that this MLflow requires."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()


def upgrade(uri: str) -> Path | None:
    """Migrates the database of an older MLflow, and returns the path of its backup.

    Returns None if no migration is necessary. Raises TrackerUnusable if the migration fails or is
    impossible.
    """
    file = database_file(uri)
    try:
        check_usable(uri)
        return None
    except TrackerUnusable:
        if file is None or not _can_migrate(uri):
            raise
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    import sqlalchemy
    from mlflow.store.db.utils import _upgrade_db

    _, revision = _read_schema(uri)
    backup = _backup_path(file, revision)
    with (
        closing(sqlite3.connect(sqlite_uri(file), uri=True, timeout=LOCK_TIMEOUT_S)) as original,
        closing(sqlite3.connect(backup)) as copy,
    ):
        original.backup(copy)
    engine = sqlalchemy.create_engine(mlflow_uri(uri))
    try:
        _upgrade_db(engine)
    except Exception as error:
        raise TrackerUnusable(
            f"{file} could not be migrated: {str(error).splitlines()[0]}. Restore it"
            f" from the backup {backup}."
        ) from error
    finally:
        engine.dispose()
    return backup


def _read_schema(uri: str) -> tuple[set[str], str | None]:
    """Returns the tables of a database and its schema revision, without changing anything.

    Raises OperationalError if the database can't be reached, and TrackerUnusable if it can't be
    read.
    """
    file = database_file(uri)
    if file is None:
        return _read_server_schema(uri)
    if not file.exists() or not file.is_file() or not file.stat().st_size:
        return set(), None
    file = make_readable(file)
    query = ["mode=ro", *(["immutable=1"] if has_write_ahead_log(file) else [])]
    try:
        with closing(
            sqlite3.connect(sqlite_uri(file, *query), uri=True, timeout=LOCK_TIMEOUT_S)
        ) as database:
            tables = {
                name
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                )
            }
            tables.discard("sqlite_sequence")
            row = (
                database.execute("SELECT version_num FROM alembic_version").fetchone()
                if "alembic_version" in tables
                else None
            )
            return tables, row and row[0]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:  # another format, or damaged
        raise TrackerUnusable(
            f"{database_file(uri)} can't be read: {error}. It is unchanged. {_ANOTHER}"
        ) from None


def _read_server_schema(uri: str) -> tuple[set[str], str | None]:
    """Returns the tables of a database server and its schema revision."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        with engine.connect() as connection:
            query = sqlalchemy.text("SELECT version_num FROM alembic_version")
            return tables, (
                connection.execute(query).scalar() if "alembic_version" in tables else None
            )
    finally:
        engine.dispose()


def _schema_problem(uri: str, tables: set[str], revision: str | None, latest: str) -> str:
    """Returns a message about the defect of a database with these tables, and its remedy."""
    import mlflow

    place = database_file(uri) or mask_passwords(uri)
    if not {"experiments", "runs"} <= tables:
        return (
            f"{place} is a database of another program, with the tables"
            f" {', '.join(sorted(tables)[:3])}. It is unchanged. {_ANOTHER}"
        )
    if revision == latest:
        return (
            f"{place} lacks tables that MLflow {mlflow.__version__} creates. It is unchanged:"
            f" restore it from a backup. {_ANOTHER}"
        )
    if not _can_migrate(uri):
        return (
            f"{place} was written by a newer MLflow (schema {revision}) than the"
            f" installed {mlflow.__version__}. It is unchanged. Install that version, or name"
            " another database with tracking.uri, or --uri."
        )
    message = (
        f"{place} was written by an older MLflow (schema {revision}). The installed"
        f" {mlflow.__version__} would have to migrate it to {latest}, after which the older one"
        " could not open it. It is unchanged. "
    )
    if file := database_file(uri):
        return (
            message + "A launch with tracking: {upgrade: true} migrates it, with a backup in"
            f" {_backup_path(file, revision)}. To read a migrated copy: cp {file.name} new.db &&"
            " python -m mlflow db upgrade sqlite:///new.db, and name sqlite:///new.db."
        )
    return message + "Back it up, and run python -m mlflow db upgrade with its URI."


def _can_migrate(uri: str) -> bool:
    """Returns whether this MLflow can migrate the database to its own schema."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    tables, revision = _read_schema(uri)
    known = {
        script.revision
        for script in ScriptDirectory.from_config(_get_alembic_config(db_url="")).walk_revisions()
    }
    return {"experiments", "runs"} <= tables and (revision is None or revision in known)


def _backup_path(file: Path, revision: str | None) -> Path:
    """Returns an unused path for a backup, beside the database."""
    names = (
        file.with_name(f"{file.name}.{revision or 'old'}{(n and f'-{n}') or ''}.backup")
        for n in range(1000)
    )
    return next(name for name in names if not name.exists())
