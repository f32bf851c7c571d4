"""SweepConfig -> the trials to run, in order, each with a stable key.

    trials = plan(load("sweep.yaml"), fingerprint).trials

A repeat is one complete pass over a block's points, so a sweep cut short has compared like with like. The key is a hash of all that
decides what a trial measures, and of nothing else: the file's layout, the order of its keys, where the clips lie and its place in the plan
do not matter.
Same key, same measurement: that is how a later run knows what is settled.
"""

import contextlib
import functools
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.config import Corpus, Loader, TrialConfig
from sweeps import grid
from sweeps.config import Metric, ResolvedBlock, SweepConfig
from sweeps.exclude import sift
from sweeps.names import swept_name

KEY_DIGITS = 12  # hexadecimal
NAMED = 3  # points that are named of those that one rule removes
_OF_WORKERS = ("prefetch_factor", "start_method", "persistent_workers")  # the loader's keys that mean nothing at 0 workers


@dataclass(frozen=True)
class TrialSpec:
    """One trial: what it computes, and what its runner needs of its block."""

    key: str  # KEY_DIGITS hexadecimal digits
    block: str
    repeat: int  # from 1
    seed: int  # the sweep's in the first repeat, one more in the next: the same for all points of a repeat
    config: TrialConfig
    swept: dict[str, Any]  # {"loader.num_workers": 4, "loader.shm_size": 67108864}: values as the trial sees them
    metric: Metric
    warmup_epochs: int
    trial_timeout_s: float


@dataclass(frozen=True)
class Removed:
    """Points of a block that do not run, and why."""

    block: str
    reason: str
    points: list[dict[str, Any]]  # what each of them would have swept, as the file writes it

    def __str__(self) -> str:
        names = [swept_name(point) for point in self.points[:NAMED]]
        more = [f"and {len(self.points) - NAMED} more"] if len(self.points) > NAMED else []
        count = f"{len(self.points)} {'point' if len(self.points) == 1 else 'points'}"
        return f"{count} removed from {self.block}: {self.reason} ({', '.join([*names, *more])})"


@dataclass(frozen=True)
class Plan:
    """Trials in the order in which they start, and what was left out."""

    trials: list[TrialSpec]
    removed: list[Removed]


def corpora(config: SweepConfig) -> list[Corpus]:
    """The distinct corpora of a sweep, in order of appearance."""
    found: dict[str, Corpus] = {}
    for block in config.resolved():
        for trial, _ in _points(block)[0]:
            found.setdefault(trial.corpus.which(), trial.corpus)
    return list(found.values())


def plan(config: SweepConfig, fingerprint: Callable[[Corpus], str]) -> Plan:
    """Every trial of a sweep that `load` returned. `fingerprint` is asked once for each distinct corpus."""
    prints = {corpus.which(): fingerprint(corpus) for corpus in corpora(config)}
    trials: list[TrialSpec] = []
    removed: list[Removed] = []
    for block in config.resolved():
        points, left_out = _points(block)
        removed += left_out
        for repeat in range(1, block.repeats + 1):
            trials += [_spec(config, block, repeat, point, prints) for point in _ordered(points, config.seed, block, repeat)]
    return Plan(trials, removed)


_Point = tuple[TrialConfig, dict[str, Any]]  # a trial's parameters, and those of them that are swept


def _points(block: ResolvedBlock) -> tuple[list[_Point], list[Removed]]:
    """The points of a block that run, as listed, and those that don't."""
    kept, excluded, _ = sift(grid.points(block.parameters), block.exclude)
    swept = grid.swept(block.parameters)
    removed = [
        Removed(block.name, f"exclude {{{exclusion.text}}}", [_written(swept, point) for point in points])
        for points, exclusion in zip(excluded, block.exclude, strict=True)
        if points
    ]
    distinct: dict[str, _Point] = {}
    repeating: list[dict[str, Any]] = []
    for point in kept:
        trial = TrialConfig.model_validate(point.parameters)
        deciding = _deciding(trial) | {"corpus": trial.corpus.model_dump(mode="json")}  # the fingerprint is not known here
        name = json.dumps(deciding, sort_keys=True)
        if name in distinct:
            repeating.append(_written(swept, point))
        else:
            distinct[name] = (trial, _swept(trial, list(point.choice)))
    if repeating:
        idle = [key for key in _OF_WORKERS if ("loader", key) in swept or ("loader",) in swept]
        reason = f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect at 0 workers" if idle else "they repeat other points"
        removed.append(Removed(block.name, reason, repeating))
    return list(distinct.values()), removed


def _written(swept: dict[grid.Path, list[Any]], point: grid.Point) -> dict[str, Any]:
    """Dotted path -> value as the file has it: a point that is excluded need not be one that parses."""
    return {".".join(path): swept[path][index] for path, index in point.choice.items()}


def _swept(trial: TrialConfig, paths: list[grid.Path]) -> dict[str, Any]:
    """Dotted path -> plain value, as parsed."""
    dump = trial.model_dump(mode="json")
    found = {}
    for path in paths:
        value: Any = dump
        for key in path:
            value = value[key]
        found[".".join(path)] = value
    return found


def _ordered(points: list[_Point], seed: int, block: ResolvedBlock, repeat: int) -> list[_Point]:
    points = list(points)
    if block.order == "shuffled":
        random.Random(f"{seed}/{block.name}/{repeat}").shuffle(points)  # a text seeds alike in every process
    return points


def _spec(config: SweepConfig, block: ResolvedBlock, repeat: int, point: _Point, prints: dict[str, str]) -> TrialSpec:
    trial, swept = point
    deciding = {
        "trial": _deciding(trial),
        "corpus": prints[trial.corpus.which()],
        "block": block.name,  # so that blocks that meet in a point have a trial each
        "repeat": repeat,
        "seed": config.seed + repeat - 1,
        "warmup_epochs": config.warmup_epochs,
        "threads": config.threads,
        "resources": config.resources.model_dump(mode="json"),
    }
    return TrialSpec(
        key=_hash(deciding),
        block=block.name,
        repeat=repeat,
        seed=config.seed + repeat - 1,
        config=trial,
        swept=swept,
        metric=block.metric,
        warmup_epochs=config.warmup_epochs,
        trial_timeout_s=config.trial_timeout,
    )


def _deciding(trial: TrialConfig) -> dict[str, Any]:
    """What decides what a trial does: not where its clips lie, since their fingerprint stands for them, nor keys without effect here."""
    dump = trial.model_dump(mode="json")
    read = trial.corpus.model_dump(
        include={"cache", "read_latency_s"}, exclude_defaults=True
    )  # left out: keys older than these keep theirs
    dump["corpus"] = {"seconds": trial.corpus.seconds} | read
    dump["sgdr"] = {"cycles": trial.sgdr.cycles(), "lr": trial.sgdr.lr, "lr_min": trial.sgdr.lr_min}
    with contextlib.suppress(OSError, ValueError):  # no such file, or none that can be read: preflight says so
        file = Path(trial.model.weights).stat()
        dump["model"]["weights"] = _content(trial.model.weights, file.st_size, file.st_mtime_ns)
    if trial.loader.num_workers == 0:
        dump["loader"] |= {key: Loader.model_fields[key].default for key in _OF_WORKERS}
    return dump


@functools.cache
def _content(path: str, size: int, mtime_ns: int) -> str:
    """Of a file as it is now: every point of a sweep asks for it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash(deciding: dict[str, Any]) -> str:
    canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_DIGITS]
