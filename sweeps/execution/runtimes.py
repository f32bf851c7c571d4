"""Chooses the runtime settings of each trial: cores, threads, precision and memory format.

The settings are chosen once for all trials of a block on equal hardware, and recorded with the
sweep, so that later launches use the same ones.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speech.config import RuntimeSettings, TrialConfig
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.execution.host_tasks import ChooseRuntimes
from sweeps.execution.hosts import HostPlan, Hosts
from sweeps.host.node import Node, default_runtime

if TYPE_CHECKING:
    from mlflow.entities import Run

RUNTIMES_TAG = "runtimes"  # of the sweep's run


def choose_runtimes(
    hosts: Hosts,
    host_plans: Mapping[str, HostPlan],
    pending: Sequence[TrialSpec],
    recorded: Mapping[str, RuntimeSettings],
    log_file: Path,
    owner: str,
) -> dict[str, RuntimeSettings]:
    """Returns the runtime settings of all pending trials by `runtime_name`, with the `recorded`.

    One host with the hardware chooses them at the sweep's first launch on it. Raises
    PreflightError.
    """
    runtimes = dict(recorded)
    tasks: dict[str, ChooseRuntimes] = {}
    requested: set[str] = set()
    for host, host_plan in host_plans.items():
        config, node = host_plan.trial_forecasts.config, host_plan.node
        examples: dict[str, TrialConfig] = {}  # the first trial of each name
        for trial in pending:
            if trial.trial_id not in host_plan.refused:
                examples.setdefault(runtime_name(config, node, trial), trial.config)
        new_examples = {
            name: example
            for name, example in examples.items()
            if name not in runtimes.keys() | requested
        }
        requested |= new_examples.keys()
        if new_examples:
            tasks[host] = ChooseRuntimes(config, node, new_examples, log_file, owner)
    for chosen in hosts.call(tasks).values():
        runtimes |= chosen
    return runtimes


def apply_runtimes(host_plan: HostPlan, runtimes: Mapping[str, RuntimeSettings]) -> None:
    """Stores the runtime settings of each trial in the plan of a host.

    A settled trial that ran on other hardware has none.
    """
    config, trials = host_plan.trial_forecasts.config, host_plan.trial_forecasts.plan.trials
    default = default_runtime(host_plan.node, config)
    own_cores = {"cpus": default.cpus}  # core numbers differ even between equal hosts
    # A trial that can't be trained still runs, so that its reason is recorded
    host_plan.runtimes = dict.fromkeys(host_plan.refused, default)
    for trial in trials:
        if settings := runtimes.get(runtime_name(config, host_plan.node, trial)):
            host_plan.runtimes[trial.trial_id] = settings.model_copy(update=own_cores)


def recorded_runtimes(parent: "Run") -> dict[str, RuntimeSettings]:
    """Returns the runtime settings that earlier launches chose, by `runtime_name`."""
    recorded = json.loads(parent.data.tags.get(RUNTIMES_TAG, "{}"))
    return {name: RuntimeSettings.model_validate(settings) for name, settings in recorded.items()}


def runtime_name(config: SweepConfig, node: Node, trial: TrialSpec) -> str:
    """Returns the name of a trial's runtime settings; trials with the same name share them."""
    # step_s is absent: it has no influence on the settings
    deciding = f"{node.device(trial.config)} {trial.config.precision} threads {config.threads}"
    return f"{trial.block} on {node.hardware}: {deciding}"
