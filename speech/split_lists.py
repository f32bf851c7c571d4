"""Reads the lists of a corpus, which name the clips of validation and testing."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from speech.sources import CorpusError

# in the official layout; clips in neither list are training
LISTS = {"validation": "validation_list.txt", "testing": "testing_list.txt"}


class SplitLists(NamedTuple):
    """The content of a corpus's lists, matched with its files."""

    listed: dict[str, str]  # path -> validation or testing
    splits: tuple[str, ...]  # the splits that have a list with an entry
    notes: list[str]
    faults: list[str]


def list_paths(root: Path) -> dict[str, Path]:
    """Returns split -> its list. Kaggle's copy has the lists beside the folder audio, not in it."""
    for folder in (root, *root.parents[:2]) if root.name == "audio" else (root,):
        paths = {split: folder / name for split, name in LISTS.items() if (folder / name).is_file()}
        if paths:
            return paths
    return {}


def read_lists(root: Path, files: Iterable[str]) -> SplitLists:
    """Reads the lists of a corpus and matches their entries with its files.

    Subsets retain the full lists, so entries without a file are no fault; a note counts them.
    """
    by_name = {unicodedata.normalize("NFC", path): path for path in files}
    listed: dict[str, str] = {}
    notes: list[str] = []
    faults: list[str] = []
    listed_twice: list[str] = []
    splits: list[str] = []
    for split, list_file in list_paths(root).items():
        entries = _read_entries(list_file)
        missing = []
        for entry in entries:
            path = _match_entry(entry, by_name)
            if path is None:
                missing.append(entry)
            elif listed.setdefault(path, split) != split:
                listed_twice.append(path)
        if not entries:
            notes.append(f"{list_file.name} is empty and is ignored")
            continue
        splits.append(split)
        if len(missing) == len(entries):
            faults.append(
                f"none of the {len(entries):,} entries of {list_file} names a clip. The first is"
                f" {entries[0]!r}, but clips have names such as"
                f" {next(iter(by_name.values()), '<word>/<clip>.wav')!r}. Correct the entries, or"
                " remove the list."
            )
        elif missing:
            notes.append(
                f"{len(missing):,} of {len(entries):,} entries of {list_file.name} name no"
                f" existing clip (as {missing[0]})"
            )
    if listed_twice:
        faults.append(
            f"{len(listed_twice):,} clips are in both lists (as {listed_twice[0]}). Remove them"
            " from one list."
        )
    return SplitLists(listed, tuple(splits), notes, faults)


def count_torn_speakers(lists: SplitLists, speakers: Mapping[str, str]) -> int:
    """Returns the number of speakers that the lists put into several splits, training included."""
    splits_by_speaker: dict[str, set[str]] = {}
    for path, speaker in speakers.items():
        splits_by_speaker.setdefault(speaker, set()).add(lists.listed.get(path, "training"))
    return sum(len(splits) > 1 for splits in splits_by_speaker.values())


def _read_entries(list_file: Path) -> list[str]:
    """Returns the entries of a list, in one Unicode form, with / between folders.

    Empty lines and comments are skipped. Raises CorpusError for a list that is not UTF-8 or UTF-16.
    """
    content = list_file.read_bytes()
    try:
        text = content.decode(
            "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        )
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{list_file}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. Save the"
            " list as UTF-8."
        ) from None
    lines = [
        unicodedata.normalize("NFC", line.strip().strip('"').replace("\\", "/"))
        for line in text.replace("\0", "").splitlines()
    ]
    return [os.path.normpath(line) for line in lines if line and not line.startswith("#")]


def _match_entry(entry: str, by_name: Mapping[str, str]) -> str | None:
    """Returns the file of an entry, which may start with folders above the corpus, or None."""
    while entry not in by_name:
        _, slash, entry = entry.partition("/")
        if not slash:
            return None
    return by_name[entry]
