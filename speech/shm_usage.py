"""Reads the size and the use of /dev/shm, as this process sees it."""

import mmap
import os
from typing import NamedTuple

PAGE_BYTES = mmap.PAGESIZE  # every file and every tensor in /dev/shm fills whole pages


class ShmUsage(NamedTuple):
    """Size and use of /dev/shm."""

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """The bytes of /dev/shm that are not in use."""
        return self.limit_bytes - self.used_bytes


def shm_usage() -> ShmUsage:
    """Returns size and use of /dev/shm as this process sees it.

    The use includes segments that torch has unlinked, which `ls` does not show.
    """
    stat = os.statvfs("/dev/shm")
    return ShmUsage(stat.f_blocks * stat.f_frsize, (stat.f_blocks - stat.f_bfree) * stat.f_frsize)
