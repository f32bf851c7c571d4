"""Formats numbers for tables, sentences and pictures: seconds, MiB, percent, changes and counts."""

import math

import pandas as pd

from analysis.statistics import Interval

MIB = 1 << 20


def decimals(smallest: float) -> int:
    """Returns the decimals, at most three, that give the smallest time three significant digits."""
    return 1 if not smallest > 0 else min(3, max(0, 2 - math.floor(math.log10(smallest))))


def or_dash(value: float, format_spec: str) -> str:
    """Returns the formatted value; '-' if it is missing."""
    return "-" if pd.isna(value) else format(value, format_spec)


def whole_from_ten(value: float) -> str:
    """Returns the value without decimals, but with one below ten; '-' if it is missing."""
    return or_dash(value, ".0f" if value >= 10 else ".1f")


def seconds_or_ms(seconds: float) -> str:
    """Returns seconds, or milliseconds below 0.1 s."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def percent(share: float) -> str:
    """Returns a share in percent: 0.25 becomes '25 %'."""
    return f"{100 * share:.0f} %"


def mib(size_bytes: float) -> str:
    """Returns a size in MiB, with the unit and one decimal."""
    return f"{size_bytes / MIB:,.1f} MiB"


def change_text(change: Interval, width: int = 1) -> str:
    """Returns for example '-56% (-67% to -41%)', its first number at least `width` columns wide."""
    return f"{change.value:+{width}.0%} ({change.low:+.0%} to {change.high:+.0%})"


def count_text(count: int, noun: str) -> str:
    """Returns for example '1 worker' or '2 workers'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
