"""Locks a sweep, so that two launches never run it at once."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speech.cache_folder import cache_dir
from sweeps.config.config import SweepConfig
from sweeps.host.node import PreflightError
from sweeps.tracking import database


def lock_file(uri: str, config: SweepConfig) -> Path:
    """Returns the lock file of a sweep of a tracker; it does not depend on the current folder."""
    file = database.database_file(uri)
    # A database is identified by inode: one folder may have two names, and in two containers two
    # folders may have one name
    if file and file.exists():
        uri = "{0.st_dev}:{0.st_ino}".format(file.stat())
    name = hashlib.sha256(f"{uri} {config.tracking.experiment} {config.name}".encode()).hexdigest()[
        :16
    ]
    return cache_dir() / "locks" / f"{name}.lock"


@contextmanager
def lock_launch(path: Path) -> Iterator[None]:
    """Holds the lock of a sweep. Raises PreflightError if another launch holds it.

    The lock ends with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PreflightError(
                f"process {lock.read().strip()} runs this sweep already. Wait for it, or give"
                " this sweep another name."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
