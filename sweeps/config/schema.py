"""Builds the JSON Schema of a sweep file, printed by python launch.py schema.

With the schema an editor completes, explains and checks a sweep file while it is written. It is
made from the models that check the file, so the two can't disagree. This module adds the parts that
the models do not define. `parameters` holds any part of a trial: its keys and groups are constants
or {values: [...]}. `exclude` holds conditions on them. An editor checks less than `load` does: only
the launch reports faults of combinations and of rules that bind several keys.
"""

import re
from collections.abc import Iterator
from typing import Any

from speech.config import TrialConfig
from sweeps.config.config import SweepConfig

Schema = dict[str, Any]

PARTS = "#/$defs/"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NUMBERS = ("integer", "number")
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def build_schema() -> Schema:
    """Returns the JSON Schema, draft 2020-12. Every key has a description."""
    root, trial = SweepConfig.model_json_schema(), TrialConfig.model_json_schema()
    parts, groups = root["$defs"], trial["$defs"]
    parts |= groups  # complete groups, for the items of `values`
    parts |= {f"Swept{name}": _swept_group(name, group) for name, group in groups.items()}
    parts["Trial"] = _object(trial["properties"])
    parts["Parameters"] = _object(
        {
            name: _sweepable(f"Trial/properties/{name}", field)
            for name, field in trial["properties"].items()
        }
    )
    parts["Condition"] = _condition(trial["properties"], groups)
    for model in (root, parts["Block"]):
        keys = model["properties"]
        keys["parameters"] = {
            "$ref": f"{PARTS}Parameters",
            "description": keys["parameters"]["description"],
        }
        keys["exclude"]["items"] = {"$ref": f"{PARTS}Condition"}
    for node in _subschemas(root):
        node.pop("title", None)
        if isinstance(node.get("description"), str):  # of a docstring, whose lines are wrapped
            node["description"] = re.sub(r"(?<!\n)\n(?!\n)", " ", node["description"])
        _bound_numbers(node)
    return {"$schema": DIALECT, "title": "sweep.yaml", **root}


def _object(properties: Schema) -> Schema:
    """Returns the schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _group_keys(name: str, group: Schema) -> tuple[str, Schema]:
    """Returns the path of a group's keys in the schema, and the schemas of these keys.

    A group may have a short form before them.
    """
    if "properties" in group:
        return f"{name}/properties", group["properties"]
    index = next(i for i, branch in enumerate(group["anyOf"]) if "properties" in branch)
    return f"{name}/anyOf/{index}/properties", group["anyOf"][index]["properties"]


def _swept_group(name: str, group: Schema) -> Schema:
    """Returns the schema of a group that may be incomplete, or of its short form.

    A block lays its keys over the sweep's, so it may lack some of them. The keys may be swept.
    """
    place, keys = _group_keys(name, group)
    partial = _object({key: _sweepable(f"{place}/{key}", field) for key, field in keys.items()})
    return {
        "anyOf": [
            *(branch for branch in group.get("anyOf", []) if "properties" not in branch),
            partial,
        ]
    }


def _sweepable(place: str, field: Schema) -> Schema:
    """Returns the schema of a value for the key at `place`: a constant, or several values."""
    whole = {"$ref": f"{PARTS}{place}"}
    constant = {"$ref": field["$ref"].replace(PARTS, f"{PARTS}Swept")} if "$ref" in field else whole
    values = {
        "type": "array",
        "items": whole,
        "minItems": 1,
        "uniqueItems": True,
        "description": "every value runs with every combination of the other swept values",
    }
    return _annotations(field) | {
        "anyOf": [constant, _object({"values": values}) | {"required": ["values"]}]
    }


def _condition(fields: Schema, groups: Schema) -> Schema:
    """Returns the schema of an entry of `exclude`.

    It has dotted keys, or keys in their groups, with a value or a list of which any item matches.
    """
    properties: Schema = {}
    for name, field in fields.items():
        whole = _one_or_several(f"Trial/properties/{name}", field)
        if "$ref" in field:
            place, keys = _group_keys(
                field["$ref"].removeprefix(PARTS), groups[field["$ref"].removeprefix(PARTS)]
            )
            inside = {key: _one_or_several(f"{place}/{key}", inner) for key, inner in keys.items()}
            properties |= {f"{name}.{key}": inner for key, inner in inside.items()}
            whole["anyOf"].insert(
                0,
                _object(
                    {key: {"$ref": f"{PARTS}Condition/properties/{name}.{key}"} for key in keys}
                ),
            )
        properties[name] = whole
    return _object(properties) | {
        "minProperties": 1,
        "description": "Conditions that select the points to exclude; all must hold.",
    }


def _one_or_several(place: str, field: Schema) -> Schema:
    """Returns the schema of a value for the key at `place`, or of a list of such values."""
    value = {"$ref": f"{PARTS}{place}"}
    return {
        "description": field["description"],
        "anyOf": [value, {"type": "array", "items": value, "minItems": 1}],
    }


def _annotations(field: Schema) -> Schema:
    """Returns the description and the default of a key."""
    return {name: field[name] for name in ("description", "default") if name in field}


def _subschemas(schema: Any) -> Iterator[Schema]:
    """Yields every schema inside `schema`, itself included.

    A key of a sweep file that is called title is none.
    """
    if isinstance(schema, list):
        for item in schema:
            yield from _subschemas(item)
    elif isinstance(schema, dict):
        yield schema
        for name, inner in schema.items():
            if name in ("properties", "$defs"):
                yield from _subschemas(list(inner.values()))
            elif name not in ("default", "enum", "examples", "required"):
                yield from _subschemas(inner)


def _bound_numbers(node: Schema) -> None:
    """Moves the bounds that pydantic sets on a union to the numbers in it.

    pydantic writes them with keywords that JSON Schema does not have.
    """
    for keyword, name in BOUNDS.items():
        if keyword in node:
            limit = node.pop(keyword)
            for inner in _subschemas(node.get("anyOf", [])):
                if inner.get("type") in NUMBERS:
                    inner[name] = limit
