"""Prepares one launch of a sweep, from its configuration to its first trial: preflight, plan,
calibration and forecasts.

sweeps/execution/retries.py runs it.

A trial that is settled in the tracker is not run again. Launching a file again therefore runs the
new trials and those that failed. Nothing is printed in this module except through `log`, one line
at a time.
"""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeps.config.config import SweepConfig
from sweeps.config.plan import Plan, TrialSpec
from sweeps.execution.folder_checks import check_places
from sweeps.execution.hosts import HostPlan, Hosts
from sweeps.execution.launch_context import WORK_FOLDER, LaunchContext
from sweeps.execution.local_host import LocalHost
from sweeps.execution.sweep_lock import lock_file, lock_launch
from sweeps.execution.tracker_access import open_tracker, require_tracker, tracker_error
from sweeps.execution.trial_folders import remove_trial_folders
from sweeps.execution.trial_preparation import prepare_trials
from sweeps.forecast.shm_fit import count_verdicts
from sweeps.forecast.trial_forecasts import TrialForecasts, prepare_forecasts
from sweeps.host import host_lock
from sweeps.host.node import Log, Node, PreflightError
from sweeps.sandbox import janitor
from sweeps.sandbox.isolation import ForkServer
from sweeps.tracking import outbox_recovery, rerun
from sweeps.tracking.mlflow_runs import Report, RunLogger
from sweeps.tracking.provenance import available_devices, current_environment, software
from sweeps.tracking.rerun import Rerun, select_trials
from sweeps.tracking.sweep_state import Environment, SweepRecords, SweepState, determine_state
from sweeps.tracking.tracker_errors import (
    TrackerUnavailable,
    is_unavailable,
    translate_tracker_errors,
)
from sweeps.trial_states import ShmVerdict, TrialState

TRACKER_TIMEOUT_S = 20.0  # of the end of a sweep, while records wait for the tracker
# A file in the sweep's folder while Ray runs, which names the scratch folder of the launch
CRASH_NOTE = "remains"


@dataclass
class Sweep:
    """Holds a launch that has been checked and planned: its hosts and the state of its sweep."""

    config: SweepConfig
    tracking: RunLogger
    parent: str  # run id
    folder: Path
    hosts: Hosts
    # By host_lock.identity(); the launch's own machine comes first if trials run on it
    host_plans: dict[str, HostPlan]
    state: SweepState
    # Whether no pending trial remains, except those that failed in this launch
    finished: bool = False

    @property
    def node(self) -> Node:
        """The first host that trials may run on: the launch's own machine if trials run there."""
        return next(iter(self.host_plans.values())).node

    @property
    def trial_forecasts(self) -> TrialForecasts:
        """The trial forecasts of the first host."""
        return next(iter(self.host_plans.values())).trial_forecasts

    @property
    def plan(self) -> Plan:
        """The plan, which is the same on all hosts."""
        return self.trial_forecasts.plan

    @property
    def pending(self) -> list[TrialSpec]:
        """The trials that are still to run, in plan order, among them disturbed ones that run once
        more.
        """
        return self.trial_forecasts.pending(self.state.settled, self.state.selection.ids)

    @property
    def unsettled(self) -> list[TrialSpec]:
        """The pending trials without disturbed ones.

        A disturbed trial is settled, whether it runs once more or not.
        """
        return [
            trial
            for trial in self.pending
            if self.state.states.get(trial.trial_id) != TrialState.NEEDS_RERUN
        ]

    def refresh_state(self) -> None:
        """Reads the states of all trials from the tracker again."""
        self.state = self.state.with_runs(self.tracking.trials(self.parent))

    def remove_finished_folders(self) -> None:
        """Removes on all hosts the folders of trials that no launch will continue.

        These are trials that are settled or not planned.
        """
        resumable = {trial.trial_id for trial in self.plan.trials} - self.state.settled.keys()
        self.hosts.run_on_all(remove_trial_folders, self.folder, resumable)


@contextmanager
def open_sweep(
    config: SweepConfig, text: str, rebuild: str, rerun_words: Sequence[str], log: Log
) -> Iterator[Sweep]:
    """Opens a launch: runs preflight, makes the plan and computes forecasts.

    Raises PreflightError, or UnknownTrial for a word of --rerun, before any trial is started.
    `text` is the YAML. `rebuild` is the command that prints the sweep's tables again. `rerun_words`
    are the words of --rerun.
    """
    folder = (WORK_FOLDER / config.name).absolute()
    check_places(config, folder)
    if problem := host_lock.check_lock():
        log(
            f"{problem}: other launches on this machine can't detect this one, and may disturb"
            " its times"
        )
    with contextlib.ExitStack() as stack:
        # One tracker may have two names, and sweeps of two trackers the same name: two locks
        stack.enter_context(lock_launch(folder.with_name(f"{folder.name}.lock")))
        # It imports torch while this process imports MLflow
        fork_server = (
            stack.enter_context(closing(ForkServer())) if config.ray.address == "local" else None
        )
        tracking = open_tracker(config, log)
        stack.enter_context(lock_launch(lock_file(tracking.uri, config)))
        hosts = stack.enter_context(_open_hosts(config, fork_server, folder / CRASH_NOTE, log))
        if unsent := _send_waiting(hosts, folder):
            raise PreflightError(outbox_recovery.format_message(unsent))
        hosts.survey(config, folder / "preflight.log")
        forecasts = prepare_forecasts(config, log)
        trials = forecasts.plan.trials
        select_trials(rerun_words, trials, {})  # raises UnknownTrial before anything is prepared
        hosts.check(config, trials)  # raises PreflightError before anything is prepared
        host_plans = hosts.prepare_host_plans(config, forecasts, folder / "preflight.log")
        with require_tracker(config):
            parent = _start_run(tracking, config, text, rebuild, forecasts)
            hosts.close_orphans(tracking, parent, folder)
            state = _read_state(config, tracking, parent, host_plans, rerun_words)
        sweep = Sweep(config, tracking, parent, folder, hosts, host_plans, state)
        sweep.remove_finished_folders()
        try:
            prepare_trials(sweep, owner(config))
        except BaseException as error:
            finish(sweep, "KILLED")
            if isinstance(error, Exception) and is_unavailable(error):
                raise tracker_error(config, error) from error
            raise
        yield sweep


@contextmanager
def _open_hosts(
    config: SweepConfig, fork_server: ForkServer | None, crash_note: Path, log: Log
) -> Iterator[Hosts]:
    """Yields this machine, or the cluster that this machine is part of; trials run there.

    `fork_server` is that of this machine, and None for a cluster. `crash_note` is the note file of
    `janitor.scratch_dir`.
    """
    janitor.clean_after_crash(crash_note)
    if fork_server:
        yield LocalHost(fork_server, crash_note, log)
    else:
        from sweeps.execution.cluster import join_cluster

        with join_cluster(config.ray.address, crash_note, log) as cluster:
            yield cluster


def _start_run(
    tracking: RunLogger, config: SweepConfig, text: str, rebuild: str, forecasts: TrialForecasts
) -> str:
    """Opens the sweep's run in the tracker with plan, corpora and price; returns the run's id."""
    parent = tracking.start_sweep(config.name, text, forecasts.rows(), rebuild)
    accounts = [
        corpus.account.document() | {"skipped": corpus.skipped}
        for corpus in forecasts.corpora.values()
    ]
    tracking.log_corpora(parent, accounts, forecasts.accounts())
    price = config.resources.price_per_hour
    tracking.set_tags(parent, {"price_per_hour": "" if price is None else price})
    return parent


def _read_state(
    config: SweepConfig,
    tracking: RunLogger,
    parent: str,
    host_plans: dict[str, HostPlan],
    rerun_words: Sequence[str],
) -> SweepState:
    """Returns the state of the sweep, and records in the tracker which rerun it belongs to."""
    trials = next(iter(host_plans.values())).trial_forecasts.plan.trials
    nodes = [host_plan.node for host_plan in host_plans.values()]
    interrupted_rerun = Rerun.from_tags(tracking.client.get_run(parent).data.tags)
    state = determine_state(
        SweepRecords(tracking.trials(parent), interrupted_rerun),
        trials,
        rerun_words,
        Environment(current_environment(config, nodes), available_devices(trials, nodes)),
    )
    if state.rerun:
        tracking.set_tags(parent, {rerun.TAG: state.rerun.to_json()})
    elif interrupted_rerun:
        tracking.client.delete_tag(parent, rerun.TAG)
    return state


def heading(sweep: Sweep) -> str:
    """Returns the heading of a launch: its pending trials and their expected duration.

    It also counts /dev/shm verdicts unless all trials fit, and reports an interrupted rerun,
    changes of the environment, and the corpora.
    """
    forecasts, state, pending = sweep.trial_forecasts, sweep.state, sweep.pending
    requirements = [forecasts.shm_requirements[trial.trial_id] for trial in pending]
    shm_lines = (
        [f"/dev/shm: {count_verdicts(requirements)} (--dry-run shows which)"]
        if {requirement.verdict for requirement in requirements} - {ShmVerdict.FITS}
        else []
    )
    return "\n".join(
        [
            forecasts.outline(state.initial_states, pending),
            *state.rerun_messages(pending),
            *shm_lines,
            *state.environment_changes,
            *forecasts.accounts(),
        ]
    )


def flush_and_refresh(sweep: Sweep, log: Log, patience_s: float = 0.0) -> None:
    """Sends waiting records on every host, closes the runs of trials whose process has died, and
    reads the trials' states again.

    Raises TrackerUnavailable if the tracker cannot be reached; no run has been closed then. Records
    that the tracker rejects are logged, and do not prevent the tables.
    """
    unsent = _send_waiting(sweep.hosts, sweep.folder, patience_s)
    if any(outbox.unavailable for outbox in unsent):
        raise TrackerUnavailable(outbox_recovery.format_message(unsent))
    if unsent:
        log(outbox_recovery.format_message(unsent))
    with translate_tracker_errors(sweep.tracking.uri):
        sweep.hosts.close_orphans(sweep.tracking, sweep.parent, sweep.folder)
        sweep.refresh_state()
    sweep.remove_finished_folders()


def _send_waiting(
    hosts: Hosts, folder: Path, patience_s: float = 0.0
) -> list[outbox_recovery.Unsent]:
    """Sends the records that wait on every host, and returns the outboxes that the tracker has not
    taken.

    Every host sends its own records. It first ends attempts whose process has died.
    """
    return [
        outbox
        for unsent in hosts.run_on_all(outbox_recovery.end_and_flush_all, folder, patience_s)
        for outbox in unsent
    ]


def finish(
    sweep: Sweep, status: str, tables: str | None = None, report: Report | None = None
) -> None:
    """Closes the sweep's run; see `RunLogger.finish_sweep`.

    While the tracker cannot be reached the run stays open; the next launch continues it.
    """
    with contextlib.suppress(TrackerUnavailable), translate_tracker_errors(sweep.tracking.uri):
        if sweep.state.rerun and sweep.finished:
            sweep.tracking.client.delete_tag(sweep.parent, rerun.TAG)
        sweep.tracking.finish_sweep(sweep.parent, status, tables, report)


def build_launch_context(sweep: Sweep) -> LaunchContext:
    """Returns what all trials of a round share."""
    config, current_rerun = sweep.config, sweep.state.rerun
    with translate_tracker_errors(sweep.tracking.uri):
        attempts = sweep.tracking.attempts(sweep.parent)
    return LaunchContext(
        tracking_uri=sweep.tracking.uri,
        experiment=config.tracking.experiment,
        parent=sweep.parent,
        started_in=Path.cwd(),
        folder=sweep.folder,
        private_shm=config.resources.shm == "private",
        exclusive=config.resources.exclusive_node,
        keep=config.snapshots.keep,
        planned=frozenset(trial.trial_id for trial in sweep.plan.trials),
        attempts=attempts,
        trial_plans={host: plan.trial_plans() for host, plan in sweep.host_plans.items()},
        provenance={
            **software(),
            "sweep": config.name,
            **({rerun.TAG: current_rerun.id} if current_rerun else {}),
        },
        owner=owner(config),
        fingerprints=sweep.trial_forecasts.fingerprints(),
    )


def owner(config: SweepConfig) -> str:
    """Returns how this launch is named to processes that wait for a host that it holds."""
    return f"sweep {config.name} (process {os.getpid()} on {platform.node()})"
