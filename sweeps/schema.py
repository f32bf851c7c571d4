"""python launch.py --schema: the JSON Schema of a sweep file, by which an editor completes, explains and checks it while it is written.

The one idea is that it is made of the models that check the file, so it can't tell another story. What those leave open is filled in
here: `parameters` holds any part of a trial, each of its keys and groups a constant or {values: [...]}; `exclude` holds conditions on
them. An editor sees less than `load` does: rules that bind several keys, and combinations, are told by the launch.
"""

from collections.abc import Iterator
from typing import Any

from speech.config import TrialConfig
from sweeps.config import SweepConfig

Schema = dict[str, Any]

PARTS = "#/$defs/"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NUMBERS = ("integer", "number")
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def schema() -> Schema:
    """Draft 2020-12. Every key has a description."""
    root, trial = SweepConfig.model_json_schema(), TrialConfig.model_json_schema()
    parts, groups = root["$defs"], trial["$defs"]
    parts |= groups  # whole, as one of `values`
    parts |= {f"Swept{name}": _swept_group(name, group) for name, group in groups.items()}
    parts["Trial"] = _object(trial["properties"])
    parts["Parameters"] = _object({name: _swept(f"Trial/properties/{name}", field) for name, field in trial["properties"].items()})
    parts["Condition"] = _condition(trial["properties"], groups)
    for model in (root, parts["Block"]):
        keys = model["properties"]
        keys["parameters"] = {"$ref": f"{PARTS}Parameters", "description": keys["parameters"]["description"]}
        keys["exclude"]["items"] = {"$ref": f"{PARTS}Condition"}
    for node in _nodes(root):
        node.pop("title", None)
        _bound_numbers(node)
    return {"$schema": DIALECT, "title": "sweep.yaml", **root}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _keys(name: str, group: Schema) -> tuple[str, Schema]:
    """Where the keys of a group stand in the schema, and these keys; a group may have a short form before them."""
    if "properties" in group:
        return f"{name}/properties", group["properties"]
    at = next(i for i, branch in enumerate(group["anyOf"]) if "properties" in branch)
    return f"{name}/anyOf/{at}/properties", group["anyOf"][at]["properties"]


def _swept_group(name: str, group: Schema) -> Schema:
    """A group that need not be whole, since a block lays its keys over the sweep's, and whose keys may be swept; or its short form."""
    place, keys = _keys(name, group)
    partial = _object({key: _swept(f"{place}/{key}", field) for key, field in keys.items()})
    return {"anyOf": [*(branch for branch in group.get("anyOf", []) if "properties" not in branch), partial]}


def _swept(place: str, field: Schema) -> Schema:
    """What may stand for the key at `place`: a constant, or several to be tried."""
    whole = {"$ref": f"{PARTS}{place}"}
    constant = {"$ref": field["$ref"].replace(PARTS, f"{PARTS}Swept")} if "$ref" in field else whole
    values = {"type": "array", "items": whole, "minItems": 1, "uniqueItems": True, "description": "each is tried, with all of the others"}
    return _about(field) | {"anyOf": [constant, _object({"values": values}) | {"required": ["values"]}]}


def _condition(fields: Schema, groups: Schema) -> Schema:
    """An entry of `exclude`: dotted keys, or keys in their groups, with a value or a list of which any will do."""
    properties: Schema = {}
    for name, field in fields.items():
        whole = _any_of(f"Trial/properties/{name}", field)
        if "$ref" in field:
            place, keys = _keys(field["$ref"].removeprefix(PARTS), groups[field["$ref"].removeprefix(PARTS)])
            inside = {key: _any_of(f"{place}/{key}", inner) for key, inner in keys.items()}
            properties |= {f"{name}.{key}": inner for key, inner in inside.items()}
            whole["anyOf"].insert(0, _object({key: {"$ref": f"{PARTS}Condition/properties/{name}.{key}"} for key in keys}))
        properties[name] = whole
    return _object(properties) | {"minProperties": 1, "description": "What holds together at the points that are not to run."}


def _any_of(place: str, field: Schema) -> Schema:
    value = {"$ref": f"{PARTS}{place}"}
    return {"description": field["description"], "anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _about(field: Schema) -> Schema:
    return {name: field[name] for name in ("description", "default") if name in field}


def _nodes(schema: Any) -> Iterator[Schema]:
    """Every schema in it; a key that is called title is none."""
    if isinstance(schema, list):
        for item in schema:
            yield from _nodes(item)
    elif isinstance(schema, dict):
        yield schema
        for name, inner in schema.items():
            if name in ("properties", "$defs"):
                yield from _nodes(list(inner.values()))
            elif name not in ("default", "enum", "examples", "required"):
                yield from _nodes(inner)


def _bound_numbers(node: Schema) -> None:
    """A bound that pydantic leaves on a union, in words that JSON Schema doesn't know, holds for its numbers."""
    for word, name in BOUNDS.items():
        if word in node:
            limit = node.pop(word)
            for inner in _nodes(node.get("anyOf", [])):
                if inner.get("type") in NUMBERS:
                    inner[name] = limit
