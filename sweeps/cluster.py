"""The machines of a running Ray cluster: each is asked what a single machine is asked (sweeps/sites.py), and trials run on all of them.

The one idea is that a machine is what counts, and not a raylet, of which one machine may have two. An actor on each machine answers the
questions; it holds all that its raylet has, so that nothing of this cluster runs beside it. While trials run, an actor on each raylet
holds what a trial there does not ask for: so machines of different sizes take one trial each, where it is to be alone. Two raylets of one
machine take turns by its lock.

Nothing is started on another machine but in Ray's workers, which end with the launch; the cluster itself is left as it was.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil

from sweeps import machine, runner, sites
from sweeps.config import SweepConfig
from sweeps.isolation import Template, environment
from sweeps.janitor import kept_tidy
from sweeps.joining import PATIENCE_S, Raylet, address_of, connect, introduced, on_node, trouble
from sweeps.outlook import Outlook
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.sites import Question, Site
from sweeps.tracking import Tracking, database_file, resolve_uri

BUSY_S = 10.0  # after which a launch says that it waits for a node

START_A_SERVER = """tracking.uri {uri} is a file of one machine, and trials would run on {machines}. Start a server that all of them reach:
  mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts '*' --artifacts-destination /srv/mlflow \\
      --backend-store-uri postgresql+psycopg://USER:PASSWORD@localhost/mlflow
and write tracking: {{uri: http://{name}:5000}}."""


@contextlib.contextmanager
def joined(asked: str, remains: Path, say: Say) -> Iterator["Cluster"]:
    """Joins the cluster that this machine is part of. PreflightError: there is none, or not all of its nodes can run trials.

    `remains`: as janitor.kept_tidy's note.
    """
    address = address_of(asked)
    os.environ |= environment() | runner.ENVIRONMENT | {"RAY_ADDRESS": address}
    with kept_tidy(remains) as scratch:
        with runner.as_it_was(scratch / "ray.log"):
            connect(asked, address)
        import ray

        try:
            yield Cluster(introduced(Path.cwd()), scratch, say)
        finally:
            with runner.muted(scratch / "ray.log"):
                ray.shutdown()


class Cluster:
    """The cluster that `joined` has joined."""

    starts_ray = False

    def __init__(self, raylets: list[Raylet], scratch: Path, say: Say) -> None:
        self._raylets, self._scratch, self._say, self._started_in = raylets, scratch, say, Path.cwd()
        self.nodes: dict[str, Node] = {}  # by machine, those that trials may run on
        self._surveyors: dict[str, Any] = {}  # by machine
        self._left = False

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
                troubles.append(f"{self._name(name)}: {trouble(error)}")
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
                actor = on_node(ray.remote(Surveyor), raylet.id, num_cpus=raylet.cpus, num_gpus=raylet.gpus)
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

    def everywhere(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `work` returns on each machine that can be reached, this one among them; nothing once the cluster is left."""
        import ray

        if self._left:
            return []
        alive = self._alive()
        others = [raylets for name, raylets in self._machines.items() if name != machine.identity()]
        there = [[raylet.id for raylet in raylets if raylet in alive] for raylets in others]
        remote = ray.remote(work)
        waiting = [on_node(remote, ids[0], num_cpus=0, max_retries=0).remote(*arguments) for ids in there if ids]
        answers = [work(*arguments)]
        done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE_S) if waiting else ([], [])
        for answer in done:
            try:
                answers.append(ray.get(answer))
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                continue  # the machine is gone, and what waits there waits for the next launch
        return answers

    def _alive(self) -> list[Raylet]:
        import ray

        ids = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return [raylet for raylet in self._raylets if raylet.id in ids]

    def close_orphans(self, tracking: Tracking, parent: str, folder: Path) -> None:
        """Tracking.close_orphans, with what lies in the folder of each machine that is still there. Once the cluster is left that is up to
        the next launch: a trial of this one may be just ending."""
        if self._left:
            return
        if any(run.info.status == "RUNNING" for run in tracking.trials(parent)):
            self.everywhere(sites.close_orphans, tracking.uri, tracking.experiment, parent, folder)
        tracking.close_orphans(parent, folder)  # of a machine that is gone

    @contextlib.contextmanager
    def running(self, config: SweepConfig, trials: list[TrialSpec]) -> Iterator[runner.Session]:
        """Trials of equal request on all machines: where one takes a whole machine, what more it has is held meanwhile.

        Interrupted, or with its Ray dead, the launch leaves the cluster, which ends its trials.
        """
        import ray
        from ray import tune

        self._dismiss_surveyors()
        cpus, gpus = self._asked(config, trials)
        raylets = [raylet for raylet in self._alive() if raylet.told.machine in self.nodes]
        if not raylets:
            raise runner.RayEnded("No machine of the cluster that could run trials is left.")
        whole = config.resources.exclusive_node or config.resources.cpus == "auto"
        if whole:
            cpus = min(raylet.cpus for raylet in raylets)
        spare = [(raylet, raylet.cpus - cpus) for raylet in raylets if whole and raylet.cpus > cpus]
        held = [on_node(ray.remote(Holder), raylet.id, num_cpus=more).remote() for raylet, more in spare]
        if held:
            ray.wait([each.__ray_ready__.remote() for each in held], num_returns=len(held), timeout=BUSY_S)
        ids = ",".join(raylet.id for raylet in raylets)  # not those that come later, of which nothing is known
        request = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        try:
            group = tune.PlacementGroupFactory([request], bundle_label_selector=[{"ray.io/node-id": f"in({ids})"}])
            yield runner.Session(self._scratch, group, _raylets_of_this_machine())
        except BaseException:
            self._left = True
            with runner.muted(self._scratch / "ray.log"):
                ray.shutdown()
            raise
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
