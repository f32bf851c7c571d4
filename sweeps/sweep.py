"""One launch of a sweep, from its configuration to its first trial: preflight, plan, calibrate and forecast. sweeps/rounds.py runs it.

A trial that is settled in the tracker is not run again, so launching a file again runs what is new, and what failed. Nothing is
printed here but through `say`, a line at a time.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speech.config import Pinned, cache_dir
from speech.costs import Calibration
from sweeps import janitor, preflight, rerun, unsent
from sweeps.away import TrackerAway, asked, is_away, reason
from sweeps.config import SweepConfig
from sweeps.isolation import Template
from sweeps.outlook import Outlook, outlook
from sweeps.plan import Plan, TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.provenance import devices, differences, here, software
from sweeps.relay import Launch
from sweeps.rerun import Asked, Rerun, asked_for
from sweeps.shm_fit import counted
from sweeps.sites import Here, Site, calibrate, clear, pin
from sweeps.states import DISTURBED, kind, settled_for_good, states
from sweeps.tracking import Tracking

if TYPE_CHECKING:
    from mlflow.entities import Run

    from sweeps.cluster import Cluster

WORK_FOLDER = Path(".sweeps")  # what is under way; a trial's folder goes when MLflow has its files
AWAY_S = 20.0  # how long the end of a sweep waits for a tracker that is away, when records wait for it
REMAINS = "remains"  # in the sweep's folder while Ray runs: the folder of what is to go with the launch


@dataclass
class Sweep:
    """A launch that has been checked and planned: what is settled, what is foreseen, and what is left to run."""

    config: SweepConfig
    tracking: Tracking
    parent: str  # run id
    folder: Path
    machines: "Here | Cluster"
    sites: dict[str, Site]  # by machine.identity(), the first of them the launch's own machine where trials run there
    states: dict[str, str] = field(default_factory=dict)  # by the key of a trial that has run; sweeps/states.py
    found: dict[str, str] = field(default_factory=dict)  # the states when it was opened, and what is asked for of them
    asked: Asked = field(default_factory=Asked)
    rerun: Rerun | None = None  # what --rerun began, now or before
    before: Rerun | None = None  # one that was cut short
    over: bool = False  # whether this launch has run all that was left, some of which may have failed
    differs: list[str] = field(default_factory=list)  # what settled trials ran on or with that is not so now

    @property
    def node(self) -> Node:
        return next(iter(self.sites.values())).node

    @property
    def outlook(self) -> Outlook:
        return next(iter(self.sites.values())).outlook

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
        return rerun.counted(self.tracking.trials(self.parent), self.asked, self.rerun)

    def look(self) -> None:
        """Reads the states anew."""
        self.states = states(self.runs(), self.plan.trials)

    def clear(self) -> None:
        """Removes what trials have left on the machines that no launch will go on with: those that are settled, or not planned."""
        self.machines.everywhere(clear, self.folder, {trial.key for trial in self.plan.trials} - settled_for_good(self.states).keys())


@contextmanager
def opened(config: SweepConfig, text: str, rebuild: str, again: Sequence[str], say: Say) -> Iterator[Sweep]:
    """Preflight, plan and forecasts. Raises PreflightError, or UnknownKey of what --rerun asks for, before any trial is started.

    `text`: the YAML; `rebuild`: the command that prints its tables again; `again`: the words of --rerun.
    """
    folder = (WORK_FOLDER / config.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tracking = _tracking(config)
    own = folder.with_name(f"{folder.name}.lock")  # one tracker may be called by two names, and another sweep by the same
    with _held(lock_file(tracking.uri, config)), _held(own), _machines(config, folder / REMAINS, say) as machines:
        if waiting := _unsent(machines, folder):
            raise PreflightError(unsent.told(waiting))
        machines.survey(config, folder / "preflight.log")
        made = outlook(config, say)
        trials = made.plan.trials
        asked_for(again, trials, {})  # keys that there are not are told before anything is prepared
        machines.check(config, trials)  # what can't be had is known before anything is prepared
        sites = machines.sites(config, made, folder / "preflight.log")
        with reached(config):
            parent = tracking.start_sweep(config.name, text, made.rows(), rebuild)
            machines.close_orphans(tracking, parent, folder)
            sweep = _standing(Sweep(config, tracking, parent, folder, machines, sites), again)
        sweep.clear()
        try:
            _foresee(sweep)
        except BaseException as error:
            finish(sweep, "KILLED")
            if isinstance(error, Exception) and is_away(error):
                raise _unusable(config, error) from error
            raise
        yield sweep


def _standing(sweep: Sweep, again: Sequence[str]) -> Sweep:
    """Where its trials stand. What --rerun asks for has not run but in this launch, or in those that it goes on from."""
    tracking, trials = sweep.tracking, sweep.plan.trials
    runs = tracking.trials(sweep.parent)
    sweep.found = states(runs, trials)
    sweep.asked = asked_for(again, trials, sweep.found)
    sweep.before = Rerun.noted(tracking.client.get_run(sweep.parent).data.tags)
    sweep.rerun = rerun.wanted(again, sweep.before)
    if sweep.rerun:
        tracking.set_tags(sweep.parent, {rerun.TAG: sweep.rerun.note()})
    elif sweep.before:
        tracking.client.delete_tag(sweep.parent, rerun.TAG)
    sweep.states = states(rerun.counted(runs, sweep.asked, sweep.rerun), trials)
    nodes = [site.node for site in sweep.sites.values()]
    sweep.differs = differences(runs, trials, here(sweep.config, nodes), devices(trials, nodes))
    return sweep


def _foresee(sweep: Sweep) -> None:
    """Pins and calibrates for every trial that is left, forecasts every one that can be, and puts it down before the first of them runs."""
    config, tracking = sweep.config, sweep.tracking
    _pin(sweep)
    if not (config.calibrate and config.resources.exclusive_node):  # beside others a trial takes as long as they let it
        return
    trials, prints = sweep.plan.trials, {which: corpus.fingerprint for which, corpus in sweep.outlook.corpora.items()}
    left, log = [trial.key for trial in sweep.left], sweep.folder / "calibration.log"
    arguments = {name: (config, site.node, trials, site.pinned, prints, left, log, who(config)) for name, site in sweep.sites.items()}
    known: dict[str, Calibration] = {}
    chosen = {key for key, state in sweep.found.items() if kind(state) in ("settled", DISTURBED)} | sweep.asked.named
    for name, (wanted, found) in sweep.machines.ask(calibrate, arguments).items():
        sweep.sites[name].outlook.foresee(wanted, found, chosen)  # a trial that is due once more was chosen before
        known |= found
    out_of_reach = frozenset.intersection(*(site.outlook.foreseen_only for site in sweep.sites.values()))
    for site in sweep.sites.values():
        site.outlook.foreseen_only = out_of_reach
    tracking.log_plan(sweep.parent, sweep.outlook.rows())
    if known:
        tracking.log_calibrations(sweep.parent, {name: each.model_dump() for name, each in known.items()})


def heading(sweep: Sweep) -> str:
    """What is about to run and how long it will take, what is foreseen not to fit into /dev/shm for certain, and what is not as it was."""
    fits = [sweep.outlook.fits[trial.key] for trial in sweep.left]
    foreseen = [f"/dev/shm: {counted(fits)} (--dry-run shows which)"] if {fit.verdict for fit in fits} - {"fits"} else []
    cut_short = rerun.told(sweep.before, sweep.rerun, sweep.left, sweep.states)
    return "\n".join([sweep.outlook.outline(sweep.found, sweep.left), *cut_short, *foreseen, *sweep.differs])


def settle_up(sweep: Sweep, say: Say, patience_s: float = 0.0) -> None:
    """Sends what waits on each machine, closes what a relay that died has left open, and looks where trials stand. Raises TrackerAway,
    having closed nothing; what the tracker refuses is said, and keeps nobody from the tables."""
    waiting = _unsent(sweep.machines, sweep.folder, patience_s)
    if any(each.away for each in waiting):
        raise TrackerAway(unsent.told(waiting))
    if waiting:
        say(unsent.told(waiting))
    with asked(sweep.tracking.uri):
        sweep.machines.close_orphans(sweep.tracking, sweep.parent, sweep.folder)
        sweep.look()
    sweep.clear()


def _unsent(machines: "Here | Cluster", folder: Path, patience_s: float = 0.0) -> list[unsent.Unsent]:
    """What the tracker doesn't take of what waits for it on the machines, each of which sends its own."""
    return [each for waiting in machines.everywhere(unsent.deliver, folder, patience_s) for each in waiting]


def finish(sweep: Sweep, status: str, tables: str | None = None, report: str | None = None) -> None:
    """Closes the sweep's run, as Tracking.finish_sweep. While the tracker is away it stays open: the next launch goes on with it."""
    with contextlib.suppress(TrackerAway), asked(sweep.tracking.uri):
        if sweep.rerun and sweep.over:
            sweep.tracking.client.delete_tag(sweep.parent, rerun.TAG)
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
        provenance=software() | {"sweep": config.name} | ({rerun.TAG: sweep.rerun.id} if sweep.rerun else {}),
        **vars(next(iter(sweep.sites.values())).foreseen()),
        exclusive=config.resources.exclusive_node,
        who=who(config),
        machines={name: site.foreseen() for name, site in sweep.sites.items()},
    )


def who(config: SweepConfig) -> str:
    """What others are told that wait for a machine."""
    return f"sweep {config.name} (process {os.getpid()} on {platform.node()})"


def _pin(sweep: Sweep) -> None:
    """What is pinned for each trial: decided at the sweep's first launch on this hardware, by one machine that has it, and read from the
    tracker after that. A settled trial that ran on other hardware has none."""
    config, noted = sweep.config, noted_pins(sweep.tracking, sweep.parent)
    arguments: dict[str, tuple] = {}
    asked: set[str] = set()
    for name, site in sweep.sites.items():
        examples = {pin_name(config, site.node, trial): trial.config for trial in reversed(sweep.left)}  # the first of each name
        new = {pin: examples[pin] for pin in reversed(examples) if pin not in noted.keys() | asked}
        asked |= new.keys()
        if new:
            arguments[name] = config, site.node, new, sweep.folder / "preflight.log", who(config)
    for found in sweep.machines.ask(pin, arguments).values():
        noted |= found
    sweep.tracking.set_tags(sweep.parent, {"pinned": {name: found.model_dump() for name, found in noted.items()}})
    for site in sweep.sites.values():
        names = {trial.key: pin_name(config, site.node, trial) for trial in sweep.plan.trials}
        own = {"cpus": preflight.unprobed(site.node, config).cpus}  # which cores these are differs between machines alike
        site.pinned = {key: noted[name].model_copy(update=own) for key, name in names.items() if name in noted}


def noted_pins(tracking: Tracking, parent: str) -> dict[str, Pinned]:
    """What earlier launches pinned, by `pin_name`."""
    noted = json.loads(tracking.client.get_run(parent).data.tags.get("pinned", "{}"))
    return {name: Pinned.model_validate(found) for name, found in noted.items()}


def pin_name(config: SweepConfig, node: Node, trial: TrialSpec) -> str:
    """Trials under one name are pinned alike."""
    hardware = "/".join([node.cpu, f"{len(node.cpus)} cores", *node.gpus])
    asked = f"{node.device(trial.config)} {trial.config.precision} threads {config.threads}"  # step_s pins nothing
    return f"{trial.block} on {hardware}: {asked}"


def _tracking(config: SweepConfig) -> Tracking:
    with reached(config):
        return Tracking(config.tracking.uri, config.tracking.experiment)


def _unusable(config: SweepConfig, error: Exception) -> PreflightError:
    waiting = unsent.left_in(WORK_FOLDER / config.name)
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
def _machines(config: SweepConfig, remains: Path, say: Say) -> "Iterator[Here | Cluster]":
    """Where trials run: here, or on every machine of the cluster that this one is part of. `remains`: as janitor.kept_tidy's note."""
    janitor.tidy_up_after(remains)
    if config.ray.address == "local":
        with closing(Template()) as template:
            yield Here(template, remains, say)
    else:
        from sweeps.cluster import joined

        with joined(config.ray.address, remains, say) as cluster:
            yield cluster


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
