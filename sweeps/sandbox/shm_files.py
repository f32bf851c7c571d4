"""Finds the files that a process holds in /dev/shm, and recognises messages about a full one.

torch unlinks a segment as soon as it is mapped. `ls` therefore shows nothing, and only statvfs
counts it. A name is visible for a moment only. One that remains after a kill takes room from every
user of that /dev/shm.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

# Messages of torch and the C library about a full /dev/shm. A full disk causes "No space left" too;
# the pattern therefore includes the words around it. It excludes the error numbers (2), (12), (13)
# and (24): a missing file, a lack of memory, of rights and of descriptors.
EXHAUSTED = re.compile(
    r"unable to (allocate|mmap|resize|stretch|write to|open) [^\n]*(shared"
    r" memory|shm|</torch_)(?![^\n]*\((2|12|13|24)\))[^\n]*"
    r"|SemLock[\s\S]*?No space left[^\n]*"
    r"|No space left on device[^\n]*/dev/shm[^\n]*"
)


def held_files(pid: int) -> set[Path]:
    """Returns the files of /dev/shm that a process maps or has open.

    The set is empty for a process that has ended or belongs to another user.
    """
    # Files are compared by inode: the C library renames a semaphore after mapping it, and the maps
    # show the old name
    held_inodes: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, _, _, device, inode, *_ = line.split()
            major, minor = device.split(":")
            held_inodes.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                held_inodes.add(_read_inode(Path(f"/proc/{pid}/fd/{descriptor}")))
    files = set()
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):  # the file was removed after it was listed
            if _read_inode(path) in held_inodes:
                files.add(path)
    return files


def _read_inode(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def torch_segments(pids: Iterable[int]) -> set[Path]:
    """Returns torch's segments in /dev/shm that these processes have created.

    torch names them torch_<pid>_...
    """
    return {path for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")}
