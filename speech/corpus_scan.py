"""Scans the folder of a corpus: files by word -> PreparedCorpus.

The scan selects words, pools the unknown ones, assigns every speaker to one split and cuts silence.
It decodes every chosen file once, so all faults of a corpus are known before the first trial, and
are reported together. It counts the files that it excludes (speech/account.py).
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from speech.account import (
    Account,
    clip_notes,
    describe_unused_words,
    group_by_reason,
    largest_labels,
)
from speech.audio import BadClip, ClipCheck, check_clip
from speech.background_noise import cut_silence, divide_noise
from speech.corpus_config import SAMPLE_RATE, Corpus
from speech.duplicates import find_copies
from speech.findings import Findings, format_list
from speech.label_coverage import check_label_coverage
from speech.listing import NOISE_FOLDER, Listing
from speech.prepared_corpus import Clip, PreparedCorpus, Stretch
from speech.sources import Report
from speech.split_lists import SplitLists, read_lists
from speech.splits import (
    SPLITS,
    assign_splits,
    count_unmatched,
    may_share_speakers,
    speaker_of,
)
from speech.word_selection import SILENCE, Vocabulary, group_by_word, pool_unknown, select_words

REPORT_EVERY_S = 5.0


class _Division(NamedTuple):
    """The division of all labelled clips among the splits."""

    speakers: dict[str, str]  # path -> speaker
    lists: SplitLists
    splits: dict[str, str]  # path -> split
    method: str  # a key of speech.account.SPLIT_METHODS
    optimistic: bool  # speakers are, or may be, in several splits


def scan_corpus(root: Path, listing: Listing, config: Corpus, report: Report) -> PreparedCorpus:
    """Selects, splits and decodes the files of `listing`.

    Raises a CorpusError that lists every fault.
    """
    findings = Findings(exclusions=[str(entry) for entry in listing.left_out])
    by_word = group_by_word(root, listing, findings.notes)
    recordings = by_word.pop(NOISE_FOLDER, [])
    vocabulary = select_words(root, by_word, config, findings.faults)
    division = _divide_clips(root, listing, vocabulary, config, findings)

    chosen = _choose_clips(vocabulary, division.splits, config, findings)
    checked, bad_lines = _check_files(root, [*chosen, *recordings], report, findings.exclusions)
    if bad_lines and config.on_bad_clip == "fail":
        findings.faults.append(_format_bad_files(bad_lines, len(checked)))
    chosen = {path: label for path, label in chosen.items() if path in checked}
    chosen = _drop_copies(chosen, checked, division.splits, config, findings)

    labels = vocabulary.labels
    clips = [
        Clip(path, labels.index(label), division.speakers[path], division.splits[path])
        for path, label in chosen.items()
    ]
    _check_coverage(clips, vocabulary, division, config, findings)
    samples = round(config.seconds * SAMPLE_RATE)
    stretches = divide_noise(root, [path for path in recordings if path in checked], samples)
    if config.silence and not recordings:
        findings.faults.append(
            f"corpus.silence: there are no recordings in {NOISE_FOLDER} to cut from. Add some, or"
            " write corpus.silence: 0."
        )
    elif config.silence:
        clips += cut_silence(
            stretches, samples, config.silence, labels.index(SILENCE), findings.faults
        )
    findings.raise_faults(root)

    if bad_lines:
        report(f"{len(bad_lines)} files can't be used and are excluded:\n{format_list(bad_lines)}")
    clips.sort(key=lambda clip: (clip.path, clip.start or 0))
    findings.notes += clip_notes(checked, chosen)
    account = _build_account(root, clips, vocabulary, division, findings)
    noise = tuple(stretches["training"])
    fingerprint = _fingerprint(clips, labels, noise, checked)
    return PreparedCorpus(root, labels, tuple(clips), fingerprint, tuple(bad_lines), noise, account)


def _divide_clips(
    root: Path, listing: Listing, vocabulary: Vocabulary, config: Corpus, findings: Findings
) -> _Division:
    """Assigns every clip with a label to a split, by its speaker."""
    label_by_path = vocabulary.label_by_path()
    speakers = {path: speaker_of(path, config.speaker) for path in label_by_path}
    unmatched = count_unmatched(speakers, config.speaker, findings.notes)
    lists = read_lists(root, listing.files)
    splits, method = assign_splits(lists, speakers, label_by_path, config, findings)
    optimistic = may_share_speakers(method, lists, speakers, unmatched, config)
    return _Division(speakers, lists, splits, method, optimistic)


def _choose_clips(
    vocabulary: Vocabulary, splits: Mapping[str, str], config: Corpus, findings: Findings
) -> dict[str, str]:
    """Returns path -> label of the clips to use, with the pool of unknown words limited."""
    by_word, words, others, _ = vocabulary
    pooled = pool_unknown(others, splits, config.unknown)
    findings.exclusions += describe_unused_words(
        by_word, words, others, len(pooled), config.unknown
    )
    return vocabulary.chosen(pooled)


def _check_files(
    root: Path, paths: list[str], report: Report, exclusions: list[str]
) -> tuple[dict[str, ClipCheck], list[str]]:
    """Decodes every file. Returns path -> ClipCheck, and '<path>: <fault>' of every bad file.

    Bad files are added to `exclusions` by the kind of their fault.
    """
    checked: dict[str, ClipCheck] = {}
    faults_by_path: dict[str, str] = {}
    report(f"reading {len(paths):,} files of {root} once, to find broken ones")
    last_report = time.monotonic()
    for index, path in enumerate(paths):
        if time.monotonic() - last_report > REPORT_EVERY_S:
            report(f"  {index:,} of {len(paths):,} read")
            last_report = time.monotonic()
        try:
            checked[path] = check_clip(root / path)
        except BadClip as error:
            faults_by_path[path] = str(error).removeprefix(f"{root / path}: ")
    exclusions += group_by_reason(faults_by_path)
    return checked, [f"{path}: {reason}" for path, reason in faults_by_path.items()]


def _format_bad_files(bad_lines: Sequence[str], usable: int) -> str:
    """Returns the fault of a corpus with bad files; `usable` is the number of its other files."""
    remedy = "Remove or replace them, or write corpus.on_bad_clip: skip to exclude them."
    return (
        f"{len(bad_lines)} of {len(bad_lines) + usable} files can't be"
        f" used:\n{format_list(bad_lines)}\n    {remedy}"
    )


def _drop_copies(
    chosen: Mapping[str, str],
    checked: Mapping[str, ClipCheck],
    splits: Mapping[str, str],
    config: Corpus,
    findings: Findings,
) -> dict[str, str]:
    """Returns `chosen` without the copies that corpus.duplicates excludes."""
    copies = find_copies(checked, chosen, splits, config.on_duplicate)
    findings.faults += copies.faults
    findings.notes += copies.notes
    if copies.dropped:
        findings.exclusions.append(
            f"{len(copies.dropped):,} copies of other clips (as {min(copies.dropped)};"
            " corpus.duplicates: skip)"
        )
    return {path: label for path, label in chosen.items() if path not in copies.dropped}


def _check_coverage(
    clips: Sequence[Clip],
    vocabulary: Vocabulary,
    division: _Division,
    config: Corpus,
    findings: Findings,
) -> None:
    filled = {(vocabulary.labels[clip.label], clip.split) for clip in clips}
    check_label_coverage(
        filled,
        vocabulary.spoken_labels(),
        division.speakers.values(),
        division.lists,
        config,
        findings,
    )


def _build_account(
    root: Path,
    clips: Sequence[Clip],
    vocabulary: Vocabulary,
    division: _Division,
    findings: Findings,
) -> Account:
    """Counts the files that were found and the clips in use."""
    spoken = [clip for clip in clips if clip.start is None]
    used = Counter(clip.split for clip in spoken)
    speakers = Counter(split for split, _ in {(clip.split, clip.speaker) for clip in spoken})
    return Account(
        root=str(root),
        found=sum(map(len, vocabulary.by_word.values())),
        used={split: used[split] for split in SPLITS},
        silence=len(clips) - len(spoken),
        speakers={split: speakers[split] for split in SPLITS},
        how=division.method,
        optimistic=division.optimistic,
        largest=largest_labels((clip.split, vocabulary.labels[clip.label]) for clip in clips),
        left_out=tuple(findings.exclusions),
        notes=tuple(findings.notes),
        untestable=findings.untestable,
    )


def _fingerprint(
    clips: Sequence[Clip],
    labels: Sequence[str],
    noise: Sequence[Stretch],
    checked: Mapping[str, ClipCheck],
) -> str:
    """Returns the SHA-256 of the content of clips and noise, in hex."""
    rows: list[tuple] = [
        (clip.path, checked[clip.path].content, labels[clip.label], clip.split, clip.start or 0)
        for clip in clips
    ]
    rows += [
        (stretch.path, checked[stretch.path].content, NOISE_FOLDER, "training", stretch.start)
        for stretch in noise
    ]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()
