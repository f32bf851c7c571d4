"""Drops files from the page cache, so that their next read comes from the disk.

It needs no root privileges.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def drop(files: Iterable[Path]) -> None:
    """Advises the kernel to drop the cached pages of `files`.

    The files are written to disk first, since the kernel retains pages that are not. A file system
    in memory can't drop pages, and pages that a process has mapped stay. The epoch's io/read_bytes
    shows the bytes that were read from the disk.
    """
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
