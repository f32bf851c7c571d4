"""A running Ray cluster that a launch has joined: which machines it has, and the same questions asked of each (sweeps/sites.py).

The one idea is that a machine is what counts, and not a raylet, of which one machine may have two. Every raylet first introduces itself:
whose machine it is on, and whether this project lies there as it does here. Then an actor on each machine answers the questions; it holds
all that its raylet has, so that nothing of this cluster runs beside it. While trials run, an actor on each raylet holds what a trial there
does not ask for: so machines of different sizes take one trial each, where it is to be alone. Two raylets of one machine take turns by
its lock.

Nothing is started on another machine but in Ray's workers, which end with the launch; the cluster itself is left as it was.
"""

import contextlib
import hashlib
import os
import platform
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil

from sweeps import machine, runner, sites
from sweeps.config import SweepConfig
from sweeps.isolation import Template, environment
from sweeps.janitor import kept_tidy
from sweeps.outlook import Outlook
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.sites import Question, Site
from sweeps.tracking import Tracking, database_file, resolve_uri

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "torchaudio", "ray", "mlflow", "numpy", "pillow", "soundfile")
REACHED_S = 5.0  # a head that is there answers in milliseconds
PATIENCE_S = 60.0  # to start a worker on a node; some seconds are usual
BUSY_S = 10.0  # after which a launch says that it waits for a node

START_A_CLUSTER = """ray.address: {asked}, but {problem}. Start a cluster, and launch on one of its machines:
  the head      ray start --head
  the others    ray start --address=HEAD:6379
or write ray: {{address: local}} to run on this machine alone."""

START_A_SERVER = """tracking.uri {uri} is a file of one machine, and trials would run on {machines}. Start a server that all of them reach:
  mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts '*' --artifacts-destination /srv/mlflow \\
      --backend-store-uri postgresql+psycopg://USER:PASSWORD@localhost/mlflow
and write tracking: {{uri: http://{name}:5000}}."""


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
    ours = {f"this project at {ROOT}": digest.hexdigest()[:12]}
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES} | ours


@contextlib.contextmanager
def joined(asked: str, say: Say) -> Iterator["Cluster"]:
    """Joins the cluster that this machine is part of. PreflightError: there is none, or not all of its nodes can run trials."""
    address = _address(asked)
    os.environ |= environment() | runner.ENVIRONMENT | {"RAY_ADDRESS": address}
    with kept_tidy() as scratch:
        with runner.muted(scratch / "ray.log"):
            _connect(asked, address)
        import ray

        try:
            yield Cluster(scratch, say)
        finally:
            with runner.muted(scratch / "ray.log"):
                ray.shutdown()


def _address(asked: str) -> str:
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


def _connect(asked: str, address: str) -> None:
    import ray

    carried = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}  # as credentials of the tracking server
    variables = {"PYTHONPATH": environment()["PYTHONPATH"]} | runner.ENVIRONMENT | carried
    try:
        ray.init(address=asked, runtime_env={"env_vars": variables}, logging_level=50, log_to_driver=False)
    except Exception as error:  # Ray raises types of many kinds
        raise PreflightError(_refused(asked, address, error)) from error
    runner.quiet()


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


class Cluster:
    """The cluster that `joined` has joined."""

    def __init__(self, scratch: Path, say: Say) -> None:
        self._scratch, self._say, self._started_in = scratch, say, Path.cwd()
        self._raylets = self._introduced()
        self._nodes: dict[str, Node] = {}  # by machine, those that trials may run on
        self._surveyors: dict[str, Any] = {}  # by machine

    def _introduced(self) -> list[Raylet]:
        """Every node with cores for trials; PreflightError where one can't run this project."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if any(node["Labels"].items() >= runner.OWN.items() for node in nodes):
            raise PreflightError(START_A_CLUSTER.format(asked="auto", problem="what runs here is another launch's own Ray"))
        ask = ray.remote(introduction)
        answers = [_on(ask, node["NodeID"], num_cpus=0, max_retries=0).remote(self._started_in) for node in nodes]
        ours, raylets, troubles = introduction(self._started_in), [], []
        for node, answer in zip(nodes, answers, strict=True):
            name = node["NodeManagerHostname"]
            try:
                told = ray.get(answer, timeout=PATIENCE_S)
            except ray.exceptions.RayError as error:
                troubles.append(f"{name}: {_trouble(error)}")
                continue
            troubles += [f"{name}: {difference}" for difference in told.differences(ours, self._started_in)]
            raylets.append(Raylet(node["NodeID"], int(node["Resources"]["CPU"]), node["Resources"].get("GPU", 0), told))
        if troubles:
            mend = "This project and what it needs are to lie at the same path on every machine (README, More than one machine)."
            raise PreflightError("\n".join(["Not every node of the cluster can run this sweep:", *dict.fromkeys(troubles), mend]))
        if not raylets:
            raise PreflightError("The cluster has no node with a core for trials: ray start --num-cpus sets how many it has.")
        return sorted(raylets, key=lambda raylet: (raylet.told.machine != ours.machine, raylet.told.name))

    @property
    def _machines(self) -> dict[str, list[Raylet]]:
        """The raylets of each machine; this machine first."""
        machines: dict[str, list[Raylet]] = {}
        for raylet in self._raylets:
            machines.setdefault(raylet.told.machine, []).append(raylet)
        return machines

    def survey(self, config: SweepConfig, log: Path) -> None:
        """What each machine has. All of them reach one tracker, and see each other's locks. PreflightError."""
        self._check_tracker(config)
        if config.resources.exclusive_node:
            self._check_locks()
        machines = self._machines
        self.ask(sites.reach, dict.fromkeys(machines, (resolve_uri(config.tracking.uri), config.tracking.experiment, len(machines) > 1)))
        self.nodes = self.ask(sites.survey, dict.fromkeys(machines, (config, log)))

    def _check_tracker(self, config: SweepConfig) -> None:
        if len({machine.identity(), *self._machines}) > 1 and database_file(resolve_uri(config.tracking.uri)):
            names = {platform.node(), *map(self._name, self._machines)}
            told = {"uri": config.tracking.uri, "machines": ", ".join(sorted(names)), "name": platform.node()}
            raise PreflightError(START_A_SERVER.format(**told))

    def _check_locks(self) -> None:
        """Containers of one machine may each have a /tmp of its own."""
        for raylets in self._machines.values():
            if len({raylet.told.lock for raylet in raylets}) > 1:
                names = ", ".join(sorted({raylet.told.name for raylet in raylets}))
                raise PreflightError(
                    f"{names} are one machine and don't share {machine.LOCK}, so their trials would disturb each other. Give them one "
                    "/tmp, or leave one of them out, or write resources: {exclusive_node: false}."
                )

    def check(self, config: SweepConfig, trials: list[TrialSpec]) -> None:
        """Leaves out machines without the cores or GPUs that trials ask for, and says so. PreflightError: no machine has them."""
        cpus, gpus = self._asked(config, trials)
        for name, node in list(self.nodes.items()):
            cores = min([len(node.cpus), *(raylet.cpus for raylet in self._machines[name])])
            if cores < cpus or len(node.gpus) < gpus:
                has = f"{self._name(name)} has {cores} cores and {len(node.gpus)} GPUs, and a trial asks for {cpus} and {gpus:g}"
                if len(self.nodes) == 1:
                    raise PreflightError(f"resources: {has}. Write auto, or what a machine of the cluster has.")
                self._say(f"{has}: it is left out")
                del self.nodes[name]
        for node in self.nodes.values():
            for trial in trials:
                node.device(trial.config)

    def _asked(self, config: SweepConfig, trials: list[TrialSpec]) -> tuple[int, float]:
        """CPUs and GPUs of a trial: at least one, where it takes all there are."""
        asked = config.resources
        on_gpu = any("cuda" in trial.config.device.first_of for trial in trials) and any(node.gpus for node in self.nodes.values())
        return 1 if asked.cpus == "auto" else asked.cpus, float(on_gpu) if asked.gpus == "auto" else asked.gpus

    def sites(self, config: SweepConfig, made: Outlook, log: Path) -> dict[str, Site]:
        """Each machine with all prepared there that trials read, among it the same clips as here. PreflightError."""
        ours = {name: corpus.fingerprint for name, corpus in made.corpora.items()}
        outlooks = self.ask(sites.look_out, dict.fromkeys(self.nodes, (config, ours)))
        self.ask(sites.equip, dict.fromkeys(self.nodes, (config, made.plan.trials, log)))
        return {name: Site(node, outlooks[name]) for name, node in self.nodes.items()}

    def ask(self, question: Question, arguments: dict[str, tuple]) -> dict[str, Any]:
        """What each machine answers, by its identity, being asked with its `arguments`; all at once. PreflightError with all troubles."""
        import ray

        self._send_surveyors(arguments)
        streams = {name: self._surveyors[name].answer.remote(question, asked_with) for name, asked_with in arguments.items()}
        answers: dict[str, Any] = {}
        troubles: list[str] = []
        while streams:
            (ready,), _ = ray.wait(list(streams.values()))
            name = next(name for name, stream in streams.items() if stream is ready)
            try:
                answered, told = ray.get(next(streams[name]))
            except StopIteration:
                del streams[name]
            except ray.exceptions.RayError as error:
                troubles.append(f"{self._name(name)}: {_trouble(error)}")
                del streams[name]
            else:
                if answered:
                    answers[name] = told
                else:
                    self._say(f"{self._name(name)}: {told}")
        if troubles:
            raise PreflightError("\n".join(dict.fromkeys(troubles)))
        return {name: answers[name] for name in arguments}

    def _send_surveyors(self, machines: Iterable[str]) -> None:
        """An actor on each of the machines that has none yet, which holds all that a raylet there has."""
        import ray

        for name in machines:
            if name not in self._surveyors:
                raylet = self._machines[name][0]
                actor = _on(ray.remote(Surveyor), raylet.id, num_cpus=raylet.cpus, num_gpus=raylet.gpus)
                self._surveyors[name] = actor.remote(self._started_in)
        began = {self._surveyors[name].__ray_ready__.remote(): name for name in machines}
        _, late = ray.wait(list(began), num_returns=len(began), timeout=BUSY_S)
        for each in late:
            self._say(f"{self._name(began[each])}: waits for its cores, which another job of the cluster has")

    def _dismiss_surveyors(self) -> None:
        import ray

        for actor in self._surveyors.values():
            ray.kill(actor)
        self._surveyors = {}

    def close_orphans(self, tracking: Tracking, parent: str, folder: Path) -> None:
        """Tracking.close_orphans, with what lies in the folder of each machine that is still there."""
        import ray

        if any(run.info.status == "RUNNING" for run in tracking.trials(parent)):
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            close = ray.remote(sites.close_orphans)
            first = [raylet for raylets in self._machines.values() for raylet in raylets if raylet.id in alive]
            closing = [_on(close, each.id, num_cpus=0).remote(tracking.uri, tracking.experiment, parent, folder) for each in first]
            ray.wait(closing, num_returns=len(closing), timeout=PATIENCE_S)
        tracking.close_orphans(parent, folder)  # of a machine that is gone

    @contextlib.contextmanager
    def running(self, config: SweepConfig, trials: list[TrialSpec]) -> Iterator[runner.Session]:
        """Trials of equal request on all machines: where one takes a whole machine, what more it has is held meanwhile."""
        import ray
        from ray import tune

        self._dismiss_surveyors()
        cpus, gpus = self._asked(config, trials)
        raylets = [raylet for name in self.nodes for raylet in self._machines[name]]
        whole = config.resources.exclusive_node or config.resources.cpus == "auto"
        if whole:
            cpus = min(raylet.cpus for raylet in raylets)
        spare = [(raylet, raylet.cpus - cpus) for raylet in raylets if whole and raylet.cpus > cpus]
        held = [_on(ray.remote(Holder), raylet.id, num_cpus=more).remote() for raylet, more in spare]
        ray.wait([each.__ray_ready__.remote() for each in held], num_returns=max(len(held), 1), timeout=BUSY_S) if held else None
        ids = ",".join(raylet.id for raylet in raylets)  # not those that come later, of which nothing is known
        request = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        try:
            group = tune.PlacementGroupFactory([request], bundle_label_selector=[{"ray.io/node-id": f"in({ids})"}])
            yield runner.Session(self._scratch, group, _raylets_of_this_machine())
        finally:
            for actor in held:
                ray.kill(actor)

    def _name(self, name: str) -> str:
        return self._machines[name][0].told.name


class Surveyor:
    """The actor that answers questions on its machine."""

    def __init__(self, started_in: Path) -> None:
        os.chdir(started_in)  # where relative paths of the YAML start
        self._template = Template(started_in)

    def answer(self, question: Question, arguments: tuple) -> Iterator[tuple[bool, Any]]:
        """Yields (False, line) for each line that is to be said, at once, and then (True, answer)."""
        lines: SimpleQueue[str | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(question, self._template, lines.put, *arguments)
            answer.add_done_callback(lambda _: lines.put(None))
            while (line := lines.get()) is not None:
                yield False, line
        yield True, answer.result()


class Holder:
    """The actor that does nothing with what it holds."""


def _on(work: Any, node: str, **options: Any) -> Any:
    """A remote function or class, to be run on one node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return work.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **options)


def _trouble(error: BaseException) -> str:
    """What is wrong there, in a line or more."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, PreflightError):
        return str(cause)
    return next(filter(None, map(str.strip, reversed(str(error).splitlines()))), type(error).__name__)


def _raylets_of_this_machine() -> list[int]:
    """Process ids: the launch goes with the raylet that it has joined by."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return [process.pid for process in psutil.process_iter() if _is_raylet(process, node)]


def _is_raylet(process: psutil.Process, node: str) -> bool:
    try:
        return process.name() == "raylet" and any(node in word for word in process.cmdline())
    except psutil.Error:
        return False  # it has ended, or is another user's
