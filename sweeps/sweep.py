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
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speech.config import Pinned, cache_dir
from speech.cpu import cpu_model
from sweeps import calibration, janitor, preflight
from sweeps.config import SweepConfig
from sweeps.disturbance import is_timing
from sweeps.isolation import Template
from sweeps.outlook import Outlook, outlook
from sweeps.plan import KEY_DIGITS, Plan, TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.relay import LEARNED, Launch
from sweeps.shm_fit import counted
from sweeps.tracking import Tracking

WORK_FOLDER = Path(".sweeps")  # what is under way; a trial's folder goes when MLflow has its files
REMAINS = "remains"  # in the sweep's folder while Ray runs: the folder of what is to go with the launch
VERSIONS = ("torch", "torchvision", "torchaudio", "ray", "mlflow")


@dataclass
class Sweep:
    """A launch that has been checked and planned: what is settled, what is foreseen, and what is left to run."""

    config: SweepConfig
    tracking: Tracking
    parent: str  # run id
    outlook: Outlook
    settled: dict[str, str]  # key -> outcome; without those that are due again, having been disturbed
    folder: Path
    node: Node
    template: Template
    pinned: dict[str, Pinned] = field(default_factory=dict)  # by the trial's key

    @property
    def plan(self) -> Plan:
        return self.outlook.plan

    @property
    def left(self) -> list[TrialSpec]:
        return self.outlook.left(self.settled)

    def clear(self) -> None:
        """Removes what lies in the sweep's folder of trials that no launch will go on with: those that are settled, or not planned."""
        left = {trial.key for trial in self.left}
        for folder in [*self.folder.glob("[0-9a-f]" * KEY_DIGITS), *self.folder.glob(f"{LEARNED}/*")]:
            if folder.name not in left:
                shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # there is none, or it is not empty
            (self.folder / LEARNED).rmdir()


@contextmanager
def opened(config: SweepConfig, text: str, rebuild: str, say: Say) -> Iterator[Sweep]:
    """Preflight, plan and forecasts. Raises PreflightError before any trial is started.

    `text`: the YAML; `rebuild`: the command that prints its tables again.
    """
    tracking = _tracking(config)
    folder = (WORK_FOLDER / config.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _held(lock_file(tracking.uri, config)), _template() as template:
        janitor.tidy_up_after(folder / REMAINS)
        node = preflight.survey(template, config, folder / "preflight.log")
        made = outlook(config, say)
        trials = made.plan.trials
        request(config, node, trials)  # what the node can't give is known before anything is prepared
        preflight.check_sizes(config, [trial.config for trial in trials])
        preflight.prepare(template, [trial.config for trial in trials], folder / "preflight.log", say)
        parent = tracking.start_sweep(config.name, text, made.rows(), rebuild)
        tracking.close_orphans(parent, folder)
        sweep = Sweep(config, tracking, parent, made, settled_for_good(tracking, parent, trials), folder, node, template)
        sweep.clear()
        try:
            _foresee(sweep, say)
        except BaseException:
            tracking.finish_sweep(parent, "KILLED")
            raise
        yield sweep


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
    sweep.outlook.foresee(wanted, found, tracking.settled_keys(sweep.parent))  # a trial that is due once more was chosen before
    tracking.log_plan(sweep.parent, sweep.outlook.rows())
    if found:
        tracking.log_calibrations(sweep.parent, {name: each.model_dump() for name, each in found.items()})


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


def launch_of(sweep: Sweep) -> Launch:
    """What all trials of a round share."""
    config = sweep.config
    return Launch(
        tracking_uri=sweep.tracking.uri,
        experiment=config.tracking.experiment,
        parent=sweep.parent,
        started_in=Path.cwd(),
        folder=sweep.folder,
        private_shm=config.resources.shm == "private",
        planned=frozenset(trial.key for trial in sweep.plan.trials),
        attempts=sweep.tracking.attempts(sweep.parent),
        keep=config.snapshots.keep,
        provenance=provenance(),
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
