"""Reads this process's limits on memory and on processes, and the OOM killer's count.

Pages of a tmpfs count as memory. A /dev/shm larger than the container's memory therefore ends at
the OOM killer instead of at "No space left". The module reads control groups of version 2 and
version 1: this process's group and the groups above it, which speech/control_groups.py locates. On
a machine without control groups, the figures are the machine's. speech/cpu.py reads the share of
the cores. Swap is never counted, because memory that is swapped out can't be timed.
"""

import contextlib
import os
import resource
from pathlib import Path
from typing import NamedTuple

from speech.control_groups import HOST_ROOT, group_folders, read_counts, read_number

UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page
# `memory.high` counts as a limit: the kernel slows a group above it down until it hardly moves
LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
# Counters in memory.stat of version 2, and of version 1 with the groups below included. Neither
# list contains the pages of a tmpfs.
RECLAIMABLE = {
    "memory.current": ("inactive_file", "active_file", "slab_reclaimable"),
    "memory.usage_in_bytes": ("total_inactive_file", "total_active_file"),
}


def memory_limit(root: Path = HOST_ROOT) -> int:
    """Returns the smallest memory limit of this group and the groups above it, in bytes.

    The result is at most the machine's memory.
    """
    limits = [
        limit
        for folder in group_folders("memory", root)
        if (limit := _group_limit(folder)) is not None
    ]
    return min([*limits, _machine_memory("MemTotal", root)])


def memory_available(root: Path = HOST_ROOT) -> int:
    """Returns the number of bytes that can be filled now without swapping.

    It is the smallest of the machine's available memory and the unused memory of every group. Page
    cache counts as free where the kernel would drop it. A file in /dev/shm does not.
    """
    available = [_machine_memory("MemAvailable", root)]
    for folder in group_folders("memory", root):
        if (limit := _group_limit(folder)) is None:
            continue
        for name, reclaimable in RECLAIMABLE.items():
            used = read_number(folder / name)
            if used is not None:
                counts = read_counts(folder / "memory.stat")
                available.append(
                    limit - used + min(sum(counts.get(key, 0) for key in reclaimable), used)
                )
    return max(min(available), 0)


def oom_kills(root: Path = HOST_ROOT) -> int:
    """Returns the number of processes that the OOM killer has ended in this group.

    Where no group counts them, the number is the machine's.
    """
    files = [
        folder / name
        for folder in group_folders("memory", root)
        for name in ("memory.events", "memory.oom_control")
    ]
    for file in [*files, root / "proc/vmstat"]:
        counts = read_counts(file)
        if "oom_kill" in counts:
            return counts["oom_kill"]
    return 0


class ProcessRoom(NamedTuple):
    """Number of processes and threads that may still be started; a thread counts as a process."""

    free: int
    limit: int
    name: str  # name of the limit, and how to raise it


def process_room(root: Path = HOST_ROOT) -> ProcessRoom | None:
    """Returns the room under the tightest limit on processes and threads; None if unlimited."""
    rooms = []
    for folder in group_folders("pids", root):
        limit, used = read_number(folder / "pids.max"), read_number(folder / "pids.current")
        if limit is not None and used is not None:
            rooms.append(
                ProcessRoom(
                    limit - used,
                    limit,
                    f"{folder}/pids.max (docker run --pids-limit, systemd TasksMax, Kubernetes"
                    " podPidsLimit)",
                )
            )
    limit, user = resource.getrlimit(resource.RLIMIT_NPROC)[0], os.getuid()
    # The kernel never refuses root
    if limit != resource.RLIM_INFINITY and not (user == 0 and _is_host_root(root)):
        rooms.append(
            ProcessRoom(
                limit - _count_user_threads(user, root),
                limit,
                "`ulimit -u` (nproc in /etc/security/limits.conf)",
            )
        )
    machine = read_number(root / "proc/sys/kernel/threads-max")
    if machine is not None:
        tasks = (
            (root / "proc/loadavg").read_text().split()[3:4]
            if (root / "proc/loadavg").is_file()
            else []
        )
        rooms.append(
            ProcessRoom(
                machine - int(tasks[0].partition("/")[2]) if tasks else machine,
                machine,
                "sysctl kernel.threads-max",
            )
        )
    return min(rooms, default=None)


def _group_limit(folder: Path) -> int | None:
    limits = [
        limit
        for name in LIMITS
        if (limit := read_number(folder / name)) is not None and 0 <= limit < UNLIMITED
    ]
    return min(limits, default=None)


def _machine_memory(name: str, root: Path) -> int:
    """Returns a figure of /proc/meminfo in bytes; the kernel's total memory where it is missing.

    lxcfs replaces /proc/meminfo by the container's figures. The result never exceeds the memory
    that the kernel reports.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text: dict[str, str] = {}
    with contextlib.suppress(OSError):
        text = dict(
            line.split(":", 1)
            for line in (root / "proc/meminfo").read_text().splitlines()
            if ":" in line
        )
    words = text.get(name, "").split()
    return min(memory, int(words[0]) * 1024) if words and words[0].isdecimal() else memory


def _is_host_root(root: Path) -> bool:
    """Returns whether user 0 is the root of the host, not of a user namespace (rootless Podman)."""
    try:
        return (root / "proc/self/uid_map").read_text().split()[:2] == ["0", "0"]
    except OSError:
        return True


def _count_user_threads(user: int, root: Path) -> int:
    """Counts the threads of all processes of a user, as the kernel does for RLIMIT_NPROC."""
    count = 0
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == user:
                count += sum(1 for _ in (folder / "task").iterdir())
        except OSError:
            continue  # the process has ended
    return count
