"""sweep.yaml -> SweepConfig, or every fault at once, each with its line.

    config = load(Path("sweep.yaml"), ["parameters.sgdr.epochs=3"])

The file is checked in three rounds that all run: its own keys against the models below, the shape of its swept values and excludes,
and every combination that it spans against speech.config.TrialConfig and the rules that bind a trial to its sweep. So a returned
SweepConfig can be planned without another check. A round works on what is sound: a key found faulty counts as absent after that.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from speech.config import Group, TrialConfig
from sweeps import grid
from sweeps.blame import Rule, check_points
from sweeps.exclude import Exclusion, read_exclusion, sift
from sweeps.faults import ConfigFaults, KeyPath, shown, spell, translate
from sweeps.yaml_source import Source, read

MAX_TRIALS = 100_000  # more is a slip of the pen: at a second a trial they would take a day

MetricName = Literal["epoch_s", "fill_s", "wait_fraction", "clips_per_s", "shm_peak_bytes", "train_s", "accuracy", "ensemble_accuracy"]
_OF_WARM_EPOCHS = {"epoch_s", "fill_s", "wait_fraction", "clips_per_s"}
OF_LEARNING = {"accuracy", "ensemble_accuracy"}  # their trials go on from a cycle end; where time is the metric they start over
_MORE_IS_BETTER = {"clips_per_s", "accuracy", "ensemble_accuracy"}

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(value: Any) -> Any:
    """'20m' -> 1200 seconds. Units are s, m and h; a number passes as seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", value.strip().lower())
    if not match:
        raise ValueError(f"{value!r} is not a duration. Write 20m, 90s or 2h.")
    return float(match[1]) * _SECONDS[match[2]]


_DurationText = Annotated[str, Field(pattern=r"^\s*\d+(\.\d+)?\s*[smhSMH]\s*$", examples=["20m", "90s", "2h"])]
Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=float | _DurationText)]

SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
BLOCK_NAME = r"[A-Za-z0-9_-]{1,100}"


def _safe_name(value: str) -> str:
    if not re.fullmatch(SAFE_NAME, value):
        raise ValueError(f"{shown(value)} can't name a file. Write up to 100 letters, digits, '.', '_' or '-', a letter or digit first.")
    return value


def _block_name(value: str) -> str:
    if not re.fullmatch(BLOCK_NAME, value):
        raise ValueError(f"{shown(value)} can't name a block. Write letters, digits, '_' or '-'.")
    return value


def _not_swept_whole(value: dict[str, Any]) -> dict[str, Any]:
    if "values" in value:
        raise ValueError("values stands for one parameter or group: write it under its key, as loader: {num_workers: {values: [0, 2]}}.")
    return value


Parameters = Annotated[dict[str, Any], AfterValidator(_not_swept_whole)]


class Metric(Group):
    """What a block compares."""

    name: MetricName = Field(description="a figure of the trial's summary, such as epoch_s or ensemble_accuracy")
    goal: Literal["minimize", "maximize"] = Field(description="minimize or maximize")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        better = "maximize" if self.name in _MORE_IS_BETTER else "minimize"
        if self.goal != better:
            raise ValueError(f"the worst trial would win: write goal: {better} for {self.name}.")
        return self


def _gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"{value:g} GPUs: a trial shares one, as 0.5 does, or has whole ones. Write {int(value)} or {int(value) + 1}.")
    return value


class Resources(Group):
    """What each trial asks of its node; the same for every trial of the sweep."""

    gpus: Literal["auto"] | Annotated[float, Field(ge=0), AfterValidator(_gpus)] = Field(
        "auto", description="GPUs of a trial, 0.5 to share one; auto: one where the device is cuda"
    )
    cpus: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", description="CPU cores of a trial; auto: all that the node has")
    exclusive_node: bool = Field(True, description="no other trial runs on the node meanwhile, so times can be compared")
    shm: Literal["private", "host"] = Field(
        "private", description="private: a /dev/shm of the trial's own, of loader.shm_size; host: the node's"
    )


class Snapshots(Group):
    """Which weights are uploaded."""

    keep: Literal["best", "all", "none"] = Field("best", description="the snapshots that are uploaded when the trial ends")


def _ray_address(value: str) -> str:
    if value.startswith("ray://"):
        raise ValueError(
            f"{value!r} calls a cluster from outside, and launch.py is to run on a machine of the cluster. Write auto there, or the head's "
            "host:port, as in head:6379."
        )
    if value not in ("local", "auto") and not re.fullmatch(r"[\w.-]+:\d{1,5}", value):
        raise ValueError(f"{value!r} is no address of a cluster. Write local, auto, or the head's host:port, as in head:6379.")
    return value


class Ray(Group):
    """The Ray that starts the trials."""

    address: Annotated[str, AfterValidator(_ray_address)] = Field(
        "local", description="local: one of the launch's own, on this machine; auto, or the head's host:port: the cluster it is part of"
    )


class Tracking(Group):
    """Where MLflow keeps the figures."""

    uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow's tracking URI")
    experiment: str = Field("speech", min_length=1, description="MLflow's experiment")


Repeats = Annotated[int, Field(ge=1, le=1000)]
Order = Literal["shuffled", "listed"]


class Block(Group):
    """One question of a sweep. What it leaves out is the sweep's."""

    repeats: Repeats | None = Field(None, description="complete passes over the block's points")
    metric: Metric | None = Field(None, description="what the block compares")
    order: Order | None = Field(None, description="order of the points within a repeat")
    parameters: Parameters = Field({}, description="laid over the sweep's parameters, group by group")
    exclude: list[dict[str, Any]] = Field([], description="points not to run, besides the sweep's")


@dataclass(frozen=True)
class ResolvedBlock:
    """A block with nothing left open: the sweep's values stand where it has none of its own."""

    name: str
    repeats: int
    metric: Metric
    order: Order
    parameters: dict[str, Any]
    exclude: list[Exclusion]


class SweepConfig(Group):
    """A sweep file. `parameters` holds the trial's groups (speech.config.TrialConfig); `{values: [...]}` in it is a swept value."""

    name: Annotated[str, AfterValidator(_safe_name)] = Field(
        description="the sweep's name, in letters, digits, '.', '_' and '-'", json_schema_extra={"pattern": f"^{SAFE_NAME}$"}
    )
    method: Literal["grid", "forecast"] = Field(
        "grid", description="grid: every combination; forecast: those whose forecast could change the recommendation, the rest is foreseen"
    )
    calibrate: bool = Field(
        True, description="measure what a batch costs before the first timing trial, and forecast every trial from it; false: neither"
    )
    metric: Metric = Field(Metric(name="epoch_s", goal="minimize"), description="what the sweep compares")
    order: Order = Field("shuffled", description="order within a repeat: drawn from the seed, or as listed in the file")
    seed: int = Field(42, ge=0, le=2**31, description="of the first repeat; the next trains with one more. The order is drawn from it too")
    repeats: Repeats = Field(1, description="complete passes over all points")
    parameters: Parameters = Field({}, description="the trial's parameters, constant or swept")
    blocks: dict[Annotated[str, AfterValidator(_block_name)], Block] = Field(
        {},
        description="questions; without any, one block named trials",
        json_schema_extra={"propertyNames": {"pattern": f"^{BLOCK_NAME}$"}},
    )
    exclude: list[dict[str, Any]] = Field([], description="points not to run: conditions on parameters that hold together")
    resources: Resources = Field(Resources(), description="what each trial asks of its node")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field("auto", description="training threads, the same for all trials")
    warmup_epochs: int = Field(1, ge=0, le=10_000, description="first epochs that train like the others but that the clock ignores")
    trial_timeout: Annotated[Duration, Field(gt=0, le=1e8)] = Field(
        1200.0, description="a trial that takes longer is ended: 20m, 90s, 2h or seconds; kept in seconds"
    )
    max_restarts: int = Field(
        1, ge=0, le=100, description="further attempts, in the same launch, at a trial that was out of memory or whose Ray process was lost"
    )
    on_failure: Literal["continue", "stop"] = Field(
        "continue", description="stop: no trial starts after one has failed that isn't attempted again; those that run are left to end"
    )
    run_cap: int | None = Field(None, ge=1, description="the most trials that one launch starts; absent: all that are left")
    time_budget: Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=1e8)] | None = Field(
        None, description="a launch that takes longer stops as if by Ctrl-C: 10m, 90s, 2h or seconds; absent: no limit"
    )
    snapshots: Snapshots = Field(Snapshots(), description="which weights are uploaded")
    tracking: Tracking = Field(Tracking(), description="where the figures are kept")
    ray: Ray = Field(Ray(), description="the machines that trials run on")

    def resolved(self) -> list[ResolvedBlock]:
        """The blocks in the order of the file; without blocks the one named trials."""
        shared = [read_exclusion(entry, ("exclude", i))[0] for i, entry in enumerate(self.exclude)]
        return [self._resolve(name, block, shared) for name, block in (self.blocks or {"trials": Block()}).items()]

    def _resolve(self, name: str, block: Block, shared: list[Exclusion]) -> ResolvedBlock:
        own = [read_exclusion(entry, ("blocks", name, "exclude", i))[0] for i, entry in enumerate(block.exclude)]
        return ResolvedBlock(
            name=name,
            repeats=block.repeats or self.repeats,
            metric=block.metric or self.metric,
            order=block.order or self.order,
            parameters=grid.merge(self.parameters, block.parameters),
            exclude=shared + own,
        )


def load(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file, `overrides` ("dotted.path=YAML value") laid over it. Raises ConfigFaults with all that is wrong."""
    source = read(Path(path))
    for override in overrides:
        source.set(override)
    config = _models(source)
    for at, text in _shape_faults(config):
        source.fault(at, text)
    if config.method == "forecast" and not config.calibrate:
        source.fault(("method",), "forecast needs what a calibration measures. Write calibrate: true, or method: grid.")
    _check_overrides_act(source, config)
    _check_combinations(source, config)
    if source.faults:
        raise ConfigFaults(source.name, source.faults)
    return config


def _models(source: Source) -> SweepConfig:
    """The file's own keys; those at fault are noted, and left out until the rest stands."""
    tree = source.tree
    while True:
        try:
            return SweepConfig.model_validate(tree)
        except ValidationError as error:
            faults = translate(SweepConfig, tree, error)
        for path, text in faults:
            if path not in source.faulty:  # else it is missing because the last turn left it out
                source.fault(path, text)
            tree = _without(tree, path)
        tree = {"name": "unnamed"} | tree


def _without(tree: dict[Any, Any], path: KeyPath) -> dict[Any, Any]:
    """A copy of `tree` without the key at `path`, or without the group that lacks it; a list goes as a whole."""
    head, rest = path[0], path[1:]
    inner = tree.get(head)
    if rest and isinstance(inner, dict) and (len(rest) > 1 or rest[0] in inner):
        return tree | {head: _without(inner, rest)}
    return {key: value for key, value in tree.items() if key != head}


def _shape_faults(config: SweepConfig) -> Iterable[tuple[KeyPath, str]]:
    """Malformed swept values and excludes, wherever they stand."""
    places: list[tuple[KeyPath, SweepConfig | Block]] = [((), config)]
    places += [(("blocks", name), block) for name, block in config.blocks.items()]
    for at, part in places:
        for path, text in grid.swept_faults(part.parameters):
            yield (*at, "parameters", *path), text
        for i, entry in enumerate(part.exclude):
            yield from read_exclusion(entry, (*at, "exclude", i))[1]


def _check_overrides_act(source: Source, config: SweepConfig) -> None:
    """An override of a shared key that every block replaces would do nothing, silently."""
    for path in source.overridden:
        if config.blocks and all(_replaces(block, path, source.at(path)) for block in config.blocks.values()):
            name = next(iter(config.blocks))
            source.fault(path, f"has no effect, as every block sets its own. Write --set blocks.{name}.{spell(path)}=... for each block.")


def _replaces(block: Block, path: KeyPath, value: Any) -> bool:
    """Whether the block puts something of its own in place of the sweep's `value` at `path`."""
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
    blocks = config.resolved()
    trials = sum(grid.size(block.parameters) * block.repeats for block in blocks)
    if trials > MAX_TRIALS:
        source.fault(("parameters",), f"the sweep spans {trials:,} trials. Sweep fewer values: at most {MAX_TRIALS:,}.")
        return
    broken = set(source.faulty)
    matched: set[KeyPath] = set()
    for block in blocks:
        points, _, hits = sift(grid.points(block.parameters), block.exclude)
        matched |= hits
        if not points:
            own: KeyPath = ("blocks", block.name, "exclude")
            at = own if own in source.places else ("exclude",)
            source.fault(at, f"removes every point of block {block.name}. Exclude fewer, or remove the block.")
        check_points(source, block.name, points, _rule(config, block, broken), broken)
    for exclusion in {exclusion.at: exclusion for block in blocks for exclusion in block.exclude}.values():
        sound = not any(path[: len(exclusion.at)] == exclusion.at for path in source.faulty)
        if sound and exclusion.at not in matched:
            source.fault(exclusion.at, f"{exclusion.text} matches no point. Mend or remove it.")


def _rule(config: SweepConfig, block: ResolvedBlock, broken: set[KeyPath]) -> Rule:
    """What binds a trial to its sweep. A key that is at fault itself binds nothing."""
    faulty = {part for path in broken for part in path}
    metric = None if "metric" in faulty else block.metric.name
    warmup = 0 if "warmup_epochs" in faulty else config.warmup_epochs
    sizes = grid.swept(block.parameters).get(("loader", "shm_size"), [])

    def rule(trial: TrialConfig) -> Iterable[tuple[grid.Path, str]]:
        epochs = trial.sgdr.epochs
        if metric in _OF_WARM_EPOCHS and epochs <= warmup:
            mend = f"Write epochs: {warmup + 1} or more, or warmup_epochs: {epochs - 1}."
            yield ("sgdr", "epochs"), f"{epochs} is too few: after {warmup} of warm-up none is left for {metric}. {mend}"
        if metric in OF_LEARNING and "paced" in trial.device.first_of:
            yield (
                ("device",),
                f"paced learns nothing, so block {block.name} can't compare {metric}. Write auto, cuda or cpu, or metric epoch_s.",
            )
        if config.resources.shm == "host" and len(sizes) > 1:
            yield ("loader", "shm_size"), "the node's own /dev/shm has one size. Write resources.shm: private, or a single size."

    return rule
