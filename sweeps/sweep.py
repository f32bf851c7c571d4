"""One launch of a sweep, from its configuration to the last trial: preflight, plan, calibrate and forecast, run.

A trial that is settled in the tracker is not run again, so launching a file again runs what is new, and what failed. Nothing is
printed here but through `say`, a line at a time.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.config import Pinned, cache_dir
from speech.costs import Calibration
from sweeps import preflight, runner
from sweeps.config import SweepConfig
from sweeps.disturbance import is_timing
from sweeps.isolation import Template
from sweeps.outlook import Outlook, outlook
from sweeps.plan import Plan, TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.relay import Launch
from sweeps.shm_fit import counted
from sweeps.sites import Here, Site, calibrate, pin
from sweeps.tracking import Tracking, resolve_uri, run_name

if TYPE_CHECKING:
    from sweeps.cluster import Cluster

WORK_FOLDER = Path(".sweeps")  # what is under way; a trial's folder goes when MLflow has its files
VERSIONS = ("torch", "torchvision", "torchaudio", "ray", "mlflow")


@dataclass
class Sweep:
    """A launch that has been checked and planned: what is settled, what is foreseen, and what is left to run."""

    config: SweepConfig
    tracking: Tracking
    parent: str  # run id
    settled: dict[str, str]  # key -> outcome; without those that are due again, having been disturbed
    folder: Path
    machines: "Here | Cluster"
    sites: dict[str, Site]  # by machine.identity(), the first of them the launch's own machine where trials run there

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
        return self.outlook.left(self.settled)


@contextmanager
def opened(config: SweepConfig, text: str, rebuild: str, say: Say) -> Iterator[Sweep]:
    """Preflight, plan and forecasts. Raises PreflightError before any trial is started.

    `text`: the YAML; `rebuild`: the command that prints its tables again.
    """
    folder = (WORK_FOLDER / config.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with reached(config):
        uri = resolve_uri(config.tracking.uri)
    with _held(lock_file(uri, config)), _machines(config, say) as machines:
        machines.survey(config, folder / "preflight.log")
        tracking = _tracking(config)
        made = outlook(config, say)
        trials = made.plan.trials
        machines.check(config, trials)  # what can't be had is known before anything is prepared
        sites = machines.sites(config, made, folder / "preflight.log")
        parent = tracking.start_sweep(config.name, text, made.rows(), rebuild)
        machines.close_orphans(tracking, parent, folder)
        sweep = Sweep(config, tracking, parent, settled_for_good(tracking, parent, trials), folder, machines, sites)
        try:
            _foresee(sweep)
        except BaseException:
            tracking.finish_sweep(parent, "KILLED")
            raise
        yield sweep


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
    chosen = tracking.settled_keys(sweep.parent)  # a trial that is due once more was chosen before
    for name, (wanted, found) in sweep.machines.ask(calibrate, arguments).items():
        sweep.sites[name].outlook.foresee(wanted, found, chosen)
        known |= found
    out_of_reach = frozenset.intersection(*(site.outlook.foreseen_only for site in sweep.sites.values()))
    for site in sweep.sites.values():
        site.outlook.foreseen_only = out_of_reach
    tracking.log_plan(sweep.parent, sweep.outlook.rows())
    if known:
        tracking.log_calibrations(sweep.parent, {name: each.model_dump() for name, each in known.items()})


def settled_for_good(tracking: Tracking, parent: str, trials: list[TrialSpec]) -> dict[str, str]:
    """key -> outcome of the trials that no launch runs again. A trial whose time is what its block is after is due once more where it
    was disturbed."""
    known, disturbed = tracking.settled_keys(parent), tracking.disturbed_once(parent)
    again = {trial.key for trial in trials if trial.key in disturbed and is_timing(trial.metric.name)}
    return {trial.key: known[trial.key] for trial in trials if trial.key in known.keys() - again}


def heading(sweep: Sweep) -> str:
    """What is about to run and how long it will take, and what is foreseen not to fit into /dev/shm for certain."""
    fits = [sweep.outlook.fits[trial.key] for trial in sweep.left]
    foreseen = f"/dev/shm: {counted(fits)} (--dry-run shows which)"
    return "\n".join([sweep.outlook.outline(sweep.settled), *([foreseen] if {fit.verdict for fit in fits} - {"fits"} else [])])


def run(sweep: Sweep, say: Say) -> list[TrialSpec]:
    """Runs what is left of the sweep, disturbed trials once more; returns those that are not settled after it."""
    _run_left(sweep, say)
    if again := sweep.tracking.disturbed_once(sweep.parent) & {trial.key for trial in sweep.left}:
        say(f"{len(again)} disturbed from outside: once more")
        _run_left(sweep, say, again)
    sweep.settled = sweep.tracking.settled_keys(sweep.parent)  # a trial that was disturbed is settled all the same
    return sweep.left


def _run_left(sweep: Sweep, say: Say, only: Collection[str] | None = None) -> None:
    left = [trial for trial in sweep.left if only is None or trial.key in only]
    if left:
        launch = _launch(sweep)
        try:
            runner.run(left, launch, sweep.machines.running(sweep.config, left), _counter(sweep, left, say), say)
        finally:
            sweep.machines.close_orphans(sweep.tracking, sweep.parent, sweep.folder)
        sweep.settled = settled_for_good(sweep.tracking, sweep.parent, sweep.plan.trials)


def _launch(sweep: Sweep) -> Launch:
    config = sweep.config
    return Launch(
        tracking_uri=sweep.tracking.uri,
        experiment=config.tracking.experiment,
        parent=sweep.parent,
        started_in=Path.cwd(),
        folder=sweep.folder,
        private_shm=config.resources.shm == "private",
        planned=frozenset(trial.key for trial in sweep.plan.trials),
        keep=config.snapshots.keep,
        provenance=provenance(),
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
            arguments[name] = config, site.node, new, sweep.folder / "preflight.log"
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


def _counter(sweep: Sweep, left: list[TrialSpec], say: Say) -> Callable[[TrialSpec, dict[str, Any]], None]:
    """Says a line for each trial that ends."""
    total = len(sweep.plan.trials) - len(sweep.outlook.foreseen_only)
    ended = total - len(left)
    width = max(len(run_name(t.block, t.swept, t.repeat)) for t in sweep.plan.trials)

    def settled(spec: TrialSpec, result: dict[str, Any]) -> None:
        nonlocal ended
        ended += 1
        name = run_name(spec.block, spec.swept, spec.repeat)
        say(f"{ended:>{len(str(total))}}/{total}  {name:<{width}}  {_told(result)}")

    return settled


def _told(result: dict[str, Any]) -> str:
    if "lost" in result:
        return f"lost: {result['lost']}"
    summary, outcome = result["summary"], result["outcome"]
    if outcome != "completed":
        return textwrap.shorten(f"{outcome}: {result['evidence']}", 90, placeholder=" ...")  # the run's tag has all of it
    parts = [f"{summary['epoch_s']:6.2f} s an epoch"] if "epoch_s" in summary else []
    if "ensemble_accuracy" in summary:
        parts.append(f"ensemble {100 * summary['ensemble_accuracy']:.1f} %, last snapshot {100 * summary['accuracy']:.1f} %")
    return ", ".join(parts)


def provenance() -> dict[str, Any]:
    """Tags that say what ran: library versions and the commit of this checkout."""
    git = shutil.which("git")
    described = None
    if git:
        root = Path(__file__).resolve().parent.parent
        answer = subprocess.run([git, "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        described = answer.stdout.strip() or None
    return {"versions": {name: version(name) for name in VERSIONS}, "git_commit": described}


def _tracking(config: SweepConfig) -> Tracking:
    with reached(config):
        return Tracking(config.tracking.uri, config.tracking.experiment)


@contextmanager
def reached(config: SweepConfig) -> Iterator[None]:
    """Whatever goes wrong with the tracker in this block is a PreflightError that names it."""
    try:
        yield
    except Exception as error:  # MLflow and its database drivers raise types of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PreflightError(f"tracking.uri {config.tracking.uri} can't be used: {reason}") from error


@contextmanager
def _machines(config: SweepConfig, say: Say) -> "Iterator[Here | Cluster]":
    """Where trials run: here, or on every machine of the cluster that this one is part of."""
    if config.ray.address == "local":
        with closing(Template()) as template:
            yield Here(template, say)
    else:
        from sweeps.cluster import joined

        with joined(config.ray.address, say) as cluster:
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
