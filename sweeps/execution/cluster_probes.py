"""Runs host tasks on the machines of a cluster, in one actor on each machine.

The actor holds all resources of one raylet of its machine, so that nothing else of this cluster
runs beside it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sweeps import environment
from sweeps.execution.cluster_join import (
    Raylet,
    error_line,
    make_head_check,
    on_node,
    raylets_of_this_machine,
)
from sweeps.execution.hosts import HostTask, Result
from sweeps.execution.ray_session import watch_processes
from sweeps.host.node import Log, PreflightError
from sweeps.sandbox.isolation import ForkServer

FIRST_PROGRESS_S = 60.0  # after this time a launch logs which hosts it waits for
WORKER_WAIT_S = 10.0  # after this time a launch logs that it waits for a host


class HostProbes:
    """The actors that run host tasks, by machine identity. They are started when first needed."""

    def __init__(self, started_in: Path, address: str, log: Log) -> None:
        """Stores `started_in`, the launch's folder, and `address`, the host:port of the head."""
        self._started_in, self._address, self._log = started_in, address, log
        self._actors: dict[str, Any] = {}

    def run(
        self,
        tasks: Mapping[str, HostTask[Result]],
        machines: Mapping[str, Sequence[Raylet]],
        find_alive: Callable[[], Iterable[Raylet]],
    ) -> dict[str, Result]:
        """Runs a task on each machine in `tasks`, on all at once, and returns the results.

        `machines` holds the raylets of every machine. `find_alive` returns the raylets of nodes
        that are alive. Raises PreflightError with the problems of all machines.
        """
        import ray

        names = {name: raylets[0].introduction.name for name, raylets in machines.items()}
        self._start({name: machines[name][0] for name in tasks})
        streams = {name: self._actors[name].run.remote(task) for name, task in tasks.items()}
        results: dict[str, Result] = {}
        problems: list[str] = []
        wait_s, raylets = FIRST_PROGRESS_S, raylets_of_this_machine()
        while streams:
            with watch_processes(raylets, make_head_check(self._address)):
                ready_streams, _ = ray.wait(list(streams.values()), timeout=wait_s)
            if not ready_streams:
                alive = {raylet.introduction.machine for raylet in find_alive()}
                for name in streams.keys() - alive:
                    problems.append(f"{names[name]}: the cluster has lost this machine")
                    del streams[name]
                if streams:
                    (activity,) = {tasks[name].activity for name in streams}
                    self._log(
                        f"{', '.join(names[name] for name in streams)}: still busy with"
                        f" {activity} after {wait_s:g} s more"
                    )
                wait_s *= 2
                continue
            (ready,) = ready_streams
            name = next(name for name, stream in streams.items() if stream is ready)
            try:
                is_result, value = ray.get(next(streams[name]))
            except StopIteration:
                del streams[name]
            except ray.exceptions.RayError as error:
                problems.append(f"{names[name]}: {error_line(error)}")
                del streams[name]
            else:
                if is_result:
                    results[name] = value
                else:
                    self._log(f"{names[name]}: {value}")
        if problems:
            raise PreflightError("\n".join(dict.fromkeys(problems)))
        return {name: results[name] for name in tasks}

    def _start(self, raylets: Mapping[str, Raylet]) -> None:
        """Starts an actor on every machine in `raylets` that has none yet.

        Logs which machines still wait for their cores after WORKER_WAIT_S seconds.
        """
        import ray

        for name, raylet in raylets.items():
            if name not in self._actors:
                actor = on_node(
                    ray.remote(HostProbe), raylet.id, num_cpus=raylet.cpus, num_gpus=raylet.gpus
                )
                self._actors[name] = actor.remote(self._started_in)
        starts = {self._actors[name].__ray_ready__.remote(): name for name in raylets}
        _, late = ray.wait(list(starts), num_returns=len(starts), timeout=WORKER_WAIT_S)
        for start in late:
            self._log(
                f"{raylets[starts[start]].introduction.name}: waits for its cores, because"
                " another job of the cluster uses them or it starts slowly"
            )

    def stop(self) -> None:
        """Kills the actors."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        self._actors = {}

    def forget(self) -> None:
        """Forgets the actors, which have ended with the connection to the cluster."""
        self._actors = {}


class HostProbe:
    """The actor that runs host tasks on its machine."""

    def __init__(self, started_in: Path) -> None:
        # This worker has the environment of the process that started the cluster
        environment.apply()
        os.chdir(started_in)  # relative paths of the YAML start in this folder
        self._fork_server = ForkServer(started_in)

    def run(self, task: HostTask[Any]) -> Iterator[tuple[bool, Any]]:
        """Yields (False, line) for every line to be logged, as soon as it exists, and then (True,
        result).
        """
        lines: SimpleQueue[str | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(task.run, self._fork_server, lines.put)
            future.add_done_callback(lambda _: lines.put(None))
            while (line := lines.get()) is not None:
                yield False, line
        yield True, future.result()


class ResourceReservation:
    """An actor that reserves resources and does nothing with them."""
