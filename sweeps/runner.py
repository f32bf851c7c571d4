"""Ray Tune: which trial runs where and when.

Trials run in the order of the plan. Each asks for the resources that the sweep gives every trial; where trials hold their node alone, that
is all of its CPUs. The Ray actor only relays (sweeps/relay.py): it imports no torch and is reused from trial to trial, and so is the clean
process that its trials are forked from. Ray's files, its object store among them, lie in the launch's own temporary folder: all of
/dev/shm is the trials'.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from sweeps.isolation import Template, environment
from sweeps.janitor import kept_tidy
from sweeps.plan import TrialSpec
from sweeps.preflight import Node
from sweeps.relay import Launch, run_trial

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
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

_template: Template | None = None  # of this Ray actor's process


class RayEnded(RuntimeError):
    """Ray gave up under way, or a process of its without which nothing goes on was killed."""


Tell = Callable[[TrialSpec, dict[str, Any]], None]
Ended = Callable[[TrialSpec, dict[str, Any]], bool]


def run(trials: list[TrialSpec], launch: Launch, node: Node, request: dict[str, float], done: Ended, hear: Tell) -> None:
    """Runs all trials; `done` hears of each, as `_trial` tells it, or with `lost`: why Ray could not finish it; it returns whether others
    may start after that one. Before that `hear` is told `started`, and `epoch` with the metrics of each that has ended.

    `request`: Ray resources of every trial, as {"CPU": 2, "GPU": 1}. Raises RayEnded; trials that have ended are settled then.
    """
    os.environ |= environment() | ENVIRONMENT
    import ray
    from ray import tune

    with kept_tidy(launch.remains) as scratch, _ray_muted(scratch / "ray.log"):
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address="local", num_cpus=len(node.cpus), num_gpus=len(node.gpus), include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES, _plasma_directory=str(scratch), _temp_dir=str(scratch),
                logging_level=logging.CRITICAL, log_to_driver=False,
            )  # fmt: skip
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            signal.signal(signal.SIGTERM, terminate)  # instead of Ray's, which prints a stack
            queue = _queue()
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_trial, trials=trials, launch=launch), tune.PlacementGroupFactory([request])),
                param_space={"index": tune.grid_search(list(range(len(trials))))},
                tune_config=tune.TuneConfig(
                    reuse_actors=True, scheduler=queue, trial_dirname_creator=lambda trial: trials[trial.config["index"]].key
                ),
                run_config=tune.RunConfig(
                    storage_path=str(scratch), name="tune", verbose=0, callbacks=[_listener(trials, done, hear, queue.end)]
                ),
            )
            with _interrupted_without("raylet", "gcs_server"), _in_a_line():
                tuner.fit()
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _ray_muted(file: Path) -> Iterator[None]:
    """Ray prints from threads of its own, a paragraph for a lost actor; we say the same in a line."""
    with file.open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


@contextlib.contextmanager
def _in_a_line() -> Iterator[None]:
    """Tune ends a sweep with a stack of its own where Ray takes a worker from it."""
    try:
        yield
    except RuntimeError as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise RayEnded(f"Ray gave up under way: {reason}") from error


@contextlib.contextmanager
def _interrupted_without(*names: str) -> Iterator[None]:
    """Ends the wait for trials when one of these children is gone: Ray itself would wait on, for a node that never comes back."""
    needed = [child for child in psutil.Process().children() if child.name() in names]
    descriptors = {os.pidfd_open(child.pid): child.name() for child in needed}
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


def _trial(config: dict[str, int], trials: list[TrialSpec], launch: Launch) -> None:
    """The Ray trainable: relays one trial, in the actor's process."""
    from ray import tune

    global _template
    if _template is None or _template.ended:
        _template = Template(launch.started_in)
    ended = run_trial(_template, trials[config["index"]], launch, tune.report)
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


def _listener(trials: list[TrialSpec], done: Ended, hear: Tell, end: Callable[[], None]) -> Any:
    from ray import tune

    class Listener(tune.Callback):
        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune writes all its settings to a file, which nobody reads

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            hear(specs[trial.config["index"]], {"started": True})

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if "epoch" in result:
                hear(specs[trial.config["index"]], result)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if "outcome" in trial.last_result:  # else the queue was ended before it started
                tell(specs[trial.config["index"]], trial.last_result)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            lost = str(trial.get_error()).strip().splitlines()[-1] if trial.get_error() else "its Ray actor ended"
            tell(specs[trial.config["index"]], {"lost": lost})

    def tell(spec: TrialSpec, result: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.__stdout__):
            go_on = done(spec, result)
        if not go_on:
            end()

    specs = trials
    return Listener()
