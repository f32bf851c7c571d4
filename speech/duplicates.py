"""Detects copies of one recording in a corpus, across splits or across labels.

A copy across splits puts a held-out clip into training. A copy across labels gives one sound two
labels. Recordings are compared by their decoded samples, so a copy in another format or with other
tags is detected too. Clips of digital silence are equal without being copies.
"""

from collections.abc import Mapping
from typing import NamedTuple

from speech.audio import ClipCheck
from speech.findings import format_list
from speech.splits import SPLITS

FIX_HINT = (
    "Remove the copies, or write corpus.duplicates: allow, or skip, which uses one copy (of"
    " testing, else of validation) and none if labels differ."
)


class Copies(NamedTuple):
    """The copies in a corpus as faults, notes and clips to drop."""

    faults: list[str]
    notes: list[str]
    dropped: set[str]  # paths


def find_copies(
    checked: Mapping[str, ClipCheck],
    chosen: Mapping[str, str],
    splits: Mapping[str, str],
    policy: str,
) -> Copies:
    """Compares all usable clips and applies the policy to copies of one recording.

    `chosen` maps the path of every usable clip to its label. `policy` is fail, skip or allow.
    """
    groups = _group_by_sound(checked, chosen)
    label_conflicts = [paths for paths in groups if len({chosen[path] for path in paths}) > 1]
    split_conflicts = [paths for paths in groups if len({splits[path] for path in paths}) > 1]
    if policy == "skip":
        return Copies([], [], _select_dropped(groups, label_conflicts, splits))
    problems = []
    if label_conflicts:
        problems.append(_format_groups(label_conflicts, "under several labels", chosen))
    if split_conflicts:
        place = "in several splits, so training would include held-out clips"
        problems.append(_format_groups(split_conflicts, place, splits))
    if policy == "fail" and problems:
        return Copies([f"{text}\n    {FIX_HINT}" for text in problems], [], set())
    notes = [text.partition(":\n")[0] + " (corpus.duplicates: allow)" for text in problems]
    conflicting = {paths[0] for paths in (*label_conflicts, *split_conflicts)}
    if plain_copies := [paths for paths in groups if paths[0] not in conflicting]:
        copies = sum(len(paths) - 1 for paths in plain_copies)
        notes.append(
            f"{copies:,} clips are copies of other clips in the same label and split (as"
            f" {plain_copies[0][1]} of {plain_copies[0][0]})"
        )
    return Copies([], notes, set())


def _group_by_sound(checked: Mapping[str, ClipCheck], chosen: Mapping[str, str]) -> list[list[str]]:
    """Returns the sorted paths of every recording that several clips contain."""
    paths_by_sound: dict[str, list[str]] = {}
    for path in sorted(chosen):
        if not checked[path].silent:
            paths_by_sound.setdefault(checked[path].sound, []).append(path)
    return [paths for paths in paths_by_sound.values() if len(paths) > 1]


def _select_dropped(
    groups: list[list[str]], label_conflicts: list[list[str]], splits: Mapping[str, str]
) -> set[str]:
    """Returns all copies but one of each recording, in the split that is held out furthest.

    Of a recording under several labels none is retained.
    """
    dropped: set[str] = set()
    for paths in groups:
        dropped |= set(paths)
        if paths not in label_conflicts:
            dropped.remove(max(paths, key=lambda path: (SPLITS.index(splits[path]), path)))
    return dropped


def _format_groups(groups: list[list[str]], place: str, values: Mapping[str, str]) -> str:
    examples = [
        " = ".join(f"{path} ({values[path]})" for path in _first_paths(paths, values))
        for paths in groups
    ]
    return f"{len(groups):,} recordings are {place}:\n{format_list(examples)}"


def _first_paths(paths: list[str], values: Mapping[str, str]) -> list[str]:
    """Returns the first path of every distinct value."""
    return list({values[path]: path for path in reversed(paths)}.values())[::-1]
