"""Defines the group `corpus`: which clips a trial uses, and how they are split and read."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from speech.config_group import Group

# samples per second of every waveform inside the project; files of other rates are resampled on
# reading
SAMPLE_RATE = 16_000


class Split(Group):
    """Shares of every label's clips in each split, by whole speakers or by single clips."""

    training: float = Field(0.8, gt=0, lt=1, description="share of the clips that training gets")
    validation: float = Field(
        0.1, gt=0, lt=1, description="share of the clips that validation gets"
    )
    testing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the clips that are held out for --evaluate-test; 0: none",
    )
    by: Literal["speaker", "clip"] = Field(
        "speaker",
        description=(
            "speaker: all clips of a speaker are in one split; clip: single clips are dealt, so"
            " that speakers are in several splits, and accuracy is optimistic"
        ),
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        total = self.training + self.validation + self.testing
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the shares of training, validation and testing sum to {total:g}, not to 1"
            )
        return self


class Corpus(Group):
    """Selects clips, and splits them by speaker into training, validation and testing."""

    name: Literal["synthetic", "speech_commands", "folder"] = Field(
        "synthetic",
        description=(
            "where clips come from: spoken by eSpeak NG, the Speech Commands data set, or a folder"
            " of your own"
        ),
    )
    path: str | None = Field(
        None,
        description=(
            "folder with one folder per word, which holds its clips at any depth, as"
            " <word>/<clip>.wav, or flac, ogg, mp3, aiff, au; absent: speech_commands downloads"
            " the archive"
        ),
    )
    version: Literal["v1", "v2"] = Field(
        "v2", description="which official archive speech_commands downloads"
    )
    words: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="the words to classify; absent: all folders"
    )
    unknown: int = Field(
        0,
        ge=0,
        description="at most this many clips per split of the other words form 'unknown'; 0: none",
    )
    silence: int = Field(
        0,
        ge=0,
        description="cut this many clips per split from _background_noise_ as 'silence'; 0: none",
    )
    seconds: float = Field(
        1.0,
        ge=0.1,
        le=60,
        description="length of a clip in seconds: shorter are padded, longer cut, centred",
    )
    speaker: str = Field(
        r"^(.+?)_nohash_",
        description=(
            "regular expression whose first group matches the speaker in a clip's file name; one"
            " with a / is searched in the path below the word's folder, as ^(.+?)/ for"
            " <word>/<speaker>/<clip>.wav"
        ),
    )
    split: Split | None = Field(
        None,
        description=(
            "shares of the splits, to which whole speakers or single clips are dealt; absent:"
            " 80/10/10 by a hash of the speaker, or by dealing if a split then lacks a label. Lists"
            " of the corpus take precedence"
        ),
    )
    duplicates: Literal["fail", "skip", "allow"] | None = Field(
        None,
        description=(
            "copies of one recording in several splits or under several labels; fail: stop the"
            " sweep; skip: use one copy, or none if labels differ; allow: use all; absent: fail,"
            " but allow for speech_commands, whose published splits stay as they are"
        ),
    )
    clips: int = Field(
        2000,
        ge=20,
        le=1_000_000,
        description="number of clips in the synthetic corpus, all splits together",
    )
    on_bad_clip: Literal["fail", "skip"] = Field(
        "fail", description="an unreadable clip stops the sweep, or is excluded and counted"
    )
    cache: Literal["warm", "cold"] = Field(
        "warm",
        description=(
            "warm: the page cache keeps what earlier epochs read; cold: it is emptied of the"
            " corpus's files before each epoch"
        ),
    )
    read_latency_s: float = Field(
        0.0,
        ge=0,
        le=10,
        description="seconds that every read of a file waits, as a model of a network drive",
    )

    def selection_key(self) -> str:
        """Returns JSON of all fields that select the clips, without those that affect reading."""
        return self.model_dump_json(exclude={"cache", "read_latency_s"})

    @property
    def on_duplicate(self) -> Literal["fail", "skip", "allow"]:
        """The policy for copies, with the default resolved."""
        return self.duplicates or ("allow" if self.name == "speech_commands" else "fail")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.name == "folder" and self.path is None:
            raise ValueError("corpus folder needs a path: the folder that holds <word>/<clip>.wav")
        if self.name == "synthetic" and self.path is not None:
            raise ValueError(
                "the synthetic corpus generates its clips: remove path, or write name: folder"
            )
        if self.name == "synthetic" and not self.words:
            raise ValueError("the synthetic corpus needs words: a list of the words to speak")
        if self.words is not None and len(set(self.words)) < len(self.words):
            raise ValueError("words holds a word twice")
        if self.words is not None and len(self.words) + bool(self.unknown) + bool(self.silence) < 2:
            raise ValueError(
                "a classifier needs at least two labels: add a word, unknown or silence"
            )
        try:
            groups = re.compile(self.speaker).groups
        # the latter two for a count or a nesting beyond the compiler
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"speaker is not a regular expression: {error}") from None
        if groups < 1:
            raise ValueError(
                "speaker needs a group: the part in brackets is the speaker, as in ^(.+?)_nohash_"
            )
        return self
