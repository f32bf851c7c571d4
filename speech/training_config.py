"""Defines the groups on training: `loader`, `model`, `optimizer`, `sgdr` and `device`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from speech.byte_sizes import Size
from speech.config_group import Group


class Loader(Group):
    """The DataLoader and the format in which the data travels."""

    num_workers: int = Field(
        0, ge=0, le=1024, description="loader processes; 0 prepares batches in the training process"
    )
    shm_size: Size | None = Field(
        None,
        ge=1 << 16,
        description="size of the trial's /dev/shm, such as 64M; absent: as large as the node's own",
    )
    batch_size: int = Field(32, ge=1, le=65536, description="clips in a batch")
    prefetch_factor: int = Field(
        2,
        ge=1,
        le=1024,
        description="batches each worker prepares ahead; no effect at 0 workers",
    )
    persistent_workers: bool = Field(True, description="keep the workers from epoch to epoch")
    pin_memory: bool = Field(
        False,
        description="copy batches to page-locked memory before the GPU (no effect without one)",
    )
    start_method: Literal["fork", "forkserver", "spawn"] = Field(
        "fork", description="how workers start"
    )
    format: Literal["wav", "png", "packed", "on_device"] = Field(
        "wav",
        description=(
            "wav: a worker reads each clip's file and computes its picture; png: it decodes"
            " pictures that were written once; packed: it computes a batch's pictures together from"
            " one file of all clips; on_device: it sends waveforms of that file, and the"
            " accelerator computes the pictures"
        ),
    )


class Model(Group):
    """ResNet34 (He et al., CVPR 2016), its first convolution adapted to the features' channels."""

    weights: str = Field(
        "none",
        description=(
            "none: random; imagenet: torchvision's download; otherwise the path of a saved"
            " state_dict"
        ),
    )


class Optimizer(Group):
    """SGD with Nesterov momentum; the learning rate is sgdr's."""

    momentum: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="share of the previous step's direction that is added to the next",
    )
    weight_decay: float = Field(
        1e-4, ge=0, le=1, description="share of each weight that is added to its gradient"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over all labels"
    )


class Sgdr(Group):
    """Stochastic gradient descent with warm restarts (Loshchilov & Hutter, ICLR 2017): the schedule
    of a trial."""

    epochs: int = Field(
        8, ge=1, le=10_000, description="epochs of a trial; its cycles must have exactly this sum"
    )
    cycle_epochs: int | list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description=(
            "epochs of a cycle (T_0), or every cycle's length as a list; absent: one long cosine"
        ),
    )
    cycle_factor: int = Field(
        1,
        ge=1,
        le=10,
        description="each cycle is this many times as long as the one before (T_mult)",
    )
    lr: float = Field(0.01, gt=0, le=100, description="learning rate at a cycle's start")
    lr_min: float = Field(0.0, ge=0, description="learning rate at a cycle's end")

    def cycles(self) -> list[int]:
        """Returns the length of every cycle in epochs.

        A cycle length and a factor give a sum of at least `epochs`; the rule below requires the
        exact sum.
        """
        if self.cycle_epochs is None:
            return [self.epochs]
        if isinstance(self.cycle_epochs, list):
            return list(self.cycle_epochs)
        lengths, total = [self.cycle_epochs], self.cycle_epochs
        while total < self.epochs:
            lengths.append(lengths[-1] * self.cycle_factor)
            total += lengths[-1]
        return lengths

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if isinstance(self.cycle_epochs, int) and self.cycle_epochs < 1:
            raise ValueError("cycle_epochs must be at least 1")
        lengths = self.cycles()
        if sum(lengths) != self.epochs:
            shorter = sum(lengths[:-1])
            mend = (
                f"epochs: {shorter} or {sum(lengths)}"
                if 0 < shorter < self.epochs
                else f"epochs: {sum(lengths)}"
            )
            raise ValueError(
                f"cycles of {lengths} epochs do not fill {self.epochs} epochs exactly. Write"
                f" {mend}."
            )
        if self.lr_min >= self.lr:
            raise ValueError(f"lr_min {self.lr_min:g} must be below lr {self.lr:g}")
        return self


Precision = Literal["float32", "bfloat16", "float16"]
DeviceName = Literal["cuda", "cpu", "simulated"]
MAX_RANKS = 64  # of a trial


class Device(Group):
    """\
    Names the device that trains. `device: cpu` is short for `device: {prefer: [cpu]}`, auto for
    [cuda, cpu].

    simulated is a model of an accelerator: the host uses `host_cpu_s` seconds of CPU a batch, as
    launching kernels and copying would, then the accelerator works for `step_s`. It learns nothing,
    and every record states this. On an accelerator the loop can prepare the next batches while
    earlier steps run. It does on cuda unless `sync_every_step` is set, and on simulated as far as
    `run_ahead` allows.
    """

    prefer: list[DeviceName] = Field(
        min_length=1, description="device names: the trial uses the first that the machine has"
    )
    step_s: float = Field(
        0.0,
        ge=0,
        le=60,
        description="simulated: seconds that the accelerator works on a batch",
    )
    host_cpu_s: float = Field(
        0.0, ge=0, le=60, description="simulated: seconds of CPU the host spends on a batch"
    )
    ranks: int = Field(
        1,
        ge=1,
        le=MAX_RANKS,
        description=(
            "processes that train together, one for each accelerator; each has a loader with"
            " num_workers workers of its own, and batch_size clips of every step"
        ),
    )
    run_ahead: int = Field(
        0,
        ge=0,
        le=1024,
        description=(
            "simulated: steps that may be queued or running when the loop goes on; 0 waits for"
            " every step"
        ),
    )
    sync_every_step: bool = Field(
        False,
        description=(
            "cuda: the loop reads the loss of every step and so waits for it, as loops with a"
            " progress bar do; simulated needs run_ahead: 0 with it"
        ),
    )

    @property
    def may_use_cuda(self) -> bool:
        """Returns whether a GPU is used where there is one."""
        return "cuda" in self.prefer

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        group = handler.resolve_ref_schema(handler(core_schema))
        return {
            "description": group.pop("description"),
            "anyOf": [{"enum": ["auto", "cuda", "cpu"]}, group],
        }

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"prefer": ["cuda", "cpu"] if data == "auto" else [data]}
        return data

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if "simulated" in self.prefer and self.step_s + self.host_cpu_s == 0:
            raise ValueError(
                "device simulated needs step_s: the seconds its accelerator works on a batch"
            )
        if "simulated" in self.prefer and self.sync_every_step and self.run_ahead:
            raise ValueError(
                f"sync_every_step waits for every step, and run_ahead: {self.run_ahead} does not."
                " Write run_ahead: 0 or sync_every_step: false."
            )
        return self
