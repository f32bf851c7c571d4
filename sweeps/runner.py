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
_work: tuple[list[TrialSpec], Launch] | None = None  # what the actor runs trials of, as its machine sees it


class RayEnded(RuntimeError):
    """Ray gave up under way, or a process of its without which nothing goes on was killed."""


class Session(NamedTuple):
    """A Ray that is there."""

    scratch: Path  # a folder for what ends with it
    request: "PlacementGroupFactory"  # what every trial asks for
    needed: Collection[int]  # processes without which nothing goes on


def run(
    trials: list[TrialSpec],
    launch: Launch,
    session: AbstractContextManager[Session],
    done: Callable[[TrialSpec, dict[str, Any]], None],
    say: Say,
) -> None:
    """Runs all trials; `done` hears of each, with its outcome, evidence and summary, or with `lost`: why Ray could not finish it.

    `say` hears which trials wait for their machine, and why. Raises RayEnded; trials that have ended are settled then.
    """
    with session as (scratch, request, needed), muted(scratch / "ray.log"), _interrupted_without(needed), _in_a_line():
        import ray
        from ray import tune

        work = ray.put((trials, launch))  # fetched once by each actor; Tune would fetch its parameters for each trial anew
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, work=[work]), request),
            param_space={"index": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trials[trial.config["index"]].key),
            run_config=tune.RunConfig(storage_path=str(scratch), name="tune", verbose=0, callbacks=[_listener(trials, done, say)]),
        )
        tuner.fit()


@contextlib.contextmanager
def own_ray(node: Node, request: dict[str, float]) -> Iterator[Session]:
    """A Ray of the launch's own on this machine, for trials that ask for so much each, as {"CPU": 2, "GPU": 1}."""
    os.environ |= environment() | ENVIRONMENT
    import ray
    from ray import tune

    with kept_tidy() as scratch:
        try:
            with muted(scratch / "ray.log"):
                ray.init(
                    address="local", num_cpus=len(node.cpus), num_gpus=len(node.gpus), include_dashboard=False, labels=OWN,
                    object_store_memory=OBJECT_STORE_BYTES, _plasma_directory=str(scratch), _temp_dir=str(scratch),
                    logging_level=logging.CRITICAL, log_to_driver=False,
                )  # fmt: skip
            quiet()
            needed = [child.pid for child in psutil.Process().children() if child.name() in ("raylet", "gcs_server")]
            yield Session(scratch, tune.PlacementGroupFactory([request]), needed)
        finally:
            with muted(scratch / "ray.log"):
                ray.shutdown()


def quiet() -> None:
    """What Ray changes in a process that it has come to."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # instead of Ray's, which prints a stack; ends like Ctrl-C


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
        raise RayEnded(f"Ray gave up under way: {reason} What has ended is settled; the same command runs the rest.") from error


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
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if not ended:
            raise
        raise RayEnded(f"Ray's {ended[0]} was killed under way. What has ended is settled; the same command runs the rest.") from None
    finally:
        os.close(stopped)  # wakes the watcher
        watcher.join()
        for descriptor in (stop, *descriptors):
            os.close(descriptor)


def _trial(config: dict[str, int], work: list[Any]) -> None:
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
        outcome, summary = run_trial(_template, trials[config["index"]], launch, tune.report)
    tune.report({"outcome": outcome.name, "evidence": outcome.evidence, "summary": summary})


def _listener(trials: list[TrialSpec], done: Callable[[TrialSpec, dict[str, Any]], None], say: Say) -> Any:
    from ray import tune

    class Listener(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if "waits_for" in result:
                with contextlib.redirect_stdout(sys.__stdout__):
                    say(f"{result['waits_for']} holds {result['hostname']}: the next trial there waits")

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            tell(specs[trial.config["index"]], trial.last_result)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            lost = str(trial.get_error()).strip().splitlines()[-1] if trial.get_error() else "its Ray actor ended"
            tell(specs[trial.config["index"]], {"lost": lost})

    def tell(spec: TrialSpec, result: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.__stdout__):
            done(spec, result)

    specs = trials
    return Listener()
