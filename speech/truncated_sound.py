"""Checks whether a sound file is whole, from its bytes: a header may hold sizes that are wrong.

A wav file is its format and its samples, wherever those lie. Writers to a pipe can't go back and
fill in the sizes: they write 0, 0xFFFFFFFF, or, as sox does, 0x7FFFF000. Other writers count the
header's own bytes too. Such files are whole. Where libsndfile would misread one, it receives the
file under a corrected header.

A file is cut off in three cases: a size in its header exceeds the actual size, the file ends within
a sample, or far more bytes follow than the header counts. A recorder that crashed produces the last
case.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

UNSET_SIZE = 0x7F000000  # smallest size that no clip has: writers to a pipe write such sizes
# bytes by which a size may be too large: some writers count the header, and so few bytes are no
# missing sound
SIZE_TOLERANCE = 128
# bytes after the samples that are no chunk: fewer are padding or a tag, more are uncounted samples
MIN_UNCOUNTED_BYTES = 512
# tags of other formats, which some programs append to any file
TAGS = (b"TAG", b"ID3", b"APETAGEX")
# chunks that may follow the samples
TRAILING_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"iXML", b"_PMX", b"afsp")
# formats whose blocks are samples: PCM, float, A-law, mu-law, extensible (GUID)
SAMPLE_FORMATS = (1, 3, 6, 7, 0xFFFE)
RIFFS = (b"RIFF", b"RIFX", b"RF64", b"BW64")

ReadBytes = Callable[[int, int], bytes]  # (number of bytes, offset in the file) -> bytes


class DamagedFile(ValueError):
    """The file is not whole. The message names the fault, without the file's path."""


class Wave(NamedTuple):
    """The content of a wav file, located by its chunks."""

    standard: bool  # libsndfile decodes it correctly as it is
    streamed: bool  # its writer never filled in its sizes
    fmt: bytes  # content of the format chunk
    start: int  # offset of the samples in the file
    end: int
    big_endian: bool

    def with_valid_header(self, read: ReadBytes) -> bytes:
        """Returns the same samples as a wav file under a correct header."""
        byte_order, samples = "><"[not self.big_endian], read(self.end - self.start, self.start)
        fmt = self.fmt + b"\0" * (len(self.fmt) % 2)
        head = (
            b"WAVEfmt "
            + struct.pack(f"{byte_order}I", len(self.fmt))
            + fmt
            + b"data"
            + struct.pack(f"{byte_order}I", len(samples))
        )
        body = head + samples + b"\0" * (len(samples) % 2)
        return (
            (b"RIFX" if self.big_endian else b"RIFF")
            + struct.pack(f"{byte_order}I", len(body))
            + body
        )


def is_canonical(head: bytes, size: int) -> bool:
    """Returns whether the first 44 bytes are a plain wav header whose size matches `size`."""
    return (
        head[:4] == b"RIFF"
        and head[36:40] == b"data"
        and int.from_bytes(head[40:44], "little") + 44 == size
    )


def find_sound(read: ReadBytes, size: int) -> Wave | None:
    """Locates the samples of a wav file of `size` bytes.

    Returns None where the file is no wav file, or has no samples or no format that can be located.
    Raises DamagedFile for a wav file that is not whole.
    """
    head = read(12, 0)
    if head[:4] not in RIFFS or head[8:12] != b"WAVE":
        return None
    file = _RiffFile(read, size, ">" if head[:4] == b"RIFX" else "<")
    chunks = _read_chunks(file, file.unpack("I", head[4:8]))
    if chunks.data is None or len(chunks.fmt) < 14:
        return None
    start, length = chunks.data
    tag, block = file.unpack("H", chunks.fmt[:2]), file.unpack("H", chunks.fmt[12:14])
    block = block if tag in SAMPLE_FORMATS and block else 1
    if length and length < UNSET_SIZE:
        standard, end = _end_of_counted_samples(file, chunks, block)
        return Wave(standard, False, chunks.fmt, start, end, file.big_endian)
    if start == size or file.is_chunk(start):
        return Wave(True, False, chunks.fmt, start, start, file.big_endian)
    end = _end_of_uncounted_samples(file, start, chunks.riff_length, block)
    return Wave(False, True, chunks.fmt, start, end, file.big_endian)


def check_end(content: bytes) -> None:
    """Raises DamagedFile where a file that is no wav file is shorter than its header states."""
    size, promised = len(content), 0
    if content[:4] == b"FORM":
        promised = 8 + int.from_bytes(content[4:8], "big")
    elif content[:4] == b".snd" and (length := int.from_bytes(content[8:12], "big")) < UNSET_SIZE:
        promised = int.from_bytes(content[4:8], "big") + length
    elif content[:4] == b"riff":  # Sony's W64
        promised = int.from_bytes(content[16:24], "little")
    # Apple's: chunks of a name and eight bytes of length, or -1 where the writer never filled it in
    elif content[:4] == b"caff":
        while promised + 12 <= size and 0 <= promised < 1 << 48:
            position = promised or 8
            promised = (
                position
                + 12
                + int.from_bytes(content[position + 4 : position + 12], "big", signed=True)
                if position + 12 <= size
                else 0
            )
    elif content[:4] == b"OggS":
        position = content.rfind(b"OggS")
        lengths = (
            content[position + 27 : position + 27 + content[position + 26]]
            if position + 26 < size
            else b""
        )
        promised = (
            position + 27 + len(lengths) + sum(lengths)
            if position + 26 < size and len(lengths) == content[position + 26]
            else size + SIZE_TOLERANCE + 1
        )
    if size + (1 if content[:4] == b"OggS" else SIZE_TOLERANCE) < promised < 1 << 48:
        raise DamagedFile(
            f"cut off: the header states {promised:,} bytes and the file has {size:,}"
        )


@dataclass(frozen=True)
class _RiffFile:
    """A file of chunks, each a name, a length and its content, in one byte order."""

    read: ReadBytes
    size: int
    byte_order: str  # as in struct: > or <

    @property
    def big_endian(self) -> bool:
        """Returns whether the most significant byte of a number comes first."""
        return self.byte_order == ">"

    def unpack(self, kind: str, content: bytes) -> int:
        """Returns the integer that `content` holds; `kind` is its code in struct."""
        return struct.unpack(f"{self.byte_order}{kind}", content)[0]

    def is_chunk(self, position: int) -> bool:
        """Returns whether a chunk starts at `position`.

        It must have a valid name, and either be a known trailing chunk or end within the file.
        """
        head = self.read(8, position)
        if len(head) < 8 or not _is_chunk_name(head[:4]):
            return False
        return head[:4] in TRAILING_CHUNKS or position + 8 + self.unpack("I", head[4:]) <= self.size


@dataclass
class _Chunks:
    """The chunks of a wav file, as far as they could be followed."""

    riff_length: int  # length of the file after its first 8 bytes, as its header states it
    fmt: bytes = b""  # content of the format chunk
    data: tuple[int, int] | None = None  # offset of the samples and their stated length
    long_data_length: int | None = None  # stated length of the samples in a file over 4 GiB
    standard: bool = True  # libsndfile decodes it correctly as it is
    end: int = 12  # offset after the last chunk that could be followed

    def add_data(self, start: int, length: int) -> int:
        """Adds a chunk of samples and returns its length. Raises DamagedFile for a second one."""
        if length == 0xFFFFFFFF and self.long_data_length is not None:
            length = self.long_data_length
        if self.data is not None and length:
            raise DamagedFile(
                "holds two chunks of samples, of which only one would be read. Write it again,"
                " with one"
            )
        self.standard = self.standard and bool(self.fmt) and self.data is None
        self.data = self.data or (start, length)
        return length


def _read_chunks(file: _RiffFile, riff_length: int) -> _Chunks:
    """Follows the chunks from the header on, to the file's end or to what is no chunk."""
    chunks = _Chunks(riff_length)
    while chunks.end + 8 <= file.size:
        start = chunks.end + 8
        head = file.read(8, chunks.end)
        name, length = head[:4], file.unpack("I", head[4:])
        # the previous chunk has no pad byte
        if (
            not _is_chunk_name(name)
            and chunks.data is None
            and _is_chunk_name(file.read(4, chunks.end - 1))
        ):
            chunks.end, chunks.standard = chunks.end - 1, False
            continue
        if name == b"data":
            length = chunks.add_data(start, length)
            if (
                length >= UNSET_SIZE
                or start + length > file.size
                or (not length and not file.is_chunk(start))
            ):
                break
        elif name == b"fmt ":
            chunks.fmt = file.read(min(length, 1024), start)
        elif name == b"ds64" and length >= 16:
            chunks.riff_length, chunks.long_data_length = (
                min(number, 0xFFFFFFFFFFFF) for number in struct.unpack("<QQ", file.read(16, start))
            )
        elif not file.is_chunk(chunks.end):
            break
        chunks.end = start + length + length % 2
    return chunks


def _end_of_counted_samples(file: _RiffFile, chunks: _Chunks, block: int) -> tuple[bool, int]:
    """Returns whether libsndfile decodes the file correctly as it is, and the samples' end.

    Their length is stated. A length that is slightly too large is cut to whole blocks of `block`
    bytes. Raises DamagedFile for a file that is cut off.
    """
    assert chunks.data is not None
    start, length = chunks.data
    if (missing := start + length - file.size) > SIZE_TOLERANCE:
        raise DamagedFile(
            f"cut off: its header states {length:,} bytes of sound and the file has"
            f" {length - missing:,}"
        )
    if missing > 0:
        return False, file.size - (file.size - start) % block
    _check_trailing_bytes(file, start + length, length, chunks.end)
    return chunks.standard, start + length


def _end_of_uncounted_samples(file: _RiffFile, start: int, riff_length: int, block: int) -> int:
    """Returns the end of samples whose length the header doesn't state, in whole blocks.

    Raises DamagedFile for a file that is cut off.
    """
    if start - 8 < riff_length < UNSET_SIZE and riff_length + 8 > file.size + SIZE_TOLERANCE:
        raise DamagedFile(
            f"cut off: its header states {riff_length + 8:,} bytes and the file has {file.size:,}"
        )
    end = _start_of_trailing_chunks(file, start)
    extra = (end - start) % block
    # a pad byte
    if extra and not (extra == 1 and (end - start) % 2 == 0 and file.read(1, end - 1) == b"\0"):
        raise DamagedFile(
            f"cut off: it ends within a sample ({extra} of {block} bytes), and its header was never"
            " completed"
        )
    return end - extra


def _check_trailing_bytes(file: _RiffFile, end: int, length: int, position: int) -> None:
    """Raises DamagedFile where the bytes from `position` on are samples that the header omits.

    The header states that the samples are `length` bytes and stop at `end`. Chunks, tags, zeros and
    fewer than MIN_UNCOUNTED_BYTES bytes of any kind may follow.
    """
    rest = file.size - position
    if position < end or rest < MIN_UNCOUNTED_BYTES or file.is_chunk(position):
        return
    following = file.read(rest, position)
    if not following.startswith(TAGS) and following.strip(b"\0"):
        raise DamagedFile(
            f"cut off during writing: its header states {length:,} bytes of sound, and {rest:,}"
            " more follow that are no chunk"
        )


def _start_of_trailing_chunks(file: _RiffFile, start: int) -> int:
    """Returns the start of the chunks that end the file, at or after `start`, or the file's end."""
    last = max(start, file.size - (1 << 16))
    tail, end = file.read(file.size - last, last), file.size
    while True:
        positions = [at for name in TRAILING_CHUNKS if (at := tail.rfind(name, 0, end - last)) >= 0]
        last_chunks = [
            at
            for at in positions
            if at + 8 <= len(tail) and _end_of_chunk(file, tail, at) in (end - last, end - last + 1)
        ]
        if not last_chunks:
            return end
        end = last + min(last_chunks)


def _end_of_chunk(file: _RiffFile, tail: bytes, position: int) -> int:
    length = file.unpack("I", tail[position + 4 : position + 8])
    return position + 8 + length + length % 2


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)
