"""Ray Tune: which trial runs where and when.

Trials run in the order of the plan. Each asks for the resources that the sweep gives every trial; where trials hold their node alone, that
is all of its CPUs. The Ray actor only relays (sweeps/relay.py): it imports no torch and is reused from trial to trial, and so is the clean
process that its trials are forked from.
"""

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeps.isolation import Template
from sweeps.plan import TrialSpec
from sweeps.preflight import Node
from sweeps.relay import Launch, run_trial

OBJECT_STORE_BYTES = 80 * 2**20  # Ray's minimum is 75 MiB; nothing but numbers travels through it

ENVIRONMENT = {
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


def run(
    trials: list[TrialSpec], launch: Launch, node: Node, request: dict[str, float], done: Callable[[TrialSpec, dict[str, Any]], None]
) -> None:
    """Runs all trials; `done` hears of each, with its outcome, evidence and summary, or with `lost`: why Ray could not finish it.

    `request`: Ray resources of every trial, as {"CPU": 2, "GPU": 1}.
    """
    os.environ |= ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]))
    }
    import ray
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
        try:
            ray.init(
                address="local",
                num_cpus=len(node.cpus), num_gpus=len(node.gpus), include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.CRITICAL, log_to_driver=False,
            )  # fmt: skip
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # instead of Ray's, which prints a stack; ends like Ctrl-C
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_trial, trials=trials, launch=launch), tune.PlacementGroupFactory([request])),
                param_space={"index": tune.grid_search(list(range(len(trials))))},
                tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trials[trial.config["index"]].key),
                run_config=tune.RunConfig(storage_path=scratch, name="tune", verbose=0, callbacks=[_listener(trials, done)]),
            )
            tuner.fit()
        finally:
            ray.shutdown()


def _trial(config: dict[str, int], trials: list[TrialSpec], launch: Launch) -> None:
    """The Ray trainable: relays one trial, in the actor's process."""
    from ray import tune

    global _template
    _template = _template or Template(launch.started_in)
    outcome, summary = run_trial(_template, trials[config["index"]], launch, tune.report)
    tune.report({"outcome": outcome.name, "evidence": outcome.evidence, "summary": summary})


def _listener(trials: list[TrialSpec], done: Callable[[TrialSpec, dict[str, Any]], None]) -> Any:
    from ray import tune

    class Listener(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            done(specs[trial.config["index"]], trial.last_result)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            lost = str(trial.get_error()).strip().splitlines()[-1] if trial.get_error() else "its Ray actor ended"
            done(specs[trial.config["index"]], {"lost": lost})

    specs = trials
    return Listener()
