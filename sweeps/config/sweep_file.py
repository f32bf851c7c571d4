"""Reads sweep.yaml into a SweepConfig, or reports every fault at once, each with its line.

    config = load(Path("sweep.yaml"), ["parameters.sgdr.epochs=3"])

Three rounds check the file, and all of them run. The first compares its own keys with the models of
sweeps/config/config.py. The second checks the shape of its swept values and excludes. The third
compares every combination with speech.config.TrialConfig and with the rules that bind a trial to
its sweep. A returned SweepConfig holds its points, expanded and validated, and can be planned
without another check. A round uses the sound keys only: a key that is faulty counts as absent in
later rounds.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from speech.config import TrialConfig
from sweeps.config import grid
from sweeps.config.config import LEARNING_METRICS, Block, ResolvedBlock, SweepConfig
from sweeps.config.config_errors import ConfigFaults, KeyPath, format_path, translate
from sweeps.config.error_location import Rule, check_points
from sweeps.config.exclude import read_exclusion
from sweeps.config.yaml_source import Source, parse, read_text

MAX_TRIALS = 100_000  # a larger number is a mistake: at a second a trial, these take a day

_WARM_EPOCH_METRICS = {"epoch_s", "first_batch_s", "wait_fraction", "clips_per_s"}


def load(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Reads a sweep file and applies `overrides` ("dotted.path=YAML value") to it.

    Raises ConfigFaults with every fault.
    """
    return load_text(read_text(Path(path)), Path(path).name, overrides)


def load_text(text: str, name: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Parses the text of a sweep file and applies `overrides`, as `load` does.

    `name` is the file's name in faults. Raises ConfigFaults with every fault.
    """
    source = parse(text, name)
    for override in overrides:
        source.set(override)
    config = _validate_keys(source)
    for path, message in _find_shape_faults(config):
        source.add_fault(path, message)
    if config.method == "forecast" and not config.calibrate:
        source.add_fault(
            ("method",),
            "forecast requires a calibration. Write calibrate: true, or method: grid.",
        )
    _check_overrides(source, config)
    _check_combinations(source, config)
    if source.faults:
        raise ConfigFaults(source.name, source.faults)
    return config


def _validate_keys(source: Source) -> SweepConfig:
    """Returns the model of the file's own keys, without those that are faulty.

    Notes the faults in `source`, and removes faulty keys until the others are valid.
    """
    tree = source.tree
    while True:
        try:
            return SweepConfig.model_validate(tree)
        except ValidationError as error:
            faults = translate(SweepConfig, tree, error)
        for path, text in faults:
            if path not in source.faulty_paths:  # otherwise the last pass has removed the key
                source.add_fault(path, text)
            tree = _without_key(tree, path)
        tree = {"name": "unnamed"} | tree


def _without_key(tree: dict[Any, Any], path: KeyPath) -> dict[Any, Any]:
    """Returns a copy of `tree` without the key at `path`, or without the group that lacks the key.

    A faulty list item removes the whole list.
    """
    head, rest = path[0], path[1:]
    inner = tree.get(head)
    if rest and isinstance(inner, dict) and (len(rest) > 1 or rest[0] in inner):
        return tree | {head: _without_key(inner, rest)}
    return {key: value for key, value in tree.items() if key != head}


def _find_shape_faults(config: SweepConfig) -> Iterable[tuple[KeyPath, str]]:
    """Yields the faults of malformed swept values and excludes, of the sweep and of every block."""
    sections: list[tuple[KeyPath, SweepConfig | Block]] = [((), config)]
    sections += [(("blocks", name), block) for name, block in config.blocks.items()]
    for prefix, section in sections:
        for path, text in grid.find_swept_faults(section.parameters):
            yield (*prefix, "parameters", *path), text
        for i, entry in enumerate(section.exclude):
            yield from read_exclusion(entry, (*prefix, "exclude", i))[1]


def _check_overrides(source: Source, config: SweepConfig) -> None:
    """Checks that every override has an effect.

    An override of a shared key would silently have none if every block replaces the key.
    """
    for path in source.overridden_paths:
        if config.blocks and all(
            _replaces(block, path, source.at(path)) for block in config.blocks.values()
        ):
            name = next(iter(config.blocks))
            source.add_fault(
                path,
                "has no effect, because every block sets its own. Write --set"
                f" blocks.{name}.{format_path(path)}=... for each block.",
            )


def _replaces(block: Block, path: KeyPath, value: Any) -> bool:
    """Returns whether the block replaces the sweep's `value` at `path` by its own."""
    if path[0] in ("repeats", "metric", "order"):
        return getattr(block, str(path[0])) is not None
    if path[0] != "parameters":
        return False
    tree: Any = block.parameters
    for key in path[1:]:
        if not grid.is_group(tree):
            return True
        if key not in tree:
            return False
        tree = tree[key]
    return not (grid.is_group(tree) and grid.is_group(value))


def _check_combinations(source: Source, config: SweepConfig) -> None:
    """Checks every combination of every block, and that every exclude matches a point."""
    blocks = config.resolved_blocks
    trials = sum(grid.count_points(block.parameters) * block.repeats for block in blocks)
    if trials > MAX_TRIALS:
        source.add_fault(
            ("parameters",),
            f"the sweep spans {trials:,} trials. Sweep fewer values: at most {MAX_TRIALS:,}.",
        )
        return
    faulty_paths = set(source.faulty_paths)
    matched: set[KeyPath] = set()
    used_gpus: set[int] = set()
    for block in blocks:
        points = block.selection.remaining
        matched |= block.selection.matched
        if not points:
            own: KeyPath = ("blocks", block.name, "exclude")
            path = own if own in source.places else ("exclude",)
            source.add_fault(
                path,
                f"removes every point of block {block.name}. Exclude fewer, or remove the block.",
            )
        check_points(
            source,
            block.name,
            points,
            _build_rule(config, block, faulty_paths, used_gpus),
            faulty_paths,
        )
    _check_gpus(source, config, used_gpus)
    for exclusion in {
        exclusion.at: exclusion for block in blocks for exclusion in block.exclude
    }.values():
        sound = not any(path[: len(exclusion.at)] == exclusion.at for path in source.faulty_paths)
        if sound and exclusion.at not in matched:
            source.add_fault(
                exclusion.at, f"{exclusion.text} matches no point. Correct or remove it."
            )


def _check_gpus(source: Source, config: SweepConfig, used: set[int]) -> None:
    """Adds a fault if a trial requests more GPUs than any trial uses; `used` are their numbers."""
    gpus = config.resources.gpus
    if gpus == "auto" or not used or math.ceil(gpus) <= max(used):
        return
    uses, more = "no trial has device cuda", ""
    if max(used):
        uses = f"its ranks on cuda use {max(used)}"
        more = f", or device.ranks: {math.ceil(gpus)}"
    source.add_fault(
        ("resources", "gpus"),
        f"a trial requests {gpus:g} GPU{'s' * (gpus != 1)}, but {uses}. Write gpus: auto{more}.",
    )


def _build_rule(
    config: SweepConfig, block: ResolvedBlock, faulty_paths: set[KeyPath], used_gpus: set[int]
) -> Rule:
    """Returns the check that binds a trial to its sweep. Faulty keys take no part in it.

    The check adds the number of GPUs that a trial uses to `used_gpus`.
    """
    faulty_keys = {part for path in faulty_paths for part in path}
    metric = None if "metric" in faulty_keys else block.metric.name
    warmup = 0 if "warmup_epochs" in faulty_keys else config.warmup_epochs
    sizes = grid.swept_values(block.parameters).get(("loader", "shm_size"), [])

    def rule(trial: TrialConfig) -> Iterable[tuple[grid.Path, str]]:
        epochs = trial.sgdr.epochs
        if metric in _WARM_EPOCH_METRICS and epochs <= warmup:
            remedy = f"Write epochs: {warmup + 1} or more, or warmup_epochs: {epochs - 1}."
            yield (
                ("sgdr", "epochs"),
                (
                    f"{epochs} is too few: warmup_epochs is {warmup}, and a warm-up epoch gives no"
                    f" {metric}."
                    f" {remedy}"
                ),
            )
        if metric in LEARNING_METRICS and "simulated" in trial.device.prefer:
            yield (
                ("device",),
                (
                    f"a simulated accelerator learns nothing, so block {block.name} can't compare"
                    f" {metric}. Write auto, cuda or cpu, or metric epoch_s."
                ),
            )
        gpus, ranks = config.resources.gpus, trial.device.ranks
        used_gpus.add(ranks if trial.device.may_use_cuda else 0)
        if gpus != "auto" and trial.device.may_use_cuda and ranks > 1 and 0 < gpus < ranks:
            yield (
                ("device",),
                (
                    f"{ranks} ranks on cuda use a GPU each, and resources.gpus is {gpus:g}. Write"
                    " resources.gpus: auto."
                ),
            )
        if config.resources.shm == "host" and len(sizes) > 1:
            yield (
                ("loader", "shm_size"),
                (
                    "the node's own /dev/shm has one size. Write resources.shm: private, or a"
                    " single size."
                ),
            )

    return rule
