"""Dealing whole speakers: planted corpora whose right split can be counted by hand."""

import random
from collections import Counter

import pytest

from speech.speaker_dealing import deal_speakers
from speech.splits import SPLITS

SHARES = {"training": 0.8, "validation": 0.1, "testing": 0.1}


def spoken(words: str, speakers: int, clips: int) -> list[tuple[str, str, str]]:
    """(path, speaker, label) of every clip."""
    return [
        (f"{w}/s{s}_nohash_{c}.wav", f"s{s}", w)
        for w in words
        for s in range(speakers)
        for c in range(clips)
    ]


def dealt(corpus: list[tuple[str, str, str]], shares: dict[str, float] = SHARES) -> dict[str, str]:
    return deal_speakers(
        {path: speaker for path, speaker, _ in corpus},
        {path: label for path, _, label in corpus},
        shares,
    )


def sizes(splits: dict[str, str], corpus: list[tuple[str, str, str]]) -> list[int]:
    """Speakers of each split; asserts that nobody is in two."""
    people = {(speaker, splits[path]) for path, speaker, _ in corpus}
    assert len(people) == len({speaker for speaker, _ in people})
    return [sum(split == name for _, split in people) for name in SPLITS]


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (1, [1, 0, 0]),
        (2, [1, 1, 0]),
        (3, [1, 1, 1]),
        (6, [4, 1, 1]),
        (10, [8, 1, 1]),
        (40, [32, 4, 4]),
    ],
)
def test_alike_speakers_are_dealt_by_number(speakers: int, expected: list[int]) -> None:
    corpus = spoken("abcdefghij", speakers, 50)
    assert sizes(dealt(corpus), corpus) == expected


def test_the_order_of_files_has_no_say() -> None:
    corpus = spoken("abc", 12, 3)
    before = dealt(corpus)
    random.Random(0).shuffle(corpus)
    assert dealt(corpus) == before


def test_every_label_is_in_every_split_and_near_its_share_where_speakers_differ() -> None:
    rng = random.Random(1)
    corpus = [
        (f"{w}/s{s}_nohash_{c}.wav", f"s{s}", w)
        for s in range(30)
        for w in "abcd"
        for c in range(rng.randrange(1, 40))
    ]
    splits = dealt(corpus)
    totals = Counter(label for *_, label in corpus)
    held = Counter((label, splits[path]) for path, _, label in corpus)
    assert all(
        0.05 < held[label, split] / totals[label] < 0.16
        for label in "abcd"
        for split in ("validation", "testing")
    )


def test_nobody_is_taken_whose_word_training_would_be_without() -> None:
    corpus = [*spoken("ab", 8, 5), *[(f"rare/s0_nohash_{c}.wav", "s0", "rare") for c in range(5)]]
    assert dealt(corpus)["rare/s0_nohash_0.wav"] == "training"


def test_a_hundred_thousand_single_clips_are_dealt_exactly() -> None:
    corpus = [(f"{w}/{n}.wav", f"{w}/{n}.wav", w) for w in "abcde" for n in range(20_000)]
    counts = Counter(
        (label, split) for (_, _, label), split in zip(corpus, dealt(corpus).values(), strict=True)
    )
    assert set(counts.values()) == {16_000, 2_000}
