"""Copies in planted corpora: which groups are faults, and which are merely told."""

from speech.audio import ClipCheck
from speech.duplicates import find_copies


def test_copies_within_a_split_are_told_beside_those_that_are_faulty_twice() -> None:
    splits = {
        "a/1": "training",
        "b/1": "validation",
        "a/2": "training",
        "a/3": "training",
        "a/4": "training",
    }
    # x has two labels, and lies in two splits
    sounds = {"a/1": "x", "b/1": "x", "a/2": "y", "a/3": "y", "a/4": "z"}
    checked = {path: ClipCheck(path, sound, 0.5, 0.0, False) for path, sound in sounds.items()}
    copies = find_copies(checked, {path: path[0] for path in splits}, splits, "allow")
    assert len(copies.notes) == 3
    assert copies.notes[-1].startswith("1 clips are copies")
