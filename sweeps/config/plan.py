"""Plans the trials of a SweepConfig, in their order, with a stable id for every trial.

    trials = plan(load("sweep.yaml"), fingerprint).trials

A repeat is one complete pass over a block's points. The trials of a sweep that was cut short are
therefore comparable. The id is a hash of everything that determines what a trial measures, and of
nothing else. The file's layout, the order of its keys, the folder of the clips and the trial's
position in the plan do not matter. Trials with the same id measure the same: by the id, a later
launch recognises which trials are finished.
"""

import contextlib
import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from speech.config import TrialConfig
from speech.corpus_config import Corpus
from speech.training_config import Loader
from sweeps.config.config import Metric, ResolvedBlock, SweepConfig
from sweeps.config.grid import Path as ParameterPath
from sweeps.config.grid import Point, swept_values
from sweeps.names import KEYS_IDLE_AT_0_WORKERS, swept_name

TRIAL_ID_DIGITS = 12  # hexadecimal
MAX_NAMED_POINTS = 3  # points that a message names of those that one rule removes


@dataclass(frozen=True)
class TrialSpec:
    """Trial of a plan: its parameters, and the settings of its block that its runner needs."""

    trial_id: str  # TRIAL_ID_DIGITS hexadecimal digits
    block: str
    repeat: int  # from 1
    # The sweep's seed in the first repeat, one more in the next; all points of a repeat share it
    seed: int
    config: TrialConfig
    # Values as the trial sees them: {"loader.num_workers": 4, "loader.shm_size": 67108864}
    swept: dict[str, Any]
    metric: Metric
    warmup_epochs: int
    trial_timeout_s: float


@dataclass(frozen=True)
class RemovedPoints:
    """Points of a block that do not run, with the reason."""

    block: str
    reason: str
    points: list[dict[str, Any]]  # the swept values of every point, as the file writes them

    def __str__(self) -> str:
        names = [swept_name(point) for point in self.points[:MAX_NAMED_POINTS]]
        more = (
            [f"and {len(self.points) - MAX_NAMED_POINTS} more"]
            if len(self.points) > MAX_NAMED_POINTS
            else []
        )
        count = f"{len(self.points)} {'point' if len(self.points) == 1 else 'points'}"
        return f"{count} removed from {self.block}: {self.reason} ({', '.join([*names, *more])})"


@dataclass(frozen=True)
class Plan:
    """Trials in the order in which they start, and the points that were removed."""

    trials: list[TrialSpec]
    removed: list[RemovedPoints]


def corpora(config: SweepConfig) -> list[Corpus]:
    """Returns the distinct corpora of a sweep, in order of appearance."""
    distinct: dict[str, Corpus] = {}
    for block in config.resolved_blocks:
        for point in block.selection.remaining:
            distinct.setdefault(point.trial.corpus.selection_key(), point.trial.corpus)
    return list(distinct.values())


def plan(config: SweepConfig, fingerprint: Callable[[Corpus], str]) -> Plan:
    """Returns all trials of a sweep that `load` returned, and the points that do not run.

    It calls `fingerprint` once for every distinct corpus.
    """
    fingerprints = {corpus.selection_key(): fingerprint(corpus) for corpus in corpora(config)}
    trials: list[TrialSpec] = []
    removed: list[RemovedPoints] = []
    for block in config.resolved_blocks:
        points, removed_points = _merge_equal_points(block)
        removed += removed_points
        for repeat in range(1, block.repeats + 1):
            trials += [
                _build_spec(config, block, repeat, point, fingerprints)
                for point in _order_points(points, config.seed, block, repeat)
            ]
    return Plan(trials, removed)


class _PlannedPoint(NamedTuple):
    """Point of a block that runs, in every repeat."""

    trial: TrialConfig
    determining: dict[str, Any]  # the values that determine what the trial computes
    swept: dict[str, Any]  # as in TrialSpec


def _merge_equal_points(block: ResolvedBlock) -> tuple[list[_PlannedPoint], list[RemovedPoints]]:
    """Returns the points of a block that run, in the order of the file, and those that do not.

    Of several points that compute the same, the first one runs.
    """
    swept = swept_values(block.parameters)
    removed = [
        RemovedPoints(
            block.name,
            f"exclude {{{exclusion.text}}}",
            [_values_as_written(swept, point) for point in points],
        )
        for points, exclusion in zip(block.selection.removed, block.exclude, strict=True)
        if points
    ]
    distinct: dict[str, _PlannedPoint] = {}
    duplicates: list[dict[str, Any]] = []
    for point in block.selection.remaining:
        trial, determining = point.trial, _determining_values(point.trial)
        # The corpus itself stands for its fingerprint
        corpus = trial.corpus.model_dump(mode="json")
        identity = json.dumps(determining | {"corpus": corpus}, sort_keys=True)
        if identity in distinct:
            duplicates.append(_values_as_written(swept, point))
        else:
            values = _parsed_values(trial, list(point.choice))
            distinct[identity] = _PlannedPoint(trial, determining, values)
    if duplicates:
        idle = [
            key
            for key in KEYS_IDLE_AT_0_WORKERS
            if ("loader", key) in swept or ("loader",) in swept
        ]
        reason = (
            f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect at 0 workers"
            if idle
            else "they repeat other points"
        )
        removed.append(RemovedPoints(block.name, reason, duplicates))
    return list(distinct.values()), removed


def _values_as_written(swept: dict[ParameterPath, list[Any]], point: Point) -> dict[str, Any]:
    """Returns the swept values of a point by dotted path, as the file writes them.

    They are not parsed, because an excluded point may be illegal.
    """
    return {".".join(path): swept[path][index] for path, index in point.choice.items()}


def _parsed_values(trial: TrialConfig, paths: list[ParameterPath]) -> dict[str, Any]:
    """Returns the parsed values of a trial at `paths` by dotted path."""
    dump = trial.model_dump(mode="json")
    values = {}
    for path in paths:
        value: Any = dump
        for key in path:
            value = value[key]
        values[".".join(path)] = value
    return values


def _order_points(
    points: list[_PlannedPoint], seed: int, block: ResolvedBlock, repeat: int
) -> list[_PlannedPoint]:
    """Returns the points of a repeat in the order of the block: shuffled or listed."""
    points = list(points)
    if block.order == "shuffled":
        # A text as a seed gives the same order in every process
        random.Random(f"{seed}/{block.name}/{repeat}").shuffle(points)
    return points


def _build_spec(
    config: SweepConfig,
    block: ResolvedBlock,
    repeat: int,
    point: _PlannedPoint,
    fingerprints: dict[str, str],
) -> TrialSpec:
    """Returns the trial of a point in a repeat, with its id."""
    determining = {
        "trial": point.determining,
        "corpus": fingerprints[point.trial.corpus.selection_key()],
        "block": block.name,  # two blocks that share a point have a trial each
        "repeat": repeat,
        "seed": config.seed + repeat - 1,
        "warmup_epochs": config.warmup_epochs,
        "threads": config.threads,
        # A price changes nothing that a trial measures
        "resources": config.resources.model_dump(mode="json", exclude={"price_per_hour"}),
    }
    return TrialSpec(
        trial_id=_compute_trial_id(determining),
        block=block.name,
        repeat=repeat,
        seed=config.seed + repeat - 1,
        config=point.trial,
        swept=point.swept,
        metric=block.metric,
        warmup_epochs=config.warmup_epochs,
        trial_timeout_s=config.trial_timeout,
    )


def _determining_values(trial: TrialConfig) -> dict[str, Any]:
    """Returns the values that determine what a trial computes.

    They exclude the folder of the clips, which a fingerprint replaces, and keys without effect.
    """
    dump = trial.model_dump(mode="json")
    # Defaults are excluded, so that trials older than these two settings keep their ids
    reading = trial.corpus.model_dump(include={"cache", "read_latency_s"}, exclude_defaults=True)
    dump["corpus"] = {"seconds": trial.corpus.seconds} | reading
    dump["sgdr"] = {"cycles": trial.sgdr.cycles(), "lr": trial.sgdr.lr, "lr_min": trial.sgdr.lr_min}
    with contextlib.suppress(OSError, ValueError):  # preflight reports a missing or unreadable file
        file = Path(trial.model.weights).stat()
        dump["model"]["weights"] = _hash_file(trial.model.weights, file.st_size, file.st_mtime_ns)
    if trial.loader.num_workers == 0:
        dump["loader"] |= {key: Loader.model_fields[key].default for key in KEYS_IDLE_AT_0_WORKERS}
    return dump


@functools.cache
def _hash_file(path: str, size: int, mtime_ns: int) -> str:
    """Returns the SHA-256 of a file, cached by size and time: every point of a sweep needs it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _compute_trial_id(determining: dict[str, Any]) -> str:
    """Returns the id of a trial: a hash of the values that determine what it measures."""
    canonical = json.dumps(determining, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:TRIAL_ID_DIGITS]


def request_gpus(config: SweepConfig, trials: Sequence[TrialSpec], available: bool) -> float:
    """Returns the GPUs that every trial requests: by default as many as the most ranks on a GPU.

    `available` is whether the hosts have GPUs.
    """
    if config.resources.gpus != "auto":
        return config.resources.gpus
    ranks = [trial.config.device.ranks for trial in trials if trial.config.device.may_use_cuda]
    return float(max(ranks, default=0)) if available else 0.0
