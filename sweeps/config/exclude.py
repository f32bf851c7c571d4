"""Reads `exclude`: conditions on the points of the grid that do not run.

    exclude:
      - {loader.num_workers: 0, loader.shm_size: 64M}     # both at once
      - {loader: {num_workers: [4, 8], shm_size: 64M}}    # a list means any of these

An entry is a group of conditions that must all hold. Values are compared as a trial sees them,
defaults included.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from speech.config import TrialConfig
from sweeps.config.config_errors import KeyPath, format_value, translate, unknown_key_message
from sweeps.config.grid import Path, Point, group_model, is_parameter, parameter_value, parse


@dataclass(frozen=True)
class Exclusion:
    """Entry of `exclude`: for every path, the values that count as a match.

    `at` is its path in the file; `text` is its notation in messages.
    """

    at: KeyPath
    text: str
    conditions: dict[Path, list[Any]]

    def matches(self, parameters: dict[str, Any]) -> bool:
        """Returns whether all conditions hold at a point.

        A faulty condition has no values, so it never holds.
        """
        return all(
            values and parameter_value(parameters, path) in values
            for path, values in self.conditions.items()
        )


class Selection(NamedTuple):
    """Points of a block, split by its excludes."""

    remaining: list[Point]  # the points that no exclusion matches
    # The points that every exclusion removes; a point counts for the first one that matches it
    removed: list[list[Point]]
    matched: set[KeyPath]  # the paths of the exclusions that match any point


def read_exclusion(
    entry: dict[str, Any], at: KeyPath
) -> tuple[Exclusion, list[tuple[KeyPath, str]]]:
    """Converts an entry of the file into an Exclusion; returns it with its faults.

    A fault is (path in the file, sentence).
    """
    conditions: dict[Path, list[Any]] = {}
    faults: list[tuple[KeyPath, str]] = []
    problem: str | None
    for file_path, path, value in _conditions(entry, at, ()):
        if not is_parameter(path):
            conditions[path], problem = [], _describe_unknown(path)
        else:
            conditions[path], problem = _parse_values(path, value)
        faults += [(file_path, problem)] if problem else []
    if not entry:
        faults.append(
            (at, "this entry names no parameter. Write a condition, as in loader.num_workers: 0.")
        )
    text = ", ".join(
        f"{'.'.join(path)}: {_format_plain(value)}" for _, path, value in _conditions(entry, at, ())
    )
    return Exclusion(at, text, conditions), faults


def apply_exclusions(points: Iterable[Point], exclusions: list[Exclusion]) -> Selection:
    """Splits `points` by `exclusions`."""
    remaining: list[Point] = []
    removed: list[list[Point]] = [[] for _ in exclusions]
    matched: set[KeyPath] = set()
    for point in points:
        hits = [i for i, exclusion in enumerate(exclusions) if exclusion.matches(point.parameters)]
        matched |= {exclusions[i].at for i in hits}
        if hits:
            removed[hits[0]].append(point)
        else:
            remaining.append(point)
    return Selection(remaining, removed, matched)


def _conditions(
    tree: dict[str, Any], at: KeyPath, path: Path
) -> Iterable[tuple[KeyPath, Path, Any]]:
    """Yields the conditions of dotted keys and of nested groups.

    A condition is (path in the file, path of the parameter, value).
    """
    for key, value in tree.items():
        inner = (*path, *key.split("."))
        if isinstance(value, dict):
            yield from _conditions(value, (*at, key), inner)
        else:
            yield (*at, key), inner, value


def _parse_values(path: Path, value: Any) -> tuple[list[Any], str | None]:
    """Returns the parsed values that match, and the fault of `value`; None without a fault.

    A list stands for any of its items, and for itself where a list is legal.
    """
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
            problem = problem or (
                None if values else "the list is empty. Write the values to exclude."
            )
    return values, problem


def _describe_unknown(path: Path) -> str:
    """Returns the fault of an unknown key, with its siblings in the last group that exists."""
    depth = next(n for n in range(len(path), -1, -1) if n == 0 or is_parameter(path[:n]))
    model = group_model(path[:depth])
    return (
        unknown_key_message(path[depth], model.model_fields)
        if model
        else f"unknown key: {'.'.join(path[:depth])} is a single value."
    )


def _format_plain(value: Any) -> str:
    """Returns a value as text, with text unquoted."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_plain, value)) + "]"
    return value if isinstance(value, str) else format_value(value)
