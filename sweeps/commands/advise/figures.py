"""Formats the figures of the advice: seconds, MiB, rates and cores."""

import math

WIDTH = 100  # columns of the terminal


def format_seconds(seconds: float) -> str:
    """Returns seconds without their unit, and from 100 on without decimals."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.2f}"


def format_ms(seconds: float) -> str:
    """Returns seconds as milliseconds, below 100 with three significant digits."""
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def format_mib(size_bytes: int) -> str:
    """Returns a size in MiB, without the unit and with one decimal."""
    return f"{size_bytes / 2**20:,.1f}"


def format_rate(clips_per_s: float) -> str:
    """Returns a rate in samples per second, which may be infinite."""
    return "without a limit" if math.isinf(clips_per_s) else f"{clips_per_s:,.0f} samples/s"


def format_cores(cores: float) -> str:
    """Returns a number of cores: '1 core' or '1.5 cores'."""
    return f"{cores:g} core{'s' * (cores != 1)}"
