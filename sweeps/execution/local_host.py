"""Runs the host tasks and the trials of a launch on its own machine, with a Ray of its own."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec, request_gpus
from sweeps.execution import ray_session
from sweeps.execution.host_tasks import PrepareData, Survey
from sweeps.execution.hosts import HostPlan, HostTask, Result
from sweeps.forecast.trial_forecasts import TrialForecasts
from sweeps.host import host_lock
from sweeps.host.node import Log, Node, PreflightError
from sweeps.sandbox.isolation import ForkServer
from sweeps.tracking import orphans
from sweeps.tracking.mlflow_runs import RunLogger


class LocalHost:
    """The launch's own machine as its only host; see `Hosts`."""

    starts_ray = True

    def __init__(self, fork_server: ForkServer, crash_note: Path, log: Log) -> None:
        """Stores `crash_note`, the note file of `janitor.scratch_dir`, and the other arguments."""
        self._fork_server, self._crash_note, self._log = fork_server, crash_note, log
        self.nodes: dict[str, Node] = {}

    def survey(self, config: SweepConfig, log_file: Path) -> None:
        """Determines the hardware of this machine. Raises PreflightError."""
        self.nodes = self.call({host_lock.identity(): Survey(config, log_file)})

    def check(self, config: SweepConfig, trials: list[TrialSpec]) -> None:
        """Raises PreflightError if this machine lacks what trials request."""
        self._resource_request(config, trials)

    def prepare_host_plans(
        self, config: SweepConfig, forecasts: TrialForecasts, log_file: Path
    ) -> dict[str, HostPlan]:
        """Prepares all data that trials read, and returns the plan of this machine.

        Raises PreflightError.
        """
        task = PrepareData(config, forecasts.plan.trials, log_file)
        return {
            host: HostPlan(self.nodes[host], forecasts, refused=refused)
            for host, refused in self.call(dict.fromkeys(self.nodes, task)).items()
        }

    def call(self, tasks: Mapping[str, HostTask[Result]]) -> dict[str, Result]:
        """Runs the task of this machine in this process. Raises PreflightError."""
        return {host: task.run(self._fork_server, self._log) for host, task in tasks.items()}

    def run_on_all(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns the result of `work` on this machine, as the only element."""
        return [work(*arguments)]

    def close_orphans(self, tracking: RunLogger, parent: str, folder: Path) -> None:
        """Closes the runs of trials whose process has died, with the records in the sweep's
        folder.
        """
        orphans.close_orphans(tracking, parent, folder)

    def exclude_host(self, host: str) -> bool:
        """Returns False: no other host remains, so this one is never excluded."""
        return False

    def open_session(
        self, config: SweepConfig, trials: list[TrialSpec]
    ) -> AbstractContextManager[ray_session.Session]:
        """Starts a Ray for these trials."""
        (node,) = self.nodes.values()
        return ray_session.start_own_ray(
            node, self._resource_request(config, trials), self._crash_note
        )

    def _resource_request(self, config: SweepConfig, trials: list[TrialSpec]) -> dict[str, float]:
        """Returns the Ray resources of every trial, for example {"CPU": 8, "GPU": 1}.

        Trials that run alone get all cores of the machine. Raises PreflightError if the machine has
        fewer than the configuration requests.
        """
        (node,), resources = self.nodes.values(), config.resources
        on_gpu = [trial for trial in trials if node.device(trial.config) == "cuda"]
        cores, gpus = node.whole_cores, request_gpus(config, on_gpu, bool(on_gpu))
        cpus = cores if resources.cpus == "auto" else resources.cpus
        if cpus > cores or gpus > len(node.gpus):
            quota = (
                f" (a CPU quota of {node.cores:g} on {len(node.cpus)})"
                if node.cores != len(node.cpus)
                else ""
            )
            raise PreflightError(
                f"resources: a trial requests {cpus} cores and {gpus:g} GPUs; this machine has"
                f" {cores}{quota} and {len(node.gpus)}. Write auto, or at most what it has."
            )
        return {"CPU": cores if resources.exclusive_node else cpus} | (
            {"GPU": gpus} if gpus else {}
        )
