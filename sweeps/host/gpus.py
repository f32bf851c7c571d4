"""Reads NVIDIA's management library (NVML): which GPUs this process sees, who uses them, how much.

A trial on GPUs is sampled from outside its process tree: inside a PID namespace NVML's process
numbers mean nothing. What other processes do on the trial's GPUs disturbs its times, as their use
of the cores does.

Everything is absent on a machine without NVML, and a figure that a driver does not provide is. The
sampling was tried on a stand-in for the library, and has not run on a GPU yet.
"""

import contextlib
import functools
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import pynvml

INTERVAL_S = 0.25  # between two samples; a driver averages its utilisation over 1/6 to 1 s


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use, in NVML's numbering."""

    index: int
    name: str
    handle: Any


@functools.cache
def has_nvml() -> bool:
    """Initialises NVML and returns whether it is available.

    The result is cached, because on a node with many GPUs the initialisation takes a while.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def visible_gpus() -> list[Gpu]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES includes; none without NVML.

    One that this process may not use, or that is lost, is left out.
    """
    gpus: list[Gpu] = []
    if not has_nvml():
        return gpus
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for index in range(pynvml.nvmlDeviceGetCount()):
        with contextlib.suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if is_visible(index, pynvml.nvmlDeviceGetUUID(handle), visible):
                gpus.append(Gpu(index, pynvml.nvmlDeviceGetName(handle), handle))
    return gpus


def is_visible(index: int, uuid: str, visible_devices: str | None) -> bool:
    """Returns whether `visible_devices`, the value of CUDA_VISIBLE_DEVICES, includes a GPU.

    The value names a GPU by its number or by the beginning of its UUID. None includes all GPUs.
    """
    names = [] if visible_devices is None else [name.strip() for name in visible_devices.split(",")]
    return (
        visible_devices is None
        or str(index) in names
        or any(name.startswith("GPU-") and uuid.startswith(name) for name in names)
    )


def process_bytes(gpu: Gpu) -> dict[int, int | None]:
    """Returns the bytes that each process holds on a GPU, by process id.

    None if the driver does not report them. Raises NVMLError, as for a slice of a GPU.
    """
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle)
    return {process.pid: process.usedGpuMemory for process in processes}


@dataclass
class _Samples:
    """Holds what was sampled of a GPU since the last take."""

    utilisation: list[float] = field(default_factory=list)
    external: list[float] = field(default_factory=list)
    own_bytes: list[int] = field(default_factory=list)
    used: bool = False  # by the trial


class GpuSampler:
    """Samples the GPUs of a trial in a thread of its own, as a context.

    The trial is a descendant of this process.
    """

    def __init__(self, gpus: Sequence[Gpu]):
        self._gpus = gpus
        self._is_own: dict[int, bool] = {}  # by process id
        self._samples = [_Samples() for _ in gpus]
        self._since_us = [time.time_ns() // 1000] * len(gpus)  # of the newest sample by process
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "GpuSampler":
        if self._gpus:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._gpus:
            self._thread.join()

    def take(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Returns the metrics since the last call, and the figures of each GPU.

        The metrics are of the GPUs on which the trial had a process: the mean utilisation, the sum
        of the bytes and the largest external share. A GPU's figures are index, name, utilisation,
        memory_bytes and external_fraction.
        """
        self._sample()  # of an epoch shorter than the interval too
        with self._lock:
            samples, self._samples = self._samples, [_Samples() for _ in self._gpus]
        figures = [_figures(sampled) for sampled in samples]
        used = [
            one for one, sampled in zip(figures, samples, strict=True) if sampled.used
        ] or figures
        columns = {
            name: [one[name] for one in used]
            for name in ("utilisation", "memory_bytes", "external_fraction")
            if used and all(name in one for one in used)
        }
        metrics = {}
        if "utilisation" in columns:
            metrics["gpu/utilisation"] = statistics.fmean(columns["utilisation"])
        if "memory_bytes" in columns:
            metrics["gpu/memory_bytes"] = sum(columns["memory_bytes"])
        if "external_fraction" in columns:
            metrics["gpu/external_fraction"] = max(columns["external_fraction"])
        by_gpu = [
            {"index": gpu.index, "name": gpu.name} | one
            for gpu, one in zip(self._gpus, figures, strict=True)
        ]
        return metrics, by_gpu

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        """Adds a sample of every GPU."""
        with self._lock:
            for number, gpu in enumerate(self._gpus):
                sampled = self._samples[number]
                with contextlib.suppress(pynvml.NVMLError):  # a driver may lack it
                    rates = pynvml.nvmlDeviceGetUtilizationRates(gpu.handle)
                    sampled.utilisation.append(rates.gpu / 100)
                with contextlib.suppress(pynvml.NVMLError):
                    held = process_bytes(gpu)
                    own_bytes = [size for pid, size in held.items() if self._owns(pid)]
                    sampled.used = sampled.used or bool(own_bytes)
                    if own_bytes and None not in own_bytes:
                        sampled.own_bytes.append(sum(size or 0 for size in own_bytes))
                    # In some containers NVML numbers processes otherwise. Then the trial's own
                    # processes would count as others
                    if own_bytes or not held:
                        sampled.external.append(self._read_external(number))

    def _owns(self, pid: int) -> bool:
        """Returns whether a process belongs to the trial: is this process or descends from it."""
        if pid not in self._is_own:
            try:
                ancestors = {parent.pid for parent in psutil.Process(pid).parents()}
            except (psutil.Error, OSError):
                return False  # it has ended, or another user's cannot be looked at
            self._is_own[pid] = os.getpid() in ancestors | {pid}
        return self._is_own[pid]

    def _read_external(self, number: int) -> float:
        """Returns the share of the time since the last call that a GPU computed for others."""
        try:
            uses = pynvml.nvmlDeviceGetProcessUtilization(
                self._gpus[number].handle, self._since_us[number]
            )
        except pynvml.NVMLError_NotFound:
            return 0.0  # no process has computed
        self._since_us[number] = max([self._since_us[number], *(use.timeStamp for use in uses)])
        by_process: dict[int, list[int]] = {}
        for use in uses:
            if not self._owns(use.pid):
                by_process.setdefault(use.pid, []).append(use.smUtil)
        return min(sum(statistics.fmean(shares) for shares in by_process.values()) / 100, 1.0)


def _figures(sampled: _Samples) -> dict[str, float]:
    """Returns the figures of a GPU; those without a sample are absent."""
    figures: dict[str, float] = {}
    if sampled.utilisation:
        figures["utilisation"] = statistics.fmean(sampled.utilisation)
    if sampled.own_bytes:
        figures["memory_bytes"] = max(sampled.own_bytes)
    if sampled.external:
        figures["external_fraction"] = statistics.fmean(sampled.external)
    return figures
