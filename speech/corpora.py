"""Which clips a trial trains, validates and tests on: config.Corpus -> PreparedCorpus.

The one idea: every corpus is a folder of <word>/<clip>.wav. The synthetic one is spoken into that layout, the official archive comes in
it, and one scanner reads all three: it picks words, pools the unknown, cuts silence, gives every speaker to one split, and decodes
every chosen file once, so what is wrong with a corpus is known before the first trial, all of it at once.

What comes out is kept as a manifest under cache_dir()/manifests, named by the configuration and by the path, size and time of every file.
The fingerprint names the content alone, so it is the same on another machine and after a fresh copy.
"""

import difflib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speech.audio import BadClip, check_clip, length, read_clip
from speech.config import SAMPLE_RATE, Corpus, cache_dir
from speech.sources import CorpusError, Report, obtain

SPLITS = ("training", "validation", "testing")
LISTS = {"validation": "validation_list.txt", "testing": "testing_list.txt"}  # in the official layout; what neither names is training
HELD_OUT_PERCENT = 10  # of the speakers to validation, and as many to testing, where there are no lists
NOISE_FOLDER = "_background_noise_"
NOISE_SHARES = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "testing": (0.9, 1.0)}  # of every recording's time
CUTS_PER_CLIP = 10  # silence cuts start at least a tenth of a clip apart; closer ones are copies
UNKNOWN, SILENCE = "unknown", "silence"
NAMED = 10  # faults of one kind that a message spells out
REPORT_EVERY_S = 5.0
_SCANNER = 1  # part of a manifest's name: raise it when the same files and configuration give another corpus


@dataclass(frozen=True)
class Clip:
    path: str  # relative to the corpus's root
    label: int  # index into labels
    speaker: str
    split: str  # training, validation or testing
    start: int | None = None  # a silence cut's first sample, at SAMPLE_RATE; None: the whole file


class Stretch(NamedTuple):
    """Part of a background noise, in samples at SAMPLE_RATE."""

    path: str  # relative to the corpus's root
    start: int
    samples: int


@dataclass(frozen=True)
class PreparedCorpus:
    root: Path
    labels: tuple[str, ...]  # words, then unknown, then silence
    clips: tuple[Clip, ...]  # by path, then start
    fingerprint: str  # SHA-256 of what the clips and the noise hold, in hex
    skipped: tuple[str, ...]  # '<path>: <what is wrong>' of every file left out by on_bad_clip: skip
    noise: tuple[Stretch, ...]  # training's share of _background_noise_, each at least a clip long

    def read(self, clip: Clip, samples: int) -> np.ndarray:
        """(samples,) float32, as `speech.audio.read_clip` reads it. Raises BadClip."""
        return read_clip(self.root / clip.path, samples, start=clip.start)

    def split(self, name: str) -> tuple[Clip, ...]:
        return tuple(clip for clip in self.clips if clip.split == name)


def prepare(config: Corpus, report: Report = print) -> PreparedCorpus:
    """The clips of a configuration, obtained and checked once, read from the manifest afterwards (milliseconds).

    `report` gets a line when something takes time. Several processes may prepare the same corpus at once. Raises CorpusError.
    """
    try:
        root = obtain(config, report)
        files = list_files(root)
        manifest = cache_dir() / "manifests" / f"{_manifest_key(config, root, files)}.json"
        if manifest.is_file():
            return _load(root, manifest)
        corpus = scan(root, files, config, report)
        _save(corpus, manifest)
    except OSError as error:
        raise CorpusError(
            f"corpus {config.name}: {error.filename}: {error.strerror}. Its folders must be readable, the cache writable."
        ) from error
    return corpus


def scan(root: Path, files: Iterable[str], config: Corpus, report: Report) -> PreparedCorpus:
    """Choose, split and decode. `files` are paths relative to root. Raises CorpusError with every fault found."""
    faults: list[str] = []
    by_word = _by_word(root, files)
    noises = by_word.pop(NOISE_FOLDER, [])
    words = _words(root, by_word, config, faults)
    others = {word: paths for word, paths in by_word.items() if word not in words} if config.unknown else {}
    candidates = [path for word, paths in by_word.items() if word in words or word in others for path in paths]
    speakers = {path: speaker_of(path, config.speaker) for path in candidates}
    nameless = sum(re.search(config.speaker, path.rsplit("/", 1)[-1]) is None for path in speakers)
    if nameless:
        report(f"{nameless:,} of {len(speakers):,} file names don't match corpus.speaker; each counts as a speaker of its own")
    splits = _split(root, speakers, faults, report)
    chosen = {path: word for word in words for path in by_word.get(word, ())}
    chosen |= dict.fromkeys(_pool(others, splits, config.unknown), UNKNOWN)

    hashes, bad = _check(root, [*chosen, *noises], report)
    if bad and config.on_bad_clip == "fail":
        mend = "Remove or replace them, or write corpus.on_bad_clip: skip to leave them out."
        faults.append(f"{len(bad)} of {len(bad) + len(hashes)} files can't be used:\n{_spelled_out(bad)}\n    {mend}")

    labels = (*words, *([UNKNOWN] if config.unknown else []), *([SILENCE] if config.silence else []))
    clips = [Clip(path, labels.index(label), speakers[path], splits[path]) for path, label in chosen.items() if path in hashes]
    missing = [word for word in words if word not in by_word]
    faults += _empty_splits(clips, [label for label in labels if label not in (*missing, SILENCE)], labels)
    samples = round(config.seconds * SAMPLE_RATE)
    stretches = [(split, s) for split, s in _stretches(root, [path for path in noises if path in hashes]) if s.samples >= samples]
    if config.silence and not noises:
        faults.append(f"corpus.silence: there are no recordings in {NOISE_FOLDER} to cut from. Add some, or write corpus.silence: 0.")
    for split in SPLITS if config.silence and noises else ():
        clips += _cut([s for name, s in stretches if name == split], split, samples, config.silence, labels.index(SILENCE), faults)
    if faults:
        raise CorpusError(f"corpus {root} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(f"  {f}" for f in faults))
    if bad:
        report(f"{len(bad)} files can't be used and are left out:\n{_spelled_out(bad)}")
    noise = tuple(stretch for split, stretch in stretches if split == "training")
    clips.sort(key=lambda clip: (clip.path, clip.start or 0))
    return PreparedCorpus(root, labels, tuple(clips), _fingerprint(clips, labels, noise, hashes), tuple(bad), noise)


def list_files(root: Path) -> dict[str, tuple[int, int]]:
    """{'<word>/<clip>.wav': (size in bytes, mtime in ns)} in order of path; without hidden files and other folders that start with _."""
    found = {}
    with os.scandir(root) as entries:
        folders = [e for e in entries if e.is_dir() and (e.name == NOISE_FOLDER or not e.name.startswith(("_", ".")))]
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(".wav") and not entry.name.startswith("."):
                    status = entry.stat(follow_symlinks=os.path.exists(entry))  # a dangling link is a bad clip like any other
                    found[f"{folder.name}/{entry.name}"] = (status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def speaker_of(path: str, pattern: str) -> str:
    """The pattern's first group in the file name; a name that it doesn't match is its own speaker."""
    name = path.rsplit("/", 1)[-1]
    match = re.search(pattern, name)
    return (match and match[1]) or name.rsplit(".", 1)[0]


def split_by_hash(speaker: str) -> str:
    """About 80/10/10, as which_set of the Speech Commands README: SHA-1 of the speaker, so new clips never move old ones."""
    modulus = 2**27
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % modulus * (100.0 / (modulus - 1))
    if percent < HELD_OUT_PERCENT:
        return "validation"
    return "testing" if percent < 2 * HELD_OUT_PERCENT else "training"


def _by_word(root: Path, files: Iterable[str]) -> dict[str, list[str]]:
    by_word: dict[str, list[str]] = {}
    for path in files:
        by_word.setdefault(path.split("/")[0], []).append(path)
    if not by_word.keys() - {NOISE_FOLDER}:
        raise CorpusError(f"corpus {root} holds no clips: expected <word>/<clip>.wav below it.")
    return by_word


def _words(root: Path, by_word: dict[str, list[str]], config: Corpus, faults: list[str]) -> list[str]:
    """The words to tell apart, in order; those without a folder become faults."""
    words = sorted(by_word) if config.words is None else config.words
    for word in words:
        if word not in by_word:
            nearest = difflib.get_close_matches(word, by_word, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            faults.append(f"corpus.words: {word!r} has no folder with .wav files.{hint} There are: {', '.join(sorted(by_word))}.")
    for label, count in ((UNKNOWN, config.unknown), (SILENCE, config.silence)):
        if count and label in words:
            faults.append(
                f"corpus.{label}: a word is called {label!r} too. Write corpus.{label}: 0, or leave that word out of corpus.words."
            )
    if len(words) + bool(config.unknown) + bool(config.silence) < 2:
        faults.append(f"{root} holds one word, {words[0]!r}: a classifier needs two labels. Add a folder, or corpus.silence.")
    return words


def _split(root: Path, speakers: dict[str, str], faults: list[str], report: Report) -> dict[str, str]:
    """path -> split. The lists decide where there are any, and a speaker's unlisted clips follow the listed ones; else the hash."""
    listed = _read_lists(root, faults)
    if listed is None:
        return {path: split_by_hash(speaker) for path, speaker in speakers.items()}
    first: dict[str, str] = {}  # speaker -> a listed clip
    torn: dict[str, str] = {}
    for path, speaker in speakers.items():
        if path in listed and listed[first.setdefault(speaker, path)] != listed[path]:
            torn[speaker] = f"speaker {speaker!r}: {first[speaker]} in {LISTS[listed[first[speaker]]]}, {path} in {LISTS[listed[path]]}"
    if torn:
        mend = "Give each speaker to one list. If these are not speakers, mend the regular expression corpus.speaker."
        faults.append(f"{len(torn)} speakers are in two splits:\n{_spelled_out(list(torn.values()))}\n    {mend}")
    following = sum(path not in listed and speaker in first for path, speaker in speakers.items())
    if following:
        report(f"{following:,} clips in neither list follow their speaker's listed clips out of training")
    return {path: listed[first[speaker]] if speaker in first else "training" for path, speaker in speakers.items()}


def _list_paths(root: Path) -> dict[str, Path]:
    """split -> its list. Kaggle's copy keeps the lists beside the folder audio, not in it."""
    for folder in (root, *root.parents[:2]) if root.name == "audio" else (root,):
        found = {split: folder / name for split, name in LISTS.items() if (folder / name).is_file()}
        if found:
            return found
    return {}


def _read_lists(root: Path, faults: list[str]) -> dict[str, str] | None:
    """path -> validation or testing; None where there are no lists. Entries without a file are no fault: subsets keep the full lists."""
    paths = _list_paths(root)
    if not paths:
        return None
    for split in LISTS.keys() - paths.keys():
        faults.append(f"there is a list of one split and no {LISTS[split]}: add it, or remove the other to split by speakers' hash.")
    lines = {split: path.read_text(encoding="utf-8").splitlines() for split, path in paths.items()}
    return {os.path.normpath(line.strip().replace("\\", "/")): split for split in lines for line in lines[split] if line.strip()}


def _pool(others: dict[str, list[str]], splits: dict[str, str], count: int) -> list[str]:
    """At most `count` paths a split, spread over the words: every word's first by hash of the path, then every word's second, ..."""
    pooled = []
    for split in SPLITS:
        ranked = []
        for paths in others.values():
            hashed = sorted((hashlib.sha1(path.encode()).hexdigest(), path) for path in paths if splits[path] == split)
            ranked += [(rank, *pair) for rank, pair in enumerate(hashed)]
        pooled += [path for _, _, path in sorted(ranked)[:count]]
    return pooled


def _check(root: Path, paths: list[str], report: Report) -> tuple[dict[str, str], list[str]]:
    """Decode every file: path -> content hash of the good ones, and what is wrong with the others."""
    hashes, bad = {}, []
    report(f"reading {len(paths):,} files of {root} once, to find broken ones")
    told = time.monotonic()
    for done, path in enumerate(paths):
        if time.monotonic() - told > REPORT_EVERY_S:
            report(f"  {done:,} of {len(paths):,} read")
            told = time.monotonic()
        try:
            hashes[path] = check_clip(root / path)
        except BadClip as error:
            bad.append(str(error).replace(f"{root}/", "", 1))
    return hashes, bad


def _empty_splits(clips: list[Clip], wanted: list[str], labels: tuple[str, ...]) -> list[str]:
    """One fault that names every label without a clip in some split; [] where there is none."""
    filled = {(labels[clip.label], clip.split) for clip in clips}
    holes = [(label, [split for split in SPLITS if (label, split) not in filled]) for label in wanted]
    named = [f"{label!r} in {' and '.join(splits)}" for label, splits in holes if splits]
    mend = f"Add clips of other speakers, decide the splits by {' and '.join(LISTS.values())}, or leave the label out."
    return [f"{len(named)} labels have no usable clip:\n{_spelled_out(named)}\n    {mend}"] if named else []


def _stretches(root: Path, noises: list[str]) -> Iterator[tuple[str, Stretch]]:
    """(split, its share of the recording) of every recording, disjoint."""
    for path in noises:
        total = length(root / path)
        for split, (begin, end) in NOISE_SHARES.items():
            yield split, Stretch(path, int(begin * total), int(end * total) - int(begin * total))


def _cut(stretches: list[Stretch], split: str, samples: int, count: int, label: int, faults: list[str]) -> list[Clip]:
    """`count` silence clips whose starts are evenly spread over all places where one fits."""
    starts = [stretch.samples - samples + 1 for stretch in stretches]
    fitting = sum(starts) * CUTS_PER_CLIP // samples
    if fitting < count:
        mend = f"Write corpus.silence: {fitting}" if fitting else "Write corpus.silence: 0"
        faults.append(
            f"corpus.silence: {split}'s share of {NOISE_FOLDER} gives {fitting} cuts, not {count}. {mend}, or add recordings there."
        )
        return []
    ends = np.cumsum(starts)
    clips = []
    for position in np.linspace(0, ends[-1] - 1, count).astype(int):
        which = int(np.searchsorted(ends, position, side="right"))
        path, begin, _ = stretches[which]
        start = begin + int(position - ends[which]) + starts[which]
        clips.append(Clip(path, label, f"{path}:{split}", split, start))
    return clips


def _fingerprint(clips: list[Clip], labels: tuple[str, ...], noise: tuple[Stretch, ...], hashes: dict[str, str]) -> str:
    rows: list[tuple] = [(clip.path, hashes[clip.path], labels[clip.label], clip.split, clip.start or 0) for clip in clips]
    rows += [(stretch.path, hashes[stretch.path], NOISE_FOLDER, "training", stretch.start) for stretch in noise]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def _spelled_out(items: list[str]) -> str:
    more = [f"and {len(items) - NAMED} more"] if len(items) > NAMED else []
    return "\n".join(f"    {item}" for item in [*items[:NAMED], *more])


def _manifest_key(config: Corpus, root: Path, files: dict[str, tuple[int, int]]) -> str:
    lists = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in _list_paths(root).values()]
    return hashlib.sha256(repr((_SCANNER, config.which(), str(root), lists, files)).encode()).hexdigest()[:32]


def _save(corpus: PreparedCorpus, manifest: Path) -> None:
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=manifest.parent, delete=False) as file:
        json.dump(asdict(corpus) | {"root": str(corpus.root)}, file)
    os.replace(file.name, manifest)


def _load(root: Path, manifest: Path) -> PreparedCorpus:
    kept = json.loads(manifest.read_text())
    clips = tuple(Clip(**clip) for clip in kept["clips"])
    noise = tuple(Stretch(*stretch) for stretch in kept["noise"])
    return PreparedCorpus(root, tuple(kept["labels"]), clips, kept["fingerprint"], tuple(kept["skipped"]), noise)
