"""Defines the tasks that every host runs before the first trial: survey, checks, preparation,
choice of runtime settings and calibration.

A task is a typed request that can be sent to another machine. It runs there, with a fork server of
that machine and a function that logs a line (sweeps/execution/hosts.py).
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

from speech.calibration.costs import Calibration
from speech.config import RuntimeSettings, TrialConfig
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.execution import preflight
from sweeps.execution.room import check_process_limits
from sweeps.forecast import calibration
from sweeps.forecast.calibration import CalibrationRequest
from sweeps.forecast.speed_check import check_calibrations
from sweeps.forecast.trial_forecasts import TrialForecasts, prepare_forecasts
from sweeps.host import host_lock
from sweeps.host.node import Log, Node, PreflightError, default_runtime
from sweeps.output import mask_passwords
from sweeps.sandbox.isolation import ForkServer, Task
from sweeps.sandbox.stacks import TimedCalls
from sweeps.tracking.mlflow_runs import RunLogger

PROGRESS_AFTER_S = [60.0, 300.0, 900.0, 3600.0]  # after these times a launch logs what it is doing


@dataclass(frozen=True)
class Survey:
    """Determines the hardware of the host, and logs what the kernel withholds of it."""

    activity: ClassVar[str] = "the survey of its hardware"

    config: SweepConfig
    log_file: Path

    def run(self, fork_server: ForkServer, log: Log) -> Node:
        """Returns the host's hardware. Raises PreflightError."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with TimedCalls(
            PROGRESS_AFTER_S[:1],
            lambda passed_s: log(
                f"the process that trials are forked from has not started within {passed_s:.0f} s"
            ),
        ):
            node = preflight.read_hardware(fork_server, self.config, self.log_file)
        for line in node.limits():
            log(line)
        return node


@dataclass(frozen=True)
class CheckTracker:
    """Checks that a trial on the host can record its metrics in the tracker.

    If `shared`, also checks that all hosts share the place where the tracker stores files.
    """

    activity: ClassVar[str] = "the check of the tracker"

    uri: str
    experiment: str
    shared: bool

    def run(self, fork_server: ForkServer, log: Log) -> None:
        """Raises PreflightError if metrics cannot be recorded."""
        tracker = mask_passwords(self.uri)
        try:
            tracking = RunLogger(self.uri, self.experiment)
            artifacts = tracking.client.get_experiment(tracking.experiment_id).artifact_location
        except Exception as error:  # MLflow and its database drivers raise types of their own
            raise PreflightError(
                f"tracking.uri {tracker} can't be used:"
                f" {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            ) from error
        if self.shared and urlsplit(artifacts).scheme in ("", "file"):
            raise PreflightError(
                f"experiment {self.experiment} at {tracker} stores its files in {artifacts}, a"
                " different folder on each machine. Start mlflow server with"
                " --artifacts-destination, and write another tracking.experiment."
            )


@dataclass(frozen=True)
class PrepareForecasts:
    """Prepares the launch's forecasts on the host, whose corpora must equal those of the launch.

    `fingerprints` holds the launch's corpora, by Corpus.selection_key().
    """

    activity: ClassVar[str] = "reading the corpora"

    config: SweepConfig
    fingerprints: dict[str, str]

    def run(self, fork_server: ForkServer, log: Log) -> TrialForecasts:
        """Returns the forecasts. Raises PreflightError if a corpus differs."""
        forecasts = prepare_forecasts(self.config, log)
        for which, corpus in forecasts.corpora.items():
            if corpus.fingerprint != self.fingerprints[which]:
                raise PreflightError(
                    f"the corpus at {corpus.root} has other clips than on the machine of the"
                    f" launch: {len(corpus.clips):,} clips here, fingerprint"
                    f" {corpus.fingerprint[:12]} instead of {self.fingerprints[which][:12]}. Copy"
                    " it from that machine."
                )
        return forecasts


@dataclass(frozen=True)
class PrepareData:
    """Prepares all data that trials read on the host, and checks that it can be read."""

    activity: ClassVar[str] = "preparing the data of the trials"

    config: SweepConfig
    trials: Sequence[TrialSpec]
    log_file: Path

    def run(self, fork_server: ForkServer, log: Log) -> dict[str, str]:
        """Returns the reasons why trials cannot be trained as configured, by trial id.

        Raises PreflightError.
        """
        configs = [trial.config for trial in self.trials]
        preflight.check_shm_sizes(self.config, configs)
        node = Node.local()
        check_process_limits(
            configs,
            default_runtime(node, self.config).threads,
            self.config.ray.address == "local",
            log,
            self._count_parallel_trials(node),
        )
        with TimedCalls(
            PROGRESS_AFTER_S,
            lambda passed_s: log(
                f"preparing the data of the trials has taken {passed_s:.0f} s and continues"
            ),
        ):
            return preflight.prepare(fork_server, self.trials, self.log_file, log)

    def _count_parallel_trials(self, node: Node) -> int:
        """Returns how many trials run on the host side by side."""
        resources = self.config.resources
        if resources.exclusive_node or resources.cpus == "auto":
            return 1
        return max(min(len(self.trials), node.whole_cores // resources.cpus), 1)


@dataclass(frozen=True)
class ChooseRuntimes:
    """Chooses the runtime settings of all trials like each example, by the name of the example."""

    activity: ClassVar[str] = "measuring the precision"

    config: SweepConfig
    node: Node
    examples: dict[str, TrialConfig]
    log_file: Path
    owner: str

    def run(self, fork_server: ForkServer, log: Log) -> dict[str, RuntimeSettings]:
        """Returns the settings by the name of the example. Raises PreflightError."""
        probed = any(self.node.device(example) != "simulated" for example in self.examples.values())
        with (
            hold_host(self.config, self.owner, log, "measuring the precision")
            if probed
            else contextlib.nullcontext()
        ):
            return {
                name: self._choose(fork_server, log, name, example)
                for name, example in self.examples.items()
            }

    def _choose(
        self, fork_server: ForkServer, log: Log, name: str, example: TrialConfig
    ) -> RuntimeSettings:
        """Returns cores, threads, precision and memory format for all trials like `example`.

        The precision is measured once, on `example`.
        """
        default = default_runtime(self.node, self.config)
        if self.node.device(example) == "simulated":
            return default
        arguments = {"config": example.model_dump(), "threads": default.threads}
        probe = preflight.run_task(
            fork_server,
            Task("probe", arguments, private=False, cpus=default.cpus),
            self.log_file,
            "probe",
            f"the precision of block {name} can't be measured: {{problem}}",
        )
        log(f"precision: {probe['line']}")
        return RuntimeSettings.model_validate(probe["runtime"] | {"cpus": default.cpus})


class Calibrations(NamedTuple):
    """Holds which calibration each trial requires, and the calibrations that are available."""

    requests: dict[str, CalibrationRequest]  # by trial id
    available: dict[str, Calibration]  # by the request's name


@dataclass(frozen=True)
class Calibrate:
    """Calibrates the host for the trials in `pending`.

    A calibration that such a trial needs is checked if it is cached, and measured if not. Others
    are returned only if the cache has them.
    """

    activity: ClassVar[str] = "calibrating"

    config: SweepConfig
    node: Node
    trials: Sequence[TrialSpec]
    runtimes: dict[str, RuntimeSettings]  # by trial id
    fingerprints: dict[str, str]  # of the corpora, by Corpus.selection_key()
    pending: Sequence[str]  # ids
    log_file: Path
    owner: str

    def run(self, fork_server: ForkServer, log: Log) -> Calibrations:
        """Returns the calibrations. Raises PreflightError."""
        requests = calibration.required_calibrations(
            self.trials, self.runtimes, self.fingerprints, self.node
        )
        required = {
            requests[trial_id].name: requests[trial_id]
            for trial_id in self.pending
            if trial_id in requests
        }
        names, private = (
            {request.name for request in requests.values()},
            self.config.resources.shm == "private",
        )
        if not required:
            return Calibrations(requests, calibration.load_cached(names))
        with hold_host(self.config, self.owner, log, "calibrating"):
            available = check_calibrations(
                fork_server,
                required.values(),
                calibration.load_cached(names),
                private,
                self.log_file,
                log,
            )
            missing = [request for name, request in required.items() if name not in available]
            available |= calibration.measure_all(fork_server, missing, private, self.log_file, log)
        return Calibrations(requests, available)


def hold_host(
    config: SweepConfig, owner: str, log: Log, activity: str
) -> AbstractContextManager[None]:
    """Holds this host for a timed `activity`, as the trials of the sweep do."""
    return host_lock.acquire(
        config.resources.exclusive_node,
        owner,
        lambda holder: log(f"{holder} holds this machine: {activity} waits"),
    )
