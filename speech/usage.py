"""What the node's cores and disks did during an epoch, and whose doing it was.

Everything is a difference of two readings of counters that the kernel keeps anyway, taken just before and just after the epoch's clock,
so nothing is sampled beside a timed trial. What a kernel or a container doesn't tell is absent.

What the cores did and the trial did not is `outside`: other programs, a neighbour on the same host, and the launch's own processes.
"""

import contextlib
import functools
import os
import resource
import time
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BLOCK_BYTES = 512  # the unit in which getrusage counts reads
READS_ARE_COUNTED = os.path.exists("/proc/self/io")  # by a kernel without task accounting they are not
CHILDREN_ARE_LISTED = os.path.exists("/proc/thread-self/children")  # by a kernel without CONFIG_PROC_CHILDREN they are not


class Usage(NamedTuple):
    """Counters at one moment."""

    clock_s: float
    main_cpu_s: float  # of this process, all its threads
    read_bytes: int  # of this process, from storage
    below_cpu_s: float | None  # of all processes below this one, ended ones included; None where the kernel doesn't list them
    busy_s: float  # of the cores that this process may use, whoever used them
    cores_s: float  # of the same cores, busy or not
    waiting_s: dict[str, float]  # io, memory -> seconds in which some task of the node waited for it


def look() -> Usage:
    busy_s, cores_s = cores()
    waiting = {name: waiting_s(name) for name in ("io", "memory")}
    known = {name: seconds for name, seconds in waiting.items() if seconds is not None}
    return Usage(time.perf_counter(), *own(), below_cpu_s(), busy_s, cores_s, known)


def usage_metrics(before: Usage, after: Usage, worker_cpu_s: float | None, worker_read_bytes: int = 0) -> dict[str, float]:
    """The epoch between two looks. worker_...: what the loader's workers told with their batches; no CPU seconds at 0 workers.

    A worker that finished no batch has told nothing and may have worked all the same, so the kernel's count stands wherever it has one.
    """
    main_s, busy_s, cores_s = after.main_cpu_s - before.main_cpu_s, after.busy_s - before.busy_s, after.cores_s - before.cores_s
    below_s = worker_cpu_s or 0.0
    if before.below_cpu_s is not None and after.below_cpu_s is not None:
        below_s = after.below_cpu_s - before.below_cpu_s
    metrics = {"cpu/main_s": main_s}
    if worker_cpu_s is not None:
        metrics["cpu/worker_s"] = below_s
    if cores_s > 0:
        metrics["cpu/outside_fraction"] = max(busy_s - main_s - below_s, 0) / cores_s
    if READS_ARE_COUNTED:
        metrics["io/read_bytes"] = after.read_bytes - before.read_bytes + worker_read_bytes
    for name, seconds in after.waiting_s.items():
        metrics[f"pressure/{name}_fraction"] = (seconds - before.waiting_s[name]) / (after.clock_s - before.clock_s)
    return metrics


def cores() -> tuple[float, float]:
    """Seconds since boot of the cores that this process may use: (busy, all). Time stolen by a hypervisor is busy."""
    own, text = os.sched_getaffinity(0), _told("/proc/stat").partition("intr")[0]  # thousands of interrupts follow
    lines = (line.split() for line in text.splitlines()[1:])  # the first is all cores'
    rows = [list(map(int, counts[:8])) for name, *counts in lines if int(name[3:]) in own]  # beyond 8: guests, which `user` holds already
    total = sum(map(sum, rows))
    return (total - sum(idle + iowait for _, _, _, idle, iowait, *_ in rows)) * TICK_S, total * TICK_S


def below_cpu_s() -> float | None:
    """CPU seconds of all processes below this one, those that have ended included; None where the kernel doesn't list them."""
    if not CHILDREN_ARE_LISTED or os.readlink("/proc/self") != str(os.getpid()):  # a container may forbid a /proc of this PID namespace
        return None
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(map(_living_cpu_s, _children("self")))


def _living_cpu_s(pid: str) -> float:
    """Of a process, of its children that have ended, and of all below it: a fork server's workers are its children and not ours."""
    try:
        of_ended = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[13:15]  # cutime and cstime; before them a name of any letters
        own_s = time.clock_gettime(~int(pid) << 3 | 2)  # clock_getcpuclockid(3); utime and stime, beside cutime, are in coarse ticks
        return own_s + sum(map(int, of_ended)) * TICK_S + sum(map(_living_cpu_s, _children(pid)))
    except OSError:
        return 0.0  # it has ended since it was listed, and its parent, which isn't this process, has reaped it


def _children(process: str) -> list[str]:
    pids: list[str] = []
    for thread in os.listdir(f"/proc/{process}/task"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            pids += _read(f"/proc/{process}/task/{thread}/children").split()
    return pids


def _read(file: str) -> str:
    """A small file of /proc, in half the time that open() takes."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace")
    finally:
        os.close(descriptor)


def waiting_s(name: str) -> float | None:
    """Seconds since boot in which some task waited for `name` (cpu, io, memory); None on a kernel that does not count them."""
    try:
        some = _told(f"/proc/pressure/{name}").splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def _told(file: str) -> str:
    """What the kernel says in a file of /proc, which is opened once: to open it takes longer than to read it."""
    return os.pread(_opened(file), 1 << 16, 0).decode()


@functools.cache
def _opened(file: str) -> int:
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC)


def own() -> tuple[float, int]:
    """CPU seconds of this process, all its threads, and the bytes it has had read from storage. One system call, since every batch asks."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_inblock * BLOCK_BYTES
