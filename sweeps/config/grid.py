"""Expands a tree of parameters, some of them swept, into the points that it spans.

`{values: [...]}` anywhere in the tree is a swept value; everything else is constant. A point is the
tree with one choice for every swept value. Parameters are compared as the trial will see them: 64M
equals 67108864, and cpu equals {prefer: [cpu]}.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from speech.config import TrialConfig
from sweeps.config.config_errors import format_value

Path = tuple[str, ...]  # path of a parameter inside the tree: ("loader", "num_workers")


@dataclass(frozen=True)
class Point:
    """Combination: the index of the value of every swept path, and the tree with these values."""

    choice: dict[Path, int]
    parameters: dict[str, Any]

    @cached_property
    def trial(self) -> TrialConfig:
        """Parameters of the trial, validated on the first access. Raises ValidationError."""
        return TrialConfig.model_validate(self.parameters)


def is_group(tree: Any) -> bool:
    """Returns whether `tree` is a mapping of keys, as opposed to a constant or a swept value."""
    return isinstance(tree, dict) and "values" not in tree


def merge(below: Any, above: Any) -> Any:
    """Lays `above` over `below`: groups merge key by key, a constant or swept value replaces."""
    if not (is_group(below) and is_group(above)):
        return above
    return below | {
        key: merge(below[key], value) if key in below else value for key, value in above.items()
    }


def swept_values(tree: Any, path: Path = ()) -> dict[Path, list[Any]]:
    """Returns every swept path with its values, in the order of the file.

    A malformed `values`, which find_swept_faults reports, sweeps nothing.
    """
    if is_group(tree):
        return {
            inner: values
            for key, child in tree.items()
            for inner, values in swept_values(child, (*path, key)).items()
        }
    if isinstance(tree, dict) and isinstance(tree["values"], list) and tree["values"]:
        return {path: tree["values"]}
    return {}


def find_swept_faults(tree: Any, path: Path = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields the faults in the form of a tree's swept values: (path inside the tree, sentence)."""
    if is_group(tree):
        for key, child in tree.items():
            yield from find_swept_faults(child, (*path, key))
    elif isinstance(tree, dict):
        for key in tree.keys() - {"values"}:
            yield (
                (
                    *path,
                    key,
                ),
                "is not legal beside values. A swept value is {values: [...]} alone.",
            )
        if not isinstance(tree["values"], list):
            yield (
                path,
                f"values holds {format_value(tree['values'])}, not a list. Write values: [...].",
            )
        elif not tree["values"]:
            yield path, "values is empty. Write at least one value."
        else:
            yield from _find_item_faults(tree["values"], path)


def _find_item_faults(values: list[Any], path: Path) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields the faults of the items of a swept value: nested swept values and duplicates."""
    seen: list[tuple[Any, Any]] = []  # (parsed value, value as written)
    for i, value in enumerate(values):
        item_path: tuple[str | int, ...] = (*path, "values", i)
        if swept_values(value):
            yield item_path, "a swept value can't contain another one. List every combination."
            continue
        try:
            parsed = parse(path, value)
        except (KeyError, ValidationError):
            continue  # the check of the combinations reports the fault
        for other, written in seen:
            if other == parsed:
                yield (
                    item_path,
                    f"{format_value(value)} is the same as {format_value(written)}. Remove one.",
                )
        seen.append((parsed, value))


def count_points(tree: dict[str, Any]) -> int:
    """Returns how many points the tree spans."""
    return math.prod(len(values) for values in swept_values(tree).values())


def points(tree: dict[str, Any]) -> Iterator[Point]:
    """Yields every combination; the last swept value varies fastest."""
    axes = swept_values(tree)
    for indices in itertools.product(*(range(len(values)) for values in axes.values())):
        choice = dict(zip(axes, indices, strict=True))
        yield Point(choice, _choose_values(tree, choice, ()))


def _choose_values(tree: dict[str, Any], choice: dict[Path, int], path: Path) -> dict[str, Any]:
    """Returns `tree`, whose own path is `path`, with the chosen values instead of swept ones."""
    chosen = {}
    for key, child in tree.items():
        child_path = (*path, key)
        if child_path in choice:
            chosen[key] = child["values"][choice[child_path]]
        elif is_group(child):
            chosen[key] = _choose_values(child, choice, child_path)
        elif not isinstance(child, dict):  # a malformed `values` counts as absent
            chosen[key] = child
    return chosen


def _field(path: Path) -> tuple[Any, list[Any]]:
    """Returns type and constraints of the parameter or group at `path`.

    Raises KeyError where a trial has no such key.
    """
    annotation: Any = TrialConfig
    metadata: list[Any] = []
    for key in path:
        if not _is_model(annotation):
            raise KeyError(key)
        annotation, metadata = (
            annotation.model_fields[key].annotation,
            annotation.model_fields[key].metadata,
        )
    return annotation, metadata


def _is_model(annotation: Any) -> bool:
    """Returns whether a type is a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@cache
def _adapter(path: Path) -> TypeAdapter[Any]:
    """Returns pydantic's validator of the parameter or group at `path`."""
    annotation, metadata = _field(path)
    if _is_model(annotation):
        return TypeAdapter(annotation)
    return TypeAdapter(
        Annotated[(annotation, *metadata)] if metadata else annotation,
        config=ConfigDict(strict=True, allow_inf_nan=False),
    )


@cache
def is_parameter(path: Path) -> bool:
    """Returns whether a trial has the parameter or group at `path`."""
    try:
        _field(path)
    except KeyError:
        return False
    return True


def group_model(path: Path) -> type[BaseModel] | None:
    """Returns the model of the group at `path`; None for a parameter with a single value."""
    annotation, _ = _field(path)
    return annotation if _is_model(annotation) else None


def parse(path: Path, value: Any) -> Any:
    """Parses `value` as a trial sees it at `path`, the path of a parameter or group.

    Raises pydantic's ValidationError where the value is not legal.
    """
    return _adapter(path).validate_python(value)


def parameter_value(parameters: dict[str, Any], path: Path) -> Any:
    """Returns the value of the parameter at `path` in a point, as a trial sees it.

    It is the default where the point lacks the parameter, and None where the value can't be parsed.
    """
    tree: Any = parameters
    for n, key in enumerate(path):
        if not isinstance(tree, dict):
            return _parse_inside(path[:n], tree, path[n:])
        if key not in tree:
            return _parse_inside((), _DEFAULTS, path)
        tree = tree[key]
    return _parse_inside(path, tree, ())


def _parse_inside(path: Path, value: Any, rest: Path) -> Any:
    """Returns the parameter `rest` of the group to which `value` parses at `path`.

    The group may be written in a short form, such as device: cpu.
    """
    try:
        parsed = parse(path, value) if path else value
    except ValidationError:
        return None
    for key in rest:
        parsed = getattr(parsed, key, None)
    return parsed


_DEFAULTS = SimpleNamespace(
    **{name: field.default for name, field in TrialConfig.model_fields.items()}
)
