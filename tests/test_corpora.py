"""Checks the scanner on planted folders whose splits, pools, cuts and faults are known."""

import hashlib
import multiprocessing
import os
import re
import shutil
import tarfile
import unicodedata
import urllib.request
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.corpora import prepare_corpus
from speech.corpus_config import Corpus
from speech.prepared_corpus import PreparedCorpus
from speech.sources import CorpusError
from speech.splits import SPLITS, speaker_of, split_by_hash

REAL = Path(__file__).parents[2] / "shared" / "data" / "speech_commands_subset"
SPEAKERS = [f"speaker{number}" for number in range(40)]


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "speech-sweeps"


def write_wav(path: Path, samples: int = 1_600, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(
            np.random.default_rng(seed).integers(-9_000, 9_000, samples, dtype=np.int16).tobytes()
        )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Writes words a, b, c and d, one clip of each by 40 speakers, and noises of 20 and 40 s."""
    root = tmp_path / "tree"
    for word in "abcd":
        for number, speaker in enumerate(SPEAKERS):
            write_wav(root / word / f"{speaker}_nohash_0.wav", seed=ord(word) * 1_000 + number)
    for name, seconds in (("hum", 20), ("rain", 40)):
        write_wav(root / "_background_noise_" / f"{name}.wav", 16_000 * seconds, seed=seconds)
    return root


def prepared(root: Path, **keys: object) -> PreparedCorpus:
    return prepare_corpus(
        Corpus.model_validate({"name": "folder", "path": str(root), **keys}), quiet
    )


def which_set(speaker: str) -> str:
    """Copies the function which_set from the README of the Speech Commands archive."""
    max_num_wavs_per_class = 2**27 - 1
    hash_name_hashed = hashlib.sha1(speaker.encode("utf-8")).hexdigest()
    percentage_hash = (int(hash_name_hashed, 16) % (max_num_wavs_per_class + 1)) * (
        100.0 / max_num_wavs_per_class
    )
    if percentage_hash < 10:
        return "validation"
    if percentage_hash < 20:
        return "testing"
    return "training"


def speakers(corpus: PreparedCorpus, split: str) -> set[str]:
    return {clip.speaker for clip in corpus.split(split)}


def test_without_lists_speakers_are_split_as_warden_does(tree: Path) -> None:
    corpus = prepared(tree)
    assert corpus.labels == ("a", "b", "c", "d")
    assert len(corpus.clips) == 160
    assert all(
        clip.split == which_set(clip.speaker)
        and clip.path == f"{'abcd'[clip.label]}/{clip.speaker}_nohash_0.wav"
        for clip in corpus.clips
    )
    assert [clip.path for clip in corpus.clips] == sorted(clip.path for clip in corpus.clips)
    counts = Counter(split_by_hash(f"s{number}") for number in range(10_000))
    assert (counts["validation"], counts["testing"]) == (
        pytest.approx(1_000, abs=120),
        pytest.approx(1_000, abs=120),
    )


def test_the_lists_decide_and_take_a_speakers_other_clips_along(tree: Path) -> None:
    (tree / "validation_list.txt").write_text(
        "".join(f"{word}/speaker1_nohash_0.wav\n" for word in "abcd")
    )
    (tree / "testing_list.txt").write_text(
        "".join(f"{word}/speaker2_nohash_0.wav\r\n" for word in "abc") + "gone/x_nohash_0.wav\n\n"
    )
    corpus = prepared(tree)
    assert speakers(corpus, "validation") == {"speaker1"}
    assert speakers(corpus, "testing") == {"speaker2"}
    assert len(corpus.split("testing")) == 4
    missing, followers = corpus.account.notes
    assert re.search(r"^1 of 4 .*testing_list\.txt .*gone/x_nohash_0\.wav", missing)
    assert re.search(r"^1 clips .*neither list", followers)
    assert corpus.account.how == "lists"


def test_kaggles_lists_lie_beside_the_folder_audio(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "kaggle" / "train").mkdir(parents=True)
    audio = tree.rename(tmp_path / "kaggle" / "train" / "audio")
    (audio.parent / "validation_list.txt").write_text(
        "".join(f"{word}/speaker1_nohash_0.wav\n" for word in "abcd")
    )
    (audio.parent / "testing_list.txt").write_text(
        "".join(f"{word}/speaker2_nohash_0.wav\n" for word in "abcd")
    )
    for path in (audio, tmp_path / "kaggle"):
        corpus = prepared(path)
        assert corpus.root == audio
        assert speakers(corpus, "validation") == {"speaker1"}
        assert speakers(corpus, "testing") == {"speaker2"}


def test_a_speaker_in_both_lists_is_a_fault(tree: Path) -> None:
    (tree / "validation_list.txt").write_text("a/speaker1_nohash_0.wav\n")
    (tree / "testing_list.txt").write_text("b/speaker1_nohash_0.wav\n")
    with pytest.raises(
        CorpusError,
        match=(
            r"'speaker1'.* a/speaker1_nohash_0\.wav .*validation_list\.txt"
            r".* b/speaker1_nohash_0\.wav .*testing_list\.txt"
        ),
    ):
        prepared(tree)


def test_the_speaker_is_what_the_expression_finds() -> None:
    assert speaker_of("yes/ab12_nohash_3.wav", "^(.+?)_nohash_") == "ab12"
    assert speaker_of("yes/alice.wav", "^(.+?)_nohash_") == "alice"
    assert speaker_of("yes/take3-bob.wav", r"-(\w+)\.") == "bob"


def test_unknown_is_pooled_evenly_and_never_holds_a_chosen_word(tree: Path) -> None:
    corpus = prepared(tree, words=["b", "a"], unknown=3)
    assert corpus.labels == ("b", "a", "unknown")
    pooled = [clip for clip in corpus.clips if corpus.labels[clip.label] == "unknown"]
    assert {
        split: sum(clip.split == split for clip in pooled) for split in SPLITS
    } == dict.fromkeys(SPLITS, 3)
    words = Counter((clip.split, clip.path[0]) for clip in pooled)
    assert {word for _, word in words} == {"c", "d"}
    assert sorted(words.values()) == [1, 1, 1, 2, 2, 2]
    assert all(clip.split == which_set(clip.speaker) for clip in pooled)


def test_silence_is_cut_from_disjoint_stretches(tree: Path) -> None:
    corpus = prepared(tree, words=["a", "b"], silence=12)
    cuts = [clip for clip in corpus.clips if corpus.labels[clip.label] == "silence"]
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for cut in cuts:
        assert cut.start is not None
        spans.setdefault((cut.path, cut.split), []).append((cut.start, cut.start + 16_000))
    assert Counter(clip.split for clip in cuts) == dict.fromkeys(SPLITS, 12)
    for name, seconds in (("hum", 20), ("rain", 40)):
        path, total = f"_background_noise_/{name}.wav", 16_000 * seconds
        assert min(start for start, _ in spans[path, "training"]) >= 0
        assert (
            max(end for _, end in spans[path, "training"])
            <= 0.8 * total
            <= min(start for start, _ in spans[path, "validation"])
        )
        assert (
            max(end for _, end in spans[path, "validation"])
            <= 0.9 * total
            <= min(start for start, _ in spans[path, "testing"])
        )
        assert max(end for _, end in spans[path, "testing"]) <= total
        assert (path, 0, round(0.8 * total)) in corpus.noise
    starts = sorted(start for start, _ in spans["_background_noise_/rain.wav", "training"])
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 1


def test_silence_needs_enough_noise(tree: Path) -> None:
    with pytest.raises(CorpusError, match=r"validation.* 40 .* 50\..*corpus\.silence: 40"):
        prepared(tree, silence=50)
    shutil.rmtree(tree / "_background_noise_")
    with pytest.raises(CorpusError, match=r"no recordings.*_background_noise_"):
        prepared(tree, silence=1)


def test_all_faults_are_reported_at_once_with_their_remedies(tree: Path) -> None:
    for path in (tree / "b").iterdir():
        if path.name != "speaker7_nohash_0.wav":
            path.unlink()
    (tree / "a" / "speaker3_nohash_0.wav").write_bytes(b"")
    (tree / "a" / "speaker4_nohash_0.wav").write_bytes(b"RIFF")
    with pytest.raises(CorpusError) as caught:
        prepared(tree, words=["a", "b", "cc"], unknown=1, silence=500)
    message = str(caught.value)
    assert "6 faults" in message
    for data in (
        r"corpus\.words: 'cc'.* c\?",
        r"'b' in validation",
        r"a/speaker3_nohash_0\.wav: .*\b0 bytes",
        r"a/speaker4_nohash_0\.wav: .*\baudio",
        r"\b2 of ",
        r"corpus\.on_bad_clip: skip",
        r"corpus\.silence: training.* 460 .* 500\.",
        r"corpus\.silence: validation.* 40 .* 500\.",
        r"corpus\.silence: testing.* 40 .* 500\.",
    ):
        assert re.search(data, message), data


def test_a_bad_clip_is_left_out_and_counted_on_request(tree: Path) -> None:
    whole = prepared(tree)
    for number in range(12):
        (tree / "a" / f"broken{number}.wav").write_bytes(b"not sound")
    with pytest.raises(CorpusError, match=r"(?s)\b12 of 174\b.*broken0\.wav.*\b2 more"):
        prepared(tree)
    corpus = prepared(tree, on_bad_clip="skip")
    skipped = dict(line.split(": ", 1) for line in corpus.skipped)
    assert (len(corpus.skipped), skipped.keys()) == (
        12,
        {f"a/broken{number}.wav" for number in range(12)},
    )
    assert all("audio" in reason for reason in skipped.values())
    assert (corpus.clips, corpus.fingerprint) == (whole.clips, whole.fingerprint)


@pytest.mark.parametrize("make", ["nothing", "empty", "noise"])
def test_a_folder_without_clips_is_named(tmp_path: Path, make: str) -> None:
    if make != "nothing":
        (tmp_path / "x").mkdir()
    if make == "noise":
        write_wav(tmp_path / "x" / "_background_noise_" / "hum.wav")
    with pytest.raises(CorpusError, match=re.escape(str(tmp_path / "x"))):
        prepared(tmp_path / "x")


def test_a_word_with_the_name_of_a_label_is_a_fault(tree: Path) -> None:
    (tree / "d").rename(tree / "unknown")
    with pytest.raises(CorpusError, match=r"'unknown'.*corpus\.unknown: 0"):
        prepared(tree, words=["a", "unknown"], unknown=2)


def test_the_fingerprint_names_the_content(tree: Path, tmp_path: Path) -> None:
    first = prepared(tree, words=["a", "b"])
    moved = shutil.copytree(tree, tmp_path / "elsewhere")
    assert prepared(moved, words=["a", "b"]).fingerprint == first.fingerprint
    assert prepared(moved, words=["b", "a"]).fingerprint == first.fingerprint
    write_wav(moved / "c" / "speaker0_nohash_0.wav", seed=99)  # not a chosen word
    assert prepared(moved, words=["a", "b"]).fingerprint == first.fingerprint
    write_wav(moved / "a" / "speaker0_nohash_0.wav", seed=99)
    assert prepared(moved, words=["a", "b"]).fingerprint != first.fingerprint


def test_the_manifest_is_used_until_a_file_changes(tree: Path, cache: Path) -> None:
    first = prepared(tree, silence=3)
    lines: list[str] = []
    config = Corpus(name="folder", path=str(tree), silence=3)
    assert prepare_corpus(config, lines.append) == first
    assert lines == []
    path = tree / "a" / "speaker0_nohash_0.wav"
    write_wav(path, seed=99)  # of the same size, so that only the time differs
    os.utime(path, ns=(1, 1))
    assert prepare_corpus(config, lines.append).fingerprint != first.fingerprint
    assert len(lines) == 1
    (tree / "validation_list.txt").write_text("a/speaker1_nohash_0.wav\n")
    assert "no testing_list.txt" in prepare_corpus(config, lines.append).account.untestable
    assert len(list((cache / "manifests").iterdir())) == 3


def test_several_processes_speak_one_corpus_and_agree(cache: Path) -> None:
    config = Corpus(words=["yes", "no"], clips=20)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(prepare_fingerprint, [config, config])
    assert first == second == prepare_fingerprint(config)
    # folder and lock
    assert sorted(path.name.split("-")[0] for path in (cache / "corpora").iterdir()) == [
        "synthetic",
        "synthetic",
    ]
    assert len(list((cache / "manifests").iterdir())) == 1


def prepare_fingerprint(config: Corpus) -> str:
    return prepare_corpus(config, quiet).fingerprint


def test_the_synthetic_corpus_knows_unknown_and_silence() -> None:
    corpus = prepare_corpus(Corpus(words=["yes", "no"], clips=40, unknown=8, silence=5), quiet)
    counts = Counter((corpus.labels[clip.label], clip.split) for clip in corpus.clips)
    assert corpus.labels == ("yes", "no", "unknown", "silence")
    assert [counts["yes", split] for split in SPLITS] == [14, 3, 3]
    assert [counts["unknown", split] for split in SPLITS] == [8, 8, 8]
    assert [counts["silence", split] for split in SPLITS] == [5, 5, 5]
    assert speakers(corpus, "training").isdisjoint(
        speakers(corpus, "validation") | speakers(corpus, "testing")
    )


def test_a_word_that_cannot_be_spoken_is_a_corpus_error() -> None:
    with pytest.raises(CorpusError, match=r"'a/b'.*folder"):
        prepare_corpus(Corpus(words=["a/b", "c"], clips=20), quiet)


def test_no_network_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    # urllib keeps its first opener, with the proxies of that moment, for the whole process.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(CorpusError, match=r"speech_commands_v0\.01\.tar\.gz.*corpus\.path"):
        prepare_corpus(Corpus(name="speech_commands", version="v1"), quiet)
    assert [path.name for path in (cache / "corpora").iterdir()] == ["speech_commands_v0.01.lock"]


def test_the_official_archive_is_unpacked_by_torchaudio(tree: Path, cache: Path) -> None:
    (cache / "corpora").mkdir(parents=True)
    # as if just downloaded
    with tarfile.open(
        cache / "corpora" / "speech_commands_v0.02.tar.gz", "w:gz", compresslevel=1
    ) as archive:
        archive.add(tree, arcname=".")
    corpus = prepare_corpus(Corpus(name="speech_commands"), quiet)
    assert corpus.root == cache / "corpora" / "speech_commands_v0.02"
    assert corpus.fingerprint == prepared(tree).fingerprint
    assert sorted(path.name for path in (cache / "corpora").iterdir()) == [
        "speech_commands_v0.02",
        "speech_commands_v0.02.lock",
    ]


@pytest.mark.skipif(
    not REAL.is_dir(), reason="needs the real clips of ../shared/data/speech_commands_subset"
)
def test_real_clips_keep_their_official_splits() -> None:
    words = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
    corpus = prepare_corpus(
        Corpus(name="speech_commands", path=str(REAL), words=words, unknown=500), quiet
    )
    for split, name in (("validation", "validation_list.txt"), ("testing", "testing_list.txt")):
        assert {clip.path for clip in corpus.split(split)} == set((REAL / name).read_text().split())
    assert (len(corpus.split("training")), corpus.labels[-1], len(corpus.noise)) == (
        2_034,
        "unknown",
        4,
    )
    everyone = [speakers(corpus, split) for split in SPLITS]
    assert sum(map(len, everyone)) == len(set.union(*everyone))


def spoken(root: Path, words: str, people: int, clips: int, prefix: str = "s") -> Path:
    for word in words:
        for person in range(people):
            for clip in range(clips):
                write_wav(
                    root / word / f"{prefix}{person}_nohash_{clip}.wav",
                    400,
                    seed=ord(word) * 10_000 + person * 100 + clip,
                )
    return root


def test_ten_words_by_six_speakers_are_dealt_four_one_one(tmp_path: Path) -> None:
    # the hash would leave testing without a speaker
    corpus = prepared(spoken(tmp_path / "six", "abcdefghij", 6, 5, "sp"))
    assert [len(speakers(corpus, split)) for split in SPLITS] == [4, 1, 1]
    assert Counter((clip.label, clip.split) for clip in corpus.clips) == Counter(
        {
            (label, split): count
            for label in range(10)
            for split, count in zip(SPLITS, (20, 5, 5), strict=True)
        }
    )
    assert (corpus.account.how, corpus.account.optimistic, corpus.account.untestable) == (
        "dealt",
        False,
        "",
    )
    shares = {"training": 0.5, "validation": 0.5, "testing": 0.0}
    halves = prepared(tmp_path / "six", split=shares)
    assert [len(speakers(halves, split)) for split in SPLITS] == [3, 3, 0]
    assert halves.account.untestable


def test_single_clips_are_dealt_on_request_and_their_accuracy_is_marked(tmp_path: Path) -> None:
    root = spoken(tmp_path / "one", "ab", 1, 20)
    with pytest.raises(CorpusError, match=r"'s0'.*\{by: clip\}"):
        prepared(root)
    corpus = prepared(root, split={"by": "clip"})
    assert [len(corpus.split(split)) for split in SPLITS] == [32, 4, 4]
    assert corpus.account.accuracy_context() == {
        "largest_label_fraction": 0.5,
        "shared_speakers": 1.0,
    }


def test_without_a_test_split_the_other_splits_are_used(tmp_path: Path) -> None:
    corpus = prepared(spoken(tmp_path / "two", "ab", 2, 4))
    assert [len(speakers(corpus, split)) for split in SPLITS] == [1, 1, 0]
    assert " a, b." in corpus.account.untestable


def test_what_is_found_used_and_left_out_is_counted(tmp_path: Path, cache: Path) -> None:
    root = spoken(tmp_path / "mixed", "ab", 6, 4)
    for number in range(6):
        write_wav(root / "a" / "deep" / "er" / f"s{number}_nohash_9.WAV", 500, seed=900 + number)
        sound = np.random.default_rng(number).uniform(-0.5, 0.5, 700)
        soundfile.write(root / "b" / f"s{number}_nohash_8.flac", sound, 16_000)
    for name in (
        "a/x.m4a",
        "a/y.m4a",
        "a/.hidden.wav",
        "a/notes.txt",
        "top.wav",
        "a/broken.wav",
        "b/empty.wav",
    ):
        (root / name).write_bytes(b"" if name == "b/empty.wav" else b"no sound")
    os.symlink(root / "a", root / "a" / "loop")
    for folder in ("_old", ".git", "empty"):
        (root / folder).mkdir()
    corpus = prepared(root, on_bad_clip="skip")
    account = corpus.account
    assert (account.found, sum(account.used.values())) == (62, 60)
    expected = {  # example -> number of files, and a word for the reason
        "a/x.m4a": (2, ".m4a"),
        "a/.hidden.wav": (1, "hidden sound"),
        "a/notes.txt": (1, ".txt"),
        "top.wav": (1, "no word"),
        "a/loop": (1, "links"),
        "_old": (1, "_"),
        ".git": (1, "hidden folders"),
        "a/broken.wav": (1, "audio"),
        "b/empty.wav": (1, "empty"),
    }
    left_out = {}
    for line in account.left_out:
        number, reason, example = re.fullmatch(r"(\d+) (.+) \(as ([^)]+)\).*", line).groups()
        left_out[example] = int(number), reason
    assert len(account.left_out) == len(left_out)
    assert {example: number for example, (number, _) in left_out.items()} == {
        example: number for example, (number, _) in expected.items()
    }
    for example, (_, word) in expected.items():
        assert word in left_out[example][1]
    assert any("empty" in note for note in account.notes)
    assert prepared(root, on_bad_clip="skip") == corpus, "read from the manifest"
    assert account.largest["validation"][1:] == (5, 10)


def test_copies_across_splits_and_under_other_words_are_faults_unless_allowed(
    tmp_path: Path,
) -> None:
    root = spoken(tmp_path / "copies", "ab", 6, 4)
    for split, person in (("validation", 1), ("testing", 2)):
        (root / f"{split}_list.txt").write_text(
            "".join(f"{word}/s{person}_nohash_{clip}.wav\n" for word in "ab" for clip in range(4))
        )
    # in training and in validation
    shutil.copy(root / "a" / "s0_nohash_0.wav", root / "a" / "s1_nohash_7.wav")
    shutil.copy(root / "a" / "s3_nohash_0.wav", root / "b" / "s3_nohash_7.wav")  # two labels
    # of the same label and split, which is no fault
    shutil.copy(root / "a" / "s4_nohash_0.wav", root / "a" / "s4_nohash_7.wav")
    with pytest.raises(CorpusError, match="2 faults") as caught:
        prepared(root)
    assert [line.strip() for line in str(caught.value).splitlines() if " = " in line] == [
        "a/s3_nohash_0.wav (a) = b/s3_nohash_7.wav (b)",
        "a/s0_nohash_0.wav (training) = a/s1_nohash_7.wav (validation)",
    ]
    allowed = prepared(root, duplicates="allow")
    assert len(allowed.clips) == 51
    assert len(allowed.account.notes) >= 3
    kept = {clip.path for clip in prepared(root, duplicates="skip").clips}
    assert {clip.path for clip in allowed.clips} - kept == {
        "a/s0_nohash_0.wav", "a/s3_nohash_0.wav", "b/s3_nohash_7.wav", "a/s4_nohash_0.wav",
    }  # fmt: skip


def test_a_bad_clip_of_any_name_is_counted_under_its_own_fault(tmp_path: Path) -> None:
    root = spoken(tmp_path / "names", "ab", 6, 2)
    names = ("take 1: cut off.wav", "take 2: cut off.wav")
    for name in names:
        (root / "a" / name).touch()
    (line,) = prepared(root, on_bad_clip="skip").account.left_out
    reason, _, example = line.partition(" (as ")
    assert (reason.startswith("2 files"), "empty" in reason) == (True, True)
    assert example == f"a/{names[0]})"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_are_one_in_either_unicode_form(tmp_path: Path, form: str) -> None:
    root = spoken(tmp_path / "formats", "ab", 6, 2)
    (root / "a").rename(root / unicodedata.normalize(form, "é"))
    assert prepared(root, words=[unicodedata.normalize("NFC", "é"), "b"]).labels == (
        unicodedata.normalize("NFC", "é"),
        "b",
    )


def test_folders_with_the_names_of_splits_are_a_fault(tmp_path: Path) -> None:
    for split in ("train", "test"):
        spoken(tmp_path / "nested" / split, "ab", 2, 1)
    with pytest.raises(CorpusError, match="test, train"):
        prepared(tmp_path / "nested")
