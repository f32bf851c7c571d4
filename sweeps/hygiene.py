"""Is the node quiet? Asked before each trial that holds its node, in the Ray actor's process; waits a while until it is.

Two timed trials on one node spoil each other, and so does anything else that runs there. Four things are looked at: processes of an
earlier trial that are still there (or of another sweep on this machine, which disturb no less), how busy the cores are, how much
tasks wait for a core, and GPU memory held by processes. A trial is never refused for it: what was found goes into its record, so a
slow outlier has its reason beside it. What a machine can't tell is absent from what is found.

    python -c "from sweeps.hygiene import settle; print(settle())"
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

import pynvml

from speech.usage import cores, waiting_s
from sweeps.init import INIT_NAME, TRIAL_NAME

Found = dict[str, Any]

SAMPLE_S = 0.2  # a core's ticks are 10 ms: with 20 of them one tick is 5 % of it
PRESSURE_LIMIT = 0.1  # between two trials Ray alone makes 0.013 on two cores, one busy process too many 0.5
BUSY_LIMIT = 0.25  # there Ray alone makes 0.07, one busy process 0.5
LOADER_NAME = "pt_data_worker"  # what torch renames a loader worker to


def settle(patience_s: float = 10.0) -> Found:
    """Waits until the node is quiet, at least one sample of 0.2 s, at most `patience_s` and a sample; returns what the last look found.

    trial_processes         processes of an earlier trial, or another sweep's
    trial_process_names     their names and pids; absent where there are none
    cpu_busy_fraction       of the time of the cores this process may use
    cpu_pressure_fraction   of the time: some task waited for a core (as the kernel's PSI counts it, on the whole node)
    gpu_processes           that compute on the visible GPUs
    gpu_<n>_process_bytes   memory they hold on GPU n, as NVML counts GPUs
    waited_s                how long all this took
    unsettled               what was still not quiet, in words; absent where all was
    """
    began = time.monotonic()
    while True:
        found = _cpu() | _trial_processes() | _gpus()
        waited_s = time.monotonic() - began
        disturbances = _disturbances(found)
        if not disturbances:
            return found | {"waited_s": waited_s}
        if waited_s >= patience_s:
            return found | {"waited_s": waited_s, "unsettled": ", ".join(disturbances)}


def _disturbances(found: Found) -> list[str]:
    lines = []
    if found["trial_processes"]:
        lines.append(f"{found['trial_processes']} processes of another trial ({found['trial_process_names']})")
    if found.get("cpu_busy_fraction", 0) > BUSY_LIMIT:
        lines.append(f"the cores are {100 * found['cpu_busy_fraction']:.0f} % busy")
    if found.get("cpu_pressure_fraction", 0) > PRESSURE_LIMIT:
        lines.append(f"tasks wait for a core {100 * found['cpu_pressure_fraction']:.0f} % of the time")
    if found.get("gpu_processes"):
        lines.append(f"{found['gpu_processes']} processes hold GPU memory")
    return lines


def _trial_processes() -> Found:
    """Every live process of a trial's tree, whoever's it is."""
    there = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = _name_of_living(folder)
            if name.startswith((INIT_NAME, TRIAL_NAME)) or (name == LOADER_NAME and _is_forked_from_ours(folder)):
                there.append(f"{name} {folder.name}")
        except OSError:
            continue  # it has just ended
    return {"trial_processes": len(there)} | ({"trial_process_names": ", ".join(there)} if there else {})


def _name_of_living(folder: Path) -> str:
    """Empty for a zombie: it disturbs nobody, and in a container whose PID 1 does not reap it stays for ever."""
    name, _, rest = (folder / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
    return "" if rest.split()[0] == "Z" else name


def _is_forked_from_ours(folder: Path) -> bool:
    """A forked process keeps its ancestor's command line, here the template's; a loader worker of a notebook is none of ours."""
    return b"sweeps.isolation" in (folder / "cmdline").read_bytes().split(b"\0")


def _cpu() -> Found:
    """Both are needed: as many busy processes as cores leave no task waiting, and on a wide node a crowded core is but a little busy."""
    began, waiting, (busy, total) = time.monotonic(), waiting_s("cpu"), cores()
    time.sleep(SAMPLE_S)
    waiting_now, (busy_now, total_now), seconds = waiting_s("cpu"), cores(), time.monotonic() - began
    found = {"cpu_busy_fraction": (busy_now - busy) / (total_now - total)} if total_now > total else {}
    return found if waiting is None or waiting_now is None else found | {"cpu_pressure_fraction": (waiting_now - waiting) / seconds}


def _gpus() -> Found:
    """What processes hold, not what is in use: the driver itself always holds some, and so does a desktop."""
    if not _has_nvml():
        return {}
    try:
        found: Found = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            if not is_visible(index, pynvml.nvmlDeviceGetUUID(gpu), os.environ.get("CUDA_VISIBLE_DEVICES")):
                continue
            held = [process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
            found["gpu_processes"] = found.get("gpu_processes", 0) + len(held)
            if None not in held:  # some drivers keep it to themselves
                found[f"gpu_{index}_process_bytes"] = sum(held)
        return found
    except pynvml.NVMLError:
        return {}  # the driver can't tell, as for a slice of a GPU


@functools.cache
def _has_nvml() -> bool:
    """Starts NVML, once a process: on a node with many GPUs that takes a while."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def is_visible(index: int, uuid: str, listed: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, here `listed`, names a GPU, by its number or the beginning of its UUID. None: all are visible."""
    names = [] if listed is None else [name.strip() for name in listed.split(",")]
    return listed is None or str(index) in names or any(name.startswith("GPU-") and uuid.startswith(name) for name in names)
