"""Reads and writes the artifacts of runs.

If the tracker is a database file, the artifacts are in a folder beside it, even after a move.

MLflow writes absolute paths into its database. A copied project would therefore read and write the
files of the original, and a moved project would find none. This module resolves a recorded location
.../mlartifacts/... to the folder beside the database, for reading and for writing. The exception is
a folder that somebody has deliberately put in another place.
`python -m sweeps.tracking.artifacts` and every launch update the locations in the database, for
MLflow's own pages.
"""

import os
import re
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import pathname2url

from speech.atomic_files import replace_file
from sweeps.tracking.database import (
    LOCK_TIMEOUT_S,
    database_file,
    database_of,
    resolve_uri,
    sqlite_uri,
)
from sweeps.tracking.database_schema import check_usable

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS_FOLDER = "mlartifacts"  # beside the database
MAGIC = b"SQLite format 3\0"  # first bytes of every SQLite database
STORES = (ARTIFACTS_FOLDER, "mlruns")  # names of artifact folders, ours and MLflow's
IN_USE = (
    "WHERE experiment_id IN (SELECT experiment_id FROM runs) OR artifact_location LIKE"
    f" '%/{ARTIFACTS_FOLDER}/%'"
)
LOCATIONS = (  # table, its key, the column with the location, the condition on its rows
    # The default experiment stays where MLflow created it, and is mostly empty
    ("experiments", "experiment_id", "artifact_location", IN_USE),
    ("runs", "run_uuid", "artifact_uri", ""),
    ("logged_models", "model_id", "artifact_location", ""),
)


class MissingArtifact(LookupError):
    """Reports that an expected file of a run is missing; the message names the place searched."""


def new_location(database: Path, experiment: str) -> str:
    """Returns the location of a new experiment's artifacts, in the form that MLflow reads."""
    return format_location(database.resolve().parent / ARTIFACTS_FOLDER / _folder_name(experiment))


def _folder_name(experiment: str) -> str:
    """Returns a folder name for an experiment.

    A name that is valid as a folder name is returned unchanged. Others, such as 'a/b' or '..', are
    cleaned and get a digest as suffix.
    """
    if re.fullmatch(r"[\w-][\w.-]{0,99}", experiment) and experiment not in STORES:
        return experiment
    digest = sha256(experiment.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', experiment)[:60]}-{digest}"


def format_location(folder: Path) -> str:
    """Returns a path in the form that MLflow reads.

    A path with characters that a URI does not allow becomes a quoted file: URI.
    """
    return str(folder) if pathname2url(str(folder)) == str(folder) else folder.as_uri()


def _local_path(location: str) -> Path | None:
    """Returns the path to which MLflow resolves a location, or None if it is not local."""
    scheme = urlsplit(location).scheme if not location.startswith("/") else ""
    if scheme == "mlflow-artifacts":
        return Path(ARTIFACTS_FOLDER, unquote(urlsplit(location).path).lstrip("/"))
    if scheme == "file":
        return Path(unquote(urlsplit(location).path))
    return None if scheme else Path(location)


def resolve_location(location: str, database: Path) -> Path | None:
    """Returns the folder to which a location in a database refers, or None if not local."""
    path, database_folder = _local_path(location), database.resolve().parent
    if path is None or not path.is_absolute():
        return path and database_folder / path
    store_index = max((n for n, part in enumerate(path.parts) if part in STORES), default=None)
    if store_index is None:
        return path
    parent, store = Path(*path.parts[:store_index]), path.parts[store_index]
    is_separate = parent != database_folder and _is_separate_store(parent, store, database)
    return path if is_separate else database_folder.joinpath(*path.parts[store_index:])


def _is_separate_store(folder: Path, store: str, database: Path) -> bool:
    """Returns whether `folder` holds a store that belongs to no other database.

    A second database beside the store could be the original of which `database` is a copy.
    """
    return os.path.isdir(folder / store) and not any(
        _is_other_database(file, database) for file in folder.iterdir()
    )


def _is_other_database(file: Path, database: Path) -> bool:
    """Returns whether a file of any name is an SQLite database other than `database`."""
    try:
        if not file.is_file() or file.samefile(database):
            return False
        with file.open("rb") as content:
            return content.read(len(MAGIC)) == MAGIC
    except OSError:  # it was removed meanwhile, or can't be read
        return False


def run_folder(client: "MlflowClient", run_id: str) -> Path | None:
    """Returns the folder of a run's artifacts, or None if only MLflow's client can access them."""
    database = database_of(client)
    return (
        resolve_location(client.get_run(run_id).info.artifact_uri, database) if database else None
    )


def read_text(client: "MlflowClient", run_id: str, artifact_path: str) -> str:
    """Returns the text of an artifact. Raises MissingArtifact if the run does not have it."""
    with tempfile.TemporaryDirectory() as scratch:
        return fetch(client, run_id, artifact_path, Path(scratch)).read_text("utf-8")


def fetch(client: "MlflowClient", run_id: str, artifact_path: str, into: Path) -> Path:
    """Copies an artifact, a file or a folder, into the folder `into`, and returns the copy's path.

    Raises MissingArtifact if the run does not have the artifact.
    """
    folder, copy = run_folder(client, run_id), into / artifact_path
    if folder is None:
        from mlflow.exceptions import MlflowException

        try:
            return Path(client.download_artifacts(run_id, artifact_path, str(into)))
        except (FileNotFoundError, MlflowException) as error:
            if isinstance(error, MlflowException) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise MissingArtifact(f"run {run_id} has no artifact {artifact_path}") from None
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        if (folder / artifact_path).is_dir():
            shutil.copytree(folder / artifact_path, copy, dirs_exist_ok=True)
        else:
            shutil.copyfile(folder / artifact_path, copy)
    except FileNotFoundError:
        _check_store(folder, database_of(client))
        raise MissingArtifact(f"run {run_id} has no artifact {artifact_path} in {folder}") from None
    return copy


def list_names(client: "MlflowClient", run_id: str, artifact_path: str | None = None) -> list[str]:
    """Returns the paths of a run's artifacts, or of the artifacts in one folder of it.

    The paths are relative to the run. Raises MissingArtifact if the store of the whole tracker is
    missing.
    """
    folder = run_folder(client, run_id)
    if folder is None:
        return [file.path for file in client.list_artifacts(run_id, artifact_path)]
    listed_folder = folder / (artifact_path or "")
    if not listed_folder.is_dir():
        _check_store(folder, database_of(client))
        return []
    return sorted(
        f"{artifact_path}/{file.name}" if artifact_path else file.name
        for file in listed_folder.iterdir()
    )


def _check_store(folder: Path, database: Path | None) -> None:
    """Raises MissingArtifact if the store of all runs was not copied or moved with the database."""
    if not folder.parent.parent.is_dir():
        raise MissingArtifact(
            f"the artifacts of all runs are missing: {folder.parent.parent} does not exist. A"
            f" copied or moved database needs its folder {ARTIFACTS_FOLDER} beside it: copy"
            f" that folder too, to {database and database.resolve().parent / ARTIFACTS_FOLDER}"
        )


def upload(client: "MlflowClient", run_id: str, artifact_path: str, file: Path) -> None:
    """Copies a local file to a run's artifacts.

    `artifact_path` is the path in the run, such as 'snapshots/cycle-1.pt'. In a local store the
    write is atomic.
    """
    folder = run_folder(client, run_id)
    if folder is None:
        inner, _, name = artifact_path.rpartition("/")
        # MLflow names an artifact after the local file
        with tempfile.TemporaryDirectory() as scratch:
            named = Path(scratch, name)
            named.symlink_to(file.resolve())
            client.log_artifact(run_id, str(named), inner or None)
        return
    with replace_file(folder / artifact_path) as unfinished:
        shutil.copyfile(file, unfinished)


def write_text(client: "MlflowClient", run_id: str, artifact_path: str, text: str) -> None:
    """Writes a text as an artifact of a run; `artifact_path` is its path in the run."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "text")
        file.write_text(text, "utf-8")
        upload(client, run_id, artifact_path, file)


def relocate(database: Path) -> set[Path]:
    """Updates the artifact locations in the database of a project that was moved or copied.

    Returns the former folders of the project.
    """
    database_folder, former_folders = database.resolve().parent, set()
    with (
        closing(
            sqlite3.connect(sqlite_uri(database, "mode=rw"), uri=True, timeout=LOCK_TIMEOUT_S)
        ) as connection,
        connection,
    ):
        connection.execute("BEGIN IMMEDIATE")
        for table, key, column, condition in LOCATIONS:
            for id_, recorded in connection.execute(
                f"SELECT {key}, {column} FROM {table} {condition}"
            ).fetchall():
                old = _local_path(recorded or "mlflow-artifacts:")
                new = resolve_location(recorded, database) if old and old.is_absolute() else None
                if old and new and new != old and not _is_same_project(old, new, database_folder):
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {key} = ?",
                        (format_location(new), id_),
                    )
                    former_folders.add(
                        Path(
                            *old.parts[
                                : len(old.parts) - len(new.relative_to(database_folder).parts)
                            ]
                        )
                    )
    return former_folders


def _is_same_project(old: Path, new: Path, database_folder: Path) -> bool:
    """Returns whether two artifact paths belong to one project that is visible under two names."""
    former_folder = Path(*old.parts[: len(old.parts) - len(new.relative_to(database_folder).parts)])
    try:
        return os.path.samefile(former_folder, database_folder)
    except OSError:
        return False


def relocation_messages(former_folders: set[Path], database: Path) -> list[str]:
    """Returns a line for every former folder of the project.

    It names the present folder of the runs' artifacts, or reports that they are missing.
    """
    database_folder = database.resolve().parent
    if (database_folder / ARTIFACTS_FOLDER).is_dir():
        return [
            f"the project has moved from {former}: the files of its runs are now in"
            f" {database_folder}"
            for former in sorted(former_folders)
        ]
    return [
        f"the project has moved from {former} without the files of its runs (snapshots, records,"
        f" traces), which {database.name} needs: copy {former / ARTIFACTS_FOLDER} to"
        f" {database_folder / ARTIFACTS_FOLDER}"
        for former in sorted(former_folders)
    ]


def main(uri: str) -> int:
    """Updates the locations before MLflow's own server opens the database.

    Returns the exit code.
    """
    file = database_file(resolve_uri(uri))
    try:
        if file and check_usable(resolve_uri(uri)):
            for line in relocation_messages(relocate(file), file):
                print(line)
    except LookupError as problem:
        print(problem.args[0], file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
