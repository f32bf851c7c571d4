"""Formats the names and values of a trial's parameters.

Run names, tags, tables, pictures and the terminal all use these formats.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from speech.byte_sizes import format_size

# Characters. MLflow would also truncate a longer name, with a warning in the terminal
MAX_RUN_NAME_LENGTH = 250
# Keys of the loader without effect at 0 workers
KEYS_IDLE_AT_0_WORKERS = ("prefetch_factor", "start_method", "persistent_workers")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping as a flat one with dotted paths; a value of None is omitted.

    {'loader': {'num_workers': 4}} becomes {'loader.num_workers': 4}.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value
    return flat


def format_parameter(path: str, value: Any) -> str:
    """Returns a parameter's value as text for run names, tags and tables.

    A size becomes text such as 64M. The shm_size None becomes 'node', because the trial then uses
    the node's own /dev/shm.
    """
    if path.endswith("shm_size"):
        return (
            "node"
            if value is None
            else format_size(int(value))
            if isinstance(value, int | float)
            else str(value)
        )
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Returns, by dotted path, its last part, or the whole path if several have the same last part.

    For instance {'loader.num_workers': 'num_workers'}.
    """
    paths = list(paths)
    leaves = [path.rpartition(".")[2] for path in paths]
    return {
        path: leaf if leaves.count(leaf) == 1 else path
        for path, leaf in zip(paths, leaves, strict=True)
    }


def run_name(block: str, swept: Mapping[str, Any], repeat: int) -> str:
    """Returns the name of a trial's run: 'workers · num_workers=4 shm_size=64M · repeat 1'."""
    return " · ".join(part for part in (block, swept_name(swept), f"repeat {repeat}") if part)[
        :MAX_RUN_NAME_LENGTH
    ]


def swept_name(swept: Mapping[str, Any]) -> str:
    """Returns the swept parameters with their values: 'num_workers=4 shm_size=64M'."""
    short = short_names(swept)
    return " ".join(
        f"{short[path]}={format_parameter(path, value)}" for path, value in swept.items()
    )
