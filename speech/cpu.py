"""Reads the processor's name and this process's share of it: cores, CPU time quota, CPU weight.

A container or a service may run on 64 cores and have the time of one and a half. The affinity does
not show that limit. The quota stands in the files of this process's control group and of its
ancestors, in versions 1 and 2 (speech/control_groups.py).
"""

import functools
import os
import platform
from pathlib import Path
from typing import NamedTuple

from speech.control_groups import (
    HOST_ROOT,
    counterpart,
    group_folders,
    read_counts,
    read_number,
    read_words,
)

DEFAULT_WEIGHTS = {"cpu.weight": 100, "cpu.shares": 1024}  # version 2, version 1
QUOTA_STEP = 0.01  # cores: quotas are rounded to multiples of it


class Quota(NamedTuple):
    """A limit on the CPU time of a control group.

    Once the group has used `cores` times `period_s` seconds, all of it waits for the period's end.
    """

    cores: float  # CPU seconds per second
    period_s: float
    folder: Path  # of the control group


class Throttling(NamedTuple):
    """The number and duration of a control group's waits for its quota, up to now."""

    seconds: float  # sum over all cores
    times: int  # periods in which the quota was used up
    periods: int  # periods in which the group ran


@functools.cache
def cpu_model() -> str:
    """Returns the processor's model name from /proc/cpuinfo, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def allowed_cpus(root: Path = HOST_ROOT) -> list[int]:
    """Returns the cores over which the scheduler spreads this process's children.

    These are the cores of its affinity, which includes cpusets, without isolated ones (isolcpus=,
    or a cpuset partition). The kernel moves no process to or from an isolated core, so a process
    tree uses one of several isolated cores. Returns the lowest core where all are isolated.
    """
    cpus = os.sched_getaffinity(0)
    shared = cpus - _parse_cpu_list(" ".join(read_words(root / "sys/devices/system/cpu/isolated")))
    return sorted(shared or {min(cpus)})


def cpu_quotas(root: Path = HOST_ROOT) -> list[Quota]:
    """Returns the quotas of this process's control group and of its ancestors that have one."""
    quotas = []
    for folder in group_folders("cpu", root):
        words = read_words(folder / "cpu.max")
        if not words:
            words = [
                str(read_number(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")
            ]
        # otherwise max, -1, or an unknown format
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            quota, period = map(int, words)
            quotas.append(Quota(quota / period, period / 1e6, folder))
    return quotas


def cpu_quota(root: Path = HOST_ROOT) -> Quota | None:
    """Returns the tightest quota, or None where only the number of cores limits CPU time."""
    return min(cpu_quotas(root), default=None)


def usable_cores(cpus: int | None = None, root: Path = HOST_ROOT) -> float:
    """Returns the CPU time, in cores, that the quota grants to `cpus` cores.

    `cpus` defaults to the cores that this process may use. A whole number is an int.
    """
    quota, count = cpu_quota(root), cpus or len(allowed_cpus(root))
    return lent_cores(count, quota.cores if quota else None)


def lent_cores(cpus: int, quota: float | None) -> float:
    """Returns the smaller of `cpus` and the quota in cores; a whole number is an int."""
    if quota is None or quota >= cpus - QUOTA_STEP / 2:
        return cpus
    cores = max(round(quota / QUOTA_STEP) * QUOTA_STEP, QUOTA_STEP)
    return round(cores) if abs(cores - round(cores)) < QUOTA_STEP / 2 else round(cores, 2)


def format_quota(cpus: int, cores: float) -> str:
    """Returns the quota as recorded for a trial on `cpus` cores: '1.5', or 'none'.

    `cores` is the CPU time, in cores, that the quota grants.
    """
    return "none" if cores == cpus else f"{cores:g}"


def whole_cores(cores: float) -> int:
    """Returns the number of threads that can compute at once without throttling; at least one.

    With more threads the quota would stop one half-way, while the others wait for it.
    """
    return max(int(cores), 1)


def cpu_weight(root: Path = HOST_ROOT) -> float | None:
    """Returns the CPU weight against competing groups, relative to the kernel's default of 1.

    It is the smallest weight of this control group and its ancestors, or None where none has one.
    """
    weights = [
        weight / default
        for folder in group_folders("cpu", root)
        for name, default in DEFAULT_WEIGHTS.items()
        if (weight := read_number(folder / name)) is not None and weight >= 0
    ]
    return min(weights, default=None)


def read_throttling(root: Path = HOST_ROOT) -> dict[Path, Throttling]:
    """Returns control group with a quota -> its throttling since the group was created."""
    return {
        quota.folder: _parse_throttling(read_counts(quota.folder / "cpu.stat"))
        for quota in cpu_quotas(root)
    }


def _parse_throttling(counts: dict[str, int]) -> Throttling:
    seconds = (
        counts["throttled_usec"] / 1e6
        if "throttled_usec" in counts
        else counts.get("throttled_time", 0) / 1e9
    )
    return Throttling(seconds, counts.get("nr_throttled", 0), counts.get("nr_periods", 0))


def group_cpu_s(quota: Quota, root: Path = HOST_ROOT) -> float | None:
    """Returns the CPU seconds that all processes under a quota have used, of this sweep or not.

    Returns None where the kernel does not count them.
    """
    used_us = read_counts(quota.folder / "cpu.stat").get("usage_usec")
    if used_us is not None:
        return used_us / 1e6
    # version 1 counts them under another controller
    cpuacct_folder = counterpart(quota.folder, "cpu", "cpuacct", root)
    nanoseconds = read_number(cpuacct_folder / "cpuacct.usage") if cpuacct_folder else None
    return None if nanoseconds is None else nanoseconds / 1e9


def _parse_cpu_list(text: str) -> set[int]:
    """Converts a list of cores in the kernel's format, such as 2-5,8, to a set."""
    cores: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            cores |= set(range(int(first), int(last or first) + 1))
    return cores
