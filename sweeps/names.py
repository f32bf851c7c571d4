"""How a trial's parameters are named and written: alike in run names, tags, tables, pictures and the terminal."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from speech.config import format_size

LONGEST = 250  # characters of a run's name; MLflow would cut it too, with a warning in the terminal


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'loader': {'num_workers': 4}} -> {'loader.num_workers': 4}; a value that is None is absent."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value
    return flat


def written(path: str, value: Any) -> str:
    """A parameter's value as run names, tags and tables write it: 64M for a size, node where /dev/shm is the node's own."""
    if path.endswith("shm_size"):
        return "node" if value is None else format_size(int(value)) if isinstance(value, int | float) else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """{'loader.num_workers': 'num_workers'}: the last part of each dotted path, or all of it where two would read the same."""
    paths = list(paths)
    leaves = [path.rpartition(".")[2] for path in paths]
    return {path: leaf if leaves.count(leaf) == 1 else path for path, leaf in zip(paths, leaves, strict=True)}


def run_name(block: str, swept: Mapping[str, Any], repeat: int) -> str:
    """'workers · num_workers=4 shm_size=64M · repeat 1'."""
    return " · ".join(part for part in (block, swept_name(swept), f"repeat {repeat}") if part)[:LONGEST]


def swept_name(swept: Mapping[str, Any]) -> str:
    """'num_workers=4 shm_size=64M'."""
    short = short_names(swept)
    return " ".join(f"{short[path]}={written(path, value)}" for path, value in swept.items())
