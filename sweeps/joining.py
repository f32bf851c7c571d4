"""Finding a running Ray cluster, joining it, and hearing from every node whether it can run this project.

A node introduces itself before it is asked for anything else: whose machine it is on, and whether the same versions and the same files lie
there as here. So a node with another checkout, or with none, is told by name before the first trial.
"""

import hashlib
import os
import platform
import socket
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweeps import machine, runner
from sweeps.isolation import environment
from sweeps.preflight import PreflightError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "torchaudio", "ray", "mlflow", "numpy", "pillow", "soundfile")
REACHED_S = 5.0  # a head that is there answers in milliseconds
PATIENCE_S = 120.0  # to start a worker on a node; some seconds are usual

START_A_CLUSTER = """ray.address: {asked}, but {problem}. Start a cluster, and launch on one of its machines:
  the head      ray start --head
  the others    ray start --address=HEAD:6379
or write ray: {{address: local}} to run on this machine alone."""


@dataclass(frozen=True)
class Introduction:
    """What a process tells of the machine that it runs on and of the software that it would run."""

    name: str
    machine: str
    lock: tuple[int, int]
    software: dict[str, str]
    folder: bool  # the one that the launch was started in is there

    def differences(self, ours: "Introduction", started_in: Path) -> list[str]:
        """Why trials of a launch that introduces itself as `ours` can't run there."""
        found = [] if self.folder else [f"there is no folder {started_in}, where this launch was started"]
        return found + [
            f"{name} is {theirs} there and {ours.software[name]} here"
            for name, theirs in self.software.items()
            if theirs != ours.software[name]
        ]


@dataclass(frozen=True)
class Raylet:
    """A node as Ray sees it."""

    id: str
    cpus: int
    gpus: float
    told: Introduction


def introduction(started_in: Path) -> Introduction:
    return Introduction(platform.node(), machine.identity(), machine.lock_place(), software(), started_in.is_dir())


def software() -> dict[str, str]:
    """Versions by name; of this project a hash of its files."""
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("speech/*.py"), *ROOT.glob("sweeps/*.py")]):
        digest.update(f"{file.name} {len(file.read_bytes())} ".encode() + file.read_bytes())
    ours = {"this project": f"{digest.hexdigest()[:12]} at {ROOT}"}
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES} | ours


def address_of(asked: str) -> str:
    """host:port of the head. Ray itself would wait for minutes where nobody answers, and would take another launch's own Ray for a
    cluster."""
    address = asked
    if asked == "auto":
        noted = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
        address = os.environ.get("RAY_ADDRESS", "")
        if not address and noted.is_file():
            address = noted.read_text().strip()
            _show_token()
        if not address or address == "local":
            raise PreflightError(START_A_CLUSTER.format(asked=asked, problem="no cluster was started on this machine"))
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACHED_S).close()
    except (OSError, ValueError) as error:
        raise PreflightError(START_A_CLUSTER.format(asked=asked, problem=f"nobody answers at {address} ({error})")) from None
    return address


def _show_token() -> None:
    """As Ray does by itself with a cluster that it finds, where there is a token."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def connect(asked: str, address: str) -> None:
    import ray

    carried = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}  # as credentials of the tracking server
    variables = {"PYTHONPATH": environment()["PYTHONPATH"]} | runner.ENVIRONMENT | carried
    try:
        ray.init(address=asked, runtime_env={"env_vars": variables}, logging_level=50, log_to_driver=False)
    except Exception as error:  # Ray raises types of many kinds
        raise PreflightError(_refused(asked, address, error)) from error


def _refused(asked: str, address: str, error: BaseException) -> str:
    reasons: list[str] = []
    each: BaseException | None = error
    while each:
        reasons += [line.strip() for line in str(each).splitlines() if line.strip()]
        each = each.__cause__ or each.__context__
    if any("AuthToken" in reason or "authentication token" in reason for reason in reasons):
        return (
            f"ray.address: {asked}, but the cluster at {address} wants a token that this process doesn't show. Copy ~/.ray/auth_token of "
            "the head to ~/.ray on every machine, and export RAY_AUTH_MODE=token before ray start and before launch.py."
        )
    return f"ray.address: {asked}, but this machine can't join the cluster at {address}: {reasons[0] if reasons else type(error).__name__}"


def introduced(started_in: Path) -> list[Raylet]:
    """Every node with cores for trials, those of this machine first. PreflightError: one of them can't run this project."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if any(node["Labels"].items() >= runner.OWN.items() for node in nodes):
        raise PreflightError(START_A_CLUSTER.format(asked="auto", problem="what runs here is another launch's own Ray"))
    ask = ray.remote(introduction)
    answers = [on_node(ask, node["NodeID"], num_cpus=0, max_retries=0).remote(started_in) for node in nodes]
    ours, raylets, troubles = introduction(started_in), [], []
    for node, answer in zip(nodes, answers, strict=True):
        name = node["NodeManagerHostname"]
        try:
            told = ray.get(answer, timeout=PATIENCE_S)
        except ray.exceptions.RayError as error:
            troubles.append(f"{name}: {trouble(error)}")
            continue
        troubles += [f"{name}: {difference}" for difference in told.differences(ours, started_in)]
        raylets.append(Raylet(node["NodeID"], int(node["Resources"]["CPU"]), node["Resources"].get("GPU", 0), told))
    if troubles:
        mend = "This project and what it needs are to lie at the same path on every machine (README, More than one machine)."
        raise PreflightError("\n".join(["Not every node of the cluster can run this sweep:", *dict.fromkeys(troubles), mend]))
    if not raylets:
        raise PreflightError("The cluster has no node with a core for trials: ray start --num-cpus sets how many it has.")
    return sorted(raylets, key=lambda raylet: (raylet.told.machine != ours.machine, raylet.told.name))


def on_node(work: Any, node: str, **options: Any) -> Any:
    """A remote function or class, to be run on one node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return work.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **options)


def trouble(error: BaseException) -> str:
    """What is wrong there, in a line or more."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, PreflightError):
        return str(cause)
    return next(filter(None, map(str.strip, reversed(str(error).splitlines()))), type(error).__name__)
