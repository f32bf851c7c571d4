"""What a batch costs here: measured once for all trials that prepare the same batches for the same step, and kept in the cache.

The one idea is the name: a hash of all that decides what a batch costs, and of nothing that a forecast can vary. Hardware, kernel,
torch, the clips and how they are read, features, augmentation, form, batch size, device and threads are in it; the number of workers,
their prefetch and the size of /dev/shm are not. Same name, same costs: a sweep launched again measures nothing.

A calibration runs in a process tree like a trial's. Where its loader meets with what only a trial should (a /dev/shm too small, no
memory, no end), the sweep goes on and its trials are uncalibrated: they run, and nothing but their /dev/shm is foreseen.
"""

import functools
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from speech.config import Pinned, Trial, TrialConfig, cache_dir, format_size
from speech.costs import Calibration
from speech.cpu import cpu_model
from speech.shapes import batch_bytes, dataset_bytes
from sweeps.hygiene import settle
from sweeps.isolation import Task, Template
from sweeps.outcome import classify
from sweeps.plan import TrialSpec
from sweeps.preflight import Node, PreflightError, Say
from sweeps.shm import shm_usage

MEASURED = 2  # part of every name: raise it when the same machine and the same batches are to be measured anew
PACKAGES = ("torch", "torchvision", "torchaudio", "numpy", "pillow", "soundfile")  # they decode, collate and compute
UNDER_WAY = 6  # batches that a calibration's loaders have in /dev/shm at most
ROOM_BATCHES = 16  # that it has room for in a /dev/shm of its own
TIMEOUT_S = 300.0  # a minute is usual; reads of a slow drive take longer
SETTLE_S = 5.0
OF_THE_LOADER = ("shm_exhausted", "oom", "timeout")  # outcomes that don't stop a sweep


class Wanted(NamedTuple):
    """A calibration that some trials share."""

    name: str  # 16 hex digits
    config: TrialConfig  # of one of these trials
    pinned: Pinned

    def __str__(self) -> str:
        return f"{self.config.loader.form}, batches of {self.config.loader.batch_size}"


def wanted(trials: Iterable[TrialSpec], pinned: Mapping[str, Pinned], fingerprints: Mapping[str, str], node: Node) -> dict[str, Wanted]:
    """By the key of each trial, what its forecast needs. A trial without an entry in `pinned` is left out, and so is one on a GPU: its
    steps overlap the loop, which the simulation doesn't play.

    `pinned`: by a trial's key; `fingerprints`: of the corpora, by Corpus.which().
    """
    return {
        trial.key: Wanted(name_of(trial.config, found, fingerprints[trial.config.corpus.which()], node), trial.config, found)
        for trial in trials
        if (found := pinned.get(trial.key)) and node.device(trial.config) != "cuda"
    }


def name_of(config: TrialConfig, pinned: Pinned, fingerprint: str, node: Node) -> str:
    """The hash of all that decides what a batch of `config` costs on this machine."""
    deciding = {
        "measured": MEASURED,
        "machine": [platform.node(), cpu_model(), len(pinned.cpus or node.cpus), platform.release()],
        "packages": _versions(),
        "corpus": [fingerprint, config.corpus.seconds, config.corpus.cache, config.corpus.read_latency_s],
        "features": config.features.model_dump(mode="json"),
        "augment": config.augment.model_dump(mode="json"),
        "loader": config.loader.model_dump(mode="json", include={"form", "batch_size", "start_method"}),
        "device": node.device(config),
        "pinned": pinned.model_dump(mode="json", exclude={"cpus"}),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


@functools.cache
def _versions() -> list[str]:
    """Once a process: a thousand names would read the packages' metadata for seconds."""
    return [version(name) for name in PACKAGES]


def obtain(template: Template, wanted: Iterable[Wanted], private: bool, log: Path, say: Say) -> dict[str, Calibration]:
    """By name, what is in the cache; what isn't is measured and put there. One that fails for its loader's own reasons is absent.

    `private`: in a /dev/shm of its own, at least as large as the machine's. PreflightError: the machine can't run it, or the trials can't.
    """
    found: dict[str, Calibration] = {}
    for each in {each.name: each for each in wanted}.values():
        made = _load(each.name) or _measure(template, each, private, log, say)
        if made:
            found[each.name] = made
    return found


def cached(names: Iterable[str]) -> dict[str, Calibration]:
    """By name, those of `names` that are in the cache."""
    return {name: kept for name in names if (kept := _load(name))}


def _load(name: str) -> Calibration | None:
    """None where there is no such file, or a broken one, which is as good as none."""
    try:
        return Calibration.model_validate_json(_file(name).read_bytes())
    except (OSError, ValueError):
        return None


def save(name: str, calibration: Calibration) -> None:
    """The file appears in the cache complete or not at all."""
    file = _file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{name}.", delete=False) as unfinished:
        unfinished.write(calibration.model_dump_json(indent=1))
    os.replace(unfinished.name, file)


def _file(name: str) -> Path:
    return cache_dir() / "calibrations" / f"{name}.json"


def _measure(template: Template, each: Wanted, private: bool, log: Path, say: Say) -> Calibration | None:
    """Says how long it took, or why there is none. What was measured while the machine was busy is used, but not kept."""
    batch, usage = batch_bytes(each.config, each.config.loader.batch_size), shm_usage()
    needs, free = dataset_bytes(each.config) + UNDER_WAY * batch, usage.limit_bytes - usage.used_bytes
    if not private and needs > free:
        say(f"{each} can't be calibrated, which takes {format_size(needs)} of /dev/shm: it has {format_size(free)} free")
        return None
    say(f"calibrating {each}: measured once on this machine, in about a minute")
    node = settle(SETTLE_S)
    trial = Trial(config=each.config, seed=0, pinned=each.pinned, folder=str(log.parent))
    size = max(usage.limit_bytes, ROOM_BATCHES * batch) if private else None
    task = Task("calibrate", trial.model_dump(), private, size, each.pinned.cpus, each.pinned.threads)
    log.unlink(missing_ok=True)
    *records, ending = template.run(task, log, TIMEOUT_S)
    error = next((record for record in records if record["kind"] == "error"), None)
    told = next((record for record in records if record["kind"] == "calibration"), None)
    if told and not error and ending["status"] == 0:
        log.unlink(missing_ok=True)
        calibration = Calibration.model_validate(told["calibration"])
        if "unsettled" in node:
            say(f"calibrated {each} in {calibration.took_s:.0f} s, not kept for other launches, as {node['unsettled']}")
        else:
            save(each.name, calibration)
            say(f"calibrated {each} in {calibration.took_s:.0f} s")
        return calibration
    if error and error["type"] == "Killed" and ending.get("oom_kills"):
        error = None  # the kernel's doing, not the data set's
    outcome = classify(error, ending, False, log.read_text(errors="replace"))
    if outcome.name not in OF_THE_LOADER:
        raise PreflightError(
            f"calibrating {each} failed: {outcome.evidence}. Write calibrate: false to run without forecasts. What it wrote is in {log}."
        )
    why = f"no end after {TIMEOUT_S:.0f} s" if outcome.name == "timeout" else outcome.evidence
    say(f"calibrating {each} failed, so its trials are uncalibrated: {why}")
    return None
