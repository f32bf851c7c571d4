"""Defines a sweep file as data: every key with its meaning, its unit and its legal values.

A sweep file is a `SweepConfig`, which sweeps/config/sweep_file.py reads and checks. What its
`parameters` hold is defined in speech/config.py. Rules across keys stand beside those keys; each
raises a ValueError that states the remedy.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from speech.config_group import Group
from sweeps.config import grid
from sweeps.config.config_errors import format_value
from sweeps.config.exclude import Exclusion, Selection, apply_exclusions, read_exclusion

MetricName = Literal[
    "epoch_s",
    "first_batch_s",
    "wait_fraction",
    "clips_per_s",
    "shm_peak_bytes",
    "train_s",
    "accuracy",
    "ensemble_accuracy",
]
# A trial with one of these metrics resumes at the end of a cycle. A timing trial restarts.
LEARNING_METRICS = {"accuracy", "ensemble_accuracy"}
_MAXIMISED_METRICS = {"clips_per_s", "accuracy", "ensemble_accuracy"}

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(value: Any) -> Any:
    """Converts a duration such as '20m' into seconds; raises ValueError if it is malformed.

    Units are s, m and h. A value that is no text passes unchanged, as a number of seconds.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", value.strip().lower())
    if not match:
        raise ValueError(f"{value!r} is not a duration. Write 20m, 90s or 2h.")
    return float(match[1]) * _SECONDS[match[2]]


_DurationText = Annotated[
    str, Field(pattern=r"^\s*\d+(\.\d+)?\s*[smhSMH]\s*$", examples=["20m", "90s", "2h"])
]
Duration = Annotated[
    float, BeforeValidator(parse_duration, json_schema_input_type=float | _DurationText)
]

SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
BLOCK_NAME = r"[A-Za-z0-9_-]{1,100}"


def _check_name(value: str) -> str:
    """Returns a sweep's name; raises ValueError unless it can name a file."""
    if not re.fullmatch(SAFE_NAME, value):
        raise ValueError(
            f"{format_value(value)} is not a legal name. Write up to 100 letters, digits, '.', '_'"
            " or '-', starting with a letter or digit."
        )
    return value


def _check_block_name(value: str) -> str:
    """Returns a block's name; raises ValueError if it contains other characters than BLOCK_NAME."""
    if not re.fullmatch(BLOCK_NAME, value):
        raise ValueError(
            f"{format_value(value)} is not a legal name. Write letters, digits, '_' or '-'."
        )
    return value


def _reject_swept_group(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters; raises ValueError if they are one swept value as a whole."""
    if "values" in value:
        raise ValueError(
            "values replaces one parameter or group. Write it under its key, as in loader:"
            " {num_workers: {values: [0, 2]}}."
        )
    return value


Parameters = Annotated[dict[str, Any], AfterValidator(_reject_swept_group)]


class Metric(Group):
    """Names the figure that a block compares."""

    name: MetricName = Field(
        description="a figure of the trial's summary, such as epoch_s or ensemble_accuracy"
    )
    goal: Literal["minimize", "maximize"] = Field(description="minimize or maximize")

    @model_validator(mode="after")
    def _check_goal(self) -> Self:
        """Raises ValueError if the goal would make the worst trial win."""
        better = "maximize" if self.name in _MAXIMISED_METRICS else "minimize"
        if self.goal != better:
            raise ValueError(f"the worst trial would win: write goal: {better} for {self.name}.")
        return self


def _check_gpus(value: float) -> float:
    """Returns the number of GPUs; raises ValueError for a fraction above 1."""
    if value > 1 and value != int(value):
        raise ValueError(
            f"{value:g} GPUs: a trial uses a share of one GPU, or whole GPUs. Write"
            f" {int(value)} or {int(value) + 1}."
        )
    return value


class Resources(Group):
    """Resources that each trial gets on its node; the same for every trial of the sweep."""

    gpus: Literal["auto"] | Annotated[float, Field(ge=0), AfterValidator(_check_gpus)] = Field(
        "auto",
        description=(
            "GPUs of a trial; 0.5 shares one; auto: as many as the most ranks of a trial on cuda;"
            " 0: none is used"
        ),
    )
    cpus: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="CPU cores of a trial; auto: all cores of the node"
    )
    exclusive_node: bool = Field(
        True, description="true: a trial runs alone on its node, so that times can be compared"
    )
    shm: Literal["private", "host"] = Field(
        "private",
        description="private: the trial's own /dev/shm, of loader.shm_size; host: that of the node",
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        description=(
            "price of a node an hour, in any currency; tables and recommendations then show what an"
            " epoch and a trial cost. It may change without a new measurement"
        ),
    )

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        """Raises ValueError if a trial that shares its node would be charged for all of it."""
        if self.price_per_hour is not None and not self.exclusive_node:
            raise ValueError(
                "price_per_hour is the price of a trial that has its node alone. Write"
                " exclusive_node: true, or remove price_per_hour."
            )
        return self


class Snapshots(Group):
    """Selects the weights that are uploaded."""

    keep: Literal["best", "all", "none"] = Field(
        "best", description="the snapshots that are uploaded when the trial ends"
    )


def _check_ray_address(value: str) -> str:
    """Returns the address; raises ValueError unless it is local, auto, or host:port."""
    if value.startswith("ray://"):
        raise ValueError(
            f"{value!r} is for clients outside a cluster, but launch.py must run on a machine of"
            " the cluster. Write auto there, or the head's host:port, as in head:6379."
        )
    if value not in ("local", "auto") and not re.fullmatch(r"[\w.-]+:\d{1,5}", value):
        raise ValueError(
            f"{value!r} is not the address of a cluster. Write local, auto, or the head's"
            " host:port, as in head:6379."
        )
    return value


class Ray(Group):
    """The Ray that starts the trials."""

    address: Annotated[str, AfterValidator(_check_ray_address)] = Field(
        "local",
        description=(
            "local: the launch starts its own Ray on this machine; auto, or the head's host:port:"
            " it uses the cluster of this machine"
        ),
    )


class TrackingConfig(Group):
    """The MLflow tracker and the experiment that store the figures."""

    uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow's tracking URI")
    experiment: str = Field("speech", min_length=1, description="MLflow's experiment")
    upgrade: bool = Field(
        False,
        description="true: a launch may migrate a database of an older MLflow, after a backup",
    )


Repeats = Annotated[int, Field(ge=1, le=1000)]
Order = Literal["shuffled", "listed"]


class Block(Group):
    """One question of a sweep. Keys that it omits have the sweep's values."""

    repeats: Repeats | None = Field(None, description="complete passes over the block's points")
    metric: Metric | None = Field(None, description="what the block compares")
    order: Order | None = Field(None, description="order of the points within a repeat")
    parameters: Parameters = Field(
        {}, description="override the sweep's parameters, group by group"
    )
    exclude: list[dict[str, Any]] = Field(
        [], description="excluded points, in addition to the sweep's"
    )


@dataclass(frozen=True)
class ResolvedBlock:
    """Block in which the sweep's values replace all values that the block does not set."""

    name: str
    repeats: int
    metric: Metric
    order: Order
    parameters: dict[str, Any]
    exclude: list[Exclusion]

    @cached_property
    def selection(self) -> Selection:
        """Points of the block, split by its excludes. They are expanded on the first access."""
        return apply_exclusions(grid.points(self.parameters), self.exclude)


class SweepConfig(Group):
    """A sweep file. `parameters` holds the trial's groups (speech.config.TrialConfig); `{values:
    [...]}` in it is a swept value."""

    name: Annotated[str, AfterValidator(_check_name)] = Field(
        description="the sweep's name, in letters, digits, '.', '_' and '-'",
        json_schema_extra={"pattern": f"^{SAFE_NAME}$"},
    )
    method: Literal["grid", "forecast"] = Field(
        "grid",
        description=(
            "grid: measure every combination; forecast: measure those that may matter for the"
            " recommendation, and forecast the others"
        ),
    )
    calibrate: bool = Field(
        True,
        description=(
            "measure what a batch costs before the first timing trial, and forecast every trial"
            " from it; false: neither"
        ),
    )
    metric: Metric = Field(
        Metric(name="epoch_s", goal="minimize"), description="what the sweep compares"
    )
    order: Order = Field(
        "shuffled",
        description="order within a repeat: drawn from the seed, or as listed in the file",
    )
    seed: int = Field(
        42,
        ge=0,
        le=2**31,
        description=(
            "seed of the first repeat; each later repeat adds 1. The order is also drawn from it"
        ),
    )
    repeats: Repeats = Field(1, description="complete passes over all points")
    parameters: Parameters = Field({}, description="the trial's parameters, constant or swept")
    blocks: dict[Annotated[str, AfterValidator(_check_block_name)], Block] = Field(
        {},
        description="the questions by name; if empty: one block named trials",
        json_schema_extra={"propertyNames": {"pattern": f"^{BLOCK_NAME}$"}},
    )
    exclude: list[dict[str, Any]] = Field(
        [], description="excluded points; all conditions of an entry must hold"
    )
    resources: Resources = Field(Resources(), description="what each trial requires of its node")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="training threads, the same for all trials"
    )
    warmup_epochs: int = Field(
        1,
        ge=0,
        le=10_000,
        description="number of first epochs, which train but are not timed",
    )
    trial_timeout: Annotated[Duration, Field(gt=0, le=1e8)] = Field(
        1200.0,
        description="a trial that takes longer is killed: 20m, 90s, 2h or seconds",
    )
    max_restarts: int = Field(
        1,
        ge=0,
        le=100,
        description=(
            "further attempts, in the same launch, if a trial was out of memory or its Ray process"
            " was lost"
        ),
    )
    on_failure: Literal["continue", "stop"] = Field(
        "continue",
        description=(
            "stop: after a trial has failed its last attempt, no trial starts; running trials"
            " continue to their end"
        ),
    )
    run_cap: int | None = Field(
        None,
        ge=1,
        description="largest number of trials that one launch starts; absent: all pending trials",
    )
    time_budget: Annotated[Duration, Field(gt=0, le=1e8)] | None = Field(
        None,
        description=(
            "a launch that takes longer stops as if by Ctrl-C: 10m, 90s, 2h or seconds; absent:"
            " no limit"
        ),
    )
    snapshots: Snapshots = Field(Snapshots(), description="which weights are uploaded")
    tracking: TrackingConfig = Field(TrackingConfig(), description="where the figures are stored")
    ray: Ray = Field(Ray(), description="the machines that trials run on")

    @cached_property
    def resolved_blocks(self) -> list[ResolvedBlock]:
        """Blocks in the order of the file, with their points; without blocks, the block `trials`.

        The check of the file and the plan read the same points, so each is expanded and validated
        once. A copy made by model_copy keeps them, so it must not change blocks or parameters.
        """
        shared = [read_exclusion(entry, ("exclude", i))[0] for i, entry in enumerate(self.exclude)]
        return [
            self._resolve(name, block, shared)
            for name, block in (self.blocks or {"trials": Block()}).items()
        ]

    def __getstate__(self) -> dict[Any, Any]:
        """Returns the state for pickle, without the points, which are many times larger."""
        state = super().__getstate__()
        fields = {
            name: value for name, value in state["__dict__"].items() if name != "resolved_blocks"
        }
        return state | {"__dict__": fields}

    def _resolve(self, name: str, block: Block, shared: list[Exclusion]) -> ResolvedBlock:
        own = [
            read_exclusion(entry, ("blocks", name, "exclude", i))[0]
            for i, entry in enumerate(block.exclude)
        ]
        return ResolvedBlock(
            name=name,
            repeats=block.repeats or self.repeats,
            metric=block.metric or self.metric,
            order=block.order or self.order,
            parameters=grid.merge(self.parameters, block.parameters),
            exclude=shared + own,
        )
