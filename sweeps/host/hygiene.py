"""Waits until the node is idle.

The Ray actor's process calls this before every trial that holds its node.

Two timed trials on one node distort each other's times, as does any other load. The module measures
the processes of an earlier trial or of another sweep on this machine, and the load of the cores. It
also measures the time that tasks wait for a core, and the GPU memory of processes. It never rejects
a trial. The measurements go into the trial's record, so that they explain a slow outlier. A value
that a machine does not provide is absent.

    python -c "from sweeps.host.hygiene import wait_until_idle; print(wait_until_idle())"
"""

import time
from pathlib import Path
from typing import Any

import pynvml

from speech.usage import read_core_times, read_pressure_s, read_quota_usage, used_fraction
from sweeps.host.gpus import process_bytes, visible_gpus
from sweeps.sandbox.pid1 import INIT_NAME, TRIAL_NAME

Measurements = dict[str, Any]

SAMPLE_S = 0.2  # a core's ticks are 10 ms: one tick is 5 % of a sample of 20 ticks
# On two cores between two trials, Ray alone causes 0.013, and one excess busy process 0.5
PRESSURE_LIMIT = 0.1
# In the same situation Ray alone causes 0.07, and one busy process 0.5
BUSY_LIMIT = 0.25
LOADER_NAME = "pt_data_worker"  # name that torch sets for a loader worker


def wait_until_idle(patience_s: float = 10.0) -> Measurements:
    """Waits until the node is idle, and returns the last measurements.

    It takes at least one sample of 0.2 s, and at most `patience_s` plus a sample.

    trial_processes         number of processes of an earlier trial or another sweep
    trial_process_names     their names and pids; absent without any
    cpu_busy_fraction       of the CPU time that this process may use, within its cores and quota
    cpu_pressure_fraction   of the time in which some task on the node waited for a core (PSI)
    gpu_processes           number of processes that compute on the visible GPUs
    gpu_<n>_process_bytes   memory that they hold on GPU n, in NVML's numbering
    waited_s                total duration of the wait
    unsettled               description of the remaining load; absent if the node is idle
    """
    began = time.monotonic()
    while True:
        measurements = _measure_cpu() | _find_trial_processes() | _measure_gpus()
        waited_s = time.monotonic() - began
        disturbances = _disturbances(measurements)
        if not disturbances:
            return measurements | {"waited_s": waited_s}
        if waited_s >= patience_s:
            return measurements | {"waited_s": waited_s, "unsettled": ", ".join(disturbances)}


def _disturbances(measurements: Measurements) -> list[str]:
    """Returns a phrase for every measurement that is above its limit."""
    lines = []
    if measurements["trial_processes"]:
        lines.append(
            f"{measurements['trial_processes']} processes of another trial"
            f" ({measurements['trial_process_names']})"
        )
    if measurements.get("cpu_busy_fraction", 0) > BUSY_LIMIT:
        lines.append(f"the cores are {100 * measurements['cpu_busy_fraction']:.0f} % busy")
    if measurements.get("cpu_pressure_fraction", 0) > PRESSURE_LIMIT:
        lines.append(
            f"tasks wait for a core {100 * measurements['cpu_pressure_fraction']:.0f} % of the time"
        )
    if measurements.get("gpu_processes"):
        lines.append(f"{measurements['gpu_processes']} processes use GPU memory")
    return lines


def _find_trial_processes() -> Measurements:
    """Finds all live processes of trials, regardless of their user."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = _live_process_name(folder)
            if name.startswith((INIT_NAME, TRIAL_NAME)) or (
                name == LOADER_NAME and _is_forked_from_server(folder)
            ):
                processes.append(f"{name} {folder.name}")
        except OSError:
            continue  # the process has ended meanwhile
    return {"trial_processes": len(processes)} | (
        {"trial_process_names": ", ".join(processes)} if processes else {}
    )


def _live_process_name(folder: Path) -> str:
    """Returns the name of a process, and '' for a zombie.

    A zombie disturbs nothing, and stays for ever in a container whose PID 1 does not reap it.
    """
    name, _, rest = (folder / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
    return "" if rest.split()[0] == "Z" else name


def _is_forked_from_server(folder: Path) -> bool:
    """Returns whether a process is forked from this project's fork server.

    A forked process keeps the command line of its ancestor. A loader worker of a notebook has
    another one.
    """
    return b"sweeps.sandbox.isolation" in (folder / "cmdline").read_bytes().split(b"\0")


def _measure_cpu() -> Measurements:
    """Measures the load of the cores and the waiting for cores, during one sample.

    Both are necessary. As many busy processes as cores cause no waiting, and on a node with many
    cores one overloaded core hardly changes the load.
    """
    began, waiting_before, (busy, total), quota = (
        time.monotonic(),
        read_pressure_s("cpu"),
        read_core_times(),
        read_quota_usage(),
    )
    time.sleep(SAMPLE_S)
    waiting_now, (busy_now, total_now), seconds = (
        read_pressure_s("cpu"),
        read_core_times(),
        time.monotonic() - began,
    )
    measurements: Measurements = {}
    if total_now > total:
        measurements["cpu_busy_fraction"] = used_fraction(
            busy_now - busy, total_now - total, quota, read_quota_usage()
        )
    if waiting_before is None or waiting_now is None:
        return measurements
    return measurements | {"cpu_pressure_fraction": (waiting_now - waiting_before) / seconds}


def _measure_gpus() -> Measurements:
    """Measures the GPU memory of computing processes.

    The memory in use would mislead, because the driver always holds some, and so does a desktop.
    """
    measurements: Measurements = {}
    try:
        for gpu in visible_gpus():
            used_bytes = process_bytes(gpu).values()
            measurements["gpu_processes"] = measurements.get("gpu_processes", 0) + len(used_bytes)
            known_bytes = [size for size in used_bytes if size is not None]
            if len(known_bytes) == len(used_bytes):  # some drivers do not report it
                measurements[f"gpu_{gpu.index}_process_bytes"] = sum(known_bytes)
    except pynvml.NVMLError:
        return {}  # the driver has no data, as for a slice of a GPU
    return measurements
