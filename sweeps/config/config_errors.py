"""Describes the faults of a sweep file for the person who wrote it.

A fault has a place (a line, or the --set that wrote the key), a key, and a sentence with the faulty
value and the legal ones. Faults are collected and raised once, so one run of the command shows all
of them. pydantic detects most of them. `translate` converts its errors into those sentences, and
its locations into keys as the file spells them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from speech.byte_sizes import format_size
from speech.spelling import did_you_mean
from sweeps.user_error import UserError

# Path from the root of the file to a key or list item:
# ("parameters", "loader", "num_workers", "values", 1)
KeyPath = tuple[str | int, ...]

_NOUNS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a group of keys",
    "model_type": "a group of keys",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "too small. Write at least"),
    "greater_than": ("gt", "too small. Write more than"),
    "less_than_equal": ("le", "too large. Write at most"),
    "less_than": ("lt", "too large. Write less than"),
}
_BOOLEANS = {
    "yes": "true",
    "on": "true",
    "true": "true",
    "no": "false",
    "off": "false",
    "false": "false",
}


@dataclass(frozen=True)
class Fault:
    """Fault of a sweep file. `where` is a line number, or the words that replace `line N`."""

    where: int | str
    key: str
    text: str


class ConfigFaults(UserError):
    """Reports every fault of a sweep file; its text is the block to print."""

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.faults = sorted(
            dict.fromkeys(faults), key=lambda fault: (isinstance(fault.where, str), fault.where)
        )
        digits = max(
            (len(str(fault.where)) for fault in self.faults if isinstance(fault.where, int)),
            default=1,
        )
        places = [
            f"line {fault.where:>{digits}}" if isinstance(fault.where, int) else fault.where
            for fault in self.faults
        ]
        width = max(map(len, places))
        lines = [
            f"  {place:<{width}}  " + (f"{fault.key}: {fault.text}" if fault.key else fault.text)
            for place, fault in zip(places, self.faults, strict=True)
        ]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n".join([f"{name} has {count}:", *lines]))


def format_path(path: KeyPath) -> str:
    """Returns a path as people write it: parameters.corpus.words[2].

    It excludes the index of a swept value, which the line of the fault shows.
    """
    text = ""
    for i, part in enumerate(path):
        swept = (part == "values" and i + 1 < len(path)) or (i > 0 and path[i - 1] == "values")
        if not swept:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def format_value(value: Any) -> str:
    """Returns a value as YAML writes it, cut to a readable length."""
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return _shorten("[" + ", ".join(map(format_value, value)) + "]")
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None else _shorten(repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key_message(key: str, legal: Iterable[str]) -> str:
    """Returns the fault of a key that does not exist, with the most similar of its legal siblings.

    Without a similar one, it names all of them.
    """
    legal = list(legal)
    return "unknown key." + (did_you_mean(key, legal) or f" Legal keys: {', '.join(legal)}.")


def translate(
    model: type[BaseModel], tree: Any, error: ValidationError
) -> list[tuple[KeyPath, str]]:
    """Converts pydantic's errors about `tree` into faults, one for every faulty path.

    A fault is (path inside the tree, sentence).
    """
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_path_in_tree(tree, detail), []).append(detail)
    deepest = [
        path
        for path in by_path
        if not any(other != path and other[: len(path)] == path for other in by_path)
        or not _are_type_errors(by_path[path])
    ]
    return [(path, _describe_errors(model, path, by_path[path])) for path in deepest]


def _are_type_errors(details: list[ErrorDetails]) -> bool:
    """Returns whether all errors are about the type.

    Of the branches of a union, a deeper error (about an item of the list) is more informative.
    """
    return all(detail["type"] in _NOUNS for detail in details)


def _path_in_tree(root: Any, detail: ErrorDetails) -> KeyPath:
    """Returns pydantic's location without the parts that the file does not contain.

    These are names of union branches, and keys for which a short form stands.
    """
    path: list[str | int] = []
    tree = root
    for part in detail["loc"]:
        inside = (
            part in tree
            if isinstance(tree, dict)
            else isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        )
        if inside:
            tree = tree[part]
            path.append(part)
        elif detail["type"] == "missing" and isinstance(tree, dict) and isinstance(part, str):
            path.append(part)
    return tuple(path)


def _describe_errors(model: type[BaseModel], path: KeyPath, details: list[ErrorDetails]) -> str:
    """Returns the sentence for all errors at `path`.

    A violated bound, or else a check of this project, is more informative than a type.
    """
    bounds = [detail for detail in details if detail["type"] in _BOUNDS]
    checks = [detail for detail in details if detail["type"] == "value_error"]
    detail = (bounds or checks or details)[0]
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        # A value that is text is a size
        limit = format_size(context[name]) if isinstance(value, str) else f"{context[name]:.12g}"
        return f"{format_value(value)} is {words} {limit}."
    if kind == "value_error":
        return f"{str(context['error']).removesuffix('.')}."
    if kind == "extra_forbidden":
        return unknown_key_message(str(path[-1]), _model_at(model, path[:-1]).model_fields)
    if kind == "missing":
        return _describe_missing(model, path, detail)
    if kind in ("too_short", "too_long"):
        limit = (
            f"at least {context['min_length']}"
            if kind == "too_short"
            else f"at most {context['max_length']}"
        )
        return f"{format_value(value)} has {context['actual_length']} values. Write {limit}."
    if kind == "string_too_short":
        return "'' is empty. Write a word."
    if [error["type"] for error in details] == ["model_type"]:
        return (
            f"{_describe_wrong_type(value, details)} Its keys:"
            f" {', '.join(_model_at(model, path).model_fields)}."
        )
    return _describe_wrong_type(value, details)


def _describe_missing(model: type[BaseModel], path: KeyPath, detail: ErrorDetails) -> str:
    """Returns the sentence for a missing key, or for a missing item of a list."""
    if isinstance(detail["loc"][-1], int):
        return f"{format_value(detail['input'])} has too few values."
    meaning = _model_at(model, path[:-1]).model_fields[str(path[-1])].description
    return f"missing. It has no default, so write it{f': {meaning}' if meaning else ''}."


def _describe_wrong_type(value: Any, details: list[ErrorDetails]) -> str:
    """Returns the sentence for a value of a wrong type, such as: '8' is not a whole number.

    For a union, it names everything that is legal.
    """
    words: list[str] = []  # words that a Literal allows
    nouns: list[str] = []
    for detail in details:
        if detail["type"] == "literal_error":
            words += re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        else:
            nouns.append(_NOUNS.get(detail["type"], detail["msg"]))
    choice = [f"one of {', '.join(words)}" if len(words) > 1 else words[0]] if words else []
    legal = " or ".join(choice + nouns)
    return (
        f"it has no value. Write {legal}."
        if value is None
        else f"{format_value(value)} is not {legal}.{_suggest(value, words, nouns)}"
    )


def _suggest(value: Any, words: list[str], nouns: list[str]) -> str:
    """Returns a suggestion of what to write instead of `value`; an empty text without one."""
    if isinstance(value, str):
        if suggestion := did_you_mean(value, words):
            return suggestion
        if "true or false" in nouns and value.lower() in _BOOLEANS:
            return f" Write {_BOOLEANS[value.lower()]}."
        if {"a whole number", "a number"} & set(nouns) and re.fullmatch(r"-?\d+(\.\d+)?", value):
            return f" Write {value} without quotes."
    if isinstance(value, float) and "a whole number" in nouns and value.is_integer():
        return f" Write {int(value)}."
    if isinstance(value, bool | int | float) and nouns == ["text"]:
        return f" Write '{format_value(value)}', in quotes."
    if nouns == ["a list"] and not isinstance(value, dict):
        return f" Write [{value if isinstance(value, str) else format_value(value)}]."
    return ""


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    """Returns the model of the group at `path`, which must be a path from pydantic itself."""
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)  # the name of a block
        model = next(
            m
            for m in (annotation, *get_args(annotation))
            if isinstance(m, type) and issubclass(m, BaseModel)
        )
    return model
