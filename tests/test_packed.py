import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech import corpora
from speech.audio import BadClip, read_clip, to_int16
from speech.dataset import build_picture
from speech.features import Picture
from speech.images import write_images
from speech.packed import packed_file, read_rows, write_packed
from speech.prepared_corpus import Clip, PreparedCorpus
from tests.trees import ROOT

SAMPLES = 16_000


@pytest.fixture
def mixed(tmp_path: Path) -> PreparedCorpus:
    """Writes clips of every kind, not in the order of their names.

    They are 16-bit mono, short, stereo at another rate, a cut from a recording, and float.
    """
    rng = np.random.default_rng(0)
    waves = {
        "plain.wav": (rng.integers(-32768, 32768, SAMPLES, dtype=np.int16), 16_000),
        "short.wav": (rng.integers(-32768, 32768, 9_001, dtype=np.int16), 16_000),
        "other.wav": (rng.integers(-20000, 20000, (22_050, 2), dtype=np.int16), 22_050),
        "noise.wav": (rng.integers(-32768, 32768, 4 * SAMPLES, dtype=np.int16), 16_000),
        # some of it beyond full scale
        "float.wav": (rng.normal(0, 0.5, SAMPLES).astype(np.float32), 16_000),
    }
    for name, (wave, rate) in waves.items():
        soundfile.write(
            tmp_path / name, wave, rate, subtype="FLOAT" if wave.dtype == np.float32 else "PCM_16"
        )
    names = ["short.wav", "other.wav", "plain.wav", "noise.wav", "float.wav"]
    clips = tuple(
        Clip(name, 0, name, "training", 12_345 if name == "noise.wav" else None) for name in names
    )
    return PreparedCorpus(tmp_path, ("a", "b"), clips, f"planted {tmp_path}", (), ())


@pytest.fixture
def written(tone_trial, tones, tmp_path: Path) -> Path:
    """Writes the packed file of the tones."""
    config = tone_trial()
    write_packed(config, corpora.prepare_corpus(config.corpus), tmp_path / "tones.npy")
    return tmp_path / "tones.npy"


def test_a_row_is_its_clip_to_the_nearest_step_in_the_order_of_the_corpus(
    tone_trial, mixed
) -> None:
    config = tone_trial()
    path = packed_file(config, mixed)
    write_packed(config, mixed, path)
    rows = read_rows(path, range(len(mixed.clips)))
    assert (rows.shape, rows.dtype) == ((5, SAMPLES), np.int16)
    for clip, row in zip(mixed.clips, rows, strict=True):
        waveform = read_clip(mixed.root / clip.path, SAMPLES, start=clip.start)
        assert np.abs(row / 32768 - waveform.clip(-1, 32767 / 32768)).max() <= 0.5 / 32768


def test_rows_of_16_bit_sources_are_exact(tone_trial, mixed) -> None:
    path = packed_file(tone_trial(), mixed)
    write_packed(tone_trial(), mixed, path)
    plain, _ = soundfile.read(mixed.root / "plain.wav", dtype="int16")
    noise, _ = soundfile.read(mixed.root / "noise.wav", dtype="int16")
    assert np.array_equal(read_rows(path, [2, 3]), [plain, noise[12_345 : 12_345 + SAMPLES]])


def test_beyond_full_scale_is_clipped_and_never_wraps() -> None:
    assert to_int16(np.float32([-2, -1, -0.5 / 32768, 1.4 / 32768, 1, 2])).tolist() == [
        -32768,
        -32768,
        0,
        1,
        32767,
        32767,
    ]


def test_rows_come_as_asked_and_outlive_the_file(written) -> None:
    everything = read_rows(written, range(24))
    some = read_rows(written, [7, 0, 7])
    written.unlink()
    assert np.array_equal(some, everything[[7, 0, 7]])


def test_nothing_stays_mapped(written) -> None:
    rows = read_rows(written, [0, 1])
    assert rows.flags.writeable
    assert written.name not in Path("/proc/self/maps").read_text()


def test_another_corpus_or_length_is_another_file(tone_trial, mixed) -> None:
    config = tone_trial()
    names = {
        packed_file(config, mixed),
        packed_file(config, replace(mixed, fingerprint="other")),
        packed_file(tone_trial(), mixed),
    }
    assert len(names | {packed_file(tone_trial(corpus={"seconds": 0.5}), mixed)}) == 3


def test_an_interrupted_packing_leaves_nothing(tone_trial, mixed, tmp_path, monkeypatch) -> None:
    broken = replace(mixed, clips=(*mixed.clips, Clip("gone.wav", 0, "gone", "training")))
    folder = tmp_path / "cache"
    with pytest.raises(BadClip, match=r"gone\.wav"):
        write_packed(tone_trial(), broken, folder / "rows.npy")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_packed(tone_trial(), mixed, folder / "rows.npy")
    assert [path.name for path in folder.iterdir()] == ["rows.npy.lock"]


SLOW_PACKING = """
import sys, time
from pathlib import Path
from speech import corpora, images, packed
from speech.dataset import build_picture
from speech.config import TrialConfig

config = TrialConfig.model_validate_json(sys.argv[1])
corpus = corpora.prepare_corpus(config.corpus)
picture = build_picture(config, corpus)
read = corpora.PreparedCorpus.read

def slow(self, clip, samples):
    print("reading", flush=True)
    time.sleep(0.5)
    return read(self, clip, samples)

corpora.PreparedCorpus.read = slow
if config.loader.format == "png":
    images.write_images(config, corpus, picture, Path(sys.argv[2]))
else:
    packed.write_packed(config, corpus, Path(sys.argv[2]))
"""


def write_form(config, path: Path) -> None:
    corpus = corpora.prepare_corpus(config.corpus)
    if config.loader.format == "png":
        write_images(config, corpus, build_picture(config, corpus), path)
    else:
        write_packed(config, corpus, path)


@pytest.mark.parametrize("form", ["packed", "png"])
def test_what_a_killed_process_left_is_removed_by_the_next(tone_trial, tmp_path, form: str) -> None:
    config, path = tone_trial(loader={"format": form}), tmp_path / "cache" / "clips"
    command = [sys.executable, "-c", SLOW_PACKING, config.model_dump_json(), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert [child.stdout.readline() for _ in range(3)] == ["reading\n"] * 3
        child.kill()
    assert {left.name for left in path.parent.iterdir()} == {"clips.lock", "clips.partial"}
    write_form(config, path)
    assert {left.name for left in path.parent.iterdir()} == {"clips.lock", "clips"}
    write_form(config, tmp_path / "undisturbed")
    assert contents(path) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("form", ["packed", "png"])
def test_of_two_writers_the_second_waits_and_finds_it_done(
    tone_trial, tmp_path, monkeypatch, form: str
) -> None:
    config, path, reads = tone_trial(loader={"format": form}), tmp_path / "clips", []
    build_picture(config, corpora.prepare_corpus(config.corpus))  # reads, too, the first time
    read = PreparedCorpus.read

    def slow(self, clip, samples):
        reads.append(clip)
        time.sleep(0.01)
        return read(self, clip, samples)

    monkeypatch.setattr(PreparedCorpus, "read", slow)
    writers = [threading.Thread(target=write_form, args=(config, path)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(reads) == 24, "each clip once"
    assert {left.name for left in tmp_path.iterdir()} == {"clips.lock", "clips"}


def test_pictures_that_can_not_all_be_made_leave_none(tone_trial, mixed, tmp_path) -> None:
    broken = replace(mixed, clips=(*mixed.clips, Clip("gone.wav", 0, "gone", "training")))
    with pytest.raises(BadClip, match=r"gone\.wav"):
        write_images(
            tone_trial(), broken, Picture(tone_trial().features), tmp_path / "cache" / "pictures"
        )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["pictures.lock"]


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("kept", [0, 50, 1_000, -2])
def test_a_truncated_file_is_named_with_the_remedy(written, kept: int) -> None:
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(BadClip, match=rf"^{written}: .* Delete"):
        read_rows(written, [0])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((24, SAMPLES), np.float32),
        np.zeros(24 * SAMPLES, np.int16),
        np.zeros((3, SAMPLES), np.int16),
    ],
)
def test_a_file_of_another_kind_or_of_fewer_clips_is_named(written, array: np.ndarray) -> None:
    np.save(written, array)
    with pytest.raises(BadClip, match=rf"^{written}: .* Delete"):
        read_rows(written, [0, 23])


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(BadClip, match=r"gone\.npy: .*Delete") as caught:
        read_rows(tmp_path / "gone.npy", [0])
    assert isinstance(caught.value.__context__, FileNotFoundError)
