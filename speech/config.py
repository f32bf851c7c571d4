"""Defines a trial as data: its configuration, its runtime settings and its folder.

A trial's parameters are a `TrialConfig`; `sweep.yaml` writes its groups under `parameters`. Each
group has its keys, with meaning, unit and legal values, in corpus_config.py, features_config.py or
training_config.py. None of these modules imports torch, so a plan of a thousand trials is checked
in a second. Rules across fields stand beside those fields; each raises a ValueError that states the
remedy.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from speech.config_group import Group
from speech.corpus_config import SAMPLE_RATE, Corpus
from speech.features_config import Augment, Features
from speech.training_config import Device, Loader, Model, Optimizer, Precision, Sgdr


class TrialConfig(Group):
    """Everything that decides what a trial computes. `seed` follows the repeat; the rest comes from
    `parameters`."""

    corpus: Corpus = Field(
        description="which clips, split by speaker into training, validation and testing"
    )
    features: Features = Field(Features(), description="how a clip becomes a picture")
    augment: Augment = Field(
        Augment(),
        description="how training clips are changed, drawn anew in every epoch; all off by default",
    )
    loader: Loader = Field(
        Loader(),
        description="the DataLoader, its /dev/shm, and the format in which the data travels",
    )
    model: Model = Field(Model(), description="the ResNet34 that is trained")
    optimizer: Optimizer = Field(Optimizer(), description="SGD with Nesterov momentum")
    sgdr: Sgdr = Field(
        Sgdr(),
        description=(
            "the schedule: epochs, cycles of the learning rate, a snapshot at each cycle's end"
        ),
    )
    device: Device = Field(
        Device.model_validate("auto"),
        description=(
            "where training runs: auto, cuda, cpu, or simulated, a model of an accelerator"
        ),
    )
    precision: Literal["auto"] | Precision = Field(
        "auto", description="auto: the fastest on this machine, by a probe"
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.loader.format == "png" and (idle := self.augment.on_waveform):
            raise ValueError(
                f"format png reads finished pictures, so augment.{idle[0]} has no effect: set it to"
                " 0 or write format: wav"
            )
        # a picture's first and last frame contain the clip and its mirror image
        half = self.features.fft_size // 2
        if round(self.corpus.seconds * SAMPLE_RATE) <= half:
            longer = -(-(half + 1) * 1000 // SAMPLE_RATE) / 1000
            raise ValueError(
                f"features.window_ms {self.features.window_ms:g} is too long for clips of"
                f" corpus.seconds {self.corpus.seconds:g}: write seconds: {longer:g} or more, or a"
                " shorter window_ms"
            )
        return self


class RuntimeSettings(Group):
    """The settings that are chosen once per sweep and are equal for all its trials.

    Therefore no choice that depends on the machine differs between two cells of a table.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    threads: int = Field(1, ge=1, description="threads of the training process's tensor operations")
    cpus: list[int] | None = Field(None, description="cores the trial may run on; absent: all")


class Trial(Group):
    """One trial as `fit` receives it: its configuration, runtime settings and output folder."""

    config: TrialConfig
    seed: int
    warmup_epochs: int = Field(1, ge=0, description="first epochs, which train but are not timed")
    runtime: RuntimeSettings = RuntimeSettings()
    folder: str = Field(description="the trial's own folder, for its snapshots and its checkpoint")
    fingerprint: str = Field(
        "", description="fingerprint of the planned corpus; empty: not checked"
    )
    continues: bool = Field(
        False,
        description="save a checkpoint at every cycle end, and continue from the last one",
    )
    timed: bool = Field(
        False,
        description="its times are compared, so it trains to its end even if it has diverged",
    )
    alone: bool = Field(
        True,
        description="no other trial runs on its cores, so their use by others disturbs its epochs",
    )
    probe_speed: bool = Field(
        False, description="measure the speed of the machine before the first epoch"
    )
