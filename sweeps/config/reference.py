"""Writes the key reference of sweep files, as Markdown tables, into a page of the documentation.

    python -m sweeps.config.reference docs/sweep-file.md

The tables are made from the JSON Schema (sweeps/config/schema.py), which is made from the models
that check a file. The reference therefore lists exactly the keys that a launch accepts. They
replace the text between two marker comments of the page; the rest of the page is written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweeps.config.schema import PARTS, Schema, build_schema

BEGIN = "<!-- key reference: begin (python -m sweeps.config.reference docs/sweep-file.md) -->"
END = "<!-- key reference: end -->"
# Definitions that are explained elsewhere than in a table of their own: their link on the page
EXPLAINED = {"Condition": "[conditions](#points-that-do-not-run)"}
# In the schema every parameter of a sweep may be swept; the table shows the constant's values
SHOWN_AS = {"Parameters": "Trial"}
# Characters that Markdown would read as emphasis or HTML; an underscore only at the edge of a word
MARKUP = re.compile(r"[<*]|(?<!\w)_|_(?!\w)")
TITLES = {
    "": "Keys of a sweep file",
    "blocks": "Keys of a block",
    "parameters": "Keys of `parameters`",
}


class Section(NamedTuple):
    """The keys of one group: where it stands in a file, its properties and its required keys."""

    path: str
    properties: Schema
    required: Sequence[str]

    @property
    def title(self) -> str:
        """Heading of the section's table."""
        return TITLES.get(self.path) or f"Keys of `{self.path.removeprefix('parameters.')}`"

    @property
    def link(self) -> str:
        """Link to the section's table on the same page."""
        anchor = self.title.lower().replace("`", "").replace(".", "").replace(" ", "-")
        return f"[{self.title[0].lower()}{self.title[1:]}](#{anchor})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exits with a message if the page has no markers."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.exit("usage: python -m sweeps.config.reference PAGE, as in docs/sweep-file.md")
    page = Path(given[0])
    try:
        text = replace_reference(page.read_text("utf-8"), build_schema())
    except ValueError as problem:
        sys.exit(f"{page}: {problem}")
    page.write_text(text, "utf-8")


def replace_reference(page: str, schema: Schema) -> str:
    """Returns the page with the reference of `schema` between its markers.

    Raises ValueError if the page does not have both markers, once each and in this order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(
            f"the page needs these two lines, once each and in this order:\n{BEGIN}\n{END}"
        )
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    return f"{before}{BEGIN}\n\n{format_reference(schema)}\n\n{END}{after}"


def format_reference(schema: Schema) -> str:
    """Returns a heading and a table for every group of keys, the file's own keys first."""
    return "\n\n".join(_format_section(section, schema) for section in find_sections(schema))


def find_sections(schema: Schema) -> list[Section]:
    """Returns the groups of keys, each before the groups in it, and each once."""
    sections = [Section("", schema["properties"], schema.get("required", []))]
    shown: set[str] = set()
    for section in sections:  # grows while groups are found in groups
        for key, node in section.properties.items():
            for name, group in _find_groups(node, schema):
                if name not in shown and name not in EXPLAINED:
                    shown.add(name)
                    path = f"{section.path}.{key}".lstrip(".")
                    sections.append(Section(path, group["properties"], group.get("required", [])))
    return sorted(
        sections, key=lambda section: [_rank(sections, path) for path in _ancestors(section.path)]
    )


def _ancestors(path: str) -> list[str]:
    """Returns '', 'a' and 'a.b' for 'a.b'."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def _rank(sections: Sequence[Section], path: str) -> int:
    return next(rank for rank, section in enumerate(sections) if section.path == path)


def _resolve(reference: str, schema: Schema) -> tuple[str, Schema]:
    """Returns the name and the definition that a reference of the schema leads to."""
    name = reference.removeprefix(PARTS)
    name = SHOWN_AS.get(name, name)
    node = schema["$defs"]
    for part in name.split("/"):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return name, node


def _find_groups(node: Schema, schema: Schema, name: str = "") -> Iterator[tuple[str, Schema]]:
    """Yields the definitions with keys of their own that a key's value may be, with their names."""
    if "$ref" in node:
        name, target = _resolve(node["$ref"], schema)
        yield from _find_groups(target, schema, name)
    elif "properties" in node:
        yield name, node
    else:
        for branch in node.get("anyOf", []):
            yield from _find_groups(branch, schema, name)
        if isinstance(node.get("additionalProperties"), dict):
            yield from _find_groups(node["additionalProperties"], schema)


def _format_section(section: Section, schema: Schema) -> str:
    """Returns the heading and the table of one group."""
    lines = [
        f"### {section.title}",
        "",
        "| key | legal values | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, node in section.properties.items():
        path = f"{section.path}.{key}".lstrip(".")
        legal = format_legal_values(node, schema, path)
        meaning = node.get("description") or _resolve(node["$ref"], schema)[1]["description"]
        default = _format_default(node, key in section.required)
        lines.append(
            "| "
            + " | ".join(_cell(text) for text in (f"`{key}`", legal, default, _escape(meaning)))
            + " |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Returns text that cannot end a cell or a row of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _escape(text: str) -> str:
    """Returns plain text that Markdown shows as it is; text between backticks stays code."""
    parts = text.split("`")
    return "`".join(part if n % 2 else MARKUP.sub(r"\\\g<0>", part) for n, part in enumerate(parts))


def _format_default(node: Schema, required: bool) -> str:
    """Returns the default of a key; `absent` if the default is to leave the key out."""
    if required:
        return "required"
    if "default" not in node:
        return "none"
    return "absent" if node["default"] is None else f"`{_format_constant(node['default'])}`"


def _format_constant(value: Any) -> str:
    """Returns a value as a sweep file writes it."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{key}: {_format_constant(inner)}" for key, inner in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_constant, value)) + "]"
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def format_legal_values(node: Schema, schema: Schema, path: str = "") -> str:
    """Returns the legal values of a key as a phrase; `path` is the key's place in the file."""
    if "$ref" in node:
        name, target = _resolve(node["$ref"], schema)
        return EXPLAINED.get(name) or format_legal_values(target, schema, path)
    if "anyOf" in node:
        branches = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
        return " or ".join(format_legal_values(branch, schema, path) for branch in branches)
    if "enum" in node:
        return ", ".join(f"`{_format_constant(value)}`" for value in node["enum"])
    if "const" in node:
        return f"`{_format_constant(node['const'])}`"
    match node.get("type"):
        case "object":
            return _format_object(node, schema, path)
        case "array":
            return _format_array(node, schema)
        case "integer" | "number":
            return _format_number(node)
        case "boolean":
            return "`true`, `false`"
    if "examples" in node:
        return "text such as " + ", ".join(f"`{example}`" for example in node["examples"])
    return f"text that matches `{node['pattern']}`" if "pattern" in node else "text"


def _format_object(node: Schema, schema: Schema, path: str) -> str:
    if "properties" in node:
        return Section(_first_path(node, schema, path), {}, []).link
    return f"names with the {Section(path, {}, []).link}"


def _first_path(node: Schema, schema: Schema, path: str) -> str:
    """Returns the path under which a group has its table: its first place in the file."""
    same = [
        section.path
        for section in find_sections(schema)
        if section.properties is node["properties"]
    ]
    return same[0] if same else path


def _format_array(node: Schema, schema: Schema) -> str:
    if "prefixItems" in node:
        return (
            "[" + ", ".join(format_legal_values(item, schema) for item in node["prefixItems"]) + "]"
        )
    low, high = node.get("minItems", 0), node.get("maxItems")
    count = f" of {low} to {high}" if high else f" of {low} or more" if low else ""
    return f"list{count}: {format_legal_values(node['items'], schema)}"


def _format_number(node: Schema) -> str:
    kind = "integer" if node["type"] == "integer" else "number"
    if "minimum" in node and "maximum" in node:
        return f"{kind} from {_format_bound(node['minimum'])} to {_format_bound(node['maximum'])}"
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "up to",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {_format_bound(node[name])}" for name, word in words.items() if name in node]
    return f"{kind} {', '.join(bounds)}".rstrip()


def _format_bound(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


if __name__ == "__main__":
    main()
