"""One launch of a sweep, from its configuration to its first trial: preflight, plan, calibrate and forecast. sweeps/rounds.py runs it.

A trial that is settled in the tracker is not run again, so launching a file again runs what is new, and what failed. Nothing is
printed here but through `say`, a line at a time.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speech.config import Pinned, cache_dir
from speech.cpu import cpu_model
from sweeps import calibration, janitor, outbox, preflight
from sweeps.away import TrackerAway, asked, is_away, reason
from sweeps.config import SweepConfig
from sweeps.isolation import Template
from sweeps.outlook import Outlook, outlook
from sweeps.plan import KEY_DIGITS, Plan, TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.provenance import differences, here, software
from sweeps.relay import LEARNED, Launch
from sweeps.shm_fit import counted
from sweeps.states import DISTURBED, Asked, asked_for, kind, settled_for_good, states, without
from sweeps.tracking import Tracking

if TYPE_CHECKING:
    from mlflow.entities import Run

WORK_FOLDER = Path(".sweeps")  # what is under way; a trial's folder goes when MLflow has its files
AWAY_S = 20.0  # how long the end of a sweep waits for a tracker that is away, when records wait for it
REMAINS = "remains"  # in the sweep's folder while Ray runs: the folder of what is to go with the launch


@dataclass
class Sweep:
    """A launch that has been checked and planned: what is settled, what is foreseen, and what is left to run."""

    config: SweepConfig
    tracking: Tracking
    parent: str  # run id
    outlook: Outlook
    states: dict[str, str]  # by the key of a trial that has run; sweeps/states.py
    folder: Path
    node: Node
    template: Template
    found: dict[str, str] = field(default_factory=dict)  # the states when it was opened, and what is asked for of them
    asked: Asked = field(default_factory=Asked)
    forgotten: frozenset[str] = frozenset()  # ids of runs before this launch of what is asked for: to be run again, it has not run
    differs: list[str] = field(default_factory=list)  # what settled trials ran on or with that is not so now
    pinned: dict[str, Pinned] = field(default_factory=dict)  # by the trial's key

    @property
    def plan(self) -> Plan:
        return self.outlook.plan

    @property
    def left(self) -> list[TrialSpec]:
        return self.outlook.left(settled_for_good(self.states), self.asked.keys)

    @property
    def unsettled(self) -> list[TrialSpec]:
        """Without those that were disturbed: they are settled, whether they run once more or not."""
        return [trial for trial in self.left if self.states.get(trial.key) != DISTURBED]

    def runs(self) -> "list[Run]":
        """Every attempt that counts, newest first."""
        return without(self.tracking.trials(self.parent), self.forgotten)

    def look(self) -> None:
        """Reads the states anew."""
        self.states = states(self.runs(), self.plan.trials)

    def clear(self) -> None:
        """Removes what lies in the sweep's folder of trials that no launch will go on with: those that are settled, or not planned."""
        left = {trial.key for trial in self.plan.trials} - settled_for_good(self.states).keys()
        for folder in [*self.folder.glob("[0-9a-f]" * KEY_DIGITS), *self.folder.glob(f"{LEARNED}/*")]:
            if folder.name not in left:
                shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # there is none, or it is not empty
            (self.folder / LEARNED).rmdir()


@contextmanager
def opened(config: SweepConfig, text: str, rebuild: str, rerun: Sequence[str], say: Say) -> Iterator[Sweep]:
    """Preflight, plan and forecasts. Raises PreflightError, or UnknownKey of what --rerun asks for, before any trial is started.

    `text`: the YAML; `rebuild`: the command that prints its tables again.
    """
    folder = (WORK_FOLDER / config.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tracking = _tracking(config)
    with _held(lock_file(tracking.uri, config)), _template() as template:
        if unsent := outbox.deliver(folder):
            raise PreflightError(outbox.told(unsent))
        janitor.tidy_up_after(folder / REMAINS)
        node = preflight.survey(template, config, folder / "preflight.log")
        made = outlook(config, say)
        trials = made.plan.trials
        asked_for(rerun, trials, {})  # keys that there are not are told before anything is prepared
        request(config, node, trials)  # what the node can't give is known before anything is prepared
        preflight.check_sizes(config, [trial.config for trial in trials])
        preflight.prepare(template, [trial.config for trial in trials], folder / "preflight.log", say)
        with reached(config):
            parent = tracking.start_sweep(config.name, text, made.rows(), rebuild)
            tracking.close_orphans(parent, folder)
            sweep = _standing(Sweep(config, tracking, parent, made, {}, folder, node, template), rerun)
        sweep.clear()
        try:
            _foresee(sweep, say)
        except BaseException as error:
            finish(sweep, "KILLED")
            if isinstance(error, Exception) and is_away(error):
                raise _unusable(config, error) from error
            raise
        yield sweep


def _standing(sweep: Sweep, rerun: Sequence[str]) -> Sweep:
    """Where its trials stand. What --rerun asks for has not run, as far as this launch is concerned."""
    runs, trials = sweep.runs(), sweep.plan.trials
    sweep.found = states(runs, trials)
    sweep.asked = asked_for(rerun, trials, sweep.found)
    sweep.forgotten = frozenset(run.info.run_id for run in runs if run.data.tags["key"] in (sweep.asked.keys or ()))
    sweep.states = states(without(runs, sweep.forgotten), trials)
    sweep.differs = differences(runs, trials, here(sweep.config, sweep.node))
    return sweep


def _foresee(sweep: Sweep, say: Say) -> None:
    """Pins and calibrates for every trial that is left, forecasts every one that can be, and puts it down before the first of them runs."""
    config, tracking = sweep.config, sweep.tracking
    sweep.pinned = _pinned(sweep, say)
    if not (config.calibrate and config.resources.exclusive_node):  # beside others a trial takes as long as they let it
        return
    wanted = sweep.outlook.calibrations_wanted(sweep.pinned, sweep.node)
    due = {wanted[trial.key].name: wanted[trial.key] for trial in sweep.left if trial.key in wanted}
    private, log = config.resources.shm == "private", sweep.folder / "calibration.log"
    found = calibration.obtain(sweep.template, due.values(), private, log, say)
    found |= calibration.cached({each.name for each in wanted.values()} - due.keys())  # of settled trials: nothing is measured for them
    chosen = {key for key, state in sweep.found.items() if kind(state) in ("settled", DISTURBED)} | sweep.asked.named
    sweep.outlook.foresee(wanted, found, chosen)  # a trial that is due once more was chosen before
    tracking.log_plan(sweep.parent, sweep.outlook.rows())
    if found:
        tracking.log_calibrations(sweep.parent, {name: each.model_dump() for name, each in found.items()})


def heading(sweep: Sweep) -> str:
    """What is about to run and how long it will take, what is foreseen not to fit into /dev/shm for certain, and what is not as it was."""
    fits = [sweep.outlook.fits[trial.key] for trial in sweep.left]
    foreseen = [f"/dev/shm: {counted(fits)} (--dry-run shows which)"] if {fit.verdict for fit in fits} - {"fits"} else []
    return "\n".join([sweep.outlook.outline(sweep.found, sweep.left), *foreseen, *sweep.differs])


def settle_up(sweep: Sweep, patience_s: float = 0.0) -> None:
    """Sends what waits, closes what a relay that died has left open, and looks where trials stand. Raises TrackerAway, having closed
    nothing."""
    if unsent := outbox.deliver(sweep.folder, patience_s):
        raise TrackerAway(outbox.told(unsent))
    with asked(sweep.tracking.uri):
        sweep.tracking.close_orphans(sweep.parent, sweep.folder)
        sweep.look()
    sweep.clear()


def finish(sweep: Sweep, status: str, tables: str | None = None, report: str | None = None) -> None:
    """Closes the sweep's run, as Tracking.finish_sweep. While the tracker is away it stays open: the next launch goes on with it."""
    with contextlib.suppress(TrackerAway), asked(sweep.tracking.uri):
        sweep.tracking.finish_sweep(sweep.parent, status, tables, report)


def launch_of(sweep: Sweep) -> Launch:
    """What all trials of a round share."""
    config = sweep.config
    with asked(sweep.tracking.uri):
        attempts = sweep.tracking.attempts(sweep.parent)
    return Launch(
        tracking_uri=sweep.tracking.uri,
        experiment=config.tracking.experiment,
        parent=sweep.parent,
        started_in=Path.cwd(),
        folder=sweep.folder,
        private_shm=config.resources.shm == "private",
        planned=frozenset(trial.key for trial in sweep.plan.trials),
        attempts=attempts,
        keep=config.snapshots.keep,
        provenance=software() | {"sweep": config.name},
        pinned=sweep.pinned,
        fits=sweep.outlook.fits,
        forecasts=sweep.outlook.forecasts,
        exclusive=config.resources.exclusive_node,
        remains=sweep.folder / REMAINS,
    )


def _pinned(sweep: Sweep, say: Say) -> dict[str, Pinned]:
    """What is pinned for each trial, by key: decided at the sweep's first launch on this hardware and read from the tracker after that.
    A settled trial that ran on other hardware has none."""
    noted = noted_pins(sweep.tracking, sweep.parent)
    names = {trial.key: pin_name(sweep.config, sweep.node, trial) for trial in sweep.plan.trials}
    for trial in sweep.left:
        if names[trial.key] not in noted:
            found = preflight.pin(sweep.template, sweep.node, sweep.config, trial.config, sweep.folder / "preflight.log", say)
            noted[names[trial.key]] = found
    sweep.tracking.set_tags(sweep.parent, {"pinned": {name: found.model_dump() for name, found in noted.items()}})
    return {key: noted[name] for key, name in names.items() if name in noted}


def noted_pins(tracking: Tracking, parent: str) -> dict[str, Pinned]:
    """What earlier launches pinned, by `pin_name`."""
    noted = json.loads(tracking.client.get_run(parent).data.tags.get("pinned", "{}"))
    return {name: Pinned.model_validate(found) for name, found in noted.items()}


def pin_name(config: SweepConfig, node: Node, trial: TrialSpec) -> str:
    """Trials under one name are pinned alike."""
    hardware = "/".join([cpu_model(), f"{len(node.cpus)} cores", *node.gpus])
    asked = f"{node.device(trial.config)} {trial.config.precision} threads {config.threads}"  # step_s pins nothing
    return f"{trial.block} on {hardware}: {asked}"


def request(config: SweepConfig, node: Node, trials: list[TrialSpec]) -> dict[str, float]:
    """Ray resources of every trial, as {"CPU": 8, "GPU": 1}: the whole node's cores where trials hold it alone. PreflightError."""
    asked, cores = config.resources, len(node.cpus)
    on_gpu = "cuda" in {node.device(trial.config) for trial in trials}
    cpus = cores if asked.cpus == "auto" else asked.cpus
    gpus = float(on_gpu) if asked.gpus == "auto" else asked.gpus
    if cpus > cores or gpus > len(node.gpus):
        raise PreflightError(
            f"resources: a trial asks for {cpus} cores and {gpus:g} GPUs; this machine has {cores} and {len(node.gpus)}. "
            "Write auto, or what it has."
        )
    return {"CPU": cores if asked.exclusive_node else cpus} | ({"GPU": gpus} if gpus else {})


def _tracking(config: SweepConfig) -> Tracking:
    with reached(config):
        return Tracking(config.tracking.uri, config.tracking.experiment)


def _unusable(config: SweepConfig, error: Exception) -> PreflightError:
    waiting = outbox.left_in(WORK_FOLDER / config.name)
    kept = f"\nWhat earlier trials have recorded waits in {WORK_FOLDER / config.name}, and is sent by the next launch." if waiting else ""
    return PreflightError(f"tracking.uri {config.tracking.uri} can't be used: {reason(error)}{kept}")


@contextmanager
def reached(config: SweepConfig) -> Iterator[None]:
    """Whatever goes wrong with the tracker in this block is a PreflightError that names it."""
    try:
        yield
    except Exception as error:  # MLflow and its database drivers raise types of their own
        raise _unusable(config, error) from error


@contextmanager
def _template() -> Iterator[Template]:
    template = Template()
    try:
        yield template
    finally:
        template.close()


def lock_file(uri: str, config: SweepConfig) -> Path:
    """One for each sweep of a tracker, wherever on this machine it is launched from."""
    name = hashlib.sha256(f"{uri} {config.tracking.experiment} {config.name}".encode()).hexdigest()[:16]
    return cache_dir() / "locks" / f"{name}.lock"


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One launch of a sweep at a time; the lock goes with the process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PreflightError(
                f"process {lock.read().strip()} runs this sweep already. Wait for it, or give this one another name."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
