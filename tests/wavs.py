"""Wav files written byte by byte, whatever their headers say."""

import struct

SOUND = bytes(range(1, 251)) * 128  # 32,000 bytes: 16,000 samples of 16 bits
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.16.100\0"


def header(riff_size: int, data_size: int) -> bytes:
    """The 44 bytes before samples of 16 kHz, 16 bits, mono."""
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", riff_size, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16
    )
    return head + struct.pack("<4sI", b"data", data_size)
