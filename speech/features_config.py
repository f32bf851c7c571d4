"""Defines the groups `features` and `augment`: how a clip is changed and becomes a picture."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from speech.config_group import Group
from speech.corpus_config import SAMPLE_RATE

Probability = Annotated[float, Field(ge=0, le=1)]


def _whole_samples(key: str, milliseconds: float) -> int:
    samples = milliseconds * SAMPLE_RATE / 1000
    if samples != int(samples):
        raise ValueError(
            f"{key} {milliseconds:g} is not a whole number of samples at {SAMPLE_RATE} Hz: use"
            " multiples of 0.0625 ms"
        )
    return int(samples)


FeatureKind = Literal["spectrogram", "log_mel", "mfcc"]


class Features(Group):
    """Waveform to picture: (B, S) -> (B, C, M, T), one channel a kind."""

    kinds: list[FeatureKind] = Field(
        ["log_mel"],
        min_length=1,
        max_length=3,
        description="kinds of features; every kind is one channel of n_mels rows",
    )
    n_mels: int = Field(
        64,
        ge=8,
        le=256,
        description="rows M of the picture: mel bands, or bins of spectrogram and MFCC",
    )
    window_ms: float = Field(25.0, gt=0, le=200, description="length of a frame's window")
    hop_ms: float = Field(10.0, gt=0, le=200, description="time from one frame to the next")

    @property
    def window_samples(self) -> int:
        """Number of samples of a window. Raises ValueError where it is not whole."""
        return _whole_samples("window_ms", self.window_ms)

    @property
    def hop_samples(self) -> int:
        """Number of samples of a hop. Raises ValueError where it is not whole."""
        return _whole_samples("hop_ms", self.hop_ms)

    @property
    def fft_size(self) -> int:
        """Number of samples of the FFT: the window, zero-padded to a power of two."""
        return 1 << (self.window_samples - 1).bit_length()

    def frames(self, samples: int) -> int:
        """Returns the number of frames T of a clip: one per hop, both ends included."""
        return 1 + samples // self.hop_samples

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds holds a kind twice")
        if self.hop_samples > self.window_samples:
            raise ValueError(
                f"hop_ms {self.hop_ms:g} skips samples: it must be at most window_ms"
                f" {self.window_ms:g}"
            )
        max_mels = self.fft_size // 4
        if self.n_mels > max_mels:
            legal = f"at most {max_mels} bands fit a window of {self.window_ms:g} ms"
            raise ValueError(f"n_mels {self.n_mels}: {legal}. Write fewer, or a longer window_ms.")
        return self


class Augment(Group):
    """Changes drawn anew for a training clip in every epoch from (seed, epoch, clip index). All off
    by default."""

    shift_ms: float = Field(
        0.0, ge=0, le=1000, description="shift the clip by up to this much, in either direction"
    )
    speed: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="resample the clip by a factor within 1 +- speed (changes pitch too)",
    )
    noise: Probability = Field(
        0.0, description="probability of mixing in a stretch of background noise"
    )
    noise_snr_db: tuple[float, float] = Field(
        (5.0, 30.0), description="signal-to-noise ratio of the mix, drawn evenly between the two"
    )
    freq_mask: int = Field(
        0, ge=0, le=128, description="SpecAugment: two bands of up to this many rows are blanked"
    )
    time_mask: int = Field(
        0,
        ge=0,
        le=128,
        description="SpecAugment: two stretches of up to this many frames are blanked",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=8,
        description="mixup's alpha: clips are blended pairwise by Beta(alpha, alpha); 0: off",
    )

    @property
    def on_waveform(self) -> list[str]:
        """Names of the changes to the waveform that are on."""
        return [name for name in ("shift_ms", "speed", "noise") if getattr(self, name)]

    @property
    def on_picture(self) -> list[str]:
        """Names of the masks that are on."""
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
            raise ValueError("noise_snr_db is [lowest, highest]: exchange the two")
        return self
