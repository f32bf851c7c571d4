"""Selects the words to classify from the folders of a corpus, and pools the other words."""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from speech.corpus_config import Corpus
from speech.listing import NOISE_FOLDER, Listing, word_of
from speech.sources import CorpusError
from speech.spelling import did_you_mean
from speech.split_lists import LISTS
from speech.splits import SPLITS

UNKNOWN, SILENCE = "unknown", "silence"
SPLIT_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")
)  # a corpus whose words are all of these is rejected


class Vocabulary(NamedTuple):
    """The words of a corpus and the labels that a configuration gives them."""

    by_word: dict[str, list[str]]  # word -> its clips
    words: list[str]  # words to classify, in order
    others: dict[str, list[str]]  # word -> its clips, of the words that are pooled as unknown
    labels: tuple[str, ...]  # words, then unknown, then silence

    def label_by_path(self) -> dict[str, str]:
        """Returns path -> label of all clips with a label, before unknown is limited."""
        return {
            path: UNKNOWN if word in self.others else word
            for word, paths in self.by_word.items()
            if word in self.words or word in self.others
            for path in paths
        }

    def chosen(self, pooled: Iterable[str]) -> dict[str, str]:
        """Returns path -> label of the clips of selected words and of the `pooled` clips."""
        spoken = {path: word for word in self.words for path in self.by_word.get(word, ())}
        return spoken | dict.fromkeys(pooled, UNKNOWN)

    def spoken_labels(self) -> list[str]:
        """Returns the labels whose clips are files of the word folders."""
        return [label for label in self.labels if label in self.by_word or label == UNKNOWN]


def group_by_word(root: Path, listing: Listing, notes: list[str]) -> dict[str, list[str]]:
    """Returns word -> its clips, where folders that differ only in Unicode form are one word.

    Raises CorpusError for a corpus without clips, and for folders that are splits, not words.
    """
    by_word: dict[str, list[str]] = {}
    for path in listing.files:
        by_word.setdefault(word_of(path), []).append(path)
    words = by_word.keys() - {NOISE_FOLDER}
    if not words:
        exclusion_lines = "\n".join(f"  excluded: {entry}" for entry in listing.left_out)
        raise CorpusError(
            f"corpus {root} holds no clips: expected <word>/<clip>.wav below it."
            f"\n{exclusion_lines}".rstrip()
        )
    if len(words) > 1 and {word.lower() for word in words} <= SPLIT_NAMES:
        raise CorpusError(
            f"corpus {root}: its folders {', '.join(sorted(words))} are splits, not words. Set"
            " corpus.path to one of them, or merge them into one folder of words and list held-out"
            f" clips in {' and '.join(LISTS.values())}."
        )
    if empty := sorted(
        {unicodedata.normalize("NFC", name) for name in listing.empty}
        - by_word.keys()
        - {NOISE_FOLDER}
    ):
        notes.append(
            f"{len(empty):,} folders hold no readable clip and are ignored: {', '.join(empty[:5])}"
        )
    similar = [names for names in _group_by_casefold(words).values() if len(names) > 1]
    notes += [
        f"the words {' and '.join(names)} differ only in case, and are separate labels"
        for names in similar
    ]
    return by_word


def _group_by_casefold(words: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for word in sorted(words):
        groups.setdefault(word.casefold(), []).append(word)
    return groups


def select_words(
    root: Path, by_word: dict[str, list[str]], config: Corpus, faults: list[str]
) -> Vocabulary:
    """Selects the words that the configuration names, or all.

    Words without a folder, names that are also labels and a single label are added to `faults`.
    """
    words = (
        sorted(by_word)
        if config.words is None
        else [unicodedata.normalize("NFC", word) for word in config.words]
    )
    faults += _describe_missing_words(words, by_word)
    for label, count in ((UNKNOWN, config.unknown), (SILENCE, config.silence)):
        if count and label in words:
            faults.append(
                f"corpus.{label}: a word has the name {label!r} too. Write corpus.{label}: 0, or"
                " remove that word from corpus.words."
            )
    labels = (*words, *[UNKNOWN] * bool(config.unknown), *[SILENCE] * bool(config.silence))
    if len(labels) < 2:
        faults.append(_describe_single_word(root, words[0], by_word.get(words[0], ())))
    rest = {word: paths for word, paths in by_word.items() if word not in words}
    return Vocabulary(by_word, words, rest if config.unknown else {}, labels)


def _describe_missing_words(words: Iterable[str], by_word: Mapping[str, list[str]]) -> list[str]:
    """Returns a fault per word without a folder, with the nearest word that has one."""
    faults = []
    for word in words:
        if word not in by_word:
            nearest = _group_by_casefold(by_word).get(word.casefold())
            hint = f" Did you mean {nearest[0]}?" if nearest else did_you_mean(word, by_word)
            faults.append(
                f"corpus.words: {word!r} has no folder with sound files.{hint} Words with files:"
                f" {', '.join(sorted(by_word))}."
            )
    return faults


def _describe_single_word(root: Path, word: str, paths: Iterable[str]) -> str:
    """Returns the fault of a corpus with one label; `paths` are the clips of its only word."""
    nested = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
    nested_hint = (
        f" Its folders are {', '.join(nested[:5])}: if these are the words, add {word} to"
        " corpus.path."
        if nested
        else ""
    )
    return (
        f"{root} holds one word, {word!r}: a classifier needs two labels. Add a folder, or"
        f" corpus.silence.{nested_hint}"
    )


def pool_unknown(
    others: Mapping[str, list[str]], splits: Mapping[str, str], count: int
) -> list[str]:
    """Returns at most `count` paths per split, spread evenly over the words.

    Paths are ranked by their hash within a word. The pool takes the first path of every word, then
    the second of every word, and continues in that order.
    """
    pooled = []
    for split in SPLITS:
        ranked = []
        for paths in others.values():
            hashed = sorted(
                (hashlib.sha1(path.encode()).hexdigest(), path)
                for path in paths
                if splits[path] == split
            )
            ranked += [(rank, *pair) for rank, pair in enumerate(hashed)]
        pooled += [path for _, _, path in sorted(ranked)[:count]]
    return pooled
