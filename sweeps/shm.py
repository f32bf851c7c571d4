"""/dev/shm as a process sees it: its size and use, what is said when it is full, and the names that a process holds there.

torch unlinks a segment as soon as it is mapped, so `ls` shows nothing and only statvfs counts. A name is visible for the moments
between, and one that stays after a kill takes room from everybody on that /dev/shm.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGESIZE")

# What torch and the C library say when /dev/shm is full. A full disk says "No space left" too, hence the words around it; (2), (12), (13)
# and (24) are a file that is gone, a lack of memory, of rights and of descriptors.
EXHAUSTED = re.compile(
    r"unable to (allocate|mmap|resize|stretch|write to|open) [^\n]*(shared memory|shm|</torch_)(?![^\n]*\((2|12|13|24)\))[^\n]*"
    r"|SemLock[\s\S]*?No space left[^\n]*"
    r"|No space left on device[^\n]*/dev/shm[^\n]*"
)


class ShmUsage(NamedTuple):
    limit_bytes: int
    used_bytes: int


def shm_usage() -> ShmUsage:
    """Size and use of /dev/shm as this process sees it. Segments torch has unlinked already count, which `ls` does not show."""
    stat = os.statvfs("/dev/shm")
    return ShmUsage(stat.f_blocks * stat.f_frsize, (stat.f_blocks - stat.f_bfree) * stat.f_frsize)


def names_held(pid: int) -> set[Path]:
    """Files of /dev/shm that a process maps or has open. One that is gone, or another user's, holds none that matter here."""
    # By inode, since the C library renames a semaphore after mapping it, and the maps keep the old name
    held: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, _, _, device, inode, *_ = line.split()
            major, minor = device.split(":")
            held.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                held.add(_inode(Path(f"/proc/{pid}/fd/{descriptor}")))
    found = set()
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):  # gone since it was listed
            if _inode(path) in held:
                found.add(path)
    return found


def _inode(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def names_made(pids: Iterable[int]) -> set[Path]:
    """torch's segments in /dev/shm that these processes have made: it names them torch_<pid>_..."""
    return {path for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")}
