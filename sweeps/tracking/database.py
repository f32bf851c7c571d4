"""Names the database of a tracker, by its file and by its URI, and makes it readable.

A sqlite URI in this project is 'sqlite:///' and the unquoted path, whatever characters it contains.
Only the URI passed to MLflow is quoted: SQLAlchemy would read a '?' as a query and a '%20' as a
space. Readers get a connection that can't write.
"""

import atexit
import os
import re
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sweeps.output import mask_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_TIMEOUT_S = 20.0  # wait for a locked database, the same as MLflow's
# Query parameters that SQLAlchemy reads from a sqlite URI
SQLALCHEMY_PARAMETERS = (
    "timeout|check_same_thread|isolation_level|detect_types|cached_statements"
    "|mode|cache|uri|vfs|immutable"
)
WAL = b"\x02"  # byte 18 of the header of a database with a write-ahead log

_ELSEWHERE = "Write tracking: {uri: sqlite:////a/folder/mlflow.db}, or a server's address."

_copies: dict[Path, Path] = {}  # copy -> database, for databases that were not readable in place


class TrackerUnusable(LookupError):
    """Reports an unusable database, which remains unchanged.

    The message gives the reason and the remedy.
    """


def resolve_uri(uri: str) -> str:
    """Returns a sqlite URI with an absolute path, and any other URI unchanged.

    'sqlite:///mlflow.db' becomes 'sqlite:////home/me/mlflow.db', relative to the current directory.
    Raises ValueError for a folder or a file: URI, which MLflow no longer accepts. Raises it also
    for SQLAlchemy parameters after the path, unless a file of that name exists.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme == "file":
        raise ValueError(
            f"tracking uri {uri!r}: MLflow keeps runs in a database. Write sqlite:///mlflow.db, or"
            " a server's http://host:5000"
        )
    if scheme.partition("+")[0] != "sqlite":
        return uri
    path = rest.removeprefix("/")
    file = Path(path).expanduser() if path.startswith("~/") else Path(path).absolute()
    if (
        parameters := re.search(rf"\?(?:{SQLALCHEMY_PARAMETERS})=[^/]*$", path)
    ) and not file.exists():
        raise ValueError(
            f"tracking uri {mask_passwords(uri)!r}: text after the path belongs to the file's"
            f" name, and no such file exists. Remove {parameters[0]}: every program waits"
            f" {LOCK_TIMEOUT_S:.0f} s for a locked database, and readers open it read-only"
        )
    return f"sqlite:///{file}"


def database_file(uri: str) -> Path | None:
    """Returns the file of a resolved sqlite URI, or None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def database_of(client: "MlflowClient") -> Path | None:
    """Returns the database file that a client of `mlflow_uri` uses, or None for a server."""
    if not client.tracking_uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    name = make_url(client.tracking_uri).database or ""
    if name.startswith("file:"):
        from urllib.parse import unquote

        name = unquote(name.removeprefix("file:"))
    return _copies.get(Path(name), Path(name))


def mlflow_uri(uri: str, read_only: bool = False) -> str:
    """Returns the URI to pass to MLflow for a resolved URI; `read_only` forbids writing."""
    file = database_file(uri)
    if file is None or (not read_only and re.fullmatch(r"[\w./+-]+", str(file), re.ASCII)):
        return uri
    from sqlalchemy import URL

    query = {"uri": "true"}
    if read_only:
        file, query["mode"] = make_readable(file), "ro"
        if has_write_ahead_log(file):  # SQLite would otherwise create its index beside it
            query["immutable"] = "1"
    return URL.create(
        "sqlite+pysqlite", database=f"file:{quote(os.fsencode(file))}", query=query
    ).render_as_string(hide_password=False)


def check_writable(file: Path) -> None:
    """Checks that a launch can write to the database, and that no other project shares it.

    Raises TrackerUnusable otherwise.
    """
    folder = next(parent for parent in file.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise TrackerUnusable(
            f"{file.name} needs a folder that can be written to, and {folder} can't. {_ELSEWHERE}"
        )
    if file.is_dir():
        raise TrackerUnusable(f"{file} is a folder, not a database. {_ELSEWHERE}")
    if file.exists() and not os.access(file, os.W_OK):
        raise TrackerUnusable(
            f"{file} can't be written to. Change its permissions (chmod u+w), or name another"
            " database with tracking.uri."
        )
    if file.exists() and file.stat().st_nlink > 1:
        raise TrackerUnusable(
            f"{file} has another name on this disk (a hard link), so both names share every change."
            f" Make it a separate file: cp {file.name} own.db && mv own.db"
            f" {file.name}"
        )


def sqlite_uri(file: Path, *query: str) -> str:
    """Returns the URI of a file for sqlite3.connect with uri=True."""
    return f"file:{quote(os.fsencode(file))}?{'&'.join(query)}"


def has_write_ahead_log(file: Path) -> bool:
    """Returns whether the database is in write-ahead-log mode."""
    with file.open("rb") as content:
        return content.read(19)[18:] == WAL


def make_readable(file: Path) -> Path:
    """Returns the file, or a repaired copy if a killed process left an incomplete transaction.

    SQLite would complete or roll back that transaction in the original. The copy is deleted when
    the program ends.
    """
    log, journal = Path(f"{file}-wal"), Path(f"{file}-journal")
    if not (_size(log) or (_size(journal) and _needs_rollback(file))):
        return file
    copy = Path(tempfile.mkdtemp(prefix="tracker-"), file.name)
    atexit.register(shutil.rmtree, copy.parent, ignore_errors=True)
    for source in (log, journal, file):
        if source.exists():
            shutil.copyfile(source, copy.with_name(source.name))
    # The connection completes the transaction
    with closing(sqlite3.connect(sqlite_uri(copy), uri=True)) as database:
        database.execute("PRAGMA journal_mode = DELETE").fetchall()
    _copies[copy] = file
    return copy


def _size(file: Path) -> int:
    """Returns the size of a file in bytes, 0 if it does not exist."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _needs_rollback(file: Path) -> bool:
    """Returns whether the database has an incomplete transaction on which no process works."""
    try:
        with closing(
            sqlite3.connect(sqlite_uri(file, "mode=ro"), uri=True, timeout=LOCK_TIMEOUT_S)
        ) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorname.startswith("SQLITE_READONLY")
    except sqlite3.DatabaseError:
        return False
    return False
