"""What this machine can do, asked before the first trial: a private /dev/shm, GPUs, the corpora, the fastest precision.

Everything here is tried for real, in a process tree like a trial's, so that a machine that can't give what a trial asks for is found
now and not by trial 37. What is decided here is pinned for the whole sweep: equal for all trials of a block, and recorded.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from speech.config import Pinned, TrialConfig, format_size
from speech.cpu import cpu_model
from sweeps.config import SweepConfig
from sweeps.isolation import Record, Task, Template
from sweeps.shm import shm_usage

Say = Callable[[str], None]

ALLOW_NAMESPACES = """A private /dev/shm for each trial needs mount namespaces, which this machine forbids: {problem}.
Allow them in one of these ways:
  Docker or Podman   --cap-add SYS_ADMIN --security-opt apparmor=unconfined (or --privileged)
  Ubuntu 24.04 on    sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0
  older Debian       sudo sysctl kernel.unprivileged_userns_clone=1
  limit of none      sudo sysctl user.max_user_namespaces=10000
or give the sweep the /dev/shm that the machine has: resources: {{shm: host}}, with loader.shm_size: {size}, or without it."""


class PreflightError(RuntimeError):
    """This machine can't run the sweep; the text says why and how to mend it. Nothing has been started."""


@dataclass(frozen=True)
class Node:
    """What the machine has."""

    gpus: tuple[str, ...]  # names
    cpus: tuple[int, ...]  # cores this process may use
    cpu: str = field(default_factory=cpu_model)  # what the processor is called

    def device(self, config: TrialConfig) -> str:
        """The device a trial gets here: the first of `first_of` there is."""
        for name in config.device.first_of:
            if name != "cuda" or self.gpus:
                return name
        raise PreflightError(
            "device: cuda, but there is no CUDA GPU here. Write device: auto, or {first_of: [cuda, paced], step_s: 0.025}."
        )


def survey(template: Template, config: SweepConfig, log: Path) -> Node:
    """Looks around inside a process tree with a /dev/shm of 1 MiB, or on the node's own one where the sweep wants that."""
    private = config.resources.shm == "private"
    found = result_of(template, Task("look", {}, private, 1 << 20 if private else None), log, "look", "{problem}")
    gpus = [] if config.resources.gpus == 0 else found["gpus"]
    return Node(tuple(gpus), tuple(sorted(os.sched_getaffinity(0))))


def check_sizes(config: SweepConfig, configs: list[TrialConfig]) -> None:
    """On the node's own /dev/shm a trial can have no other size than it has. Raises PreflightError."""
    limit = shm_usage().limit_bytes
    asked = {trial.loader.shm_size for trial in configs if trial.loader.shm_size and config.resources.shm == "host"}
    for size in asked - {limit}:
        raise PreflightError(
            f"loader.shm_size: {format_size(size)}, but with resources.shm: host the trial has the machine's own /dev/shm, which is of "
            f"{format_size(limit)}. Write that, or remove shm_size, or write resources.shm: private."
        )


def prepare(template: Template, configs: list[TrialConfig], log: Path, say: Say) -> None:
    """Has all that trials read made before the first of them, and found: statistics, pictures, weights, a batch's worth of clips."""
    distinct = {
        (
            config.corpus.which(),
            config.features.model_dump_json(),
            config.model.weights,
            config.loader.form,
            config.loader.batch_size,
            config.augment.noise > 0,
        ): config
        for config in configs
    }
    for config in distinct.values():
        for record in template.run(Task("prepare", config.model_dump(), private=False), log):
            if record["kind"] == "say":
                say(record["line"])
            _raise_for(record, "{problem}", log)


def unprobed(node: Node, config: SweepConfig) -> Pinned:
    """Cores and threads of all trials, which follow from the file and the machine; all that a trial on the paced device needs."""
    cores = config.resources.cpus if config.resources.cpus != "auto" else len(node.cpus)
    threads = config.threads if config.threads != "auto" else min(cores, len(node.cpus))
    return Pinned(threads=threads, cpus=list(node.cpus[:cores]) if config.resources.exclusive_node else None)


def pin(template: Template, node: Node, config: SweepConfig, example: TrialConfig, log: Path, say: Say) -> Pinned:
    """Cores, threads, precision and memory format for all trials of a block. The precision is measured once, on `example`."""
    found = unprobed(node, config)
    if node.device(example) == "paced":
        return found
    arguments = {"config": example.model_dump(), "threads": found.threads}
    probed = result_of(template, Task("probe", arguments, private=False, cpus=found.cpus), log, "probe", "{problem}")
    say(f"precision: {probed['line']}")
    return Pinned.model_validate(probed["pinned"] | {"cpus": found.cpus})


def result_of(template: Template, task: Task, log: Path, kind: str, message: str) -> Record:
    """The task's one record of `kind`; PreflightError with `message` where an error comes instead."""
    result = None
    for record in template.run(task, log):
        _raise_for(record, message, log)
        result = record if record["kind"] == kind else result
    assert result is not None  # a task that exits with status 0 has said what it found
    return result


def _raise_for(record: Record, message: str, log: Path) -> None:
    if record["kind"] == "error":
        if record["type"] == "IsolationError":
            message = ALLOW_NAMESPACES
        raise PreflightError(message.format(problem=record["message"] or record["type"], size=format_size(shm_usage().limit_bytes)))
    if record["kind"] == "exit" and record["status"] != 0:
        raise PreflightError(
            f"a process of the sweep ended with status {record['status']} while looking around. What it wrote is in {log}."
        )
