"""Emptying the page cache of chosen files, so that the next read of them is a read of the disk. It needs no root."""

import os
from collections.abc import Iterable
from pathlib import Path


def drop(files: Iterable[Path]) -> None:
    """Has the kernel forget what it holds of `files`, written to disk first, as it keeps whatever is not. It is advice: a file system in
    memory can't, and pages that some process has mapped stay; the epoch's io/read_bytes tells what was really read."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
