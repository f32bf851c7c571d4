"""A tree of parameters, some of them swept, and the points that it spans.

`{values: [...]}` anywhere in the tree is a swept value; all else is constant. A point is the tree with one choice made for each
swept value. Parameters are compared as the trial will see them, so 64M equals 67108864 and cpu equals {first_of: [cpu]}.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from speech.config import TrialConfig
from sweeps.faults import shown

Path = tuple[str, ...]  # of a parameter inside the tree: ("loader", "num_workers")


@dataclass(frozen=True)
class Point:
    """One combination: which value of each swept path, and the whole tree with these values in place."""

    choice: dict[Path, int]
    parameters: dict[str, Any]


def is_group(tree: Any) -> bool:
    """A mapping of keys, as opposed to a constant or a swept value."""
    return isinstance(tree, dict) and "values" not in tree


def merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`: groups merge key by key; a constant or swept value replaces what was there."""
    if not (is_group(below) and is_group(above)):
        return above
    return below | {key: merge(below[key], value) if key in below else value for key, value in above.items()}


def swept(tree: Any, path: Path = ()) -> dict[Path, list[Any]]:
    """Every swept path with its values, in the order of the file. A malformed `values` (a fault elsewhere) sweeps nothing."""
    if is_group(tree):
        return {inner: values for key, child in tree.items() for inner, values in swept(child, (*path, key)).items()}
    if isinstance(tree, dict) and isinstance(tree["values"], list) and tree["values"]:
        return {path: tree["values"]}
    return {}


def swept_faults(tree: Any, path: Path = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the swept values of a tree as such: (path inside the tree, sentence)."""
    if is_group(tree):
        for key, child in tree.items():
            yield from swept_faults(child, (*path, key))
    elif isinstance(tree, dict):
        for key in tree.keys() - {"values"}:
            yield (*path, key), "stands beside values. A swept value is {values: [...]} and nothing else."
        if not isinstance(tree["values"], list):
            yield path, f"values holds {shown(tree['values'])}, not a list. Write values: [...]."
        elif not tree["values"]:
            yield path, "values is empty. Write at least one value."
        else:
            yield from _item_faults(tree["values"], path)


def _item_faults(values: list[Any], path: Path) -> Iterator[tuple[tuple[str | int, ...], str]]:
    seen: list[tuple[Any, Any]] = []  # as parsed, as written
    for i, value in enumerate(values):
        here: tuple[str | int, ...] = (*path, "values", i)
        if swept(value):
            yield here, "a swept value can't hold another one. Write each combination out."
            continue
        try:
            parsed = parse(path, value)
        except (KeyError, ValidationError):
            continue  # the check of the combinations says what is wrong with it
        for other, written in seen:
            if other == parsed:
                yield here, f"{shown(value)} is the same as {shown(written)}. Remove one."
        seen.append((parsed, value))


def size(tree: dict[str, Any]) -> int:
    """How many points the tree spans."""
    return math.prod(len(values) for values in swept(tree).values())


def points(tree: dict[str, Any]) -> Iterator[Point]:
    """Every combination, the last swept value varying fastest."""
    axes = swept(tree)
    for indices in itertools.product(*(range(len(values)) for values in axes.values())):
        choice = dict(zip(axes, indices, strict=True))
        yield Point(choice, _choose(tree, choice, ()))


def _choose(tree: dict[str, Any], choice: dict[Path, int], path: Path) -> dict[str, Any]:
    chosen = {}
    for key, child in tree.items():
        here = (*path, key)
        if here in choice:
            chosen[key] = child["values"][choice[here]]
        elif is_group(child):
            chosen[key] = _choose(child, choice, here)
        elif not isinstance(child, dict):  # a malformed `values` counts as absent
            chosen[key] = child
    return chosen


def _field(path: Path) -> tuple[Any, list[Any]]:
    """Type and constraints of the parameter or group at `path`; KeyError where a trial has no such key."""
    annotation: Any = TrialConfig
    metadata: list[Any] = []
    for key in path:
        if not _is_model(annotation):
            raise KeyError(key)
        annotation, metadata = annotation.model_fields[key].annotation, annotation.model_fields[key].metadata
    return annotation, metadata


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@cache
def _adapter(path: Path) -> TypeAdapter[Any]:
    annotation, metadata = _field(path)
    if _is_model(annotation):
        return TypeAdapter(annotation)
    return TypeAdapter(Annotated[(annotation, *metadata)] if metadata else annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


@cache
def is_parameter(path: Path) -> bool:
    """Whether a trial has the parameter or group at `path`."""
    try:
        _field(path)
    except KeyError:
        return False
    return True


def group_model(path: Path) -> type[BaseModel] | None:
    """The model of the group at `path`, None where a single value stands."""
    annotation, _ = _field(path)
    return annotation if _is_model(annotation) else None


def parse(path: Path, value: Any) -> Any:
    """`value` as a trial sees it at `path`, a parameter's. Raises pydantic's ValidationError where it is not legal there."""
    return _adapter(path).validate_python(value)


def parsed_at(parameters: dict[str, Any], path: Path) -> Any:
    """The value of the parameter at `path` in a point, its default where the point leaves it out, None where it can't be parsed."""
    tree: Any = parameters
    for n, key in enumerate(path):
        if not isinstance(tree, dict):
            return _inside(path[:n], tree, path[n:])
        if key not in tree:
            return _inside((), _DEFAULTS, path)
        tree = tree[key]
    return _inside(path, tree, ())


def _inside(path: Path, value: Any, rest: Path) -> Any:
    """The parameter `rest` of the group that `value` parses to at `path`: reaches into short forms such as device: cpu."""
    try:
        parsed = parse(path, value) if path else value
    except ValidationError:
        return None
    for key in rest:
        parsed = getattr(parsed, key, None)
    return parsed


_DEFAULTS = SimpleNamespace(**{name: field.default for name, field in TrialConfig.model_fields.items()})
