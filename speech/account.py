"""The account of a corpus lists its files, the clips in use, the exclusions and their reasons.

It also holds the figures that every accuracy must be compared with. The account is created once,
with the corpus, and is stored in its manifest. A launch and a dry run print it; every trial's setup
record, the sweep's run and the sweep's tables include it. Therefore no filter works unseen, and
every accuracy appears beside the share of the largest label. A classifier that always predicts that
label would score that share.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from speech.audio import MAX_PEAK, ClipCheck
from speech.splits import SPLITS

SPLIT_METHODS = {  # value of Account.how -> the text that a launch prints
    "lists": "split by its lists",
    "hash": "split by a hash of the speaker",
    "dealt": "whole speakers dealt to the splits",
    "clip": "single clips dealt to the splits",
}
# mean of a clip's samples, full scale 1, that is reported: a microphone's is far below
MAX_OFFSET = 0.1
LINE_WIDTH = 110  # characters per line, as in all of a launch's output
OPTIMISM_NOTE = (
    "speakers are in several splits, so accuracy is optimistic: training uses clips of the same"
    " speakers"
)


@dataclass(frozen=True)
class Account:
    """The account of one corpus. Fields whose value is unknown are empty."""

    root: str = ""
    found: int = 0  # sound files in the word folders
    used: dict[str, int] = field(default_factory=dict)  # split -> clips that are files
    silence: int = 0  # cuts of background noise in all splits
    speakers: dict[str, int] = field(default_factory=dict)  # split -> number of speakers
    how: str = ""  # a key of SPLIT_METHODS
    optimistic: bool = False  # whether speakers are, or may be, in several splits
    # split -> (label with most clips, its clips, all clips)
    largest: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    # '30 .m4a files, which can't be read (as up/a.m4a): convert them'
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    untestable: str = ""  # why the test split can't be read, and the remedy

    def largest_fraction(self, split: str) -> float | None:
        """Returns the largest label's share of a split's clips, or None for an empty split."""
        if split not in self.largest:
            return None
        _, most, total = self.largest[split]
        return most / total

    def accuracy_context(self) -> dict[str, float]:
        """Returns the figures that must accompany every validation accuracy."""
        share = self.largest_fraction("validation")
        context = {} if share is None else {"largest_label_fraction": share}
        return context | ({"shared_speakers": 1.0} if self.optimistic else {})

    def lines(self) -> list[str]:
        """Returns the lines that a launch prints.

        The first lines describe the clips in use; every exclusion and every note follows on a line
        of its own.
        """
        counts = ", ".join(f"{self.used.get(split, 0):,} {split}" for split in SPLITS)
        cuts = f", and {self.silence:,} cuts of silence" if self.silence else ""
        speaker_counts = " + ".join(f"{self.speakers.get(split, 0):,}" for split in SPLITS)
        used = f"{self.found:,} sound files, {sum(self.used.values()):,} used ({counts}){cuts}"
        lines = [
            f"corpus {self.root}",
            f"  {used}; {SPLIT_METHODS.get(self.how, self.how)} ({speaker_counts} speakers)",
        ]
        if shares := [
            f"{label} {100 * most / total:.1f} % of {split}"
            for split, (label, most, total) in self.largest.items()
        ]:
            lines.append(f"  largest label: {', '.join(shares)}")
        if self.optimistic:
            lines.append(f"  {OPTIMISM_NOTE}")
        lines += [f"  excluded: {entry}" for entry in self.left_out] + [
            f"  {note}" for note in self.notes
        ]
        lines += [f"  no test split: {self.untestable}"] if self.untestable else []
        return [
            lines[0],
            *(
                part
                for line in lines[1:]
                for part in textwrap.wrap(line, LINE_WIDTH, subsequent_indent="    ")
            ),
        ]

    def document(self) -> dict[str, Any]:
        """Returns all fields as a dictionary that can be written as JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Account":
        """Converts a dictionary that `document` returned, after a round trip through JSON."""
        texts = {name: tuple(document[name]) for name in ("left_out", "notes")}
        return cls(
            **{
                **document,
                **texts,
                "largest": {split: tuple(entry) for split, entry in document["largest"].items()},
            }
        )


def largest_labels(labelled: Iterable[tuple[str, str]]) -> dict[str, tuple[str, int, int]]:
    """Returns split -> (label with most clips, number of its clips, number of all clips).

    `labelled` holds a (split, label) pair per clip. On a tie the alphabetically first label wins.
    """
    counts: dict[str, Counter[str]] = {}
    for split, label in labelled:
        counts.setdefault(split, Counter())[label] += 1
    largest = {}
    for split in SPLITS:
        if split in counts:
            label, most = min(counts[split].items(), key=lambda item: (-item[1], item[0]))
            largest[split] = label, most, counts[split].total()
    return largest


def describe_unused_words(
    by_word: dict[str, list[str]],
    words: list[str],
    others: dict[str, list[str]],
    pooled: int,
    unknown: int,
) -> list[str]:
    """Returns a line about the clips of unselected words, or no line where all of them are in use.

    With a pool for unknown (`others`), these are the clips beyond the limit of `unknown` per split.
    Without one, they are all clips of words that corpus.words doesn't name.
    """
    rest = {word: paths for word, paths in by_word.items() if word not in words}
    count = sum(map(len, rest.values())) - pooled
    if not count:
        return []
    if others:
        return [
            f"{count:,} clips of {len(rest):,} other words, beyond corpus.unknown: {unknown}"
            " per split"
        ]
    return [
        f"{count:,} clips of {len(rest):,} words that corpus.words doesn't name (as {min(rest)})"
    ]


def group_by_reason(bad_clips: Mapping[str, str]) -> list[str]:
    """Returns one line per kind of fault, such as '2 files: cut off (as a/b.wav)'.

    `bad_clips` maps a path to its fault. Faults that differ only in numbers or details are one
    kind.
    """
    paths_by_reason: dict[str, list[str]] = {}
    for path, reason in bad_clips.items():
        paths_by_reason.setdefault(
            re.sub(r"\d[\d,.]*", "N", re.split(r" \(|[,;:]", reason)[0]), []
        ).append(path)
    return [
        f"{len(paths):,} {'file' if len(paths) == 1 else 'files'}: {kind} (as {paths[0]})"
        for kind, paths in paths_by_reason.items()
    ]


def clip_notes(checked: Mapping[str, ClipCheck], chosen: Mapping[str, str]) -> Iterator[str]:
    """Yields a note on every unusual property of clips in use, with the number of such clips."""
    paths_by_note = {
        "are digital silence, every sample zero": [path for path in chosen if checked[path].silent],
        f"reach beyond full scale (up to {MAX_PEAK:g} times) and are clipped there": [
            path for path in chosen if checked[path].peak > 1
        ],
        f"have a mean beyond {MAX_OFFSET:g} of full scale": [
            path for path in chosen if abs(checked[path].offset) > MAX_OFFSET
        ],
        "have no length in their header, as written to a pipe, and are read to their end": [
            path for path in chosen if checked[path].streamed
        ],
    }
    for note, paths in paths_by_note.items():
        if paths:
            yield f"{len(paths):,} clips {note} (as {paths[0]})"
