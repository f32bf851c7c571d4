"""What the node's cores and disks did during an epoch, and whose doing it was.

Everything is a difference of two readings of counters that the kernel keeps anyway, taken just before and just after the epoch's clock,
so nothing is sampled beside a timed trial. What a kernel or a container doesn't tell is absent.

What the cores did and the trial did not is `outside`: other programs, a neighbour on the same host, and the launch's own processes.
"""

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BLOCK_BYTES = 512  # the unit in which getrusage counts reads
READS_ARE_COUNTED = os.path.exists("/proc/self/io")  # by a kernel without task accounting they are not


class Usage(NamedTuple):
    """Counters at one moment."""

    clock_s: float
    main_cpu_s: float  # of this process, all its threads
    read_bytes: int  # of this process, from storage
    busy_s: float  # of the cores that this process may use, whoever used them
    cores_s: float  # of the same cores, busy or not
    waiting_s: dict[str, float]  # io, memory -> seconds in which some task of the node waited for it


def look() -> Usage:
    busy_s, cores_s = cores()
    waiting = {name: waiting_s(name) for name in ("io", "memory")}
    known = {name: seconds for name, seconds in waiting.items() if seconds is not None}
    return Usage(time.perf_counter(), *own(), busy_s, cores_s, known)


def usage_metrics(before: Usage, after: Usage, worker_cpu_s: float | None, worker_read_bytes: int = 0) -> dict[str, float]:
    """The epoch between two looks. worker_...: of the loader's workers together; no CPU seconds at 0 workers."""
    main_s, busy_s, cores_s = after.main_cpu_s - before.main_cpu_s, after.busy_s - before.busy_s, after.cores_s - before.cores_s
    metrics = {"cpu/main_s": main_s}
    if worker_cpu_s is not None:
        metrics["cpu/worker_s"] = worker_cpu_s
    if cores_s > 0:
        metrics["cpu/outside_fraction"] = max(busy_s - main_s - (worker_cpu_s or 0), 0) / cores_s
    if READS_ARE_COUNTED:
        metrics["io/read_bytes"] = after.read_bytes - before.read_bytes + worker_read_bytes
    for name, seconds in after.waiting_s.items():
        metrics[f"pressure/{name}_fraction"] = (seconds - before.waiting_s[name]) / (after.clock_s - before.clock_s)
    return metrics


def cores() -> tuple[float, float]:
    """Seconds since boot of the cores that this process may use: (busy, all). Time stolen by a hypervisor is busy."""
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    rows = [list(map(int, counts[:8])) for name, *counts in lines if name in own]  # beyond 8: guests, which `user` holds already
    total = sum(map(sum, rows))
    return (total - sum(idle + iowait for _, _, _, idle, iowait, *_ in rows)) * TICK_S, total * TICK_S


def waiting_s(name: str) -> float | None:
    """Seconds since boot in which some task waited for `name` (cpu, io, memory); None on a kernel that does not count them."""
    try:
        some = Path(f"/proc/pressure/{name}").read_text().splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def own() -> tuple[float, int]:
    """CPU seconds of this process, all its threads, and the bytes it has had read from storage. One system call, since every batch asks."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_inblock * BLOCK_BYTES
