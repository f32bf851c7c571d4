"""The machines that a launch's trials may run on, and what each of them is asked before the first trial.

Every question is a function of this module that is called on the machine itself, with a process there that trees are forked from and
with a way to say something. `Here` asks the launch's own machine, in this process; sweeps/cluster.py asks every machine of a Ray cluster,
all at once. So what is looked at, prepared, pinned and measured is the same for one machine and for many.

Hardware may differ from machine to machine, so each `Site` has fits, pins and forecasts of its own for every trial, and a trial gets those
of the machine that it lands on.
"""

import contextlib
import platform
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from speech.config import Pinned, TrialConfig
from speech.costs import Calibration
from sweeps import calibration, machine, preflight, runner
from sweeps.calibration import Wanted
from sweeps.config import SweepConfig
from sweeps.isolation import Template
from sweeps.outlook import Outlook, outlook
from sweeps.plan import KEY_DIGITS, TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.relay import LEARNED, Foreseen
from sweeps.tracking import Tracking

Question = Callable[..., Any]  # of (template, say, *arguments)


@dataclass
class Site:
    """One machine: what it has, and what is known there of each trial before it runs."""

    node: Node
    outlook: Outlook
    pinned: dict[str, Pinned] = field(default_factory=dict)  # by the trial's key

    def foreseen(self) -> Foreseen:
        return Foreseen(self.pinned, self.outlook.fits, self.outlook.forecasts)


class Here:
    """The launch's own machine; it has a Ray of its own while trials run."""

    starts_ray = True  # which can be started again

    def __init__(self, template: Template, remains: Path, say: Say) -> None:
        """`remains`: as janitor.kept_tidy's note."""
        self._template, self._remains, self._say = template, remains, say
        self.nodes: dict[str, Node] = {}  # by machine.identity()

    def survey(self, config: SweepConfig, log: Path) -> None:
        """What each machine has. PreflightError."""
        self.nodes = {machine.identity(): survey(self._template, self._say, config, log)}

    def check(self, config: SweepConfig, trials: list[TrialSpec]) -> None:
        """PreflightError: what trials ask for can't be had."""
        self._request(config, trials)

    def sites(self, config: SweepConfig, made: Outlook, log: Path) -> dict[str, Site]:
        """Each machine with all prepared there that trials read; `made` is the outlook of the launch's own. PreflightError."""
        equip(self._template, self._say, config, made.plan.trials, log)
        return {name: Site(node, made) for name, node in self.nodes.items()}

    def ask(self, question: Question, arguments: dict[str, tuple]) -> dict[str, Any]:
        """What each machine answers, by its identity, being asked with its `arguments`. PreflightError."""
        return {name: question(self._template, self._say, *asked_with) for name, asked_with in arguments.items()}

    def everywhere(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `work` returns on each machine that can be reached."""
        return [work(*arguments)]

    def close_orphans(self, tracking: Tracking, parent: str, folder: Path) -> None:
        """Tracking.close_orphans, with what lies in the folder of each machine."""
        tracking.close_orphans(parent, folder)

    def running(self, config: SweepConfig, trials: list[TrialSpec]) -> "AbstractContextManager[runner.Session]":
        """A Ray for these trials."""
        (node,) = self.nodes.values()
        return runner.own_ray(node, self._request(config, trials), self._remains)

    def _request(self, config: SweepConfig, trials: list[TrialSpec]) -> dict[str, float]:
        """Ray resources of every trial, as {"CPU": 8, "GPU": 1}: the whole machine's cores where trials hold it alone."""
        ((node,), asked) = self.nodes.values(), config.resources
        cores, on_gpu = len(node.cpus), "cuda" in {node.device(trial.config) for trial in trials}
        cpus = cores if asked.cpus == "auto" else asked.cpus
        gpus = float(on_gpu) if asked.gpus == "auto" else asked.gpus
        if cpus > cores or gpus > len(node.gpus):
            raise PreflightError(
                f"resources: a trial asks for {cpus} cores and {gpus:g} GPUs; this machine has {cores} and {len(node.gpus)}. "
                "Write auto, or what it has."
            )
        return {"CPU": cores if asked.exclusive_node else cpus} | ({"GPU": gpus} if gpus else {})


def survey(template: Template, say: Say, config: SweepConfig, log: Path) -> Node:
    log.parent.mkdir(parents=True, exist_ok=True)
    return preflight.survey(template, config, log)


def look_out(template: Template, say: Say, config: SweepConfig, fingerprints: dict[str, str]) -> Outlook:
    """The launch's outlook as this machine sees it; its corpora are those of `fingerprints`, by Corpus.which()."""
    made = outlook(config, say)
    for which, corpus in made.corpora.items():
        if corpus.fingerprint != fingerprints[which]:
            raise PreflightError(
                f"the corpus at {corpus.root} has other clips than where the sweep was launched: {len(corpus.clips):,} clips here, "
                f"fingerprint {corpus.fingerprint[:12]} instead of {fingerprints[which][:12]}. Copy it from there."
            )
    return made


def reach(template: Template, say: Say, uri: str, experiment: str, shared: bool) -> None:
    """Makes sure that a trial on this machine can keep its figures, and where `shared`, its files beside those of other machines."""
    try:
        tracking = Tracking(uri, experiment)
        artifacts = tracking.client.get_experiment(tracking.experiment_id).artifact_location
    except Exception as error:  # MLflow and its database drivers raise types of their own
        raise PreflightError(f"tracking.uri {uri} can't be used: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
    if shared and urlsplit(artifacts).scheme in ("", "file"):
        raise PreflightError(
            f"experiment {experiment} at {uri} keeps its files at {artifacts}, a folder of each machine's own. Start mlflow server with "
            "--artifacts-destination, and write another tracking.experiment."
        )


def close_orphans(uri: str, experiment: str, parent: str, folder: Path) -> None:
    """Tracking.close_orphans of those that ran on this machine."""
    Tracking(uri, experiment).close_orphans(parent, folder, platform.node())


def clear(folder: Path, left: Collection[str]) -> None:
    """Removes what lies in the sweep's folder on this machine of trials whose key is none of `left`."""
    for each in [*folder.glob("[0-9a-f]" * KEY_DIGITS), *folder.glob(f"{LEARNED}/*")]:
        if each.name not in left:
            shutil.rmtree(each, ignore_errors=True)  # machines may share the folder
    with contextlib.suppress(OSError):  # there is none, or it is not empty
        (folder / LEARNED).rmdir()


def equip(template: Template, say: Say, config: SweepConfig, trials: list[TrialSpec], log: Path) -> None:
    """Has all that trials read made on this machine, and found."""
    preflight.check_sizes(config, [trial.config for trial in trials])
    preflight.prepare(template, [trial.config for trial in trials], log, say)


def pin(
    template: Template, say: Say, config: SweepConfig, node: Node, examples: dict[str, TrialConfig], log: Path, who: str
) -> dict[str, Pinned]:
    """By the name of each example, what is pinned for all trials like it."""
    probed = any(node.device(example) != "paced" for example in examples.values())
    with _held(config, who, say, "measuring the precision") if probed else contextlib.nullcontext():
        return {name: preflight.pin(template, node, config, example, log, say) for name, example in examples.items()}


def _held(config: SweepConfig, who: str, say: Say, what: str) -> AbstractContextManager[None]:
    """Holds the machine, as the sweep's trials do, for something that is timed."""
    return machine.held(config.resources.exclusive_node, who, lambda holder: say(f"{holder} holds this machine: {what} waits"))


def calibrate(
    template: Template,
    say: Say,
    config: SweepConfig,
    node: Node,
    trials: list[TrialSpec],
    pinned: dict[str, Pinned],
    fingerprints: dict[str, str],
    left: Iterable[str],
    log: Path,
    who: str,
) -> tuple[dict[str, Wanted], dict[str, Calibration]]:
    """What each trial's forecast needs on this machine, by its key, and what of that there is, by name: measured where a trial of
    `left` needs it, else as far as it is in the cache."""
    wanted = calibration.wanted(trials, pinned, fingerprints, node)
    due = {wanted[key].name: wanted[key] for key in left if key in wanted}
    found = calibration.cached({each.name for each in wanted.values()})
    if missing := [each for name, each in due.items() if name not in found]:
        with _held(config, who, say, "calibrating"):
            found |= calibration.obtain(template, missing, config.resources.shm == "private", log, say)
    return wanted, found
