"""The memory that the kernel grants this process's control group, and how often its OOM killer has struck there.

Pages of a tmpfs count as memory, so a /dev/shm larger than the container's memory ends at the OOM killer instead of at "No space left".
Control groups of version 2 and 1 are read, whichever holds the memory controller; on a machine without, the figures are the machine's.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page


def memory_limit() -> int:
    """Bytes: the smallest limit of this group and those above it, at most the machine's memory."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _groups():
        for file in (folder / "memory.max", folder / "memory.limit_in_bytes"):
            if file.is_file() and (text := file.read_text().strip()) != "max":
                limits.append(int(text))
    return min(limit for limit in limits if limit < UNLIMITED)


def oom_kills() -> int:
    """Processes that the OOM killer has ended: in this group, or on the machine where no group counts them."""
    files = [folder / name for folder in _groups() for name in ("memory.events", "memory.oom_control")]
    for file in [*files, Path("/proc/vmstat")]:
        if file.is_file():
            counts = dict(line.split() for line in file.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0


def _groups() -> Iterator[Path]:
    """Folders of this process's memory control group and of those above it, the own one first."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        own = (ROOT / controllers) / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(ROOT / controllers))
