"""Checks wav files with every kind of wrong header: complete files are read in full, and truncated
files are rejected, by the corpus check and in training."""

import struct

import numpy as np
import pytest
import soundfile

from speech.audio import BadClip, check_clip, count_samples, read_clip, to_int16
from tests.wavs import LIST, SOUND, header

FULL = 36 + len(SOUND)
RIFX = struct.pack(
    ">4sI4s4sIHHIIHH4sI",
    b"RIFX",
    FULL,
    b"WAVE",
    b"fmt ",
    16,
    1,
    1,
    16_000,
    32_000,
    2,
    16,
    b"data",
    len(SOUND),
)
WHOLE = {
    "as it should be": header(FULL, len(SOUND)) + SOUND,
    "riff size of the whole file": header(FULL + 8, len(SOUND)) + SOUND,
    "sox to a pipe": header(0x7FFFF024, 0x7FFFF000) + SOUND,
    "ffmpeg to a pipe": header(0xFFFFFFFF, 0xFFFFFFFF) + SOUND,
    "2 GiB": header(0x80000024, 0x80000000) + SOUND,
    "never filled in": header(0, 0) + SOUND,
    "filled in before the samples": header(36, 0) + SOUND,
    "data size counts the header": header(FULL, len(SOUND) + 44) + SOUND,
    "a chunk after": header(FULL + len(LIST), len(SOUND)) + SOUND + LIST,
    "a chunk after samples of unknown number": header(0xFFFFFFFF, 0xFFFFFFFF) + SOUND + LIST,
    "a chunk after, cut off": header(FULL + len(LIST), len(SOUND)) + SOUND + LIST[:-9],
    "a chunk before": (
        header(FULL + len(LIST), 0)[:36] + LIST + struct.pack("<4sI", b"data", len(SOUND)) + SOUND
    ),
    "a chunk before without its pad byte": (
        header(FULL + 11, 0)[:36] + b"junk\3\0\0\0abc" + header(0, len(SOUND))[36:] + SOUND
    ),
    "the format after the samples": (
        header(FULL, 0)[:12] + header(0, len(SOUND))[36:] + SOUND + header(0, 0)[12:36]
    ),
    "an odd number of bytes": header(FULL + 1, len(SOUND) + 1) + SOUND + b"\0",
    "a tag of another format": header(FULL, len(SOUND)) + SOUND + b"TAG" + b"x" * 1_000,
    "zeros to a full block": header(FULL, len(SOUND)) + SOUND + bytes(4_096),
    "big-endian": RIFX + np.frombuffer(SOUND, "<i2").astype(">i2").tobytes(),
}
CUT = {
    "complete header": header(FULL, len(SOUND)) + SOUND[:20_000],
    "riff size never filled in": header(0, len(SOUND)) + SOUND[:20_000],
    "riff size of a pipe": header(0xFFFFFFFF, len(SOUND)) + SOUND[:20_000],
    "data size never filled in": header(FULL, 0) + SOUND[:20_000],
    "data size of a pipe": header(FULL, 0x7FFFF000) + SOUND[:20_000],
    "nothing filled in, within a sample": header(0, 0) + SOUND[:20_001],
    "of a pipe, within a sample": header(0x7FFFF024, 0x7FFFF000) + SOUND[:-1],
    "header of the first block alone": header(36 + 2_048, 2_048) + SOUND,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_complete_file_is_read_in_full_whatever_its_header_states(tmp_path, name: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WHOLE[name])
    plain = tmp_path / "plain.wav"
    plain.write_bytes(WHOLE["as it should be"])
    assert check_clip(path).sound == check_clip(plain).sound
    assert count_samples(path) == 16_000
    assert to_int16(read_clip(path, 16_000)).tobytes() == SOUND
    assert to_int16(read_clip(path, 100, start=15_900)).tobytes() == SOUND[-200:]


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_file_is_rejected_by_every_reader(tmp_path, name: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(CUT[name])
    for reader in (check_clip, count_samples, lambda path: read_clip(path, 16_000)):
        with pytest.raises(BadClip, match=r"a\.wav: cut off"):
            reader(path)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize(
    ("subtype", "form"),
    [
        ("PCM_U8", "WAV"),
        ("PCM_24", "WAVEX"),
        ("DOUBLE", "WAV"),
        ("ALAW", "WAV"),
        ("IMA_ADPCM", "WAV"),
    ],
)
def test_other_kinds_of_samples_are_complete_without_sizes_too(
    tmp_path, subtype: str, form: str, size: int
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(
        path,
        np.random.default_rng(0).normal(0, 0.1, (4_001, 2)),
        16_000,
        subtype=subtype,
        format=form,
    )
    before, content = check_clip(path), bytearray(path.read_bytes())
    at = content.rindex(b"data")
    for place in (4, at + 4):
        content[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    assert (check_clip(path).sound, check_clip(path).streamed, before.streamed) == (
        before.sound,
        True,
        False,
    )


@pytest.mark.parametrize("form", ["flac", "ogg", "mp3", "aiff", "au", "w64", "rf64", "caf"])
@pytest.mark.parametrize("own", [True, False], ids=["own name", "named wav"])
def test_other_formats_are_read_under_any_name_and_rejected_when_truncated(
    tmp_path, form: str, own: bool
) -> None:
    made = tmp_path / f"made.{form}"
    soundfile.write(
        made, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000, format=form.upper()
    )
    path = made.rename(tmp_path / (f"a.{form}" if own else "a.wav"))
    expected, _ = soundfile.read(path, dtype="float32")
    assert np.abs(read_clip(path, 32_000) - expected).max() <= 0.51 / 32_768
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(BadClip, match=r"cut off|audio"):
        check_clip(path)


def test_a_flac_file_of_unknown_length_is_read_to_its_end(tmp_path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 20_000), 16_000)
    before, content = check_clip(path).sound, bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # as ffmpeg writes to a pipe
    path.write_bytes(content)
    assert (check_clip(path).sound, count_samples(path)) == (before, 20_000)


def test_two_chunks_of_samples_are_refused(tmp_path) -> None:
    (tmp_path / "a.wav").write_bytes(
        header(FULL + 8 + len(SOUND), len(SOUND)) + SOUND + header(0, len(SOUND))[36:] + SOUND
    )
    with pytest.raises(BadClip, match="two chunks"):
        check_clip(tmp_path / "a.wav")
