"""python launch.py sweep.yaml --dry-run: every trial of a sweep, its state, its forecast, and whether its batches will fit into /dev/shm.

What is told comes from the file, the corpus, the tracker and the calibrations that earlier launches left in the cache. Nothing is
started, written to the tracker or held: a dry run can be made while the sweep runs. Only the corpus is prepared, as keys and clips
depend on it. What else a trial needs of this machine, a GPU or a private /dev/shm, is asked by the preflight of a real launch.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import tabulate

from speech.config import Pinned
from sweeps import calibration
from sweeps.config import SweepConfig
from sweeps.forecast import Forecast
from sweeps.outlook import Outlook, outlook
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, Say, unprobed
from sweeps.shm_fit import ShmFit, counted
from sweeps.sweep import noted_pins, pin_name, reached, settled_for_good
from sweeps.tracking import SETTLED, Tracking, connect, database_file, resolve_uri, search_all, short_names, written

tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more
DUE = "disturbed"  # state of a trial that is settled and runs once more
NVIDIA = Path("/proc/driver/nvidia")  # there where the kernel knows a GPU of theirs


def tell(config: SweepConfig, say: Say) -> None:
    """Says the outline, a line a trial and the count of verdicts. PreflightError: a corpus or the tracker can't be used."""
    made = outlook(config, say)
    with reached(config):
        states, noted = recorded(config, made.plan.trials)
    if config.calibrate and config.resources.exclusive_node:
        node = Node((), tuple(sorted(os.sched_getaffinity(0))))
        wanted = made.calibrations_wanted(_pinned(made, node, noted), node)
        ran = [key for key, state in states.items() if state in (*SETTLED, DUE)]
        made.foresee(wanted, calibration.cached({each.name for each in wanted.values()}), ran)
    say(made.outline(_settled(states)))
    say(f"\n{table(made, states)}\n")
    say(f"/dev/shm: {counted(made.fits.values())}")


def recorded(config: SweepConfig, trials: list[TrialSpec]) -> tuple[dict[str, str], dict[str, Pinned]]:
    """Of the sweep's trials, key -> outcome of the settled attempt, otherwise of the latest; 'running' while it has none, 'disturbed'
    where it is due once more. And what launches have pinned. Makes no database and no run."""
    uri = resolve_uri(config.tracking.uri)
    file = database_file(uri)
    if (file and not file.exists()) or connect(uri).get_experiment_by_name(config.tracking.experiment) is None:
        return {}, {}
    tracking = Tracking(uri, config.tracking.experiment)
    sweeps = search_all(tracking.client, tracking.experiment_id, "tags.kind = 'sweep'")
    parent = next((run.info.run_id for run in sweeps if run.data.tags["sweep"] == config.name), None)
    if parent is None:
        return {}, {}
    latest = {run.data.tags["key"]: run.data.tags.get("outcome", "running") for run in reversed(tracking.trials(parent))}
    known, for_good = tracking.settled_keys(parent), settled_for_good(tracking, parent, trials)
    due = {trial.key: DUE for trial in trials if trial.key in known.keys() - for_good.keys()}
    return latest | known | due, noted_pins(tracking, parent)


def _settled(states: dict[str, str]) -> list[str]:
    return [key for key, state in states.items() if state in SETTLED]


def _pinned(made: Outlook, node: Node, noted: Mapping[str, Pinned]) -> dict[str, Pinned]:
    """By key, how trials will be pinned, where that is known without a process that has torch: by an earlier launch, or as it's paced."""
    found = {}
    for trial in made.plan.trials:
        names = trial.config.device.first_of
        if names[0] == "cuda" and (len(names) == 1 or NVIDIA.exists()):
            continue  # only torch can tell which it gets
        if pinned := noted.get(pin_name(made.config, node, trial)):
            found[trial.key] = pinned
        elif node.device(trial.config) == "paced":
            found[trial.key] = unprobed(node, made.config)
    return found


def table(made: Outlook, states: dict[str, str]) -> str:
    """A line a trial in the order of the plan; a swept value that another block sweeps is blank. Sizes in MiB."""
    trials = made.plan.trials
    names = short_names(dict.fromkeys(path for trial in trials for path in trial.swept))
    swept = [name.replace("_", "_\n") for name in names.values()]
    headers = ["key", "block", "repeat", *swept, "state", "forecast\ns", "fits\nfrom\nMiB", "/dev/\nshm\nMiB", "verdict"]
    align = ["left", "left", "right", *["right"] * len(names), "left", *["right"] * 3, "left"]
    rows = []
    for trial in trials:
        state = "not measured" if trial.key in made.foreseen_only else states.get(trial.key, "new")
        rows.append(_row(trial, list(names), state, made.forecasts.get(trial.key), made.fits[trial.key]))
    return tabulate.tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)


def _row(trial: TrialSpec, paths: list[str], state: str, foreseen: Forecast | None, fit: ShmFit) -> list[str]:
    swept = [written(path, trial.swept[path]) if path in trial.swept else "" for path in paths]
    mib = [f"{size / 2**20:,.{0 if size >= 1000 << 20 else 1}f}" for size in (fit.bound_bytes, fit.limit_bytes)]
    return [trial.key, trial.block, str(trial.repeat), *swept, state, _interval(foreseen), *mib, fit.verdict]


def _interval(foreseen: Forecast | None) -> str:
    """'4.1 (3.7-4.5)'."""
    if foreseen is None:
        return "uncalibrated"
    digits = 2 if foreseen.epoch_s < 1 else 1
    return f"{foreseen.epoch_s:.{digits}f} ({foreseen.low_s:.{digits}f}-{foreseen.high_s:.{digits}f})"
