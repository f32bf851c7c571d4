"""Chooses the accelerator of a trial and its fastest settings.

`cuda` without a GPU is an error, never a silent CPU run. `simulated` is a model of an accelerator
(speech/simulated_accelerator.py).
"""

import functools
import re
import statistics
import time
from collections.abc import Callable, Hashable

import torch

from speech.calibration.undisturbed_rounds import MachineBusy, Measure, Values, measure_rounds
from speech.config import RuntimeSettings, TrialConfig
from speech.cpu import cpu_model
from speech.learner import Learner
from speech.training_config import Device, Model, Precision

# Every setting is timed in so many rounds; after PROBE_S undisturbed seconds one round suffices
PROBE_ROUNDS, PROBE_S = 3, 20.0
CHECKED_STEPS = 6  # after which loss and weights must be finite
PATIENCE_S = 5.0  # of disturbed attempts in a row, since any setting is right, if not the fastest
MIN_PROBE_S = 0.3  # a value is measured for at least this time, as the kernel counts use in ticks
MIN_SPEEDUP = 1.1  # a lower precision replaces float32 only if it is faster by this factor


class DeviceError(ValueError):
    """Reports that the machine has none of the configured devices."""


def choose_device(device: Device) -> str:
    """Returns the first device of `device.prefer` that this machine has.

    It is 'cuda', 'cpu' or 'simulated'. Raises DeviceError if the machine has none of them.
    """
    for name in device.prefer:
        if name != "cuda" or torch.cuda.is_available():
            return name
    mend = "Write device: auto or cpu, or {prefer: [cuda, simulated], step_s: 0.025}."
    raise DeviceError(f"device: cuda, but torch detects no CUDA GPU on this machine. {mend}")


def device_name(device: str, device_config: Device) -> str:
    """Returns the device's name for records.

    It is the name of the CPU, of the GPU (on several ranks that of rank 0's), or a description of
    the simulated accelerator.
    """
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    if device == "simulated":
        return (
            f"simulated accelerator: {device_config.step_s * 1000:g} ms a step,"
            f" {device_config.host_cpu_s * 1000:g} ms of host CPU,"
            f" run_ahead {device_config.run_ahead}"
        )
    return cpu_model()


def gpu_names() -> list[str]:
    """Returns the names of all GPUs of this machine."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def thread_counts() -> dict[str, int]:
    """Returns the thread counts of tensor operations that torch, OpenMP and MKL report.

    A library that torch was built without is absent.
    """
    info = torch.__config__.parallel_info()
    matches = {
        name: re.search(rf"{name}_get_max_threads\(\) : (\d+)", info) for name in ("omp", "mkl")
    }
    return {"threads": torch.get_num_threads()} | {
        f"{name}_threads": int(match[1]) for name, match in matches.items() if match
    }


def find_fastest_settings(
    config: TrialConfig, shape: tuple[int, int, int], threads: int
) -> tuple[RuntimeSettings, str]:
    """Finds the precision and memory format of the fastest training step on pictures (C, M, T).

    Returns them with a line that describes the choice. With `precision: auto` the candidates are
    float32, and bfloat16 in both memory formats; on a GPU without bfloat16 it is float16. Otherwise
    they are both memory formats of the configured precision. The first candidate is replaced only
    by one that is at least MIN_SPEEDUP times as fast. If other programs disturb the measurement too
    much, the first candidate is chosen, and the line says so. Raises DeviceError if no candidate
    yields finite values.
    """
    torch.set_num_threads(threads)
    device = choose_device(config.device)
    precisions = _half_precisions(device) if config.precision == "auto" else [config.precision]
    candidates = [RuntimeSettings(threads=threads)] if config.precision == "auto" else []
    candidates += [
        RuntimeSettings(threads=threads, precision=precision, channels_last=last)
        for precision in precisions
        for last in (False, True)
    ]
    steps = {candidate: _make_step(config, candidate, device, shape) for candidate in candidates}
    finite = {candidate: step for candidate, step in steps.items() if step is not None}
    if not finite:
        raise DeviceError(
            f"precision: {config.precision}, but a training step on"
            f" {device_name(device, config.device)} gives a loss or weights that are not finite."
            " Write precision: float32, or auto."
        )
    where = f"on {device_name(device, config.device)}, {threads} threads"
    figures: dict[Hashable, Measure] = {
        candidate: functools.partial(_time_steps, step) for candidate, step in finite.items()
    }
    try:
        values = measure_rounds(figures, PROBE_ROUNDS, PROBE_S, patience_s=PATIENCE_S)
    except MachineBusy as busy:
        first = next(iter(finite))
        return first, f"{first.precision} {where}; the fastest can't be measured: {busy}"
    seconds = {candidate: statistics.median(values[candidate]) for candidate in finite}
    candidates = list(seconds)
    best = min(candidates, key=lambda candidate: seconds[candidate])
    if seconds[candidates[0]] < MIN_SPEEDUP * seconds[best]:
        best = candidates[0]
    layout = " channels_last" if best.channels_last else ""
    ratio = seconds[candidates[0]] / seconds[best]
    comparison = (
        f", {ratio:.1f} times as fast as {candidates[0].precision}" if best != candidates[0] else ""
    )
    return (
        best,
        f"{best.precision}{layout} {where}{comparison}",
    )


def _half_precisions(device: str) -> list[Precision]:
    """Returns the 16-bit precision that the device computes best, as a list."""
    if device == "cuda":
        # Ampere is the first generation with bfloat16
        return ["bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"]
    return ["bfloat16"]


def _make_step(
    config: TrialConfig, runtime: RuntimeSettings, device: str, shape: tuple[int, int, int]
) -> Callable[[], None] | None:
    """Returns a function that runs a training step to its end; it has run CHECKED_STEPS times.

    Returns None if the loss or the weights are not finite, since no trial may use such settings.
    """
    untrained = config.model_copy(update={"model": Model(weights="none")})
    learner = Learner(untrained, runtime, device, labels=10, channels=shape[0])
    batch = config.loader.batch_size
    pictures, labels = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
    for _ in range(CHECKED_STEPS):
        loss = learner.learn((pictures, labels), lr=1e-6, mixup=1.0)
    if not (loss.isfinite() and learner.has_finite_weights()):
        return None

    def step() -> None:
        learner.learn((pictures, labels), lr=1e-6, mixup=1.0)
        learner.synchronise()

    return step


def _time_steps(step: Callable[[], None], values: Values) -> float:
    """Measures the median seconds of a step, over MIN_PROBE_S and at least one step."""
    seconds: list[float] = []
    while sum(seconds) < MIN_PROBE_S:
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
