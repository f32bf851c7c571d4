"""Distinguishes a full disk from a faulty trial.

A machine with a full disk fails every trial that runs on it, and fast. Such a machine would attract
all trials of a cluster. A trial that fails there for lack of space raises DiskFull, which names the
machine and the folders. The launch then continues without that machine.
"""

import contextlib
import errno
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sweeps.execution.launch_context import LaunchContext
from sweeps.host import host_lock
from sweeps.tracking.tracker_errors import DISK_FULL_ERRORS

MIN_FREE_BYTES = 1 << 20  # with less space no trial can store its records


class DiskFull(OSError):
    """There is no space for the files of a trial."""

    MESSAGE = os.strerror(errno.ENOSPC)

    def __init__(self, host: str, machine: str, places: list[str]) -> None:
        super().__init__(host, machine, places)  # all arguments, so that the error can be pickled
        self.host, self.machine, self.places = host, machine, places

    def __str__(self) -> str:
        return f"no space left in {' and '.join(self.places)}"


def check_disk(launch: LaunchContext) -> None:
    """Raises DiskFull if a folder that trials write to has no space."""
    places = [launch.folder, Path(tempfile.gettempdir())]
    if full := [str(place) for place in places if free_bytes(place) < MIN_FREE_BYTES]:
        raise DiskFull(platform.node(), host_lock.identity(), full)


def free_bytes(place: Path) -> int:
    """Returns the free bytes of the file system that contains `place`, which need not exist yet."""
    while not place.exists():
        place = place.parent
    stats = os.statvfs(place)
    return stats.f_bavail * stats.f_frsize if os.geteuid() else stats.f_bfree * stats.f_frsize


@contextlib.contextmanager
def translate_disk_errors(launch: LaunchContext) -> Iterator[None]:
    """Raises DiskFull for an OSError that means lack of space, with the folders that have none."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS and not isinstance(error, DiskFull):
            check_disk(launch)
            raise DiskFull(
                platform.node(), host_lock.identity(), [str(error.filename or launch.folder)]
            ) from error
        raise
