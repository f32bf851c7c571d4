"""What a trial ran on and with: commit, library versions, hardware. Not part of its key, but told where it has changed.

A commit that mends a comment must not run forty trials again, and one that changes the model must not pass unseen. So nothing is stopped:
what differs from the settled trials of a sweep is named, with how many of them have it, and who reads it decides (`--rerun all`).
"""

import contextlib
import functools
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.config import SweepConfig
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, PreflightError, unprobed
from sweeps.tracking import SETTLED

if TYPE_CHECKING:
    from mlflow.entities import Run

VERSIONS = ("torch", "torchvision", "torchaudio", "ray", "mlflow")


@functools.cache
def software() -> dict[str, Any]:
    """Tags that say what ran: library versions and the commit of this checkout."""
    git = shutil.which("git")
    described = None
    if git:
        root = Path(__file__).resolve().parent.parent
        answer = subprocess.run([git, "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        described = answer.stdout.strip() or None
    return {"versions": {name: version(name) for name in VERSIONS}, "git_commit": described}


def here(config: SweepConfig, nodes: Iterable[Node]) -> dict[str, tuple[str, ...]]:
    """What a trial would have now, in the words of `_had`: that of any of the nodes, and any of their GPUs; none where these are not
    known. Which device it gets is its own question: `devices`."""
    now: dict[str, dict[str, None]] = {}  # each value once, in order
    for node in nodes:
        words = _words(software(), node.cpu, len(unprobed(node, config).cpus or node.cpus))
        for name, value in [*words.items(), *(("GPU", gpu) for gpu in node.gpus)]:
            now.setdefault(name, {})[value] = None
    return {name: tuple(values) for name, values in now.items()}


def devices(trials: Iterable[TrialSpec], nodes: Sequence[Node]) -> dict[str, list[str]]:
    """By key, the devices that a trial could get on these nodes; none where no node has one for it."""
    found: dict[str, list[str]] = {}
    for trial in trials:
        for node in nodes:
            with contextlib.suppress(PreflightError):
                found.setdefault(trial.key, []).append(node.device(trial.config))
    return found


def differences(
    runs: "Sequence[Run]", trials: Iterable[TrialSpec], now: Mapping[str, Sequence[str]], devices: Mapping[str, Collection[str]]
) -> list[str]:
    """A line for each thing that settled trials had otherwise than `now`, and than their own `devices`, by key, where these are known.

    Of their `runs`, newest first, the latest that settled counts.
    """
    planned = {trial.key for trial in trials}
    latest: dict[str, dict[str, str]] = {}
    for run in runs:
        tags = run.data.tags
        if tags["key"] in planned and run.info.status != "RUNNING" and tags.get("outcome") in SETTLED:
            latest.setdefault(tags["key"], _had(tags))
    others = Counter(
        (name, had[name], " or ".join(dict.fromkeys(values)))
        for key, had in latest.items()
        for name, values in {**now, "device": devices.get(key, ())}.items()
        if values and name in had and had[name] not in values
    )
    order = [*now, "device"]
    told = sorted(others.items(), key=lambda each: (order.index(each[0][0]), -each[1]))
    return [f"warning: {count} of {len(latest)} settled trials had {name} {was}, now it is {is_}" for (name, was, is_), count in told]


def _had(tags: Mapping[str, str]) -> dict[str, str]:
    noted = {"versions": json.loads(tags.get("versions", "{}")), "git_commit": tags.get("git_commit")}
    gpu = {"GPU": tags["device_name"]} if tags.get("device") == "cuda" and "device_name" in tags else {}
    return _words(noted, tags.get("cpu_name"), tags.get("cores")) | gpu | ({"device": tags["device"]} if "device" in tags else {})


def _words(software: Mapping[str, Any], cpu_name: str | None, cores: Any) -> dict[str, str]:
    known = {"commit": software["git_commit"], **software["versions"], "CPU": cpu_name, "cores": cores}
    return {name: str(value) for name, value in known.items() if value is not None}
