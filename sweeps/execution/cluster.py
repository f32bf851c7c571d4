"""Runs trials on all machines of a running Ray cluster.

Every machine runs the same host tasks as a single machine does (sweeps/execution/hosts.py).

The unit is the machine, not the raylet: one machine may have two raylets. An actor on each machine
runs the host tasks (sweeps/execution/cluster_probes.py). While trials run, an actor on each raylet
reserves what a trial there does not request. Machines of different sizes therefore take one trial
at a time where trials run alone. Two raylets of one machine take turns by the machine's lock.

The launch starts nothing on another machine except in Ray's workers, which end with the launch. It
does not change the cluster itself.
"""

import contextlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps import environment
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec, request_gpus
from sweeps.execution import closing, ray_session
from sweeps.execution.cluster_checks import check_locks, check_tracker
from sweeps.execution.cluster_join import (
    RESPONSE_TIMEOUT_S,
    Raylet,
    check_nodes,
    connect,
    make_head_check,
    on_node,
    raylets_of_this_machine,
    resolve_address,
)
from sweeps.execution.cluster_probes import HostProbes, ResourceReservation
from sweeps.execution.host_tasks import CheckTracker, PrepareData, PrepareForecasts, Survey
from sweeps.execution.hosts import HostPlan, HostTask, Result
from sweeps.execution.launch_context import WORK_FOLDER
from sweeps.execution.ray_variables import JOINED_RAY
from sweeps.forecast.trial_forecasts import TrialForecasts
from sweeps.host import host_lock
from sweeps.host.node import Log, Node, PreflightError
from sweeps.sandbox.janitor import CLEANUP_COMMAND_FILE, scratch_dir
from sweeps.tracking import orphans
from sweeps.tracking.database import resolve_uri
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.tracker_errors import DISK_FULL_ERRORS

RESERVATION_WAIT_S = 10.0  # for the actors that reserve resources


@contextlib.contextmanager
def join_cluster(configured_address: str, crash_note: Path, log: Log) -> Iterator["Cluster"]:
    """Joins the cluster that this machine is part of, and leaves it at the end of the context.

    Raises PreflightError if there is no such cluster, or if some of its nodes cannot run trials.
    `configured_address` is the address as in the YAML. `crash_note` is the note file of
    `janitor.scratch_dir`.
    """
    address = resolve_address(configured_address)
    environment.apply()
    environment.apply(*JOINED_RAY)
    os.environ |= environment.with_project() | {"RAY_ADDRESS": address}
    with scratch_dir(crash_note) as scratch:
        with ray_session.restore_signal_handlers(scratch / "ray.log"):
            connect(configured_address, address)
        import ray

        try:
            yield Cluster(check_nodes(Path.cwd(), log), scratch, log, configured_address, address)
        finally:
            with ray_session.redirect_output(scratch / "ray.log"):
                ray.shutdown()
            (scratch / CLEANUP_COMMAND_FILE).unlink(missing_ok=True)


class Cluster:
    """The machines of a cluster that `join_cluster` has joined; see `Hosts`."""

    starts_ray = False

    def __init__(
        self,
        raylets: list[Raylet],
        scratch: Path,
        log: Log,
        configured_address: str = "auto",
        address: str = "",
    ) -> None:
        """Stores `configured_address`, as in the YAML, and `address`, the host:port of the head."""
        self._raylets, self._scratch, self._log, self._started_in = (
            raylets,
            scratch,
            log,
            Path.cwd(),
        )
        self._configured_address, self._address = configured_address, address
        self.nodes: dict[str, Node] = {}  # by machine identity; trials may run on these machines
        self._probes = HostProbes(self._started_in, address, log)
        self._disconnected = False

    @property
    def _machines(self) -> dict[str, list[Raylet]]:
        """The raylets of every machine, by machine identity; this machine comes first."""
        machines: dict[str, list[Raylet]] = {}
        for raylet in self._raylets:
            machines.setdefault(raylet.introduction.machine, []).append(raylet)
        return machines

    def survey(self, config: SweepConfig, log_file: Path) -> None:
        """Determines the hardware of every machine.

        Checks that all machines reach one tracker and, where trials run alone, see each other's
        locks. Raises PreflightError.
        """
        check_tracker(config, self._machines)
        if config.resources.exclusive_node:
            check_locks(self._machines)
        machines = self._machines
        uri, experiment = resolve_uri(config.tracking.uri), config.tracking.experiment
        self.call(dict.fromkeys(machines, CheckTracker(uri, experiment, len(machines) > 1)))
        self.nodes = self.call(dict.fromkeys(machines, Survey(config, log_file)))

    def check(self, config: SweepConfig, trials: list[TrialSpec]) -> None:
        """Excludes machines without the cores or GPUs that a trial requests, and logs their names.

        Raises PreflightError if no machine has them.
        """
        cpus, gpus = self._trial_request(config, trials)
        for name, node in list(self.nodes.items()):
            cores = min([node.whole_cores, *(raylet.cpus for raylet in self._machines[name])])
            if cores < cpus or len(node.gpus) < gpus:
                shortage = (
                    f"{self._name(name)} has {cores} cores and {len(node.gpus)} GPUs, but a trial"
                    f" requests {cpus} and {gpus:g}"
                )
                if len(self.nodes) == 1:
                    raise PreflightError(
                        f"resources: {shortage}. Write auto, or at most what a machine of"
                        " the cluster has."
                    )
                self._log(f"{shortage}: it is excluded")
                del self.nodes[name]
        for node in self.nodes.values():
            for trial in trials:
                node.device(trial.config)

    def _trial_request(self, config: SweepConfig, trials: list[TrialSpec]) -> tuple[int, float]:
        """Returns the CPUs and GPUs of a trial; at least 1 CPU where a trial takes all of them."""
        resources, available = config.resources, any(node.gpus for node in self.nodes.values())
        cpus = 1 if resources.cpus == "auto" else resources.cpus
        return cpus, request_gpus(config, trials, available)

    def prepare_host_plans(
        self, config: SweepConfig, forecasts: TrialForecasts, log_file: Path
    ) -> dict[str, HostPlan]:
        """Prepares on every machine all data that trials read, and returns a plan for each.

        Raises PreflightError, for example where a machine's corpora differ from those of this
        machine.
        """
        forecasts_by_host = self.call(
            dict.fromkeys(self.nodes, PrepareForecasts(config, forecasts.fingerprints()))
        )
        refused = self.call(
            dict.fromkeys(self.nodes, PrepareData(config, forecasts.plan.trials, log_file))
        )
        return {
            name: HostPlan(node, forecasts_by_host[name], refused=refused[name])
            for name, node in self.nodes.items()
        }

    def call(self, tasks: Mapping[str, HostTask[Result]]) -> dict[str, Result]:
        """Runs a task on each machine in `tasks`, on all machines at once, and returns the results.

        Raises PreflightError with the problems of all machines.
        """
        return self._probes.run(tasks, self._machines, self._alive)

    def run_on_all(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns the results of `work` on all machines that can be reached, this one among them.

        Returns an empty list once the launch has left the cluster.
        """
        import ray

        if self._disconnected:
            return []
        alive, remote = self._alive(), ray.remote(work)
        machine_of: dict[Any, str] = {}  # machine identity, by reference to the pending result
        results = []
        for name, raylets in self._machines.items():
            ids = [raylet.id for raylet in raylets if raylet in alive]
            if ids and name != host_lock.identity():
                machine_of[
                    on_node(remote, ids[0], num_cpus=0, max_retries=0).remote(*arguments)
                ] = name
        with self._log_disk_full(host_lock.identity()):
            results.append(work(*arguments))
        done, late = (
            ray.wait(list(machine_of), num_returns=len(machine_of), timeout=RESPONSE_TIMEOUT_S)
            if machine_of
            else ([], [])
        )
        for pending_result in done:
            with self._log_disk_full(machine_of[pending_result]):
                try:
                    results.append(ray.get(pending_result))
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError:
                    continue  # the machine is gone; its records wait for the next launch
        for pending_result in late:
            self._log(
                f"{self._name(machine_of[pending_result])}: no answer within"
                f" {RESPONSE_TIMEOUT_S:g} s; the next launch sends the records that wait there"
            )
        return results

    @contextlib.contextmanager
    def _log_disk_full(self, name: str) -> Iterator[None]:
        """Logs that the disk of machine `name` is full, instead of raising the OSError.

        A full disk on one machine must not stop work on the others. The next launch sends the
        records that wait there.
        """
        try:
            yield
        except OSError as error:
            # Ray's own error is an OSError too, but an empty one
            cause: OSError = getattr(error, "cause", error)
            if cause.errno not in DISK_FULL_ERRORS:
                raise
            self._log(
                f"{self._name(name)}: {cause.strerror}: the next launch sends the records that"
                " wait there, once the disk has room"
            )

    def _alive(self) -> list[Raylet]:
        """Returns the raylets of nodes that are alive."""
        import ray

        ids = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return [raylet for raylet in self._raylets if raylet.id in ids]

    def close_orphans(self, tracking: RunLogger, parent: str, folder: Path) -> None:
        """Closes orphaned runs, with the records in the sweep's folder on every machine that is
        alive.

        See `orphans.close_orphans`. Once the launch has left the cluster this does nothing and
        leaves the task to the next launch: a trial of this launch may be about to end.
        """
        if self._disconnected:
            return
        if any(run.info.status == "RUNNING" for run in tracking.trials(parent)):
            self.run_on_all(_close_orphans, tracking.uri, tracking.experiment, parent, folder)
        unreached = [
            run.data.tags.get("node", "?")
            for run in tracking.trials(parent)
            if run.info.status == "RUNNING"
        ]
        orphans.close_orphans(tracking, parent, folder)  # runs of machines that are gone
        for host, count in Counter(unreached).items():
            runs = "1 run there is" if count == 1 else f"{count} runs there are"
            self._log(
                f"{host} can't be reached: {runs} closed as interrupted; a launch that reaches"
                f" {host} again sends its records"
            )

    @contextlib.contextmanager
    def open_session(
        self, config: SweepConfig, trials: list[TrialSpec]
    ) -> Iterator[ray_session.Session]:
        """Opens a Ray session for trials of equal request on all machines.

        Where a trial takes a whole machine, an actor reserves the cores that the machine has beyond
        the request. If the launch is interrupted or Ray ends, the launch leaves the cluster, which
        ends its trials.
        """
        import ray
        from ray import tune

        self._probes.stop()
        folder = self._started_in / WORK_FOLDER / config.name
        (self._scratch / CLEANUP_COMMAND_FILE).write_text(
            json.dumps(closing.command(self._configured_address, self._address, folder))
        )
        cpus, gpus = self._trial_request(config, trials)
        raylets = [raylet for raylet in self._alive() if raylet.introduction.machine in self.nodes]
        if not raylets:
            raise ray_session.RayEnded("No machine of the cluster can run trials any more.")
        whole_machine = config.resources.exclusive_node or config.resources.cpus == "auto"
        if whole_machine:
            cpus = min(raylet.cpus for raylet in raylets)
        spare = [
            (raylet, raylet.cpus - cpus)
            for raylet in raylets
            if whole_machine and raylet.cpus > cpus
        ]
        reservations = [
            on_node(ray.remote(ResourceReservation), raylet.id, num_cpus=cores).remote()
            for raylet, cores in spare
        ]
        if reservations:
            ray.wait(
                [actor.__ray_ready__.remote() for actor in reservations],
                num_returns=len(reservations),
                timeout=RESERVATION_WAIT_S,
            )
        # Nodes that join later are excluded, since nothing is known of them
        ids = ",".join(raylet.id for raylet in raylets)
        request = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        try:
            group = tune.PlacementGroupFactory(
                [request], bundle_label_selector=[{"ray.io/node-id": f"in({ids})"}]
            )
            yield ray_session.Session(
                self._scratch, group, raylets_of_this_machine(), make_head_check(self._address)
            )
        except BaseException as error:
            self._disconnect(reconnect=not isinstance(error, ray_session.RayEnded))
            raise
        for actor in reservations:
            ray.kill(actor)

    def _disconnect(self, reconnect: bool) -> None:
        """Leaves the cluster, which ends the trials of this launch.

        Joins it again if `reconnect`, so that the launch can close the runs of these trials.
        """
        import ray

        self._disconnected = True
        self._probes.forget()
        with ray_session.redirect_output(self._scratch / "ray.log"):
            ray.shutdown()
        if reconnect:
            with (
                contextlib.suppress(PreflightError),
                ray_session.restore_signal_handlers(self._scratch / "ray.log"),
            ):
                connect(self._configured_address, self._address)
                self._disconnected = False

    def exclude_host(self, name: str) -> bool:
        """Excludes this machine from further trials; returns whether other machines remain."""
        others = set(self.nodes) - {name}
        if others and name in self.nodes:
            del self.nodes[name]
            self._log(f"{self._name(name)} is excluded from now on; other machines continue")
        return bool(others)

    def _name(self, machine: str) -> str:
        """Returns the host name of a machine, by its identity."""
        return (
            self._machines[machine][0].introduction.name
            if machine in self._machines
            else platform.node()
        )


def _close_orphans(uri: str, experiment: str, parent: str, folder: Path) -> None:
    """Closes orphaned runs of trials that ran on this machine; see `orphans.close_orphans`."""
    orphans.close_orphans(RunLogger(uri, experiment), parent, folder, platform.node())
