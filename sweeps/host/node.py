"""Describes a machine that trials run on: its cores, its GPUs and the kernel's limits on them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from speech.config import RuntimeSettings, TrialConfig
from speech.cpu import allowed_cpus, cpu_model, cpu_quota, cpu_weight, lent_cores, whole_cores
from sweeps.config.config import SweepConfig
from sweeps.user_error import UserError

Log = Callable[[str], None]  # receives a line for the user


class PreflightError(UserError):
    """Reports that this machine can't run the sweep, before anything has been started.

    The message gives the reason and the remedy.
    """

    exit_code = 3


@dataclass(frozen=True)
class Node:
    """Holds the cores, GPUs and CPU limits of a machine."""

    gpus: tuple[str, ...]  # names
    cpus: tuple[int, ...]  # cores this process may use
    cpu: str = field(default_factory=cpu_model)  # name of the processor
    quota: float | None = None  # usable CPU time, in cores; None: no limit
    weight: float | None = None  # CPU weight relative to the default of 1; None: unknown

    @classmethod
    def local(cls, gpus: Collection[str] = ()) -> "Node":
        """Returns this machine, with the kernel's limits for this process."""
        quota = cpu_quota()
        return cls(
            tuple(gpus),
            tuple(allowed_cpus()),
            quota=quota.cores if quota else None,
            weight=cpu_weight(),
        )

    def cores_of(self, cpus: Collection[int] | None) -> float:
        """Returns the CPU time, in cores, of a trial pinned to `cpus`; None: an unpinned one."""
        return lent_cores(len(cpus or self.cpus), self.quota)

    @property
    def cores(self) -> float:
        """Usable CPU time of the machine, in cores."""
        return self.cores_of(None)

    @property
    def whole_cores(self) -> int:
        """Number of cores that a trial can request, and of threads that compute in parallel."""
        return whole_cores(self.cores)

    @property
    def hardware(self) -> str:
        """Description of processor, cores, CPU quota and GPUs, the same for equal machines."""
        quota = [f"CPU quota {self.cores:g}"] if self.cores != len(self.cpus) else []
        return "/".join([self.cpu, f"{len(self.cpus)} cores", *quota, *self.gpus])

    def limits(self) -> list[str]:
        """Returns a line for every limit of the kernel on the CPU time, and none without limits."""
        lines = []
        if self.cores != len(self.cpus):
            lines.append(
                f"CPU quota: the time of {self.cores:g} of {len(self.cpus)} cores (cgroup; docker"
                " --cpus, Kubernetes limits.cpu, systemd CPUQuota). All figures below use this"
                " quota."
            )
        if self.weight is not None and self.weight < 1:
            lines.append(
                f"CPU weight: {self.weight:.2g} of the default (cgroup), so other processes get a"
                " larger share of these cores"
            )
        return lines

    def device(self, config: TrialConfig) -> str:
        """Returns the device of a trial on this machine: the first available one in `prefer`.

        Raises PreflightError if none is available.
        """
        for name in config.device.prefer:
            if name != "cuda" or self.gpus:
                return name
        raise PreflightError(
            "device: cuda, but this machine has no CUDA GPU. Write device: auto, or"
            " {prefer: [cuda, simulated], step_s: 0.025}."
        )


def default_runtime(node: Node, config: SweepConfig) -> RuntimeSettings:
    """Returns the cores and threads of all trials, derived from the sweep file and the machine.

    A trial on the simulated device needs no other settings.
    """
    core_count = len(node.cpus) if config.resources.cpus == "auto" else config.resources.cpus
    threads = config.threads if config.threads != "auto" else min(core_count, node.whole_cores)
    return RuntimeSettings(
        threads=threads,
        cpus=list(node.cpus[:core_count]) if config.resources.exclusive_node else None,
    )
