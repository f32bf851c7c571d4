"""Finds a running Ray cluster, joins it, and checks whether every node can run this project.

A node introduces itself before it runs anything else: which machine it runs on, and whether it has
the same versions and the same files as this machine. A node with another checkout, or with none, is
therefore named before the first trial starts.
"""

import hashlib
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from sweeps import environment
from sweeps.environment import ROOT
from sweeps.execution import ray_session
from sweeps.execution.ray_variables import JOINED_RAY
from sweeps.host import host_lock
from sweeps.host.node import Log, PreflightError

PACKAGES = ("torch", "torchvision", "torchaudio", "ray", "mlflow", "numpy", "pillow", "soundfile")
HEAD_TIMEOUT_S = 15.0  # Ray itself ends the process after 60 s, with a stack trace
CONNECT_TIMEOUT_S = 5.0  # a running head answers in milliseconds
RESPONSE_TIMEOUT_S = 120.0  # for the start of a worker on a node, which usually takes seconds
PROGRESS_AFTER_S = 10.0  # after this time a launch logs which nodes it waits for

START_A_CLUSTER = """ray.address: {address}, but {problem}. Start a cluster, and launch on one of its machines:
  the head      ray start --head
  the others    ray start --address=HEAD:6379
or write ray: {{address: local}} to run on this machine alone."""  # noqa: E501


@dataclass(frozen=True)
class Introduction:
    """Identifies the machine that a process runs on and the software that it would run."""

    name: str  # host name
    machine: str  # host_lock.identity()
    lock: tuple[int, int]  # device and inode of the lock file
    software: dict[str, str]  # versions by name
    folder: bool  # whether the folder that the launch was started in exists

    def differences(self, ours: "Introduction", started_in: Path) -> list[str]:
        """Returns why this process cannot run trials of the launch that introduces itself as
        `ours`.
        """
        missing = (
            []
            if self.folder
            else [f"the folder {started_in}, where this launch was started, does not exist there"]
        )
        return missing + [
            f"{name} is {theirs} there and {ours.software[name]} here"
            for name, theirs in self.software.items()
            if theirs != ours.software[name]
        ]


@dataclass(frozen=True)
class Raylet:
    """A node of the cluster as Ray reports it, with the introduction of its machine."""

    id: str
    cpus: int
    gpus: float
    introduction: Introduction


def build_introduction(started_in: Path) -> Introduction:
    """Returns the introduction of this process to a launch that was started in `started_in`."""
    return Introduction(
        platform.node(),
        host_lock.identity(),
        host_lock.lock_file_id(),
        software_versions(),
        started_in.is_dir(),
    )


def software_versions() -> dict[str, str]:
    """Returns versions by name. The version of this project is a hash of its files and their
    location.
    """
    digest = hashlib.sha256()
    for file in sorted([*Path(ROOT, "speech").rglob("*.py"), *Path(ROOT, "sweeps").rglob("*.py")]):
        digest.update(f"{file.name} {len(file.read_bytes())} ".encode() + file.read_bytes())
    project = {"this project": f"{digest.hexdigest()[:12]} at {ROOT}"}
    return (
        {"python": platform.python_version()} | {name: version(name) for name in PACKAGES} | project
    )


def resolve_address(configured_address: str) -> str:
    """Returns the host:port of the head. Raises PreflightError if there is no cluster or no head
    answers.

    Ray itself would wait for minutes where nothing answers. It would also mistake another launch's
    own Ray for a cluster.
    """
    address = configured_address
    if configured_address == "auto":
        address_file = Path(
            os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp",
            "ray",
            "ray_current_cluster",
        )
        address = os.environ.get("RAY_ADDRESS", "")
        if not address and address_file.is_file():
            address = address_file.read_text().strip()
            _enable_token()
        if not address or address == "local":
            raise PreflightError(
                START_A_CLUSTER.format(
                    address=configured_address, problem="no cluster was started on this machine"
                )
            )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise PreflightError(
            START_A_CLUSTER.format(
                address=configured_address, problem=f"nobody answers at {address} ({error})"
            )
        ) from None
    return address


def make_head_check(address: str) -> Callable[[], str | None]:
    """Returns a function that checks whether the head answers.

    That function returns a problem once the head has not answered for HEAD_TIMEOUT_S seconds, else
    None.
    """
    last_answer = time.monotonic()
    host, _, port = address.rpartition(":")

    def find_problem() -> str | None:
        nonlocal last_answer
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            silent_s = time.monotonic() - last_answer
            problem = (
                f"The head of the cluster at {address} has not answered for {silent_s:.0f} s"
                f" ({error})."
            )
            return problem if silent_s > HEAD_TIMEOUT_S else None
        last_answer = time.monotonic()
        return None

    return find_problem


def _enable_token() -> None:
    """Enables token authentication if this process has a token.

    Ray does the same by itself for a cluster that it finds.
    """
    if (
        any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or Path("~/.ray/auth_token").expanduser().exists()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def connect(configured_address: str, address: str) -> None:
    """Joins the cluster as a Ray driver. Raises PreflightError if Ray refuses."""
    import ray

    # Workers need these too, such as credentials of the tracking server
    mlflow_variables = {
        name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")
    }
    variables = (
        {"PYTHONPATH": environment.with_project()["PYTHONPATH"]}
        | environment.fixed_variables(JOINED_RAY)
        | mlflow_variables
    )
    try:
        ray.init(
            address=configured_address,
            runtime_env={"env_vars": variables},
            logging_level=50,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises types of many kinds
        raise PreflightError(_format_refusal(configured_address, address, error)) from error


def _format_refusal(configured_address: str, address: str, error: BaseException) -> str:
    """Returns the message for an `error` that Ray raised while this process joined the cluster."""
    reasons: list[str] = []
    current: BaseException | None = error
    while current:
        reasons += [line.strip() for line in str(current).splitlines() if line.strip()]
        current = current.__cause__ or current.__context__
    if any("AuthToken" in reason or "authentication token" in reason for reason in reasons):
        return (
            f"ray.address: {configured_address}, but the cluster at {address} requires a token"
            " that this process does not have. Copy ~/.ray/auth_token of the head to ~/.ray on"
            " every machine, and export RAY_AUTH_MODE=token before ray start and before"
            " launch.py."
        )
    reason = reasons[0] if reasons else type(error).__name__
    return (
        f"ray.address: {configured_address}, but this machine can't join the cluster at {address}:"
        f" {reason}"
    )


def check_nodes(started_in: Path, log: Log) -> list[Raylet]:
    """Returns every node with cores for trials; the nodes of this machine come first.

    Raises PreflightError if one of them cannot run this project.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if any(node["Labels"].items() >= ray_session.OWN_LABELS.items() for node in nodes):
        raise PreflightError(
            START_A_CLUSTER.format(
                address="auto", problem="the Ray on this machine belongs to another launch"
            )
        )
    if not nodes:
        raise PreflightError(
            "No node of the cluster has a core for trials. Set its cores with ray start --num-cpus."
        )
    ours, raylets, problems = build_introduction(started_in), [], []
    for node, theirs in zip(nodes, _introduce(nodes, started_in, log), strict=True):
        name = node["NodeManagerHostname"]
        if isinstance(theirs, str):
            problems.append(f"{name}: {theirs}")
            continue
        problems += [f"{name}: {difference}" for difference in theirs.differences(ours, started_in)]
        resources = node["Resources"]
        raylets.append(
            Raylet(node["NodeID"], int(resources["CPU"]), resources.get("GPU", 0), theirs)
        )
    if problems:
        remedy = (
            "Every machine needs the same files and versions at the same path (docs/cluster.md)."
        )
        raise PreflightError(
            "\n".join(
                [
                    "Not every node of the cluster can run this sweep:",
                    *dict.fromkeys(problems),
                    remedy,
                ]
            )
        )
    return sorted(
        raylets,
        key=lambda raylet: (raylet.introduction.machine != ours.machine, raylet.introduction.name),
    )


def _introduce(
    nodes: Sequence[Mapping[str, Any]], started_in: Path, log: Log
) -> list[Introduction | str]:
    """Returns the introduction of every node, or the reason why it has none.

    All nodes are waited for together, for RESPONSE_TIMEOUT_S at most. Logs which nodes have not
    answered after PROGRESS_AFTER_S.
    """
    import ray

    introduce = ray.remote(build_introduction)
    references = [
        on_node(introduce, node["NodeID"], num_cpus=0, max_retries=0).remote(started_in)
        for node in nodes
    ]
    _, late = ray.wait(references, num_returns=len(references), timeout=PROGRESS_AFTER_S)
    if late:
        names = [
            node["NodeManagerHostname"]
            for node, reference in zip(nodes, references, strict=True)
            if reference in late
        ]
        log(
            f"{', '.join(names)}: no answer for {PROGRESS_AFTER_S:g} s; the launch waits for at"
            f" most {RESPONSE_TIMEOUT_S:g} s"
        )
        remaining_s = RESPONSE_TIMEOUT_S - PROGRESS_AFTER_S
        ray.wait(references, num_returns=len(references), timeout=remaining_s)
    return [_read_introduction(reference) for reference in references]


def _read_introduction(reference: Any) -> Introduction | str:
    """Returns the introduction behind a reference if it is there, or the reason why it is not."""
    import ray

    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"no answer within {RESPONSE_TIMEOUT_S:g} s"
    except ray.exceptions.RayError as error:
        return error_line(error)


def on_node(work: Any, node: str, **options: Any) -> Any:
    """Returns a remote function or class that runs on one node, the one whose Ray id is `node`."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return work.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **options
    )


def error_line(error: BaseException) -> str:
    """Returns the message of a PreflightError that Ray has wrapped, and one line of any other
    error.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, PreflightError):
        return str(cause)
    return next(
        filter(None, map(str.strip, reversed(str(error).splitlines()))), type(error).__name__
    )


def raylets_of_this_machine() -> list[int]:
    """Returns the process ids of the raylet that the launch joined by; the launch ends with it."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return [process.pid for process in psutil.process_iter() if _is_raylet(process, node)]


def _is_raylet(process: psutil.Process, node: str) -> bool:
    """Returns whether a process is the raylet of this node."""
    try:
        return process.name() == "raylet" and any(node in word for word in process.cmdline())
    except psutil.Error:
        return False  # the process has ended, or belongs to another user
