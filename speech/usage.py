"""Measures the activity of the host's cores and disks during an epoch, and attributes it.

Every figure is the difference of two readings of counters that the kernel keeps anyway. They are
read just before and just after the epoch's clock, and nothing is sampled in a trial that is timed.
A figure that a kernel or a container does not provide is absent.

`outside` is the core time that the trial did not use itself. It belongs to other programs, to a
neighbour on the same host, and to the launch's own processes. Where a quota grants the time of
fewer cores than exist, `outside` is a share of the granted time. It then covers the usage of other
processes under the same quota, and the usage by others beyond what the quota leaves idle anyway.
Time for which the quota throttled the trial is reported separately.
"""

import contextlib
import functools
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from speech.cpu import Throttling, cpu_quota, group_cpu_s, read_throttling

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BLOCK_BYTES = 512  # the unit in which getrusage counts reads
READS_ARE_COUNTED = os.path.exists("/proc/self/io")  # not without task accounting
CHILDREN_ARE_LISTED = os.path.exists("/proc/thread-self/children")  # CONFIG_PROC_CHILDREN
# Fraction of the cores that others may use during a measurement. In the 27 timed trials of
# sweep.yaml an undisturbed launch's own processes took 0.02 to 0.04 of two cores
EXTERNAL_LIMIT = 0.1
# Lower bound of the limit, in cores: with a quota of half a core, the launch's own processes take
# twice the fraction
EXTERNAL_CORES = 0.1
MEMORY_LIMIT = 0.05  # fraction of an epoch in which tasks may wait for memory


class Usage(NamedTuple):
    """Holds the counters at one moment."""

    clock_s: float
    main_cpu_s: float  # of all threads of this process
    read_bytes: int  # of this process, from storage
    descendant_cpu_s: float | None  # see `read_descendant_cpu_s`
    busy_s: float  # of the cores that this process may use, whichever process used them
    cores_s: float  # of the same cores, busy or not
    waiting_s: dict[str, float]  # io, memory -> seconds in which some task waited for it
    quota: "QuotaUsage | None" = None  # None without a quota that grants less than the cores
    throttling: dict[Path, Throttling] = {}  # by control group with a quota  # noqa: RUF012


class QuotaUsage(NamedTuple):
    """Holds a quota and its usage at one moment."""

    cores: float  # CPU seconds a second, by the quota
    cpus: int  # cores that this process may use
    group_s: float | None  # CPU seconds of all processes under the quota; None if not counted


def read_counters() -> Usage:
    """Reads all counters of this module at once."""
    busy_s, cores_s = read_core_times()
    waiting = {name: read_pressure_s(name) for name in ("io", "memory")}
    pressure = {name: seconds for name, seconds in waiting.items() if seconds is not None}
    return Usage(
        time.perf_counter(),
        *read_own_counters(),
        read_descendant_cpu_s(),
        busy_s,
        cores_s,
        pressure,
        read_quota_usage(),
        read_throttling(),
    )


def usage_metrics(
    before: Usage, after: Usage, worker_cpu_s: float | None, worker_read_bytes: int = 0
) -> dict[str, float]:
    """Returns the metrics of the epoch between two readings.

    `worker_cpu_s` and `worker_read_bytes` are the sums that the loader's workers reported with
    their batches. At 0 workers `worker_cpu_s` is None. A worker that finished no batch has reported
    nothing, but may have worked. Therefore the kernel's count is used wherever it exists.
    """
    main_s, descendants_s = (
        after.main_cpu_s - before.main_cpu_s,
        _descendants_s(before, after, worker_cpu_s or 0.0),
    )
    metrics = {"cpu/main_s": main_s}
    if worker_cpu_s is not None:
        metrics["cpu/worker_s"] = descendants_s
    if after.cores_s > before.cores_s:
        metrics["cpu/external_fraction"] = external_fraction(before, after, worker_cpu_s or 0.0)
    metrics |= _throttling_metrics(before.throttling, after.throttling)
    if READS_ARE_COUNTED:
        metrics["io/read_bytes"] = after.read_bytes - before.read_bytes + worker_read_bytes
    for name, seconds in after.waiting_s.items():
        metrics[f"pressure/{name}_fraction"] = (seconds - before.waiting_s[name]) / (
            after.clock_s - before.clock_s
        )
    return metrics


def external_fraction(before: Usage, after: Usage, reported_s: float) -> float:
    """Returns the fraction of the cores that other programs used between two readings.

    `reported_s` are the CPU seconds of this process's descendants where the kernel does not list
    them.
    """
    own_s = after.main_cpu_s - before.main_cpu_s + _descendants_s(before, after, reported_s)
    busy_s, cores_s = after.busy_s - before.busy_s, after.cores_s - before.cores_s
    if cores_s <= 0:
        return 0.0
    return used_fraction(busy_s, cores_s, before.quota, after.quota, own_s)


def external_limit(cores: float) -> float:
    """Returns the fraction of `cores` cores above which their use by others is a disturbance."""
    return max(EXTERNAL_LIMIT, EXTERNAL_CORES / cores)


def is_disturbed(metrics: Mapping[str, float], cores: float) -> bool:
    """Returns whether something outside a trial disturbed an epoch with these metrics.

    The decision never depends on the epoch's duration: without its slow epochs, every trial would
    look better than it is.
    """
    return (
        metrics.get("cpu/external_fraction", 0.0) > external_limit(cores)
        or metrics.get("pressure/memory_fraction", 0.0) > MEMORY_LIMIT
        or metrics.get("gpu/external_fraction", 0.0) > EXTERNAL_LIMIT
    )


def _descendants_s(before: Usage, after: Usage, reported_s: float) -> float:
    """Returns the CPU seconds of all descendants, or `reported_s` if the kernel has no count."""
    if before.descendant_cpu_s is None or after.descendant_cpu_s is None:
        return reported_s
    return after.descendant_cpu_s - before.descendant_cpu_s


def _throttling_metrics(
    before: dict[Path, Throttling], after: dict[Path, Throttling]
) -> dict[str, float]:
    """Returns the metrics of the quota that throttled the trial longest.

    Returns no metrics if no quota existed during the whole epoch.
    """
    throttled = [
        (now.seconds - then.seconds, (now.times - then.times) / max(now.periods - then.periods, 1))
        for folder, now in after.items()
        if (then := before.get(folder))
    ]
    return (
        dict(zip(("cpu/throttled_s", "cpu/throttled_fraction"), max(throttled), strict=True))
        if throttled
        else {}
    )


def read_quota_usage() -> QuotaUsage | None:
    """Reads the quota and its usage; returns None without a quota below the number of cores."""
    quota, cpus = cpu_quota(), len(os.sched_getaffinity(0))
    return (
        QuotaUsage(quota.cores, cpus, group_cpu_s(quota)) if quota and quota.cores < cpus else None
    )


def used_fraction(
    busy_s: float,
    cores_s: float,
    before: QuotaUsage | None,
    after: QuotaUsage | None,
    own_s: float = 0.0,
) -> float:
    """Returns the share of the usable core time that was used between two moments, less `own_s`.

    `busy_s` and `cores_s` are differences of `read_core_times`; `own_s` is the part of `busy_s`
    that the caller's own processes used. Under a quota only the granted core time is usable. Core
    time beyond the quota counts neither as available when it is idle nor as a disturbance when
    others use it.
    """
    if before is None or after is None or before.cores != after.cores:
        return max(busy_s - own_s, 0) / cores_s
    granted_s = cores_s * after.cores / after.cpus
    used_s = busy_s - own_s - (cores_s - granted_s)
    if before.group_s is not None and after.group_s is not None:
        used_s = max(used_s, after.group_s - before.group_s - own_s)
    return max(used_s, 0) / granted_s


def read_core_times() -> tuple[float, float]:
    """Reads seconds since boot of the cores that this process may use: (busy, all).

    Time stolen by a hypervisor counts as busy. Where lxcfs shows a container cores with other
    numbers, all of them are the container's own.
    """
    # The rest of the file, behind "intr", counts thousands of interrupts
    own, text = os.sched_getaffinity(0), _read_open_file("/proc/stat").partition("intr")[0]
    lines = (line.split() for line in text.splitlines()[1:])  # the first line sums all cores
    # Beyond 8 columns are guests, which `user` already includes
    counted = {int(name[3:]): list(map(int, counts[:8])) for name, *counts in lines}
    rows = [
        counts for number, counts in counted.items() if number in own or not own <= counted.keys()
    ]
    total = sum(map(sum, rows))
    return (
        total - sum(idle + iowait for _, _, _, idle, iowait, *_ in rows)
    ) * TICK_S, total * TICK_S


def read_descendant_cpu_s() -> float | None:
    """Reads CPU seconds of all descendants of this process, including those that have ended.

    Returns None where the kernel does not list them.
    """
    if not CHILDREN_ARE_LISTED or os.readlink("/proc/self") != str(os.getpid()):
        # A container may forbid a /proc of its own PID namespace
        return None
    return read_ended_children_cpu_s() + sum(map(_living_cpu_s, _children("self")))


def read_ended_children_cpu_s() -> float:
    """Reads CPU seconds of the children of this process that have ended, with their descendants."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _living_cpu_s(pid: str) -> float:
    """Reads CPU seconds of a process, of its ended children and of all its living descendants.

    A fork server's workers are its own children, and not children of this process.
    """
    try:
        # cutime and cstime; the process's name before them may hold any characters
        ended_children = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[13:15]
        # As clock_getcpuclockid(3) does; utime and stime, beside cutime, are in coarse ticks
        own_s = time.clock_gettime(~int(pid) << 3 | 2)
        return (
            own_s + sum(map(int, ended_children)) * TICK_S + sum(map(_living_cpu_s, _children(pid)))
        )
    except OSError:
        return 0.0  # it has ended since it was listed, and its parent, not this process, reaped it


def _children(process: str) -> list[str]:
    """Returns the process ids of the children of all threads of a process."""
    pids: list[str] = []
    for thread in os.listdir(f"/proc/{process}/task"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            pids += _read(f"/proc/{process}/task/{thread}/children").split()
    return pids


def _read(file: str) -> str:
    """Reads a small file of /proc in half the time that open() takes."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace")
    finally:
        os.close(descriptor)


def read_pressure_s(name: str) -> float | None:
    """Reads seconds since boot in which some task waited for `name` (cpu, io, memory).

    Returns None on a kernel that does not count them.
    """
    try:
        some = _read_open_file(f"/proc/pressure/{name}").splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def _read_open_file(file: str) -> str:
    """Reads a file of /proc that stays open, since opening it takes longer than reading it."""
    return os.pread(_open_once(file), 1 << 16, 0).decode()


@functools.cache
def _open_once(file: str) -> int:
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC)


def read_own_counters() -> tuple[float, int]:
    """Reads CPU seconds of all threads of this process, and bytes that it read from storage.

    It makes a single system call, since it runs for every batch.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_inblock * BLOCK_BYTES
