"""Defines the costs of a batch that a calibration measures on this machine.

Forecasts are computed from these figures. The module does not import torch, and a plan of a
thousand trials is therefore forecast in seconds. Seconds are those of a process with a core of its
own. The three rates of DS-Analyzer (Mohan et al., VLDB 2021, section 3) follow from the figures. G
is the rate of the accelerator, P that of preparation on all cores, and F that of reading.
"""

import itertools
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from speech.training_config import Device


class LoaderCosts(BaseModel):
    """Holds the costs of a loader, for one dataset, loader format and batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cores: float = Field(
        gt=0,
        description=(
            "cores that the processes share; under a quota below that, the core time it grants"
        ),
    )
    cpus: int | None = Field(
        None, description="under a quota, the cores on which the processes run until it is used up"
    )
    period_s: float = Field(0.1, ge=0, description="period of the quota in seconds")
    batch_size: int = Field(ge=1, description="clips a batch")
    batch_bytes: int = Field(
        description="bytes of /dev/shm for a batch, every tensor in whole pages"
    )
    inline_s: float = Field(
        ge=0, description="CPU seconds a batch if the training process prepares it"
    )
    prepare_s: float = Field(
        gt=0, description="CPU seconds a batch in a worker, including its copy to /dev/shm"
    )
    sending: float = Field(
        0.0, description="share of prepare_s for the copy to /dev/shm, which only workers make"
    )
    read_s: float = Field(
        0.0, description="seconds a batch of waiting for reads, without use of a core"
    )
    read_slower: list[tuple[int, float]] = Field(
        [], description="pairs: processes that read at once, factor by which reads take longer"
    )
    receive_s: list[tuple[int, float]] = Field(
        description=(
            "pairs: processes besides the sending worker, seconds of the training process to"
            " receive a ready batch. Both processes exchange messages for it, and wait for a core"
            " before every message"
        )
    )
    deliver_s: list[tuple[int, float]] = Field(
        description=(
            "pairs: processes besides the batch's worker, seconds from a batch's end until it is"
            " ready for the training process"
        )
    )
    wake_s: list[tuple[int, float]] = Field(
        description=(
            "pairs: active processes, seconds by which a process wakes late after a short wait"
        )
    )
    pin_s: float | None = Field(
        None,
        ge=0,
        description=(
            "CPU seconds a batch of the thread that copies it to pinned memory; absent: batches are"
            " not pinned"
        ),
    )
    release_s: float = Field(description="seconds of the training process to release a batch")
    fork_s: float = Field(description="seconds of the training process to start one worker")
    ready_s: float = Field(description="CPU seconds of a new worker before its first batch")
    cold_s: float = Field(
        0.0,
        description="extra CPU seconds for an epoch's first batch if no worker was started for it",
    )
    shared: list[tuple[int, float]] = Field(
        description=(
            "pairs: active processes, factor by which they are slower than an even share of the"
            " cores"
        )
    )
    pace_cpu_s: list[tuple[int, float]] = Field(
        [],
        description=(
            "pairs: active processes, CPU seconds a batch of each of them, without its copy to"
            " /dev/shm"
        ),
    )
    spread: float = Field(description="relative half-range of the measurements of all rounds")

    def batch_cpu_s(self, processes: float) -> float:
        """Returns the CPU seconds a batch of a worker, if so many prepare at once on average."""
        if not self.pace_cpu_s:
            return self.prepare_s
        return interpolate(self.pace_cpu_s, processes) + self.sending * self.prepare_s


class StepCosts(BaseModel):
    """Holds the costs of a training step on one batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu_s: float = Field(0.0, ge=0, description="CPU seconds of every thread on the host")
    threads: int = Field(1, ge=1, description="threads that compute at once on the host")
    wait_s: float = Field(0.0, ge=0, description="seconds in which the accelerator works on a step")
    run_ahead: int = Field(
        0,
        ge=0,
        description=(
            "steps that may be queued or running on the accelerator when the loop goes on; 0: the"
            " loop waits for every step"
        ),
    )
    launch_overlaps: bool = Field(
        False,
        description=(
            "whether the accelerator begins a step while the host launches it, not afterwards"
        ),
    )
    beside: list[tuple[int, float]] = Field(
        [],
        description=(
            "pairs: processes that prepare beside the step, factor by which the step is slower than"
            " an even share of the cores"
        ),
    )
    prepare_beside: list[tuple[int, float]] = Field(
        [],
        description="pairs: the same processes, factor by which they are slower than an even share",
    )
    inline_s: float | None = Field(
        None,
        description=(
            "CPU seconds a batch that the training process prepares between such steps, which empty"
            " the caches; absent if the host does not compute them"
        ),
    )
    worker_cpu_s: float | None = Field(
        None,
        description=(
            "CPU seconds a batch of a worker, including its copy to /dev/shm, that prepares a batch"
            " during every step; absent as above"
        ),
    )
    resume_s: float = Field(
        0.0,
        ge=0,
        description=(
            "seconds by which a batch that a worker prepares delays the step beyond sharing the"
            " cores"
        ),
    )
    spread: float = Field(0.0, description="relative half-range, see LoaderCosts.spread")

    def alone_s(self, cores: float) -> float:
        """Returns the seconds of a step in a row of steps, while no process prepares."""
        host_s = self.host_s(cores)
        overlaps = self.run_ahead or self.launch_overlaps
        return max(self.wait_s, host_s) if overlaps else self.wait_s + host_s

    def host_s(self, cores: float) -> float:
        """Returns the seconds of a step that the host computes, while no process prepares."""
        return self.cpu_s * max(1.0, self.threads / cores)

    def delay_by_sharing_s(self, cores: float, prepare_s: float) -> float:
        """Returns by how many seconds a step takes longer if one worker prepares a batch meanwhile,
        since both share the cores.

        `prepare_s` is LoaderCosts.prepare_s, to which `prepare_beside` refers.
        """
        even = max(1.0, (self.threads + 1) / cores)
        computing_s = prepare_s * even * dict(self.prepare_beside).get(1, 1.0)
        alone = max(1.0, self.threads / cores)
        return computing_s * max(1 - alone / (even * dict(self.beside).get(1, 1.0)), 0.0)


def simulated_step(device_config: Device) -> StepCosts:
    """Returns the costs of a step of the simulated accelerator, as configured."""
    return StepCosts(
        cpu_s=device_config.host_cpu_s,
        wait_s=device_config.step_s,
        run_ahead=device_config.run_ahead,
    )


class Speed(BaseModel):
    """Holds how fast the machine prepares and trains at one moment (speech/calibration/speed.py).

    Preparation and training are measured apart: programs that compete for caches or for a core's
    other hyperthread slow down two kinds of work differently (Zhang et al., SMiTe, MICRO 2014).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prepare_s: float = Field(
        gt=0, description="CPU seconds a batch of a process, if one prepares on every core"
    )
    step_s: float | None = Field(
        None, description="seconds of a training step; absent if the host does not compute it"
    )

    def slowdown(self, other: "Speed") -> "Slowdown":
        """Returns by which factors this speed is slower than another one."""
        step = self.step_s / other.step_s if self.step_s and other.step_s else 1.0
        return Slowdown(prepare=self.prepare_s / other.prepare_s, step=step)


class Slowdown(BaseModel):
    """Holds the factors by which preparation and step take longer than calibrated."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prepare: float = Field(gt=0)
    step: float = Field(gt=0)


class Calibration(BaseModel):
    """Holds the costs of loader and step, as stored in the cache and in the tracker."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loader: LoaderCosts
    step: StepCosts
    simulated: bool = Field(
        False,
        description=(
            "whether the accelerator is simulated: every trial's configuration then states its step"
        ),
    )
    speed: Speed | None = Field(
        None, description="speed of the machine during the calibration; absent: never compared"
    )
    took_s: float = Field(description="seconds that the calibration took")

    def beside_step(self) -> "Calibration":
        """Returns the costs of batches between steps and beside them, if the host computes steps.

        Batches then take longer, as the step empties the caches. `prepare_beside` contains that
        already, and is divided by it.
        """
        step, loader = self.step, self.loader
        if step.inline_s is None or step.worker_cpu_s is None:
            return self
        factor = max(step.worker_cpu_s / loader.prepare_s, 1.0)
        slower = {
            "inline_s": step.inline_s,
            "prepare_s": factor * loader.prepare_s,
            "pace_cpu_s": scale_seconds(factor, loader.pace_cpu_s),
        }
        beside = {"prepare_beside": [(n, part / factor) for n, part in step.prepare_beside]}
        return self.model_copy(
            update={
                "loader": loader.model_copy(update=slower),
                "step": step.model_copy(update=beside),
            }
        )

    def at(self, slowdown: Slowdown) -> "Calibration":
        """Returns the costs if the cores are slower than during the calibration.

        Waits for reads, for the accelerator and for the scheduler do not depend on the speed of the
        cores.
        """
        loader = _scale_fields(self.loader, slowdown.prepare, LOADER_CPU_FIELDS)
        step = _scale_fields(self.step, slowdown.step, ("cpu_s", "resume_s"))
        step = _scale_fields(step, slowdown.prepare, ("inline_s", "worker_cpu_s"))
        speed = self.speed and Speed(
            prepare_s=slowdown.prepare * self.speed.prepare_s,
            step_s=self.speed.step_s and slowdown.step * self.speed.step_s,
        )
        return self.model_copy(update={"loader": loader, "step": step, "speed": speed})

    def accelerator_clips_per_s(self) -> float:
        """Returns DS-Analyzer's G, the rate of the accelerator if all batches are ready."""
        step_s = self.step.alone_s(self.loader.cores)
        return self.loader.batch_size / step_s if step_s else float("inf")

    def preparation_clips_per_s(self) -> float:
        """Returns DS-Analyzer's P, the rate of preparation if all cores prepare without waiting."""
        slower = dict(self.loader.shared).get(math.ceil(self.loader.cores), 1.0)
        return self.loader.cores * self.loader.batch_size / (self.loader.prepare_s * slower)

    def reading_clips_per_s(self, workers: int) -> float:
        """Returns DS-Analyzer's F, the rate of reading if `workers` workers read at once."""
        return (
            max(workers, 1) * self.loader.batch_size / self.loader.read_s
            if self.loader.read_s
            else float("inf")
        )


# Fields of LoaderCosts that are longer on slower cores. The handover of a batch is not among them:
# most of it is waiting for the scheduler
LOADER_CPU_FIELDS = (
    "inline_s",
    "prepare_s",
    "pin_s",
    "fork_s",
    "ready_s",
    "cold_s",
    "pace_cpu_s",
)


def scale_seconds(factor: float, measured: Any) -> Any:
    """Returns seconds, or a table of seconds by the number of processes, multiplied by `factor`.

    None remains None.
    """
    if measured is None:
        return None
    return (
        [(count, factor * seconds) for count, seconds in measured]
        if isinstance(measured, list)
        else factor * measured
    )


def _scale_fields(costs: Any, factor: float, names: tuple[str, ...]) -> Any:
    """Returns a copy of `costs` in which these fields are multiplied by `factor`."""
    return costs.model_copy(
        update={name: scale_seconds(factor, getattr(costs, name)) for name in names}
    )


def interpolate(table: Any, processes: float, empty: float = 0.0) -> float:
    """Interpolates linearly in a table of (number of processes, value), sorted by number.

    Beyond its ends, the nearest value applies. Returns `empty` if the table has no entries.
    """
    if not table:
        return empty
    if processes <= table[0][0]:
        return table[0][1]
    for (below, low), (above, high) in itertools.pairwise(table):
        if processes <= above:
            return low + (high - low) * (processes - below) / (above - below)
    return table[-1][1]
