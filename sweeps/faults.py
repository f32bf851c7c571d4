"""Faults of a sweep file, in words for the person who wrote it.

A fault is a place (a line, or the --set that wrote the key), a key, and a sentence that names the value given and what is legal.
They are collected and raised once, so one run of the command shows all there is to mend. pydantic finds most of them; `translate`
turns its errors into those sentences and its locations into keys as the file spells them.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from speech.config import format_size

KeyPath = tuple[str | int, ...]  # ("parameters", "loader", "num_workers", "values", 1): from the root of the file to a key or list item

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
_WORDS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}


@dataclass(frozen=True)
class Fault:
    """`where` is a line number, or the words to print in place of `line N`."""

    where: int | str
    key: str
    text: str


class ConfigFaults(Exception):
    """Every fault of a sweep file; its text is the block to print."""

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.faults = sorted(dict.fromkeys(faults), key=lambda fault: (isinstance(fault.where, str), fault.where))
        digits = max((len(str(fault.where)) for fault in self.faults if isinstance(fault.where, int)), default=1)
        places = [f"line {fault.where:>{digits}}" if isinstance(fault.where, int) else fault.where for fault in self.faults]
        width = max(map(len, places))
        lines = [
            f"  {place:<{width}}  " + (f"{fault.key}: {fault.text}" if fault.key else fault.text)
            for place, fault in zip(places, self.faults, strict=True)
        ]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n".join([f"{name} has {count}:", *lines]))


def spell(path: KeyPath) -> str:
    """A path as people write it: parameters.corpus.words[2]. The index of a swept value is left out; its line tells which one it is."""
    text = ""
    for i, part in enumerate(path):
        swept = (part == "values" and i + 1 < len(path)) or (i > 0 and path[i - 1] == "values")
        if not swept:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """A value as YAML would write it, cut to a readable length."""
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return _cut("[" + ", ".join(map(shown, value)) + "]")
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key(key: str, legal: Iterable[str]) -> str:
    """What to say about a key that does not exist, among its legal siblings."""
    legal = list(legal)
    near = difflib.get_close_matches(key, legal, n=1)
    return f"unknown key. Did you mean {near[0]}?" if near else f"unknown key. Legal here: {', '.join(legal)}."


def translate(model: type[BaseModel], tree: Any, error: ValidationError) -> list[tuple[KeyPath, str]]:
    """pydantic's errors about `tree` -> (path inside the tree, sentence), one for each path that is wrong."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_path_in(tree, detail), []).append(detail)
    deepest = [
        path
        for path in by_path
        if not any(other != path and other[: len(path)] == path for other in by_path) or not _is_type(by_path[path])
    ]
    return [(path, _sentence(model, path, by_path[path])) for path in deepest]


def _is_type(details: list[ErrorDetails]) -> bool:
    """Only complaints about the type: of the branches of a union, a deeper complaint (about an item of the list) says more."""
    return all(detail["type"] in _NOUNS for detail in details)


def _path_in(root: Any, detail: ErrorDetails) -> KeyPath:
    """pydantic's location without what the file does not hold: names of union branches, and keys that a short form stands for."""
    path: list[str | int] = []
    tree = root
    for part in detail["loc"]:
        inside = part in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if inside:
            tree = tree[part]
            path.append(part)
        elif detail["type"] == "missing" and isinstance(tree, dict) and isinstance(part, str):
            path.append(part)
    return tuple(path)


def _sentence(model: type[BaseModel], path: KeyPath, details: list[ErrorDetails]) -> str:
    bounds = [detail for detail in details if detail["type"] in _BOUNDS]
    detail = (bounds or details)[0]
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        limit = format_size(context[name]) if isinstance(given, str) else f"{context[name]:.12g}"  # text is a size
        return f"{shown(given)} is {words} {limit}."
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return unknown_key(str(path[-1]), _model_at(model, path[:-1]).model_fields)
    if kind == "missing":
        return _missing(model, path, detail)
    if kind in ("too_short", "too_long"):
        limit = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"{shown(given)} has {context['actual_length']} values. Write {limit}."
    if kind == "string_too_short":
        return "'' is empty. Write a word."
    if [each["type"] for each in details] == ["model_type"]:
        return f"{_wrong_type(given, details)} Its keys: {', '.join(_model_at(model, path).model_fields)}."
    return _wrong_type(given, details)


def _missing(model: type[BaseModel], path: KeyPath, detail: ErrorDetails) -> str:
    if isinstance(detail["loc"][-1], int):
        return f"{shown(detail['input'])} has too few values."
    meaning = _model_at(model, path[:-1]).model_fields[str(path[-1])].description
    return f"missing. Write it: {meaning}." if meaning else "missing. It has no default, so write it."


def _wrong_type(given: Any, details: list[ErrorDetails]) -> str:
    """'8' is not a whole number. Of a union, all that is legal is named."""
    words: list[str] = []  # those that a Literal allows
    nouns: list[str] = []
    for detail in details:
        if detail["type"] == "literal_error":
            words += re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        else:
            nouns.append(_NOUNS.get(detail["type"], detail["msg"]))
    choice = [f"one of {', '.join(words)}" if len(words) > 1 else words[0]] if words else []
    legal = " or ".join(choice + nouns)
    return f"it has no value. Write {legal}." if given is None else f"{shown(given)} is not {legal}.{_hint(given, words, nouns)}"


def _hint(given: Any, words: list[str], nouns: list[str]) -> str:
    if isinstance(given, str):
        near = difflib.get_close_matches(given, words, n=1)
        if near:
            return f" Did you mean {near[0]}?"
        if "true or false" in nouns and given.lower() in _WORDS:
            return f" Write {_WORDS[given.lower()]}."
        if {"a whole number", "a number"} & set(nouns) and re.fullmatch(r"-?\d+(\.\d+)?", given):
            return f" Write {given} without quotes."
    if isinstance(given, float) and "a whole number" in nouns and given.is_integer():
        return f" Write {int(given)}."
    if isinstance(given, bool | int | float) and nouns == ["text"]:
        return f" Write '{shown(given)}', in quotes."
    if nouns == ["a list"] and not isinstance(given, dict):
        return f" Write [{given if isinstance(given, str) else shown(given)}]."
    return ""


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    """The model of the group at `path`, a path that pydantic itself went along."""
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)  # the name of a block
        model = next(m for m in (annotation, *get_args(annotation)) if isinstance(m, type) and issubclass(m, BaseModel))
    return model
