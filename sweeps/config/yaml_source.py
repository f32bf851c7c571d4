"""Reads a YAML 1.2 file as plain Python, with the place of every key.

As YAML 1.2 requires, the words yes, no, on and off are text, 1e-4 is a number, and 010 is ten. The
file is composed to nodes rather than loaded. Nodes retain the line of every key and item, and they
show duplicate keys, which are faults as well. A `--set` override is written into the same tree.
From then on the key's place is that override instead of a line.
"""

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sweeps.config.config_errors import ConfigFaults, Fault, KeyPath, format_path, format_value

MAX_DEPTH = 50  # nested levels; a sweep needs ten, and the reader takes minutes for thousands

_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2 has neither dates nor merge keys, so these are text as well
_TEXT = ("str", "timestamp", "merge")
_KINDS = {
    MappingNode: ("map",),
    SequenceNode: ("seq",),
    ScalarNode: (*_TEXT, "null", "bool", "int", "float"),
}


@dataclass
class Source:
    """Tree of a file, with the place of every key and the faults so far.

    A place is a line number, or the override that wrote the key.
    """

    name: str
    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, int | str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    faulty_paths: set[KeyPath] = field(default_factory=set)
    overridden_paths: list[KeyPath] = field(default_factory=list)

    def written_depth(self, path: KeyPath) -> int:
        """Returns how many leading parts of `path` the file contains."""
        return next(n for n in range(len(path), -1, -1) if path[:n] in self.places or n == 0)

    def at(self, path: KeyPath) -> Any:
        """Returns the value at `path`, None where there is none."""
        tree: Any = self.tree
        for part in path:
            tree = tree.get(part) if isinstance(tree, dict) else None
        return tree

    def add_fault(self, path: KeyPath, text: str) -> None:
        """Adds a fault of the key at `path`. The place of an absent key is that of its group."""
        self.faulty_paths.add(path)
        self.faults.append(
            Fault(self.places.get(path[: self.written_depth(path)], 1), format_path(path), text)
        )

    def set(self, override: str) -> None:
        """Writes the override `dotted.path=YAML value` into the tree, or adds its faults.

        Creates the groups of the path that are absent.
        """
        dotted, equals, text = override.partition("=")
        dotted = dotted.strip()
        path = tuple(dotted.split("."))
        place = f"--set {dotted}"
        if not equals or not all(path):
            self.faults.append(
                Fault(
                    f"--set {override}",
                    "",
                    "is not key=value. Write it as in --set parameters.sgdr.epochs=3.",
                )
            )
            return
        places: dict[KeyPath, int | str] = {}
        faults: list[Fault] = []
        try:
            value = _read_yaml(text, place, places, faults)
        except ConfigFaults as error:
            faults = error.faults
        if faults:
            self.faults += [Fault(place, dotted, fault.text) for fault in faults]
            return
        group = self._create_group(path, place)
        if group is not None:
            group[path[-1]] = value
            self.overridden_paths.append(path)
            self.places = {
                key: at for key, at in self.places.items() if key[: len(path)] != path
            } | {path: place}
            self.places |= dict.fromkeys((path + inner for inner in places), place)

    def _create_group(self, path: KeyPath, place: str) -> dict[str, Any] | None:
        """Returns the group that contains the last key of `path`.

        Creates absent groups. Returns None and adds a fault where a group can't be created.
        """
        group: Any = self.tree
        for n, part in enumerate(path[:-1], start=1):
            if part not in group:
                group[part] = {}
                self.places[path[:n]] = place
            group = group[part]
            if not isinstance(group, dict):
                text = (
                    f"{format_path(path[:n])} is {format_value(group)}, not a group of keys. Set"
                    f" {format_path(path[:n])} as a whole."
                )
                self.faults.append(Fault(place, format_path(path), text))
                return None
        return group


def read(path: Path) -> Source:
    """Reads a sweep file and parses it. Raises ConfigFaults, as `read_text` and `parse` do."""
    return parse(read_text(path), path.name)


def read_text(path: Path) -> str:
    """Reads the text of a sweep file, or of the standard input where the path is '-'.

    A pipe can be read only once. Raises ConfigFaults.
    """
    name = path.name
    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode(
            "utf-8-sig"
        )
    except OSError as error:
        reason = (
            "does not exist. Write the path of a sweep file."
            if isinstance(error, FileNotFoundError)
            else f"can't be read: {error.strerror}."
        )
        raise ConfigFaults(name, [Fault(str(path), "", reason)]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        text = f"byte 0x{error.object[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        raise ConfigFaults(name, [Fault(line, "", text)]) from None


def parse(text: str, name: str) -> Source:
    """Parses the text of a sweep file.

    Raises ConfigFaults where the text can't be parsed at all. The returned Source contains all
    other faults.
    """
    source = Source(name)
    tree = _read_yaml(text, name, source.places, source.faults)
    if tree is None:
        raise ConfigFaults(
            name, [Fault(1, "", "the file is empty. Write at least a name and parameters.")]
        )
    if not isinstance(tree, dict):
        raise ConfigFaults(
            name,
            [
                Fault(
                    1,
                    "",
                    f"the file contains {format_value(tree)}, not a group of keys. Write name:"
                    " value lines.",
                )
            ],
        )
    source.tree = tree
    return source


def _read_yaml(text: str, name: str, places: dict[KeyPath, int | str], faults: list[Fault]) -> Any:
    """Converts YAML text into plain Python; fills `places` with the line of every key.

    Adds faults after which the rest is readable to `faults`. Raises ConfigFaults for all others.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    # YAML 1.2 allows a later anchor with the name of an earlier one
    yaml.composer.warn_double_anchors = False
    try:
        node = yaml.compose(io.StringIO(text))
        return None if node is None else _NodeConverter(yaml, places, faults).convert(node, ())
    except MaxDepthExceededError:
        raise ConfigFaults(
            name, [Fault(1, "", f"the file has more than {MAX_DEPTH} nested levels.")]
        ) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigFaults(
            name, [Fault(line, "", _describe_syntax_error(error, text, line))]
        ) from None
    except YAMLError as error:  # of the reader: a character that YAML does not allow
        line = text[: getattr(error, "position", 0)].count("\n") + 1
        raise ConfigFaults(
            name, [Fault(line, "", f"not YAML: {str(error).splitlines()[0]}.")]
        ) from None
    except RecursionError:
        raise ConfigFaults(name, [Fault(1, "", "the file contains an alias of itself.")]) from None


def _describe_syntax_error(error: MarkedYAMLError, text: str, line: int) -> str:
    """Returns the text of the fault for a syntax error."""
    if "\\t" in str(error.problem):
        return "the line contains a tab. YAML indents with spaces: replace it."
    origin = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
    context = f" ({error.context}{origin})" if error.context else ""
    lines = text.splitlines()
    location = repr(lines[line - 1].strip()) if line <= len(lines) else "the end of the file"
    return f"not YAML: {error.problem}{context}, at {location}."


@dataclass
class _NodeConverter:
    """Converts YAML nodes into plain Python, and records places and faults."""

    yaml: YAML
    places: dict[KeyPath, int | str]
    faults: list[Fault]

    def convert(self, node: Node, path: KeyPath) -> Any:
        """Returns the plain value of a node; adds a fault if its tag has no meaning."""
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _KINDS[type(node)]:
            tag = str(node.tag).replace(_TAG, "!!")
            self._add_fault(
                path, node.start_mark.line + 1, f"the tag {tag} is not supported. Remove it."
            )
        if isinstance(node, MappingNode):
            return self._convert_mapping(node, path)
        if isinstance(node, SequenceNode):
            return self._convert_sequence(node, path)
        return self._convert_scalar(node, kind, path)

    def _convert_sequence(self, node: SequenceNode, path: KeyPath) -> list[Any]:
        items = []
        for i, item in enumerate(node.value):
            self.places[*path, i] = item.start_mark.line + 1
            items.append(self.convert(item, (*path, i)))
        return items

    def _convert_mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._add_fault(path, line, "a key must be a word, not a list or a group.")
            elif str(key_node.tag).removeprefix(_TAG) not in _TEXT:
                self._add_fault(
                    (*path, key), line, f"this key is not text. Write '{key}', in quotes."
                )
            elif key in plain:
                self._add_fault(
                    (*path, key),
                    line,
                    f"written twice; first on line {first_lines[key]}. Keep one.",
                )
            else:
                first_lines[key] = line
                self.places[*path, key] = line
                plain[key] = self.convert(value_node, (*path, key))
        return plain

    def _convert_scalar(self, node: Node, kind: str, path: KeyPath) -> Any:
        construct = self.yaml.constructor
        converters = {
            "null": lambda node: None,
            "bool": construct.construct_yaml_bool,
            "int": construct.construct_yaml_int,
            "float": construct.construct_yaml_float,
        }
        try:
            return converters[kind](node) if kind in converters else node.value
        except (ValueError, KeyError):
            self._add_fault(
                path,
                node.start_mark.line + 1,
                f"{format_value(node.value)} can't be read as !!{kind}.",
            )
            return node.value

    def _add_fault(self, path: KeyPath, line: int, text: str) -> None:
        self.faults.append(Fault(line, format_path(path), text))
