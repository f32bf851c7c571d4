"""Dry run of a sweep: python launch.py sweep.yaml --dry-run.

It shows every trial with its state, its forecast, and whether its batches will fit into /dev/shm.
The sources are the sweep file, the corpus, the tracker, and the calibrations that earlier launches
cached. A dry run starts nothing, writes nothing to the tracker and locks nothing, so it can be made
while the sweep runs. It only prepares the corpus, because ids and clips depend on it. It does not
check what else a trial requires of this machine, such as a GPU or a private /dev/shm: the preflight
of a real launch does.

`build_dry_run` collects the information, `print_dry_run` formats it as lines for people, and
`document` as one JSON object for programs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tabulate

from speech.config import RuntimeSettings, TrialConfig
from sweeps.config.config import SweepConfig
from sweeps.config.plan import TrialSpec, request_gpus
from sweeps.execution.launch_context import WORK_FOLDER
from sweeps.execution.preflight import refusals
from sweeps.execution.runtimes import recorded_runtimes, runtime_name
from sweeps.execution.tracker_access import require_tracker
from sweeps.forecast import calibration
from sweeps.forecast.forecast import Forecast
from sweeps.forecast.shm_fit import count_verdicts
from sweeps.forecast.trial_forecasts import TrialForecasts, prepare_forecasts
from sweeps.host.node import Log, Node, default_runtime
from sweeps.names import format_parameter, short_names
from sweeps.tracking import outbox_recovery
from sweeps.tracking.database import database_file, resolve_uri
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.provenance import available_devices, current_environment
from sweeps.tracking.rerun import Rerun, select_trials
from sweeps.tracking.run_queries import sweeps_by_name, trial_runs
from sweeps.tracking.sweep_state import Environment, SweepRecords, SweepState, determine_state
from sweeps.trial_states import status_group

# A column is as wide as its widest text; by default tabulate pads headers by two columns
tabulate.MIN_PADDING = 0
# One of these exists if the kernel knows a GPU that torch may compute on: NVIDIA's, one of Windows'
# in WSL, AMD's
GPU_DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/dxg"), Path("/dev/kfd"))


@dataclass(frozen=True)
class TrackerRecords:
    """Records of a sweep in the tracker and in this folder's outboxes; empty for a new sweep."""

    sweep: SweepRecords = field(default_factory=SweepRecords)
    # Runtime settings that earlier launches chose, by runtime_name
    runtimes: Mapping[str, RuntimeSettings] = field(default_factory=dict)
    waiting: int = 0  # ended trials whose records the next launch sends first


@dataclass(frozen=True)
class DryRun:
    """The current state of a sweep, and the trials that a launch would run."""

    trial_forecasts: TrialForecasts
    state: SweepState
    node: Node
    notes: Sequence[str]  # limits of the machine, the continued rerun, waiting records

    @property
    def pending(self) -> Sequence[TrialSpec]:
        """The trials that a launch would run, in plan order."""
        return self.trial_forecasts.pending(self.state.settled, self.state.selection.ids)

    def trial_state(self, trial: TrialSpec) -> str:
        """Returns the state of a trial."""
        return self.trial_forecasts.state(trial.trial_id, self.state.initial_states)


def build_dry_run(config: SweepConfig, rerun_words: Sequence[str], log: Log) -> DryRun:
    """Returns the dry run of a sweep; `rerun_words` are the values of --rerun.

    Raises PreflightError if a corpus or the tracker cannot be used, and UnknownTrial if --rerun
    names a trial that does not exist.
    """
    forecasts = prepare_forecasts(config, log)
    trials, node = forecasts.plan.trials, Node.local()
    select_trials(rerun_words, trials, {})  # raises UnknownTrial before the tracker is read
    with require_tracker(config):
        records = read_tracker(config)
    # The device of a trial that may get a GPU is unknown without torch
    known = [
        trial
        for trial in trials
        if config.ray.address == "local" and not _may_use_gpu(config, trial.config)
    ]
    state = determine_state(
        records.sweep,
        trials,
        rerun_words,
        Environment(current_environment(config, [node]), available_devices(known, [node])),
    )
    if config.calibrate and config.resources.exclusive_node:
        requests = forecasts.required_calibrations(
            _known_runtimes(forecasts, node, records.runtimes), node
        )
        forecasts.add_forecasts(
            requests,
            calibration.load_cached({request.name for request in requests.values()}),
            state.always_measured,
        )
    pending = forecasts.pending(state.settled, state.selection.ids)
    notes = [*node.limits(), *state.rerun_messages(pending)]
    if records.waiting:
        of = "1 trial" if records.waiting == 1 else f"{records.waiting} trials"
        notes.append(
            f"records of {of} wait in {WORK_FOLDER / config.name} and are counted here; a launch"
            " sends them to the tracker first"
        )
    return DryRun(forecasts, state, node, notes)


def read_tracker(config: SweepConfig) -> TrackerRecords:
    """Reads the tracker, and the records in this folder that wait for it.

    Creates no database and no run.
    """
    uri = resolve_uri(config.tracking.uri)
    file = database_file(uri)
    if file and (not file.exists() or (file.is_file() and not file.stat().st_size)):
        return TrackerRecords()
    client = connect(uri, read_only=True)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    if experiment is None:
        return TrackerRecords()
    parent = sweeps_by_name(client, experiment.experiment_id).get(config.name)
    if parent is None:
        return TrackerRecords()
    waiting = outbox_recovery.unsent_attempts(WORK_FOLDER / config.name, parent.info.run_id)
    # The waiting records are newer than the tracker's records of the same attempts
    newer = {run.data.tags["attempt_id"] for run in waiting}
    sent = [
        run for run in trial_runs(client, parent) if run.data.tags.get("attempt_id") not in newer
    ]
    runs = sorted([*waiting, *sent], key=lambda run: run.info.start_time, reverse=True)
    ended = {run.data.tags["trial_id"] for run in waiting if run.info.status != "RUNNING"}
    sweep = SweepRecords(runs, Rerun.from_tags(parent.data.tags))
    return TrackerRecords(sweep, recorded_runtimes(parent), len(ended))


def _known_runtimes(
    forecasts: TrialForecasts, node: Node, recorded: Mapping[str, RuntimeSettings]
) -> dict[str, RuntimeSettings]:
    """Returns the trials' runtime settings by trial id, as far as they are known without torch.

    They are known if an earlier launch recorded them, or if the trial runs on the simulated device.
    """
    runtimes = {}
    for trial in forecasts.plan.trials:
        if _may_use_gpu(forecasts.config, trial.config):
            continue
        if settings := recorded.get(runtime_name(forecasts.config, node, trial)):
            runtimes[trial.trial_id] = settings
        elif node.device(trial.config) == "simulated":
            runtimes[trial.trial_id] = default_runtime(node, forecasts.config)
    return runtimes


def _may_use_gpu(config: SweepConfig, trial: TrialConfig) -> bool:
    """Returns whether a trial may get a GPU; its device is then unknown without torch."""
    if config.resources.gpus == 0 or trial.device.prefer[0] != "cuda":
        return False
    return len(trial.device.prefer) == 1 or any(path.exists() for path in GPU_DRIVERS)


def print_dry_run(result: DryRun, log: Log) -> None:
    """Logs the outline, a line for every trial, and the number of trials by verdict."""
    forecasts = result.trial_forecasts
    refused = refusals(forecasts.plan.trials, forecasts.refused)
    outline = forecasts.outline(result.state.initial_states, result.pending)
    log(
        "\n".join(
            [
                outline,
                *result.notes,
                *result.state.environment_changes,
                *refused,
                *forecasts.accounts(),
            ]
        )
    )
    log(f"\n{format_table(result)}\n")
    log(f"/dev/shm: {count_verdicts(forecasts.shm_requirements.values())}")


def format_table(result: DryRun) -> str:
    """Returns a table with a line for every trial, in plan order; sizes are in MiB.

    A cell is blank if the trial's block does not sweep that parameter. With --rerun, a column marks
    the trials that it runs, because the state alone does not show them.
    """
    trials = result.trial_forecasts.plan.trials
    names = short_names(dict.fromkeys(path for trial in trials for path in trial.swept))
    is_rerun = result.state.selection.ids is not None
    requested = resources(result)
    gpus = requested["gpus"] > 0
    swept = [name.replace("_", "_\n") for name in names.values()]
    headers = [
        "id",
        "block",
        "rep.",
        *swept,
        "cores",
        *["GPUs"] * gpus,
        "state",
        *["run"] * is_rerun,
    ]
    headers += ["forecast\ns", "fits\nfrom\nMiB", "/dev/\nshm\nMiB", "verdict"]
    align = [
        "left",
        "left",
        "right",
        *["right"] * (len(names) + 1 + gpus),
        "left",
        *["left"] * is_rerun,
        *["right"] * 3,
        "left",
    ]
    pending = {trial.trial_id for trial in result.pending}
    rows = [
        [
            trial.trial_id,
            trial.block,
            str(trial.repeat),
            *(
                format_parameter(path, trial.swept[path]) if path in trial.swept else ""
                for path in names
            ),
            *_core_cells(requested, gpus),
            result.trial_state(trial),
            *["yes" if trial.trial_id in pending else ""] * is_rerun,
            _interval(result.trial_forecasts.forecasts.get(trial.trial_id)),
            *_shm_cells(result.trial_forecasts, trial),
        ]
        for trial in trials
    ]
    return tabulate.tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)


def resources(result: DryRun) -> dict[str, Any]:
    """Returns the resources that every trial requires of its node.

    CPU cores and GPUs are numbers. The other entries state whether the trial occupies the node
    exclusively, and which /dev/shm it uses.
    """
    config = result.trial_forecasts.config
    configured, cores = config.resources, result.node.whole_cores
    on_gpu = [
        trial for trial in result.trial_forecasts.plan.trials if _may_use_gpu(config, trial.config)
    ]
    return {
        "cpus": cores if configured.cpus == "auto" else configured.cpus,
        "gpus": request_gpus(config, on_gpu, bool(on_gpu)),
        "exclusive_node": configured.exclusive_node,
        "shm": configured.shm,
    }


def _core_cells(required: Mapping[str, Any], gpus: bool) -> list[str]:
    """Returns the cells of the cores and, if `gpus`, of the GPUs."""
    return [f"{required['cpus']}", *[f"{required['gpus']:g}"] * gpus]


def _shm_cells(forecasts: TrialForecasts, trial: TrialSpec) -> list[str]:
    """Returns the cells of bound and limit of /dev/shm in MiB, and of the verdict."""
    requirement = forecasts.shm_requirements[trial.trial_id]
    sizes = (requirement.max_bytes, requirement.limit_bytes)
    mib = [f"{size / 2**20:,.{0 if size >= 1000 << 20 else 1}f}" for size in sizes]
    return [*mib, requirement.verdict]


def _interval(forecast: Forecast | None) -> str:
    """Returns the forecast of an epoch with its interval, as '4.1 (3.7-4.5)'."""
    if forecast is None:
        return "uncalibrated"
    digits = 2 if forecast.epoch_s < 1 else 1
    return (
        f"{forecast.epoch_s:.{digits}f} ({forecast.low_s:.{digits}f}-{forecast.high_s:.{digits}f})"
    )


def document(result: DryRun) -> dict[str, Any]:
    """Returns the whole dry run for programs.

    Unknown values are null; sizes are in bytes, times in seconds.
    """
    forecasts, pending = result.trial_forecasts, {trial.trial_id for trial in result.pending}
    trials = forecasts.plan.trials
    counts = Counter(status_group(result.trial_state(trial)) for trial in trials)
    expected = [forecasts.expected_s(trial) for trial in result.pending]
    requested = resources(result)
    return {
        "sweep": forecasts.config.name,
        "counts": {"trials": len(trials), **counts, "to_run": len(pending)},
        "expected_s": sum(seconds for seconds in expected if seconds is not None),
        # Number of pending trials that expected_s omits
        "uncalibrated": sum(seconds is None for seconds in expected),
        "notes": list(result.notes),
        "warnings": [*result.state.environment_changes, *refusals(trials, forecasts.refused)],
        "corpora": [corpus.account.document() for corpus in forecasts.corpora.values()],
        "removed": [
            {"block": part.block, "reason": part.reason, "points": part.points}
            for part in forecasts.plan.removed
        ],
        "trials": [_trial(result, trial, trial.trial_id in pending, requested) for trial in trials],
    }


def _trial(
    result: DryRun, trial: TrialSpec, runs: bool, requested: dict[str, Any]
) -> dict[str, Any]:
    """Returns the entry of one trial in the document; `runs` states whether a launch runs it.

    `requested` are the `resources` of every trial.
    """
    forecasts, state = result.trial_forecasts, result.trial_state(trial)
    requirement, forecast = (
        forecasts.shm_requirements[trial.trial_id],
        forecasts.forecasts.get(trial.trial_id),
    )
    return {
        "trial_id": trial.trial_id,
        "block": trial.block,
        "repeat": trial.repeat,
        "seed": trial.seed,
        "swept": trial.swept,
        "resources": requested,
        "state": status_group(state),
        "outcome": state if state != status_group(state) else None,
        "runs": runs,
        "problem": forecasts.refused.get(trial.trial_id),
        "expected_s": forecasts.expected_s(trial),
        "forecast": forecast and forecast.metrics(),
        "fit": {
            "verdict": requirement.verdict,
            "limit_bytes": requirement.limit_bytes,
            **requirement.metrics(),
        },
    }
