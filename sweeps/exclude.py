"""`exclude`: points of the grid that are not to run.

    exclude:
      - {loader.num_workers: 0, loader.shm_size: 64M}     # both at once
      - {loader: {num_workers: [4, 8], shm_size: 64M}}    # a list means any of these

Each entry is a group of conditions that must all hold. Values are compared as a trial sees them, defaults included.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from speech.config import TrialConfig
from sweeps.faults import KeyPath, shown, translate, unknown_key
from sweeps.grid import Path, Point, group_model, is_parameter, parse, parsed_at


@dataclass(frozen=True)
class Exclusion:
    """One entry: at each path, the values that count as a match. `at` is its place in the file, `text` how the file puts it."""

    at: KeyPath
    text: str
    wanted: dict[Path, list[Any]]

    def matches(self, parameters: dict[str, Any]) -> bool:
        """Whether all conditions hold at a point. A condition at fault wants no value, so it never holds."""
        return all(values and parsed_at(parameters, path) in values for path, values in self.wanted.items())


def read_exclusion(entry: dict[str, Any], at: KeyPath) -> tuple[Exclusion, list[tuple[KeyPath, str]]]:
    """An entry of the file -> the Exclusion and its faults: (path in the file, sentence)."""
    wanted: dict[Path, list[Any]] = {}
    faults: list[tuple[KeyPath, str]] = []
    problem: str | None
    for file_path, path, value in _conditions(entry, at, ()):
        if not is_parameter(path):
            wanted[path], problem = [], _unknown(path)
        else:
            wanted[path], problem = _wanted(path, value)
        faults += [(file_path, problem)] if problem else []
    if not entry:
        faults.append((at, "this entry names no parameter. Write a condition, as loader.num_workers: 0."))
    text = ", ".join(f"{'.'.join(path)}: {_plain(value)}" for _, path, value in _conditions(entry, at, ()))
    return Exclusion(at, text, wanted), faults


def sift(points: Iterable[Point], exclusions: list[Exclusion]) -> tuple[list[Point], list[list[Point]], set[KeyPath]]:
    """The points that stay, those that each exclusion removed (a point counts for the first that matches), and which matched at all."""
    kept: list[Point] = []
    removed: list[list[Point]] = [[] for _ in exclusions]
    matched: set[KeyPath] = set()
    for point in points:
        hits = [i for i, exclusion in enumerate(exclusions) if exclusion.matches(point.parameters)]
        matched |= {exclusions[i].at for i in hits}
        if hits:
            removed[hits[0]].append(point)
        else:
            kept.append(point)
    return kept, removed, matched


def _conditions(tree: dict[str, Any], at: KeyPath, path: Path) -> Iterable[tuple[KeyPath, Path, Any]]:
    """Dotted keys and nested groups alike -> (place in the file, path of the parameter, value)."""
    for key, value in tree.items():
        here = (*path, *key.split("."))
        if isinstance(value, dict):
            yield from _conditions(value, (*at, key), here)
        else:
            yield (*at, key), here, value


def _wanted(path: Path, value: Any) -> tuple[list[Any], str | None]:
    """The parsed values that match, and what is wrong with `value` if any. A list is any of its items, or itself where a list is legal."""
    values: list[Any] = []
    problem = None
    for candidate in value if isinstance(value, list) else [value]:
        try:
            values.append(parse(path, candidate))
        except ValidationError as error:
            problem = translate(group_model(path) or TrialConfig, candidate, error)[0][1]
    if isinstance(value, list):
        try:
            values.append(parse(path, value))
            problem = None
        except ValidationError:
            problem = problem or (None if values else "the list is empty. Write the values to exclude.")
    return values, problem


def _unknown(path: Path) -> str:
    """The unknown key, among its siblings in the last group that exists."""
    depth = next(n for n in range(len(path), -1, -1) if n == 0 or is_parameter(path[:n]))
    model = group_model(path[:depth])
    return unknown_key(path[depth], model.model_fields) if model else f"unknown key: {'.'.join(path[:depth])} is a single value."


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return value if isinstance(value, str) else shown(value)
