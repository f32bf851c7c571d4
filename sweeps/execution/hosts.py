"""Defines the hosts of a launch, the machines that its trials may run on, and what a launch asks of
them.

A `HostTask` is work that a host runs before the first trial (sweeps/execution/host_tasks.py).
`LocalHost` runs host tasks on the launch's own machine, in this process. `Cluster` runs them on all
machines of a Ray cluster at once. One host and many hosts therefore check, prepare and measure the
same things.

Hardware may differ between hosts. Every `HostPlan` therefore has its own /dev/shm requirements,
runtime settings and forecasts for every trial. A trial gets those of the host that it runs on.
Hosts are indexed by host_lock.identity().
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from speech.config import RuntimeSettings
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.execution.launch_context import TrialPlan
from sweeps.execution.ray_session import Session
from sweeps.forecast.trial_forecasts import TrialForecasts
from sweeps.host.node import Log, Node
from sweeps.sandbox.isolation import ForkServer
from sweeps.tracking.mlflow_runs import RunLogger

Result = TypeVar("Result")
TaskResult = TypeVar("TaskResult", covariant=True)


class HostTask(Protocol[TaskResult]):
    """Work that a host runs before the first trial."""

    activity: ClassVar[str]  # completes the line "n1: still busy with ..."

    def run(self, fork_server: ForkServer, log: Log) -> TaskResult:
        """Runs the task on this host. Raises PreflightError."""


@dataclass
class HostPlan:
    """Describes one host: its hardware, and what is known of every trial on it before the trial
    runs.
    """

    node: Node
    trial_forecasts: TrialForecasts
    runtimes: dict[str, RuntimeSettings] = field(default_factory=dict)  # by trial id
    # Why a trial can't be trained, by its id. It runs nevertheless, and fails with this reason
    refused: dict[str, str] = field(default_factory=dict)

    def trial_plans(self) -> dict[str, TrialPlan]:
        """Returns what is known of every trial with runtime settings on this host, by trial id."""
        forecasts, clips = self.trial_forecasts, self.trial_forecasts.training_clips()
        return {
            trial.trial_id: TrialPlan(
                self.runtimes[trial.trial_id],
                forecasts.shm_requirements[trial.trial_id],
                forecasts.forecasts.get(trial.trial_id),
                forecasts.calibrations.get(trial.trial_id),
                clips[trial.config.corpus.selection_key()],
            )
            for trial in forecasts.plan.trials
            if trial.trial_id in self.runtimes
        }


class Hosts(Protocol):
    """The hosts of a launch."""

    starts_ray: bool  # whether the launch starts Ray itself, and can start it again
    nodes: dict[str, Node]  # the hosts that trials may run on; the launch's own comes first

    def survey(self, config: SweepConfig, log_file: Path) -> None:
        """Determines the hardware of every host. Raises PreflightError."""

    def check(self, config: SweepConfig, trials: list[TrialSpec]) -> None:
        """Raises PreflightError if no host has what a trial requests."""

    def prepare_host_plans(
        self, config: SweepConfig, forecasts: TrialForecasts, log_file: Path
    ) -> dict[str, HostPlan]:
        """Prepares all data that trials read, and returns the plan of every host.

        `forecasts` are those of the launch's own machine. Raises PreflightError.
        """

    def call(self, tasks: Mapping[str, HostTask[Result]]) -> dict[str, Result]:
        """Runs a task on each host in `tasks`, on all hosts at once, and returns the results.

        Raises PreflightError.
        """

    def run_on_all(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns the results of `work` on all hosts that can be reached."""

    def close_orphans(self, tracking: RunLogger, parent: str, folder: Path) -> None:
        """Closes the runs of trials whose process has died, with the records in the sweep's folder
        on every host that can be reached; see `orphans.close_orphans`.
        """

    def exclude_host(self, host: str) -> bool:
        """Excludes a host from further trials; returns whether other hosts remain."""

    def open_session(
        self, config: SweepConfig, trials: list[TrialSpec]
    ) -> AbstractContextManager[Session]:
        """Opens a Ray session that has the resources for these trials."""
