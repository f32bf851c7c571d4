"""Which accelerator a trial runs on, how fast it computes best, and the modelled one.

`cuda` without a GPU is an error, never a silent CPU run. `paced` replaces only the accelerator's work, by a wait: clips are read,
transformed and shipped for real, so the epoch's timing is a loader's timing; it learns nothing.
"""

import re
import statistics
import time

import torch

from speech.config import Device, Model, Pinned, Precision, TrialConfig
from speech.cpu import cpu_model
from speech.learner import Learner

PROBE_STEPS = 5
FASTER = 1.1  # a lower precision must be this much faster before it is worth leaving float32


class DeviceError(ValueError):
    """The machine has none of the devices asked for."""


def choose(device: Device) -> str:
    """'cuda', 'cpu' or 'paced': the first of `device.first_of` that this machine has."""
    for name in device.first_of:
        if name != "cuda" or torch.cuda.is_available():
            return name
    mend = "Write device: auto or cpu, or {first_of: [cuda, paced], step_s: 0.025}."
    raise DeviceError(f"device: cuda, but torch finds no CUDA GPU here. {mend}")


def name_of(device: str, keys: Device) -> str:
    """What stands in the record: the GPU's or the CPU's name, or what the modelled accelerator is."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    if device == "paced":
        return f"paced: {keys.step_s * 1000:g} ms a step, {keys.host_s * 1000:g} ms of host CPU"
    return cpu_model()


def gpu_names() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def threads() -> dict[str, int]:
    """Threads of this process's tensor operations as read back from torch, OpenMP and MKL; absent where torch was built without."""
    info = torch.__config__.parallel_info()
    found = {name: re.search(rf"{name}_get_max_threads\(\) : (\d+)", info) for name in ("omp", "mkl")}
    return {"threads": torch.get_num_threads()} | {f"{name}_threads": int(match[1]) for name, match in found.items() if match}


def work_paced(keys: Device) -> tuple[float, float]:
    """One batch on the modelled accelerator: `host_s` of CPU is burnt, then `step_s` waited. Returns when the wait began and ended."""
    until = time.thread_time() + keys.host_s
    while time.thread_time() < until:
        pass
    began = time.perf_counter()
    if keys.step_s:
        time.sleep(keys.step_s)
    return began, time.perf_counter()


def fastest(config: TrialConfig, shape: tuple[int, int, int], threads: int) -> tuple[Pinned, str]:
    """The precision and memory format in which a training step on (C, M, T) pictures is fastest, and a line that says so.

    bfloat16 where the hardware has it, else float16 on a GPU; float32 unless the other is at least FASTER times as fast.
    """
    torch.set_num_threads(threads)
    device = choose(config.device)
    asked = _half_precisions(device) if config.precision == "auto" else [config.precision]
    candidates = [Pinned(threads=threads)] if config.precision == "auto" else []
    candidates += [Pinned(threads=threads, precision=precision, channels_last=last) for precision in asked for last in (False, True)]
    seconds = {candidate: _step_seconds(config, candidate, device, shape) for candidate in candidates}
    best = min(candidates, key=lambda candidate: seconds[candidate])
    if seconds[candidates[0]] < FASTER * seconds[best]:
        best = candidates[0]
    layout = " channels_last" if best.channels_last else ""
    ratio = seconds[candidates[0]] / seconds[best]
    against = f", {ratio:.1f} times as fast as {candidates[0].precision}" if best != candidates[0] else ""
    return best, f"{best.precision}{layout} on {name_of(device, config.device)}, {threads} threads{against}"


def _half_precisions(device: str) -> list[Precision]:
    if device == "cuda":
        return ["bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"]  # Ampere is the first with bfloat16
    return ["bfloat16"]


def _step_seconds(config: TrialConfig, pinned: Pinned, device: str, shape: tuple[int, int, int]) -> float:
    untrained = config.model_copy(update={"model": Model(weights="none")})
    learner = Learner(untrained, pinned, device, labels=10, channels=shape[0])
    batch = config.loader.batch_size
    pictures, labels = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
    seconds = []
    for _ in range(1 + PROBE_STEPS):
        began = time.perf_counter()
        learner.learn((pictures, labels), lr=1e-6, mixup=1.0)
        learner.synchronise()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
