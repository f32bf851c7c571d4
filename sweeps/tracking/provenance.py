"""Compares the environment of settled trials with the present one: commit, versions, hardware.

The environment is not part of a trial's id, but changes of it are reported.

A commit that corrects a comment must not rerun forty trials, and a commit that changes the model
must not pass unnoticed. Changes therefore stop nothing. A warning names every difference from the
settled trials of a sweep, with the number of these trials. The user then decides (`--rerun all`).
"""

import contextlib
import functools
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from speech.cpu import format_quota
from sweeps import environment
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.host.node import Node, PreflightError, default_runtime
from sweeps.trial_states import SETTLED

if TYPE_CHECKING:
    from mlflow.entities import Run

GIT_TIMEOUT_S = 20.0  # for `git describe`
VERSIONS = ("torch", "torchvision", "torchaudio", "ray", "mlflow")


@functools.cache
def software() -> dict[str, Any]:
    """Returns tags about the software: library versions, commit of this checkout, and variables."""
    git = shutil.which("git")
    described = None
    if git:
        command = [git, "-C", environment.ROOT, "describe", "--always", "--dirty"]
        # On a network file system git may never end
        with contextlib.suppress(subprocess.TimeoutExpired):
            answer = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S
            )
            described = answer.stdout.strip() or None
    return {
        "versions": {name: version(name) for name in VERSIONS},
        "git_commit": described,
        "environment": environment.recorded_variables() or None,
    }


def current_environment(config: SweepConfig, nodes: Iterable[Node]) -> dict[str, tuple[str, ...]]:
    """Returns the environment that a trial would have now, by the names of the warnings.

    A name has the values of all nodes, and 'GPU' those of all their GPUs. Without nodes the result
    is empty. The device is not included: `available_devices` returns it.
    """
    now: dict[str, dict[str, None]] = {}  # name -> distinct values, in order
    for node in nodes:
        cpus = default_runtime(node, config).cpus or node.cpus
        values = _format_environment(software(), node.cpu, f"{node.cores_of(cpus):g}")
        values |= {"CPU quota": format_quota(len(cpus), node.cores_of(cpus))}
        for name, value in [*values.items(), *(("GPU", gpu) for gpu in node.gpus)]:
            now.setdefault(name, {})[value] = None
    return {name: tuple(distinct) for name, distinct in now.items()}


def available_devices(trials: Iterable[TrialSpec], nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Returns, by trial id, the devices that a trial could get on these nodes.

    A trial without a suitable device on any node has none.
    """
    devices: dict[str, list[str]] = {}
    for trial in trials:
        for node in nodes:
            with contextlib.suppress(PreflightError):
                devices.setdefault(trial.trial_id, []).append(node.device(trial.config))
    return devices


def differences(
    runs: "Sequence[Run]",
    trials: Iterable[TrialSpec],
    now: Mapping[str, Sequence[str]],
    devices: Mapping[str, Collection[str]],
) -> list[str]:
    """Returns one warning for every difference between settled trials and the environment `now`.

    `devices` holds, by trial id, the devices that a trial could get, and is compared with the
    trial's device. Names and ids without values are not compared. `runs` are newest first, and the
    latest settled run of a trial counts.
    """
    planned = {trial.trial_id for trial in trials}
    latest: dict[str, dict[str, str]] = {}
    for run in runs:
        tags = run.data.tags
        if (
            tags["trial_id"] in planned
            and run.info.status != "RUNNING"
            and tags.get("outcome") in SETTLED
        ):
            latest.setdefault(tags["trial_id"], _recorded_environment(tags))
    changes = Counter(
        (name, recorded[name], " or ".join(dict.fromkeys(values)))
        for trial_id, recorded in latest.items()
        for name, values in {**now, "device": devices.get(trial_id, ())}.items()
        if values and name in recorded and recorded[name] not in values
    )
    order = [*now, "device"]
    ordered = sorted(changes.items(), key=lambda change: (order.index(change[0][0]), -change[1]))
    return [
        f"warning: {count} of {len(latest)} settled trials ran with {name} {was}; it is now {is_}"
        for (name, was, is_), count in ordered
    ]


def _recorded_environment(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment that the tags of a run record."""
    recorded_software = {
        "versions": json.loads(tags.get("versions", "{}")),
        "git_commit": tags.get("git_commit"),
    }
    gpu = (
        {"GPU": tags["device_name"]}
        if tags.get("device") == "cuda" and "device_name" in tags
        else {}
    )
    others = {
        name: tags[tag]
        for name, tag in (("CPU quota", "cpu_quota"), ("device", "device"))
        if tag in tags
    }
    return (
        _format_environment(recorded_software, tags.get("cpu_name"), tags.get("cores"))
        | gpu
        | others
    )


def _format_environment(
    software: Mapping[str, Any], cpu_name: str | None, cores: Any
) -> dict[str, str]:
    """Returns values of an environment as text, by the names in the warnings; None is absent."""
    known = {
        "commit": software["git_commit"],
        **software["versions"],
        "CPU": cpu_name,
        "cores": cores,
    }
    return {name: str(value) for name, value in known.items() if value is not None}
