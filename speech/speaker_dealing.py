"""Deals whole speakers to splits one by one, so that every label comes closest to its shares.

Dealing counts in integers and orders speakers by the hash of their names. Therefore its result is
the same on every machine and for every order of files.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from speech.split_lists import LISTS

LABEL_UNITS = 10**6  # all clips of a label, in the integer units of dealing
MAX_CANDIDATES = 2_000  # number of different speakers that dealing compares per choice


def deal_speakers(
    speakers: Mapping[str, str], labels: Mapping[str, str], shares: Mapping[str, float]
) -> dict[str, str]:
    """Assigns whole speakers to the held-out splits in `shares`, and all others to training.

    `speakers` and `labels` map a path to its speaker and its label. Returns path -> split. A
    held-out split repeatedly takes the speaker that brings its labels closest to their shares.
    Every label retains a speaker for training and, if it has enough speakers, one for every later
    split.
    """
    names = sorted(
        set(speakers.values()), key=lambda name: (hashlib.sha1(name.encode()).hexdigest(), name)
    )
    columns = {label: index for index, label in enumerate(sorted(set(labels.values())))}
    rows = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(columns)), np.int64)  # (speakers, labels)
    for path, speaker in speakers.items():
        counts[rows[speaker], columns[labels[path]]] += 1
    pool = _SpeakerPool(counts)
    split_of = dict.fromkeys(names, "training")
    held_out = [split for split in LISTS if shares.get(split, 0) > 0]
    for later_splits, split in reversed(list(enumerate(reversed(held_out)))):
        for row in pool.take(round(shares[split] * LABEL_UNITS), later_splits):
            split_of[names[row]] = split
    return {path: split_of[speaker] for path, speaker in speakers.items()}


class _SpeakerPool:
    """The speakers that no held-out split has taken, grouped by equal label counts.

    Grouping limits the work where a hundred thousand speakers have one clip each.
    """

    def __init__(self, counts: np.ndarray) -> None:
        distinct, kind_of = np.unique(counts, axis=0, return_inverse=True)
        kind_of = kind_of.reshape(-1)
        first = np.full(len(distinct), len(counts))
        np.minimum.at(first, kind_of, np.arange(len(counts)))
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        # (kinds, labels), ordered by the hash of the kind's first speaker
        self.counts = distinct[order]
        self.rows: list[list[int]] = [[] for _ in order]
        for row in reversed(range(len(counts))):
            self.rows[rank[kind_of[row]]].append(row)
        self.rates = self.counts * LABEL_UNITS // np.maximum(counts.sum(axis=0), 1)
        self.free = np.array([len(rows) for rows in self.rows])
        # (labels,): number of remaining speakers with the label
        self.label_speakers = (counts > 0).sum(axis=0)

    def take(self, target: int, later_splits: int) -> list[int]:
        """Removes the speakers of one held-out split from the pool and returns them.

        `later_splits` is the number of splits that follow it.
        """
        taken: list[int] = []
        rate, covered = (
            np.zeros(len(self.label_speakers), np.int64),
            np.zeros(len(self.label_speakers), bool),
        )
        # speakers per label: one for training, and one per later split
        reserved = np.clip(self.label_speakers - 1, 1, 1 + later_splits)
        while (row := self._choose_next(rate, covered, reserved, target)) is not None:
            taken.append(self.rows[row].pop())
            self.free[row] -= 1
            self.label_speakers -= self.counts[row] > 0
            rate, covered = rate + self.rates[row], covered | (self.counts[row] > 0)
        return taken

    def _choose_next(
        self, rate: np.ndarray, covered: np.ndarray, reserved: np.ndarray, target: int
    ) -> int | None:
        scarce = self.label_speakers - 1 < reserved  # (labels,)
        legal = np.flatnonzero((self.free > 0) & ~((self.counts > 0) & scarce).any(axis=1))
        # kinds that bring a label which the split lacks
        bringing_labels = legal[((self.counts[legal] > 0) & ~covered).any(axis=1)]
        for rows, required in (
            (legal[:MAX_CANDIDATES], not covered.any()),
            (bringing_labels[:MAX_CANDIDATES], True),
        ):
            if not len(rows):
                continue
            costs = ((rate + self.rates[rows] - target) ** 2).sum(axis=1)
            best = int(costs.argmin())
            if required or costs[best] < ((rate - target) ** 2).sum():
                return int(rows[best])
        return None
