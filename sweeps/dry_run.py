"""python launch.py sweep.yaml --dry-run: every trial of a sweep, its state, its forecast, and whether its batches will fit into /dev/shm.

What is told comes from the file, the corpus, the tracker and the calibrations that earlier launches left in the cache. Nothing is
started, written to the tracker or held: a dry run can be made while the sweep runs. Only the corpus is prepared, as keys and clips
depend on it. What else a trial needs of this machine, a GPU or a private /dev/shm, is asked by the preflight of a real launch.

`look` finds it all out, `tell` puts it into lines for people and `document` into one JSON object for programs.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tabulate

from speech.config import Pinned, TrialConfig
from sweeps import calibration
from sweeps.config import SweepConfig
from sweeps.forecast import Forecast
from sweeps.outlook import Outlook, outlook
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, Say, unprobed
from sweeps.provenance import differences, here
from sweeps.shm_fit import counted
from sweeps.states import DISTURBED, Asked, asked_for, kind, settled_for_good, states
from sweeps.sweep import noted_pins, pin_name, reached
from sweeps.tracking import Tracking, connect, database_file, resolve_uri, search_all, short_names, written

tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more
NVIDIA = Path("/proc/driver/nvidia")  # there where the kernel knows a GPU of theirs


@dataclass(frozen=True)
class Recorded:
    """What the tracker has of a sweep; nothing where it has none."""

    states: Mapping[str, str]  # by key; sweeps/states.py
    pinned: Mapping[str, Pinned]  # what launches have pinned, by pin_name
    differs: Sequence[str]  # what settled trials ran on or with that is not so now


@dataclass(frozen=True)
class Look:
    """A sweep as it stands, and what a launch would run of it."""

    outlook: Outlook
    recorded: Recorded
    node: Node
    asked: Asked
    left: Sequence[TrialSpec]

    def state(self, trial: TrialSpec) -> str:
        return self.outlook.state(trial.key, self.recorded.states)


def look(config: SweepConfig, rerun: Sequence[str], say: Say) -> Look:
    """Raises PreflightError where a corpus or the tracker can't be used, and UnknownKey where --rerun names a trial that there is not."""
    made = outlook(config, say)
    node = Node((), tuple(sorted(os.sched_getaffinity(0))))
    asked_for(rerun, made.plan.trials, {})  # keys that there are not are told at once
    with reached(config):
        found = recorded(config, made.plan.trials, node)
    asked = asked_for(rerun, made.plan.trials, found.states)
    if config.calibrate and config.resources.exclusive_node:
        wanted = made.calibrations_wanted(_pinned(made, node, found.pinned), node)
        chosen = {key for key, state in found.states.items() if kind(state) in ("settled", DISTURBED)} | asked.named
        made.foresee(wanted, calibration.cached({each.name for each in wanted.values()}), chosen)
    settled = settled_for_good(found.states)
    return Look(made, found, node, asked, made.left(settled.keys() - (asked.keys or ()), asked.keys))


def recorded(config: SweepConfig, trials: Sequence[TrialSpec], node: Node) -> Recorded:
    """Reads the tracker. Makes no database and no run."""
    uri = resolve_uri(config.tracking.uri)
    file = database_file(uri)
    nothing = Recorded({}, {}, [])
    if (file and not file.exists()) or connect(uri).get_experiment_by_name(config.tracking.experiment) is None:
        return nothing
    tracking = Tracking(uri, config.tracking.experiment)
    sweeps = search_all(tracking.client, tracking.experiment_id, "tags.kind = 'sweep'")
    parent = next((run.info.run_id for run in sweeps if run.data.tags["sweep"] == config.name), None)
    if parent is None:
        return nothing
    runs = tracking.trials(parent)
    return Recorded(states(runs, trials), noted_pins(tracking, parent), differences(runs, trials, here(config, [node])))


def _pinned(made: Outlook, node: Node, noted: Mapping[str, Pinned]) -> dict[str, Pinned]:
    """By key, how trials will be pinned, where that is known without a process that has torch: by an earlier launch, or as it's paced."""
    found = {}
    for trial in made.plan.trials:
        if _may_be_cuda(trial.config) and (len(trial.config.device.first_of) == 1 or NVIDIA.exists()):
            continue  # only torch can tell which it gets
        if pinned := noted.get(pin_name(made.config, node, trial)):
            found[trial.key] = pinned
        elif node.device(trial.config) == "paced":
            found[trial.key] = unprobed(node, made.config)
    return found


def _may_be_cuda(trial: TrialConfig) -> bool:
    return trial.device.first_of[0] == "cuda"


def tell(seen: Look, say: Say) -> None:
    """Says the outline, a line a trial and the count of verdicts."""
    made = seen.outlook
    say("\n".join([made.outline(seen.recorded.states, seen.left), *seen.recorded.differs]))
    say(f"\n{table(seen)}\n")
    say(f"/dev/shm: {counted(made.fits.values())}")


def table(seen: Look) -> str:
    """A line a trial in the order of the plan; a swept value that another block sweeps is blank. Sizes in MiB.

    With --rerun a column marks those that it runs, which the state alone doesn't tell then.
    """
    trials = seen.outlook.plan.trials
    names = short_names(dict.fromkeys(path for trial in trials for path in trial.swept))
    asked = seen.asked.keys is not None
    gpus = any(resources(seen, trial)["gpus"] for trial in trials)
    swept = [name.replace("_", "_\n") for name in names.values()]
    headers = ["key", "block", "rep.", *swept, "cores", *["GPUs"] * gpus, "state", *["run"] * asked]
    headers += ["forecast\ns", "fits\nfrom\nMiB", "/dev/\nshm\nMiB", "verdict"]
    align = ["left", "left", "right", *["right"] * (len(names) + 1 + gpus), "left", *["left"] * asked, *["right"] * 3, "left"]
    left = {trial.key for trial in seen.left}
    rows = [
        [
            trial.key, trial.block, str(trial.repeat),
            *(written(path, trial.swept[path]) if path in trial.swept else "" for path in names),
            *_asks(resources(seen, trial), gpus), seen.state(trial), *["yes" if trial.key in left else ""] * asked,
            _interval(seen.outlook.forecasts.get(trial.key)), *_room(seen.outlook, trial),
        ]
        for trial in trials
    ]  # fmt: skip
    return tabulate.tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)


def resources(seen: Look, trial: TrialSpec) -> dict[str, Any]:
    """What it asks of its node: CPU cores and GPUs as numbers, and whether it holds the node and a /dev/shm of its own."""
    asked = seen.outlook.config.resources
    cores = len(seen.node.cpus)
    auto_gpus = int(_may_be_cuda(trial.config) and (len(trial.config.device.first_of) == 1 or NVIDIA.exists()))
    return {
        "cpus": cores if asked.cpus == "auto" else asked.cpus,
        "gpus": auto_gpus if asked.gpus == "auto" else asked.gpus,
        "exclusive_node": asked.exclusive_node,
        "shm": asked.shm,
    }


def _asks(asked: Mapping[str, Any], gpus: bool) -> list[str]:
    return [f"{asked['cpus']}", *[f"{asked['gpus']:g}"] * gpus]


def _room(made: Outlook, trial: TrialSpec) -> list[str]:
    fit = made.fits[trial.key]
    mib = [f"{size / 2**20:,.{0 if size >= 1000 << 20 else 1}f}" for size in (fit.bound_bytes, fit.limit_bytes)]
    return [*mib, fit.verdict]


def _interval(foreseen: Forecast | None) -> str:
    """'4.1 (3.7-4.5)'."""
    if foreseen is None:
        return "uncalibrated"
    digits = 2 if foreseen.epoch_s < 1 else 1
    return f"{foreseen.epoch_s:.{digits}f} ({foreseen.low_s:.{digits}f}-{foreseen.high_s:.{digits}f})"


def document(seen: Look) -> dict[str, Any]:
    """All of it for programs. What is not known is null; sizes in bytes, times in seconds."""
    made, left = seen.outlook, {trial.key for trial in seen.left}
    counts = Counter(kind(seen.state(trial)) for trial in made.plan.trials)
    expected = [made.expected_s(trial) for trial in seen.left]
    return {
        "sweep": made.config.name,
        "counts": {"trials": len(made.plan.trials), **counts, "to_run": len(left)},
        "expected_s": sum(each for each in expected if each is not None),
        "uncalibrated": sum(each is None for each in expected),  # of those to run: not in expected_s
        "warnings": list(seen.recorded.differs),
        "removed": [{"block": each.block, "reason": each.reason, "points": each.points} for each in made.plan.removed],
        "trials": [_trial(seen, trial, trial.key in left) for trial in made.plan.trials],
    }


def _trial(seen: Look, trial: TrialSpec, runs: bool) -> dict[str, Any]:
    made, state = seen.outlook, seen.state(trial)
    fit, foreseen = made.fits[trial.key], made.forecasts.get(trial.key)
    return {
        "key": trial.key,
        "block": trial.block,
        "repeat": trial.repeat,
        "seed": trial.seed,
        "swept": trial.swept,
        "resources": resources(seen, trial),
        "state": kind(state),
        "outcome": state if state != kind(state) else None,
        "runs": runs,
        "expected_s": made.expected_s(trial),
        "forecast": foreseen and foreseen.metrics(),
        "fit": {"verdict": fit.verdict, "limit_bytes": fit.limit_bytes, **fit.metrics()},
    }
