"""What the node's cores and disks did during an epoch, and whose doing it was.

Everything is a difference of two readings of counters that the kernel keeps anyway, taken just before and just after the epoch's clock,
so nothing is sampled beside a timed trial. What a kernel or a container doesn't tell is absent.

What the cores did and the trial did not is `outside`: other programs, a neighbour on the same host, and the launch's own processes.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Counters at one moment."""

    clock_s: float
    main_cpu_s: float  # of this process, all its threads
    read_bytes: int | None  # of this process, from storage
    busy_s: float  # of the cores that this process may use, whoever used them
    cores_s: float  # of the same cores, busy or not
    waiting_s: dict[str, float]  # io, memory -> seconds in which some task of the node waited for it


def look() -> Usage:
    busy_s, cores_s = cores()
    waiting = {resource: waiting_s(resource) for resource in ("io", "memory")}
    known = {resource: seconds for resource, seconds in waiting.items() if seconds is not None}
    return Usage(time.perf_counter(), time.process_time(), read_bytes(), busy_s, cores_s, known)


def usage_metrics(before: Usage, after: Usage, worker_cpu_s: float | None, worker_read_bytes: int | None) -> dict[str, float]:
    """The epoch between two looks. worker_...: of the loader's workers together; None at 0 workers, or where the kernel doesn't tell."""
    main_s, busy_s, cores_s = after.main_cpu_s - before.main_cpu_s, after.busy_s - before.busy_s, after.cores_s - before.cores_s
    metrics = {"cpu/main_s": main_s}
    if worker_cpu_s is not None:
        metrics["cpu/worker_s"] = worker_cpu_s
    if cores_s > 0:
        metrics["cpu/outside_fraction"] = max(busy_s - main_s - (worker_cpu_s or 0), 0) / cores_s
    if before.read_bytes is not None and after.read_bytes is not None:
        metrics["io/read_bytes"] = after.read_bytes - before.read_bytes + (worker_read_bytes or 0)
    for resource, seconds in after.waiting_s.items():
        metrics[f"pressure/{resource}_fraction"] = (seconds - before.waiting_s[resource]) / (after.clock_s - before.clock_s)
    return metrics


def cores() -> tuple[float, float]:
    """Seconds since boot of the cores that this process may use: (busy, all). Time stolen by a hypervisor is busy."""
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    rows = [list(map(int, counts[:8])) for name, *counts in lines if name in own]  # beyond 8: guests, which `user` holds already
    total = sum(map(sum, rows))
    return (total - sum(idle + iowait for _, _, _, idle, iowait, *_ in rows)) * TICK_S, total * TICK_S


def waiting_s(resource: str) -> float | None:
    """Seconds since boot in which some task waited for `resource` (cpu, io, memory); None on a kernel that does not count them."""
    try:
        some = Path(f"/proc/pressure/{resource}").read_text().splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def read_bytes() -> int | None:
    """Bytes that this process has had read from storage; None on a kernel that does not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
