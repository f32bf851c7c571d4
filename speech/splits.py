"""Assigns clips to splits: by the corpus's own lists, a hash of the speaker, or dealing speakers.

No speaker is in two splits, and every split has every label. Warden's hash suits large corpora: new
clips never move old ones. With few speakers the hash may give a split without a label, or one far
from its share. Then whole speakers are dealt one by one (speech/speaker_dealing.py), so that the
labels come closest to their shares.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from speech.corpus_config import Corpus, Split
from speech.findings import Findings, format_list
from speech.speaker_dealing import deal_speakers
from speech.split_lists import LISTS, SplitLists, count_torn_speakers

SPLITS = ("training", "validation", "testing")
HELD_OUT_PERCENT = 10  # of the speakers for validation, and as many for testing, by the hash
# a split by hash is balanced if its size is between its share over this and its share times this
MAX_SHARE_RATIO = 2


class Assignment(NamedTuple):
    """The split of every clip, and how it was found."""

    splits: dict[str, str]  # path -> split
    method: str  # a key of speech.account.SPLIT_METHODS


def speaker_of(path: str, pattern: str) -> str:
    """Returns the pattern's first group in the file name, in one Unicode form.

    A pattern with a / is searched in the path below the word. Without a match, the clip's own path
    below the word counts as a speaker.
    """
    below, name = path.partition("/")[2] or path, path.rsplit("/", 1)[-1]
    match = re.search(pattern, below if "/" in pattern else name)
    return unicodedata.normalize("NFC", (match and match[1]) or below.rsplit(".", 1)[0])


def count_unmatched(paths: Collection[str], pattern: str, notes: list[str]) -> int:
    """Returns the number of clips whose names don't match the pattern corpus.speaker.

    Adds a note on them to `notes`.
    """
    parts = slice(1, None) if "/" in pattern else slice(-1, None)
    count = sum(re.search(pattern, "/".join(path.split("/")[parts])) is None for path in paths)
    if count:
        nested = any(path.count("/") > 1 for path in paths) and "/" not in pattern
        remedy = (
            "; corpus.speaker: ^(.+?)/ treats the folders below a word as speakers"
            if nested
            else ""
        )
        notes.append(
            f"{count:,} of {len(paths):,} file names don't match corpus.speaker; each counts as"
            f" a speaker of its own{remedy}"
        )
    return count


def split_by_hash(speaker: str) -> str:
    """Returns the split by SHA-1 of the speaker, about 80/10/10, so new clips never move old ones.

    It is the function which_set of the Speech Commands README.
    """
    modulus = 2**27
    percent = (
        int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % modulus * (100.0 / (modulus - 1))
    )
    if percent < HELD_OUT_PERCENT:
        return "validation"
    return "testing" if percent < 2 * HELD_OUT_PERCENT else "training"


def is_balanced(splits: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Returns whether every split has every label and about its share of all clips.

    `splits` and `labels` map a path to its split and its label.
    """
    counts = Counter(splits.values())
    if {(label, split) for label in set(labels.values()) for split in SPLITS} - {
        (labels[path], splits[path]) for path in labels
    }:
        return False
    share = HELD_OUT_PERCENT / 100 * len(splits)
    return all(
        share / MAX_SHARE_RATIO <= counts[split] <= share * MAX_SHARE_RATIO for split in LISTS
    )


def split_shares(split: Split | None) -> dict[str, float]:
    """Returns split -> its share of the clips."""
    config = split or Split()
    return {name: getattr(config, name) for name in SPLITS}


def assign_splits(
    lists: SplitLists,
    speakers: Mapping[str, str],
    labels: Mapping[str, str],
    config: Corpus,
    findings: Findings,
) -> Assignment:
    """Assigns every clip by the lists, by a hash where its splits are balanced, or by dealing.

    `labels` and `speakers` map a path to its label and its speaker. Problems are added to
    `findings`.
    """
    findings.faults += lists.faults
    findings.notes += lists.notes
    by_clip = config.split is not None and config.split.by == "clip"
    owners = {path: path for path in speakers} if by_clip else speakers
    if lists.splits:
        return Assignment(_split_by_lists(lists, owners, labels, config.split, findings), "lists")
    if config.split is None:
        hashed = {path: split_by_hash(speaker) for path, speaker in speakers.items()}
        if is_balanced(hashed, labels):
            return Assignment(hashed, "hash")
    splits = deal_speakers(owners, labels, split_shares(config.split))
    return Assignment(splits, "clip" if by_clip else "dealt")


def _split_by_lists(
    lists: SplitLists,
    owners: Mapping[str, str],
    labels: Mapping[str, str],
    split_config: Split | None,
    findings: Findings,
) -> dict[str, str]:
    """Returns path -> split, where all clips of an owner follow its first listed clip.

    `owners` maps a path to its speaker, or to itself where the lists may part a speaker.
    """
    listed_clip: dict[str, str] = {}  # owner -> its first listed clip
    for path, owner in owners.items():
        if path in lists.listed:
            listed_clip.setdefault(owner, path)
    findings.faults += _describe_torn_speakers(lists, owners, listed_clip)
    if followers := sum(
        path not in lists.listed and owner in listed_clip for path, owner in owners.items()
    ):
        findings.notes.append(
            f"{followers:,} clips in neither list are in the split of their speaker's listed clips"
        )
    if split_config is not None:
        findings.notes.append(
            "the corpus's lists decide its splits, and corpus.split is ignored"
            + (", except that lists may divide a speaker" * (split_config.by == "clip"))
        )
    splits = {
        path: lists.listed[listed_clip[owner]] if owner in listed_clip else "training"
        for path, owner in owners.items()
    }
    if "validation" in lists.splits:
        return splits
    findings.notes.append(
        f"there is no {LISTS['validation']}: validation is dealt from the clips that are not in"
        f" {LISTS['testing']}"
    )
    return splits | _deal_validation(splits, owners, labels, split_shares(split_config))


def _describe_torn_speakers(
    lists: SplitLists, owners: Mapping[str, str], listed_clip: Mapping[str, str]
) -> list[str]:
    """Returns a fault if speakers have clips in both lists, or no fault.

    `listed_clip` maps an owner to its first listed clip.
    """
    torn_speakers: dict[str, str] = {}  # speaker -> the line about it
    for path, owner in owners.items():
        split = lists.listed.get(path)
        if split and lists.listed[listed_clip[owner]] != split:
            first_path = listed_clip[owner]
            torn_speakers[owner] = (
                f"speaker {owner!r}: {first_path} in {LISTS[lists.listed[first_path]]}, {path} in"
                f" {LISTS[split]}"
            )
    if not torn_speakers:
        return []
    remedy = (
        "Name all clips of a speaker in one list. If these are not speakers, correct the regular"
        " expression corpus.speaker, or write corpus.split: {by: clip}: then the lists are used"
        " unchanged, and accuracy is optimistic."
    )
    return [
        f"{len(torn_speakers)} speakers are in two"
        f" splits:\n{format_list(list(torn_speakers.values()))}\n    {remedy}"
    ]


def _deal_validation(
    splits: Mapping[str, str],
    owners: Mapping[str, str],
    labels: Mapping[str, str],
    shares: Mapping[str, float],
) -> dict[str, str]:
    """Deals validation from the clips of training, and returns the new splits of these clips."""
    rest = {path: owner for path, owner in owners.items() if splits[path] == "training"}
    validation_share = shares["validation"] / (shares["training"] + shares["validation"])
    return deal_speakers(
        rest, {path: labels[path] for path in rest}, {"validation": validation_share}
    )


def may_share_speakers(
    method: str, lists: SplitLists, speakers: Mapping[str, str], unmatched: int, config: Corpus
) -> bool:
    """Returns whether a speaker is in several splits, or may be, so that accuracy is optimistic.

    `unmatched` is the number of clips that don't match corpus.speaker. Where these are the
    majority, the speakers are unknown.
    """
    if method == "lists":
        by_clip = config.split is not None and config.split.by == "clip"
        return by_clip and count_torn_speakers(lists, speakers) > 0
    return method == "clip" or 2 * unmatched > len(speakers)
