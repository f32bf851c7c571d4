"""One launch of a sweep, from its configuration to the last trial: preflight, plan, run.

A trial that is settled in the tracker is not run again, so launching a file again runs what is new, and what failed. Nothing is
printed here but through `say`, a line at a time.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speech import corpora
from speech.config import Corpus, Pinned, TrialConfig, cache_dir
from speech.cpu import cpu_model
from speech.shapes import whole_pages
from sweeps import preflight, runner
from sweeps.cgroup import memory_limit
from sweeps.config import SweepConfig
from sweeps.disturbance import is_timing
from sweeps.forecast import ShmFit, counted, fit
from sweeps.isolation import Template
from sweeps.plan import Plan, TrialSpec, plan
from sweeps.preflight import Node, PreflightError, Say
from sweeps.relay import Launch
from sweeps.shm import shm_usage
from sweeps.tracking import Tracking, run_name

WORK_FOLDER = Path(".sweeps")  # what is under way; a trial's folder goes when MLflow has its files
VERSIONS = ("torch", "torchvision", "torchaudio", "ray", "mlflow")


@dataclass
class Sweep:
    """A launch that has been checked and planned: what is settled, and what is left to run."""

    config: SweepConfig
    tracking: Tracking
    parent: str  # run id
    plan: Plan
    fits: dict[str, ShmFit]  # by the trial's key
    settled: dict[str, str]  # key -> outcome; without those that are due again, having been disturbed
    folder: Path
    node: Node
    template: Template

    @property
    def left(self) -> list[TrialSpec]:
        return [trial for trial in self.plan.trials if trial.key not in self.settled]


@contextmanager
def opened(config: SweepConfig, text: str, rebuild: str, say: Say) -> Iterator[Sweep]:
    """Preflight and plan. Raises PreflightError before anything is started.

    `text`: the YAML; `rebuild`: the command that prints its tables again.
    """
    tracking = _tracking(config)
    folder = (WORK_FOLDER / config.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _held(lock_file(tracking.uri, config)), _template() as template:
        node = preflight.survey(template, config, folder / "preflight.log")
        made, fits = planned(config, say)
        trials = made.trials
        request(config, node, trials)  # what the node can't give is known before anything is prepared
        preflight.check_sizes(config, [trial.config for trial in trials])
        preflight.prepare(template, [trial.config for trial in trials], folder / "preflight.log", say)
        rows = [{"key": t.key, "block": t.block, "repeat": t.repeat, "swept": t.swept} for t in trials]
        parent = tracking.start_sweep(config.name, text, rows, rebuild)
        tracking.close_orphans(parent, folder)
        yield Sweep(config, tracking, parent, made, fits, _settled(tracking, parent, trials), folder, node, template)


def _settled(tracking: Tracking, parent: str, trials: list[TrialSpec]) -> dict[str, str]:
    """A trial whose time is what its block is after, and which was disturbed, is due once more."""
    known, disturbed = tracking.settled_keys(parent), tracking.disturbed_once(parent)
    again = {trial.key for trial in trials if trial.key in disturbed and is_timing(trial.metric.name)}
    return {trial.key: known[trial.key] for trial in trials if trial.key in known.keys() - again}


def planned(config: SweepConfig, say: Say) -> tuple[Plan, dict[str, ShmFit]]:
    """Every trial, and by its key what it will need of /dev/shm. Prepares the corpora, since keys and batches depend on their clips.

    PreflightError where a corpus can't be used.
    """
    prepared: dict[str, corpora.PreparedCorpus] = {}

    def fingerprint(corpus: Corpus) -> str:
        prepared[corpus.which()] = found = corpora.prepare(corpus, say)
        return found.fingerprint

    try:
        made = plan(config, fingerprint)
    except corpora.CorpusError as error:
        raise PreflightError(str(error)) from error
    clips = {name: (len(found.split("training")), len(found.split("validation"))) for name, found in prepared.items()}
    rooms = {trial.key: _room(config, trial.config) for trial in made.trials}
    return made, {trial.key: fit(trial.config, *clips[trial.config.corpus.which()], rooms[trial.key]) for trial in made.trials}


def _room(config: SweepConfig, trial: TrialConfig) -> int:
    """Bytes that a trial may fill of its /dev/shm: all of a private one, what is free now of the machine's; never more than memory."""
    usage = shm_usage()
    size = whole_pages(trial.loader.shm_size or usage.limit_bytes)
    room = size if config.resources.shm == "private" else min(size, usage.limit_bytes - usage.used_bytes)
    return min(room, memory_limit())


def heading(sweep: Sweep) -> str:
    """What is about to run, and what is foreseen not to fit into /dev/shm for certain."""
    fits = [sweep.fits[trial.key] for trial in sweep.left]
    foreseen = f"/dev/shm: {counted(fits)} (--dry-run shows which)"
    return "\n".join([outline(sweep.config.name, sweep.plan, sweep.settled), *([foreseen] if {f.verdict for f in fits} - {"fits"} else [])])


def outline(name: str, made: Plan, settled: Collection[str]) -> str:
    """How many trials there are, how many are settled already, and what was left out and why. `settled`: keys."""
    trials = made.trials
    counts = Counter(trial.block for trial in trials)
    blocks = ", ".join(f"{count} in {block}" for block, count in counts.items())
    left = sum(trial.key not in settled for trial in trials)
    lines = [f"{name}: {len(trials)} trials ({blocks}), {len(trials) - left} settled, {left} to run"]
    return "\n".join(lines + [str(removed) for removed in made.removed])


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
        launch = _launch(sweep, say)
        try:
            runner.run(left, launch, sweep.node, request(sweep.config, sweep.node, left), _counter(sweep, left, say))
        finally:
            sweep.tracking.close_orphans(sweep.parent, sweep.folder)
        sweep.settled = _settled(sweep.tracking, sweep.parent, sweep.plan.trials)


def _launch(sweep: Sweep, say: Say) -> Launch:
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
        pinned=_pinned(sweep, say),
        fits=sweep.fits,
        exclusive=config.resources.exclusive_node,
    )


def _pinned(sweep: Sweep, say: Say) -> dict[str, Pinned]:
    """What is pinned for each trial, by key: decided at the sweep's first launch on this hardware and read from the tracker after that."""
    noted = json.loads(sweep.tracking.client.get_run(sweep.parent).data.tags.get("pinned", "{}"))
    names, log = {}, sweep.folder / "preflight.log"
    hardware = "/".join([cpu_model(), f"{len(sweep.node.cpus)} cores", *sweep.node.gpus])
    for trial in sweep.left:
        asked = f"{sweep.node.device(trial.config)} {trial.config.precision} threads {sweep.config.threads}"  # step_s pins nothing
        names[trial.key] = name = f"{trial.block} on {hardware}: {asked}"
        if name not in noted:
            noted[name] = preflight.pin(sweep.template, sweep.node, sweep.config, trial.config, log, say).model_dump()
    sweep.tracking.set_tags(sweep.parent, {"pinned": noted})
    return {key: Pinned.model_validate(noted[name]) for key, name in names.items()}


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


def _counter(sweep: Sweep, left: list[TrialSpec], say: Say) -> Callable[[TrialSpec, dict[str, Any]], None]:
    """Says a line for each trial that ends."""
    total, ended = len(sweep.plan.trials), len(sweep.plan.trials) - len(left)
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
