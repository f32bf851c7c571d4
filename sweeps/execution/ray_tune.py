"""Runs trials with Ray Tune, which decides where and when each trial runs.

Trials run in the order of the plan. Each requests the resources that the sweep gives every trial.
Where a trial holds its host alone, these are all CPUs of the host, and the trial holds the host's
lock (sweeps/host/host_lock.py) while it runs. The Ray actor only relays
(sweeps/execution/trial_runner.py). It does not import torch. The actor is reused from trial to
trial, and so is the clean process that its trials are forked from.
"""

import contextlib
import os
import pickle
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from sweeps import environment
from sweeps.config.plan import TrialSpec
from sweeps.execution.disk import DiskFull, check_disk, translate_disk_errors
from sweeps.execution.launch_context import LaunchContext, TrialPlan
from sweeps.execution.ray_session import Session, as_ray_error, redirect_output, watch_processes
from sweeps.execution.ray_start import StartWatch
from sweeps.execution.trial_result import EpochEnd, LostTrial, TrialResult
from sweeps.execution.trial_runner import run_trial
from sweeps.forecast.corrections import Corrections
from sweeps.host import host_lock
from sweeps.sandbox.isolation import ForkServer
from sweeps.trial_states import Outcome


class _Work(NamedTuple):
    """Holds what the process of a Ray actor needs for all its trials."""

    trials: Mapping[str, TrialSpec]  # by trial id
    plans: Mapping[str, TrialPlan]  # of these trials on this host, by trial id
    launch: LaunchContext


_fork_server: ForkServer | None = None  # of the process of this Ray actor
_work: _Work | None = None
_corrections = Corrections()  # of the forecasts of the trials that this actor runs


class TrialListener(Protocol):
    """Receives what happens to trials while `run` runs them."""

    def on_start(self, spec: TrialSpec) -> None:
        """Records that a trial has started."""

    def on_epoch(self, spec: TrialSpec, epoch: EpochEnd) -> None:
        """Records that a trial has completed an epoch."""

    def on_trial_end(self, spec: TrialSpec, result: TrialResult | LostTrial) -> bool:
        """Records how a trial ended; returns whether other trials may start afterwards."""

    def log(self, line: str) -> None:
        """Prints a line, such as which host trials wait for, and why."""


def run(
    trials: list[TrialSpec],
    launch: LaunchContext,
    session: AbstractContextManager[Session],
    listener: TrialListener,
) -> None:
    """Runs all trials. Raises RayEnded; trials that have ended are settled then."""
    with contextlib.ExitStack() as stack:
        scratch, request, needed, find_problem, own = stack.enter_context(session)
        watch = StartWatch(scratch, lambda line: _log_to_stdout(listener, line), ends=own)
        stack.enter_context(redirect_output(scratch / "ray.log"))
        stack.enter_context(watch_processes(needed, lambda: find_problem() or watch.check()))
        stack.enter_context(as_ray_error())
        import ray
        from ray import tune

        # Each actor fetches this once; Tune would fetch its own parameters again for every trial
        work = ray.put(({trial.trial_id: trial for trial in trials}, launch))
        scheduler = _make_scheduler()
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_relay_trial, work=[work]), request),
            param_space={"trial_id": tune.grid_search([trial.trial_id for trial in trials])},
            tune_config=tune.TuneConfig(
                reuse_actors=True, scheduler=scheduler, trial_dirname_creator=_folder_name
            ),
            run_config=tune.RunConfig(
                storage_path=str(scratch),
                name="tune",
                verbose=0,
                callbacks=[_make_callback(trials, listener, scheduler.end, watch)],
            ),
        )
        tuner.fit()


def _log_to_stdout(listener: TrialListener, line: str) -> None:
    """Logs a line to the launch's own stdout while printed text goes to Ray's log."""
    with contextlib.redirect_stdout(sys.__stdout__):
        listener.log(line)


def _folder_name(trial: Any) -> str:
    """Returns the name of Tune's own folder of a trial.

    Tune writes this function to disk with every trial. It must not refer to anything that grows
    with the sweep.
    """
    return trial.config["trial_id"]


def _relay_trial(config: dict[str, str], work: list[Any]) -> None:
    """Relays one trial in the actor's process; this is the Ray trainable.

    `work` holds a reference to all trials and what they share.
    """
    from ray import tune

    global _fork_server
    trials, plans, launch = _load_work(work[0])
    if _fork_server is None or _fork_server.ended:
        _fork_server = ForkServer(launch.started_in)
    tune.report({"runs_on": platform.node()})
    with (
        host_lock.acquire(
            launch.exclusive, launch.owner, lambda holder: tune.report({"waits_for": holder})
        ),
        translate_disk_errors(launch),
    ):
        trial_id = config["trial_id"]
        result = run_trial(
            _fork_server,
            trials[trial_id],
            plans[trial_id],
            launch,
            _corrections,
            lambda epoch: tune.report(epoch._asdict()),
        )
        if result.outcome == Outcome.CRASHED and DiskFull.MESSAGE in result.evidence:
            check_disk(launch)
    tune.report({"result": result})


def _load_work(reference: Any) -> _Work:
    """Returns the work of this actor; the first call fetches it and prepares the process."""
    import ray

    global _work
    if _work is None:
        # A cluster's workers have the environment of the process that started it
        environment.apply()
        # Ray sets this variable in the same way
        os.environ["OMP_NUM_THREADS"] = str(
            max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        )
        trials, launch = ray.get(reference)
        _work = _Work(trials, launch.trial_plans[host_lock.identity()], launch)
    return _work


def _make_scheduler() -> Any:
    """Returns a scheduler with Tune's own order of trials; its method `end` prevents further
    starts.
    """
    from ray.tune import schedulers

    class Scheduler(schedulers.FIFOScheduler):
        controller: Any = None

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self.controller = tune_controller

        def end(self) -> None:
            """Prevents further trials from starting; running trials continue to their end."""
            self.controller.search_alg.set_finished()
            for trial in self.controller.get_trials():
                if trial.status == trial.PENDING:
                    self.controller.stop_trial(trial)

    return Scheduler()


def _load_error(trial: Any) -> BaseException | None:
    """Returns the exception that Ray raised for a trial.

    By now it is in a file, but Tune's own `get_error` does not read it from there yet.
    """
    try:
        with open(trial.pickled_error_file, "rb") as file:
            return pickle.load(file)
    except Exception:  # the file is missing, or the exception cannot be unpickled
        return trial.get_error()


def _make_callback(
    trials: list[TrialSpec],
    listener: TrialListener,
    end_scheduling: Callable[[], None],
    watch: StartWatch,
) -> Any:
    """Returns the Tune callback that passes Tune's events on to `listener`."""
    from ray import tune

    specs = {trial.trial_id: trial for trial in trials}
    host_names: dict[str, str] = {}  # by trial id

    class Listener(tune.Callback):
        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune writes its settings to a file that nobody reads

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            watch.trial_started(trial.config["trial_id"])
            listener.on_start(specs[trial.config["trial_id"]])

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            trial_id = trial.config["trial_id"]
            if "epoch" in result:
                listener.on_epoch(specs[trial_id], EpochEnd(result["epoch"], result["replayed"]))
            elif "runs_on" in result:
                host_names[trial_id] = result["runs_on"]
            elif "waits_for" in result:
                _log_to_stdout(
                    listener,
                    f"{result['waits_for']} holds {result['hostname']}: the next trial there waits",
                )

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if "result" in trial.last_result:  # else scheduling ended before the trial started
                report_end(trial.config["trial_id"], trial.last_result["result"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            trial_id, error = trial.config["trial_id"], _load_error(trial)
            cause = getattr(error, "cause", error)
            if isinstance(cause, DiskFull):
                lost = LostTrial(str(cause), host_names.get(trial_id), cause.machine)
            else:
                lines = str(error or "").strip().splitlines() or ["its Ray actor ended"]
                lost = LostTrial(lines[-1], host_names.get(trial_id))
            report_end(trial_id, lost)

    def report_end(trial_id: str, result: TrialResult | LostTrial) -> None:
        watch.trial_ended(trial_id)
        with contextlib.redirect_stdout(sys.__stdout__):
            go_on = listener.on_trial_end(specs[trial_id], result)
        if not go_on:
            end_scheduling()

    return Listener()
