"""python launch.py sweep.yaml --dry-run: every trial of a sweep, its state, its forecast, and whether its batches will fit into /dev/shm.

What is told comes from the file, the corpus, the tracker and the calibrations that earlier launches left in the cache. Nothing is
started, written to the tracker or held: a dry run can be made while the sweep runs. Only the corpus is prepared, as keys and clips
depend on it. What else a trial needs of this machine, a GPU or a private /dev/shm, is asked by the preflight of a real launch.

`look` finds it all out, `tell` puts it into lines for people and `document` into one JSON object for programs.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tabulate

from speech.config import Pinned, TrialConfig
from sweeps import calibration, rerun, unsent
from sweeps.config import SweepConfig
from sweeps.forecast import Forecast
from sweeps.names import short_names, written
from sweeps.outlook import Outlook, outlook
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, Say, unprobed
from sweeps.provenance import devices, differences, here
from sweeps.rerun import Asked, Rerun, asked_for
from sweeps.shm_fit import counted
from sweeps.states import DISTURBED, kind, settled_for_good, states
from sweeps.sweep import WORK_FOLDER, noted_pins, pin_name, reached
from sweeps.tracking import Tracking, connect, database_file, resolve_uri, search_all

if TYPE_CHECKING:
    from mlflow.entities import Run

tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more
# One of them is there where the kernel knows a GPU that torch may compute on: NVIDIA's, one of Windows' in WSL, AMD's
GPU_DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/dxg"), Path("/dev/kfd"))


@dataclass(frozen=True)
class Recorded:
    """What the tracker has of a sweep, and what waits for it here; nothing where there is none."""

    runs: "Sequence[Run]" = ()  # every attempt, newest first
    before: Rerun | None = None  # one that was cut short
    pinned: Mapping[str, Pinned] = field(default_factory=dict)  # what launches have pinned, by pin_name
    waiting: int = 0  # trials that have ended and whose records a launch sends before all else


@dataclass(frozen=True)
class Look:
    """A sweep as it stands, and what a launch would run of it."""

    outlook: Outlook
    states: Mapping[str, str]  # by key; sweeps/states.py
    node: Node
    asked: Asked
    left: Sequence[TrialSpec]
    notes: Sequence[str]  # which rerun it goes on with, what waits
    differs: Sequence[str]  # what settled trials ran on or with that is not so now

    def state(self, trial: TrialSpec) -> str:
        return self.outlook.state(trial.key, self.states)


def look(config: SweepConfig, again: Sequence[str], say: Say) -> Look:
    """`again`: the words of --rerun. Raises PreflightError where a corpus or the tracker can't be used, and UnknownKey where --rerun
    names a trial that there is not."""
    made = outlook(config, say)
    trials, node = made.plan.trials, Node((), tuple(sorted(os.sched_getaffinity(0))))
    asked_for(again, trials, {})  # keys that there are not are told at once
    with reached(config):
        found = recorded(config)
    stand = states(found.runs, trials)
    asked = asked_for(again, trials, stand)
    if config.calibrate and config.resources.exclusive_node:
        wanted = made.calibrations_wanted(_pinned(made, node, found.pinned), node)
        chosen = {key for key, state in stand.items() if kind(state) in ("settled", DISTURBED)} | asked.named
        made.foresee(wanted, calibration.cached({each.name for each in wanted.values()}), chosen)
    now = rerun.wanted(again, found.before)
    since = states(rerun.counted(found.runs, asked, now), trials)
    left = made.left(settled_for_good(since), asked.keys)
    notes = rerun.told(found.before, now, left, since)
    if found.waiting:
        of = "1 trial waits" if found.waiting == 1 else f"{found.waiting} trials wait"
        notes.append(f"what {of} to tell the tracker lies in {WORK_FOLDER / config.name}, and is counted here: a launch sends it first")
    known = [trial for trial in trials if config.ray.address == "local" and not _only_torch_can_tell(config, trial.config)]
    differs = differences(found.runs, trials, here(config, [node]), devices(known, [node]))
    return Look(made, stand, node, asked, left, notes, differs)


def recorded(config: SweepConfig) -> Recorded:
    """Reads the tracker, and what waits for it in this folder. Makes no database and no run."""
    uri = resolve_uri(config.tracking.uri)
    file = database_file(uri)
    if (file and not file.exists()) or connect(uri).get_experiment_by_name(config.tracking.experiment) is None:
        return Recorded()
    tracking = Tracking(uri, config.tracking.experiment)
    sweeps = search_all(tracking.client, tracking.experiment_id, "tags.kind = 'sweep'")
    parent = next((run for run in sweeps if run.data.tags["sweep"] == config.name), None)
    if parent is None:
        return Recorded()
    waiting = unsent.attempts_in(WORK_FOLDER / config.name, parent.info.run_id)
    newer = {run.data.tags["attempt_id"] for run in waiting}  # than what the tracker has of the same attempts
    sent = [run for run in tracking.trials(parent.info.run_id) if run.data.tags.get("attempt_id") not in newer]
    runs = sorted([*waiting, *sent], key=lambda run: run.info.start_time, reverse=True)
    ended = {run.data.tags["key"] for run in waiting if run.info.status != "RUNNING"}
    return Recorded(runs, Rerun.noted(parent.data.tags), noted_pins(tracking, parent.info.run_id), len(ended))


def _pinned(made: Outlook, node: Node, noted: Mapping[str, Pinned]) -> dict[str, Pinned]:
    """By key, how trials will be pinned, where that is known without a process that has torch: by an earlier launch, or as it's paced."""
    found = {}
    for trial in made.plan.trials:
        if _only_torch_can_tell(made.config, trial.config):
            continue
        if pinned := noted.get(pin_name(made.config, node, trial)):
            found[trial.key] = pinned
        elif node.device(trial.config) == "paced":
            found[trial.key] = unprobed(node, made.config)
    return found


def _only_torch_can_tell(config: SweepConfig, trial: TrialConfig) -> bool:
    """Whether a trial may get a GPU: which device it gets is not known here."""
    if config.resources.gpus == 0 or trial.device.first_of[0] != "cuda":
        return False
    return len(trial.device.first_of) == 1 or any(place.exists() for place in GPU_DRIVERS)


def tell(seen: Look, say: Say) -> None:
    """Says the outline, a line a trial and the count of verdicts."""
    made = seen.outlook
    say("\n".join([made.outline(seen.states, seen.left), *seen.notes, *seen.differs]))
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
    auto_gpus = int(_only_torch_can_tell(seen.outlook.config, trial.config))
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
        "notes": list(seen.notes),
        "warnings": list(seen.differs),
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
