"""Converts sizes between numbers of bytes and text such as 64M."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: Any) -> Any:
    """Converts '64M', '64m', '64MB' or '64MiB' to 67108864 bytes.

    Units are binary, as in Docker's --shm-size. A value that is no string is returned unchanged: an
    int is a number of bytes. Raises ValueError for a string that is not a size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", value.strip().lower())
    if not match:
        raise ValueError(f"{value!r} is not a size. Write 64M or 2G.")
    return int(float(match[1]) * _UNITS[match[2]])


def format_size(size_bytes: int) -> str:
    """Converts 67108864 to '64M'.

    It is the inverse of parse_size for whole units. Other sizes get the largest unit, with one
    decimal.
    """
    for unit in ("T", "G", "M", "K"):
        if size_bytes >= _UNITS[unit.lower()]:
            return f"{size_bytes / _UNITS[unit.lower()]:.1f}".removesuffix(".0") + unit
    return f"{size_bytes}"


_SizeText = Annotated[
    str, Field(pattern=r"^\s*\d+(\.\d+)?\s*[kmgtKMGT]?([iI]?[bB])?\s*$", examples=["64M", "2G"])
]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | _SizeText)]
