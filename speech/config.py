"""What one trial does, as data: every parameter with its meaning, its unit and its legal values.

A trial is `TrialConfig`; `sweep.yaml` writes its groups under `parameters`. Nothing here imports torch, so a plan of a thousand
trials is checked in a second. Cross-field rules stand beside the fields they bind; each raises a ValueError that says how to mend it.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

SAMPLE_RATE = 16_000  # samples per second of every waveform inside the project; files of other rates are resampled on reading

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: Any) -> Any:
    """'64M', '64m', '64MB' or '64MiB' -> 67108864 bytes: binary units, as Docker's --shm-size reads them. An int passes as bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", value.strip().lower())
    if not match:
        raise ValueError(f"{value!r} is not a size. Write 64M or 2G.")
    return int(float(match[1]) * _UNITS[match[2]])


def format_size(size_bytes: int) -> str:
    """67108864 -> '64M': the inverse of parse_size for whole units, otherwise the largest unit with one decimal."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes >= _UNITS[unit.lower()]:
            return f"{size_bytes / _UNITS[unit.lower()]:.1f}".removesuffix(".0") + unit
    return f"{size_bytes}"


_SizeText = Annotated[str, Field(pattern=r"^\s*\d+(\.\d+)?\s*[kmgtKMGT]?([iI]?[bB])?\s*$", examples=["64M", "2G"])]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | _SizeText)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Group(BaseModel):
    """A group of keys: unknown keys are faults, values are never silently converted (`true` is not 1, `"8"` is not 8)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Corpus(Group):
    """Which clips, and how they are split by speaker into training, validation and testing."""

    name: Literal["synthetic", "speech_commands", "folder"] = Field(
        "synthetic", description="where clips come from: spoken by eSpeak NG, the Speech Commands data set, or a folder of your own"
    )
    path: str | None = Field(None, description="folder of <word>/<clip>.wav; speech_commands without one downloads the archive")
    version: Literal["v1", "v2"] = Field("v2", description="which official archive speech_commands downloads")
    words: list[Annotated[str, Field(min_length=1)]] | None = Field(None, description="the words to tell apart; all folders when absent")
    unknown: int = Field(0, ge=0, description="pool at most this many clips a split of the other words as 'unknown'; 0: none")
    silence: int = Field(0, ge=0, description="cut this many clips a split from _background_noise_ as 'silence'; 0: none")
    seconds: float = Field(1.0, ge=0.1, le=60, description="length of a clip in seconds: shorter are padded, longer cut, centred")
    speaker: str = Field(r"^(.+?)_nohash_", description="regular expression whose first group finds the speaker in a clip's file name")
    clips: int = Field(2000, ge=20, le=1_000_000, description="how many clips the synthetic corpus speaks, all splits together")
    on_bad_clip: Literal["fail", "skip"] = Field("fail", description="an unreadable clip stops the sweep, or is left out and counted")
    cache: Literal["warm", "cold"] = Field(
        "warm",
        description="warm: the page cache keeps what earlier epochs read; cold: it is emptied of the corpus's files before each epoch",
    )
    read_latency_s: float = Field(
        0.0, ge=0, le=10, description="seconds that every read of a file waits, as on a network drive; a model of one"
    )

    def which(self) -> str:
        """JSON of all that decides which clips these are, and not how they are read."""
        return self.model_dump_json(exclude={"cache", "read_latency_s"})

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.name == "folder" and self.path is None:
            raise ValueError("corpus folder needs a path: the folder that holds <word>/<clip>.wav")
        if self.name == "synthetic" and self.path is not None:
            raise ValueError("the synthetic corpus makes its own clips: remove path, or write name: folder")
        if self.name == "synthetic" and not self.words:
            raise ValueError("the synthetic corpus needs words: the words it is to speak")
        if self.words is not None and len(set(self.words)) < len(self.words):
            raise ValueError("words holds a word twice")
        if self.words is not None and len(self.words) + bool(self.unknown) + bool(self.silence) < 2:
            raise ValueError("a classifier needs at least two labels: add a word, unknown or silence")
        try:
            groups = re.compile(self.speaker).groups
        except (re.error, OverflowError, RecursionError) as error:  # the latter for a count or a nesting beyond the compiler
            raise ValueError(f"speaker is not a regular expression: {error}") from None
        if groups < 1:
            raise ValueError("speaker needs a group: the part in brackets is the speaker, as in ^(.+?)_nohash_")
        return self


def _whole_samples(key: str, milliseconds: float) -> int:
    samples = milliseconds * SAMPLE_RATE / 1000
    if samples != int(samples):
        raise ValueError(f"{key} {milliseconds:g} is not a whole number of samples at {SAMPLE_RATE} Hz: use multiples of 0.0625 ms")
    return int(samples)


FeatureKind = Literal["spectrogram", "log_mel", "mfcc"]


class Features(Group):
    """Waveform to picture: (B, S) -> (B, C, M, T), one channel a kind."""

    kinds: list[FeatureKind] = Field(["log_mel"], min_length=1, max_length=3, description="one channel each, stacked; all have n_mels rows")
    n_mels: int = Field(64, ge=8, le=256, description="rows M of the picture: mel bands, and the bins kept of spectrogram and MFCC")
    window_ms: float = Field(25.0, gt=0, le=200, description="length of a frame's window")
    hop_ms: float = Field(10.0, gt=0, le=200, description="time from one frame to the next")

    @property
    def window_samples(self) -> int:
        return _whole_samples("window_ms", self.window_ms)

    @property
    def hop_samples(self) -> int:
        return _whole_samples("hop_ms", self.hop_ms)

    @property
    def fft_size(self) -> int:
        """Samples of the FFT: the window, zero-padded to a power of two."""
        return 1 << (self.window_samples - 1).bit_length()

    def frames(self, samples: int) -> int:
        """Frames T of a clip: one centred on every hop, both ends included."""
        return 1 + samples // self.hop_samples

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds holds a kind twice")
        if self.hop_samples > self.window_samples:
            raise ValueError(f"hop_ms {self.hop_ms:g} skips samples: it must be at most window_ms {self.window_ms:g}")
        if self.n_mels > self.fft_size // 4:
            legal = f"at most {self.fft_size // 4} bands fit a window of {self.window_ms:g} ms"
            raise ValueError(f"n_mels {self.n_mels}: {legal}. Write fewer, or a longer window_ms.")
        return self


class Augment(Group):
    """Changes drawn anew for a training clip in every epoch from (seed, epoch, clip index). All off by default."""

    shift_ms: float = Field(0.0, ge=0, le=1000, description="move the clip by up to this much either way")
    speed: float = Field(0.0, ge=0, le=0.5, description="resample the clip by a factor within 1 +- speed (changes pitch too)")
    noise: Probability = Field(0.0, description="probability of mixing in a stretch of background noise")
    noise_snr_db: tuple[float, float] = Field((5.0, 30.0), description="signal-to-noise ratio of the mix, drawn evenly between the two")
    freq_mask: int = Field(0, ge=0, le=128, description="SpecAugment: two bands of up to this many rows are blanked")
    time_mask: int = Field(0, ge=0, le=128, description="SpecAugment: two stretches of up to this many frames are blanked")
    mixup: float = Field(0.0, ge=0, le=8, description="mixup's alpha: clips are blended pairwise by Beta(alpha, alpha); 0: off")

    @property
    def on_waveform(self) -> list[str]:
        """The changes that act on the waveform and are on."""
        return [name for name in ("shift_ms", "speed", "noise") if getattr(self, name)]

    @property
    def on_picture(self) -> list[str]:
        """The masks that are on."""
        return [name for name in ("freq_mask", "time_mask") if getattr(self, name)]

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("noise_snr_db"), list):
            return {**data, "noise_snr_db": tuple(data["noise_snr_db"])}
        return data

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise ValueError("noise_snr_db is [lowest, highest]: swap the two")
        return self


class Loader(Group):
    """The DataLoader and the form in which the data travels."""

    num_workers: int = Field(0, ge=0, le=1024, description="loader processes; 0 prepares batches in the training process")
    shm_size: Size | None = Field(None, ge=1 << 16, description="size of the trial's /dev/shm, as 64M; absent: the node's own, as it is")
    batch_size: int = Field(32, ge=1, le=65536, description="clips in a batch")
    prefetch_factor: int = Field(2, ge=1, le=1024, description="batches each worker prepares ahead; has no meaning at 0 workers")
    persistent_workers: bool = Field(True, description="keep the workers from epoch to epoch")
    pin_memory: bool = Field(False, description="copy batches to page-locked memory before the GPU (no effect without one)")
    start_method: Literal["fork", "forkserver", "spawn"] = Field("fork", description="how workers start")
    form: Literal["wav", "png", "packed", "device"] = Field(
        "wav",
        description="wav: a worker reads each clip's file and makes its picture; png: it decodes pictures written once; packed: it makes "
        "a batch's pictures together from one file of all clips; device: it ships waveforms from there, the accelerator makes pictures",
    )


class Model(Group):
    """ResNet34 (He et al., CVPR 2016), its first convolution adapted to the features' channels."""

    weights: str = Field("none", description="none: random; imagenet: torchvision's download; otherwise the path of a saved state_dict")


class Optimizer(Group):
    """SGD with Nesterov momentum; the learning rate is sgdr's."""

    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step's direction that the next one keeps")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="share of each weight that is added to its gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over all labels")


class Sgdr(Group):
    """Stochastic gradient descent with warm restarts (Loshchilov & Hutter, ICLR 2017): the schedule of a trial."""

    epochs: int = Field(8, ge=1, le=10_000, description="epochs of a trial; its cycles fill them exactly")
    cycle_epochs: int | list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="epochs of a cycle (T_0), or every cycle's length as a list; absent: one long cosine"
    )
    cycle_factor: int = Field(1, ge=1, le=10, description="each cycle is this many times as long as the one before (T_mult)")
    lr: float = Field(0.01, gt=0, le=100, description="learning rate at a cycle's start")
    lr_min: float = Field(0.0, ge=0, description="learning rate at a cycle's end")

    def cycles(self) -> list[int]:
        """Length of every cycle in epochs; they sum to at least `epochs` (the rule below makes it exactly)."""
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
            mend = f"epochs: {shorter} or {sum(lengths)}" if 0 < shorter < self.epochs else f"epochs: {sum(lengths)}"
            raise ValueError(f"cycles of {lengths} epochs do not fill {self.epochs} epochs exactly. Write {mend}.")
        if self.lr_min >= self.lr:
            raise ValueError(f"lr_min {self.lr_min:g} must be below lr {self.lr:g}")
        return self


Precision = Literal["float32", "bfloat16", "float16"]
DeviceName = Literal["cuda", "cpu", "paced"]


class Device(Group):
    """What takes the batches. `device: cpu` is short for `device: {first_of: [cpu]}`, auto for [cuda, cpu].

    paced is a model of an accelerator: it burns `host_s` seconds of CPU a batch, as launching kernels and copying would, then waits
    `step_s`. It learns nothing, and every record says so.
    """

    first_of: list[DeviceName] = Field(min_length=1, description="the first of these that the machine has")
    step_s: float = Field(0.0, ge=0, le=60, description="paced: seconds the modelled accelerator works on a batch")
    host_s: float = Field(0.0, ge=0, le=60, description="paced: seconds of CPU the host spends on a batch")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        group = handler.resolve_ref_schema(handler(core_schema))
        return {"description": group.pop("description"), "anyOf": [{"enum": ["auto", "cuda", "cpu"]}, group]}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"first_of": ["cuda", "cpu"] if data == "auto" else [data]}
        return data

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if "paced" in self.first_of and self.step_s + self.host_s == 0:
            raise ValueError("device paced needs step_s: the seconds its accelerator works on a batch")
        return self


class TrialConfig(Group):
    """Everything that decides what a trial computes. `seed` follows the repeat; the rest comes from `parameters`."""

    corpus: Corpus = Field(description="which clips, split by speaker into training, validation and testing")
    features: Features = Field(Features(), description="how a clip becomes a picture")
    augment: Augment = Field(Augment(), description="how training clips are changed, drawn anew in every epoch; all off by default")
    loader: Loader = Field(Loader(), description="the DataLoader, its /dev/shm, and the form in which the data travels")
    model: Model = Field(Model(), description="the ResNet34 that is trained")
    optimizer: Optimizer = Field(Optimizer(), description="SGD with Nesterov momentum")
    sgdr: Sgdr = Field(Sgdr(), description="the schedule: epochs, cycles of the learning rate, a snapshot at each cycle's end")
    device: Device = Field(
        Device(first_of=["cuda", "cpu"]), description="what takes the batches: auto, cuda, cpu, or paced, a model of an accelerator"
    )
    precision: Literal["auto"] | Precision = Field("auto", description="auto: the fastest here, found by a probe")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.loader.form == "png" and (idle := self.augment.on_waveform):
            raise ValueError(f"form png reads finished pictures, so augment.{idle[0]} can't act: set it to 0 or write form: wav")
        return self


class Pinned(Group):
    """Decided once per sweep and equal for all its trials, so that no choice of the machine's differs between two cells of a table."""

    precision: Precision = "float32"
    channels_last: bool = False
    threads: int = Field(1, ge=1, description="threads of the training process's tensor operations")
    cpus: list[int] | None = Field(None, description="cores the trial may run on; absent: all")


class Trial(Group):
    """One trial as `fit` receives it: what to compute, how it was pinned, and where it may write."""

    config: TrialConfig
    seed: int
    warmup_epochs: int = Field(1, ge=0, description="they train and count in the schedule; only the clock ignores them")
    pinned: Pinned = Pinned()
    folder: str = Field(description="the trial's own folder, for snapshots and for what it goes on from")
    continues: bool = Field(False, description="keep at each cycle end what it takes to go on from there, and go on from what is kept")


def cache_dir() -> Path:
    """Where corpora, pictures and statistics are kept between sweeps: $XDG_CACHE_HOME/speech-sweeps, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speech-sweeps"
