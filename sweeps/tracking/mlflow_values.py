"""Converts values to what MLflow stores: limited text, finite numbers, and milliseconds."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

# Characters. MLflow would also truncate longer values, with a warning in the terminal
MAX_LENGTH = {"param": 6000, "tag": 8000}


def now_ms() -> int:
    """Returns the present time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def finite_or_nan(value: float) -> float:
    """Converts an infinity to NaN, and returns any other value as a float.

    MLflow would store an infinity as 1.8e308, and readers can't distinguish that from a measured
    value.
    """
    return float(value) if math.isfinite(value) else math.nan


def format_values(values: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Converts values to the text that MLflow stores.

    Text stays text, and other values become JSON. Both are truncated to MLflow's limit for `kind`,
    which is 'param' or 'tag'. A value of None is omitted.
    """
    texts = {
        key: str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
        if value is not None
    }
    return {
        key: text if len(text) <= MAX_LENGTH[kind] else text[: MAX_LENGTH[kind] - 3] + "..."
        for key, text in texts.items()
    }
