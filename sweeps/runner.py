"""Ray Tune: which trial runs where and when.

Trials run in the order of the plan. Each asks for the resources that the sweep gives every trial; where trials hold their node alone, that
is all of its CPUs, and each holds its machine (sweeps/machine.py) while it runs. The Ray actor only relays (sweeps/relay.py): it imports
no torch and is reused from trial to trial, and so is the clean process that its trials are forked from. A Ray of the launch's own keeps
its files, its object store among them, in the launch's temporary folder: all of /dev/shm is the trials'.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from sweeps import machine
from sweeps.isolation import Template, environment
from sweeps.janitor import kept_tidy
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, Say
from sweeps.relay import Launch, run_trial

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

OBJECT_STORE_BYTES = 80 * 2**20  # Ray's minimum is 75 MiB; nothing but numbers travels through it

ENVIRONMENT = {
    "RAY_worker_oom_score_adjustment": "0",  # a trial's process is to go first, not what watches it
    "RAY_memory_monitor_refresh_ms": "0",  # it would end the actor at 95 % of memory, and the sweep; the kernel's OOM killer ends a trial
    "RAY_worker_niceness": "0",  # Ray lowers its workers' priority to 15, and with it a trial's against all else on the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that asked for no GPU sees none
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow keeps the figures
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: Tune's own would go on for a while
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # what Tune would restore from: a key decides what runs again
}
OWN = {"speech-sweeps": "own"}  # labels the nodes of a Ray that is some launch's own

_template: Template | None = None  # of this Ray actor's process
_work: tuple[dict[str, TrialSpec], Launch] | None = None  # what the actor runs trials of, as its machine sees it


class RayEnded(RuntimeError):
    """Ray gave up under way, or a process of its without which nothing goes on was killed."""


Tell = Callable[[TrialSpec, dict[str, Any]], None]
Ended = Callable[[TrialSpec, dict[str, Any]], bool]


class Session(NamedTuple):
    """A Ray that is there."""

    scratch: Path  # a folder for what ends with it
    request: "PlacementGroupFactory"  # what every trial asks for
    needed: Collection[int]  # processes without which nothing goes on


def run(trials: list[TrialSpec], launch: Launch, session: AbstractContextManager[Session], done: Ended, hear: Tell, say: Say) -> None:
    """Runs all trials; `done` hears of each, as `_trial` tells it, or with `lost`: why Ray could not finish it; it returns whether others
    may start after that one. Before that `hear` is told `started`, and `epoch` with the metrics of each that has ended.

    `say` hears which machine trials wait for, and why. Raises RayEnded; trials that have ended are settled then.
    """
    with session as (scratch, request, needed), muted(scratch / "ray.log"), _interrupted_without(needed), _in_a_line():
        import ray
        from ray import tune

        by_key = {trial.key: trial for trial in trials}
        work = ray.put((by_key, launch))  # fetched once by each actor; Tune would fetch its parameters for each trial anew
        queue = _queue()
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, work=[work]), request),
            param_space={"key": tune.grid_search([trial.key for trial in trials])},
            tune_config=tune.TuneConfig(reuse_actors=True, scheduler=queue, trial_dirname_creator=_folder_of),
            run_config=tune.RunConfig(
                storage_path=str(scratch), name="tune", verbose=0, callbacks=[_listener(trials, done, hear, say, queue.end)]
            ),
        )
        tuner.fit()


@contextlib.contextmanager
def own_ray(node: Node, request: dict[str, float], remains: Path) -> Iterator[Session]:
    """A Ray of the launch's own on this machine, for trials that ask for so much each, as {"CPU": 2, "GPU": 1}.

    `remains`: a file that names the folder of what is to be gone when the launch is.
    """
    os.environ |= environment() | ENVIRONMENT
    import ray
    from ray import tune

    with kept_tidy(remains) as scratch:
        try:
            with as_it_was(scratch / "ray.log"):
                ray.init(
                    address="local", num_cpus=len(node.cpus), num_gpus=len(node.gpus), include_dashboard=False, labels=OWN,
                    object_store_memory=OBJECT_STORE_BYTES, _plasma_directory=str(scratch), _temp_dir=str(scratch),
                    logging_level=logging.CRITICAL, log_to_driver=False,
                )  # fmt: skip
            needed = [child.pid for child in psutil.Process().children() if child.name() in ("raylet", "gcs_server")]
            yield Session(scratch, tune.PlacementGroupFactory([request]), needed)
        finally:
            with muted(scratch / "ray.log"):
                ray.shutdown()


@contextlib.contextmanager
def as_it_was(file: Path) -> Iterator[None]:
    """What Ray changes in a process that it comes to meanwhile is as it was; what it says goes to the file."""
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with muted(file):
            yield
    finally:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        signal.signal(signal.SIGTERM, terminate)  # instead of Ray's, which prints a stack


@contextlib.contextmanager
def muted(file: Path) -> Iterator[None]:
    """Ray prints from threads of its own, a paragraph for a lost actor, and below Python too; we say the same in a line."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with file.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            os.dup2(log.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _in_a_line() -> Iterator[None]:
    """Tune ends a sweep with a stack of its own where Ray takes a worker from it."""
    try:
        yield
    except RuntimeError as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise RayEnded(f"Ray gave up under way: {reason}") from error


@contextlib.contextmanager
def _interrupted_without(needed: Collection[int]) -> Iterator[None]:
    """Ends the wait for trials when one of these processes is gone: Ray itself would wait on, for a node that never comes back."""
    descriptors = {os.pidfd_open(pid): psutil.Process(pid).name() for pid in needed}
    stop, stopped = os.pipe()
    ended: list[str] = []

    def watch() -> None:
        ready, _, _ = select.select([stop, *descriptors], [], [])
        if stop not in ready:
            ended.append(descriptors[ready[0]])
            os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)  # Tune takes SIGUSR1 for itself
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if not ended:
            raise
        raise RayEnded(f"Ray's {ended[0]} was killed under way.") from None
    finally:
        os.close(stopped)  # wakes the watcher
        watcher.join()
        signal.signal(signal.SIGUSR2, before)
        for descriptor in (stop, *descriptors):
            os.close(descriptor)


def _folder_of(trial: Any) -> str:
    """Of Tune's own. Tune writes this function down with every trial, so nothing that grows with the sweep may hang on it."""
    return trial.config["key"]


def _trial(config: dict[str, str], work: list[Any]) -> None:
    """The Ray trainable: relays one trial, in the actor's process. `work`: a reference to all trials and their launch."""
    import ray
    from ray import tune

    global _template, _work
    if _work is None:
        trials, launch = ray.get(work[0])
        _work = trials, launch.on(machine.identity())
    trials, launch = _work
    if _template is None or _template.ended:
        _template = Template(launch.started_in)
    with machine.held(launch.exclusive, launch.who, lambda holder: tune.report({"waits_for": holder})):
        ended = run_trial(_template, trials[config["key"]], launch, tune.report)
    tune.report(ended._asdict() | {"outcome": ended.outcome.name, "evidence": ended.outcome.evidence})


def _queue() -> Any:
    """Tune's own order of trials, which can be ended."""
    from ray.tune import schedulers

    class Queue(schedulers.FIFOScheduler):
        controller: Any = None

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self.controller = tune_controller

        def end(self) -> None:
            """No further trial starts; those that run are left to end."""
            self.controller.search_alg.set_finished()
            for trial in self.controller.get_trials():
                if trial.status == trial.PENDING:
                    self.controller.stop_trial(trial)

    return Queue()


def _listener(trials: list[TrialSpec], done: Ended, hear: Tell, say: Say, end: Callable[[], None]) -> Any:
    from ray import tune

    class Listener(tune.Callback):
        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune writes all its settings to a file, which nobody reads

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            hear(specs[trial.config["key"]], {"started": True})

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if "epoch" in result:
                hear(specs[trial.config["key"]], result)
            elif "waits_for" in result:
                with contextlib.redirect_stdout(sys.__stdout__):
                    say(f"{result['waits_for']} holds {result['hostname']}: the next trial there waits")

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if "outcome" in trial.last_result:  # else the queue was ended before it started
                tell(specs[trial.config["key"]], trial.last_result)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            lost = str(trial.get_error()).strip().splitlines()[-1] if trial.get_error() else "its Ray actor ended"
            tell(specs[trial.config["key"]], {"lost": lost})

    def tell(spec: TrialSpec, result: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.__stdout__):
            go_on = done(spec, result)
        if not go_on:
            end()

    specs = {trial.key: trial for trial in trials}
    return Listener()
