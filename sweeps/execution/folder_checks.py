"""Checks the folders that a launch writes to, before it writes anything, and names their purpose
and how to move them.

Each folder is tested with a file that is written and locked. Only this reliably detects read-only
mounts, full disks, other users' folders and file systems without locks. All folders that cannot be
used are reported at once.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from speech.cache_folder import cache_dir
from sweeps.config.config import SweepConfig
from sweeps.host.node import PreflightError
from sweeps.sandbox.isolation import MAX_ROOT_LENGTH, short_folders
from sweeps.tracking.mlflow_client import database_file, resolve_uri

TEST_FILE_BYTES = 1 << 20  # the records of a trial may take as much


class Place(NamedTuple):
    """A folder that a launch writes to."""

    folder: Path
    holds: str  # the purpose of the folder
    mend: str  # how to move it


def check_places(config: SweepConfig, work_folder: Path) -> None:
    """Raises PreflightError with all folders that a launch of `config` cannot use; `work_folder` is
    the folder of running trials.
    """
    problems = []
    for place in _places(config, work_folder):
        if problem := find_problem(place.folder):
            problems.append(
                f"{place.folder} can't be used: {problem}. It is for {place.holds}. {place.mend}."
            )
    temporary = _temporary_folder()
    if temporary is None:
        problems.append("no folder for temporary files is writable. Set TMPDIR to another one.")
    elif not any(os.access(folder, os.W_OK) for folder in short_folders(MAX_ROOT_LENGTH)):
        problems.append(
            f"no folder for sockets can be used: the path {temporary} is too long, and /tmp and"
            " /var/tmp are not writable. Set TMPDIR to a folder with a short path."
        )
    if problems:
        raise PreflightError("\n".join(dict.fromkeys(problems)))


def find_problem(folder: Path) -> str | None:
    """Returns why a file cannot be created, written and locked in `folder`; None if it can.

    The folder is created if it is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(TEST_FILE_BYTES))
            file.flush()
            if problem := _lock_problem(file.fileno()):
                return problem
    except OSError as error:
        blamed = (
            Path(error.filename).parent
            if error.filename and not Path(error.filename).exists()
            else error.filename
        )
        return f"{error.strerror}" + (f" ({blamed})" if blamed and Path(blamed) != folder else "")
    return None


def _lock_problem(descriptor: int) -> str | None:
    """Returns why an open file cannot be locked; None if it can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return (
            f"its file system has no locks ({error.strerror}), so two launches would overwrite"
            " each other's files"
        )
    return None


def _places(config: SweepConfig, work_folder: Path) -> Iterator[Place]:
    """Yields the folders that a launch of `config` writes to."""
    yield Place(
        work_folder,
        "the records of trials until the tracker has them",
        "Start the launch in a folder that this user may write to",
    )
    yield Place(
        cache_dir(), "corpora and data prepared from them", "Set XDG_CACHE_HOME to another folder"
    )
    with contextlib.suppress(ValueError):  # a malformed address is reported with the tracker
        if file := database_file(resolve_uri(config.tracking.uri)):
            yield Place(
                file.parent,
                "the tracker's database and files",
                "Set tracking.uri to another file, as sqlite:////srv/mlflow.db",
            )
    if temporary := _temporary_folder():
        yield Place(
            temporary, "the temporary files of Ray and of trials", "Set TMPDIR to another folder"
        )


def _temporary_folder() -> Path | None:
    """Returns the folder for temporary files; None if Python finds none that can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None
