"""A YAML 1.2 file as plain Python, with the place of every key.

The words yes, no, on and off are text here, 1e-4 is a number and 010 is ten, as YAML 1.2 has them. The file is composed to nodes
rather than loaded: nodes keep the line of every key and item, and show duplicate keys, which are faults like any other. A `--set`
override is written into the same tree; from then on the key's place is that override instead of a line.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sweeps.faults import ConfigFaults, Fault, KeyPath, shown, spell

MAX_DEPTH = 50  # of what is nested; a sweep needs ten, and the reader takes minutes for thousands

_TAG = "tag:yaml.org,2002:"
_TEXT = ("str", "timestamp", "merge")  # YAML 1.2's core schema has neither dates nor merge keys, so these are text as well
_KINDS = {MappingNode: ("map",), SequenceNode: ("seq",), ScalarNode: (*_TEXT, "null", "bool", "int", "float")}


@dataclass
class Source:
    """A file's tree, the place of each of its keys, and the faults found so far."""

    name: str
    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, int | str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    faulty: set[KeyPath] = field(default_factory=set)
    overridden: list[KeyPath] = field(default_factory=list)

    def written(self, path: KeyPath) -> int:
        """How many leading parts of `path` the file writes."""
        return next(n for n in range(len(path), -1, -1) if path[:n] in self.places or n == 0)

    def at(self, path: KeyPath) -> Any:
        """The value at `path`, None where there is none."""
        tree: Any = self.tree
        for part in path:
            tree = tree.get(part) if isinstance(tree, dict) else None
        return tree

    def fault(self, path: KeyPath, text: str) -> None:
        """Note a fault of the key at `path`; a key that is absent stands where its group does."""
        self.faulty.add(path)
        self.faults.append(Fault(self.places.get(path[: self.written(path)], 1), spell(path), text))

    def set(self, override: str) -> None:
        """Write `dotted.path=YAML value` into the tree. Groups on the way are made where they are absent."""
        dotted, equals, text = override.partition("=")
        dotted = dotted.strip()
        path = tuple(dotted.split("."))
        place = f"--set {dotted}"
        if not equals or not all(path):
            self.faults.append(Fault(f"--set {override}", "", "is not key=value. Write --set parameters.sgdr.epochs=3"))
            return
        places: dict[KeyPath, int | str] = {}
        faults: list[Fault] = []
        try:
            value = _read(text, place, places, faults)
        except ConfigFaults as error:
            faults = error.faults
        if faults:
            self.faults += [Fault(place, dotted, fault.text) for fault in faults]
            return
        group = self._group(path, place)
        if group is not None:
            group[path[-1]] = value
            self.overridden.append(path)
            self.places = {old: at for old, at in self.places.items() if old[: len(path)] != path} | {path: place}
            self.places |= dict.fromkeys((path + inner for inner in places), place)

    def _group(self, path: KeyPath, place: str) -> dict[str, Any] | None:
        """The group that holds the last key of `path`, or None with a fault noted."""
        group: Any = self.tree
        for n, part in enumerate(path[:-1], start=1):
            if part not in group:
                group[part] = {}
                self.places[path[:n]] = place
            group = group[part]
            if not isinstance(group, dict):
                text = f"{spell(path[:n])} is {shown(group)}, not a group of keys. Set {spell(path[:n])} whole."
                self.faults.append(Fault(place, spell(path), text))
                return None
        return group


def read(path: Path) -> Source:
    """Read a sweep file. Raises ConfigFaults where nothing can be made of it; lesser faults are in the Source that it returns."""
    name = path.name
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (
            "does not exist. Name a sweep file that does." if isinstance(error, FileNotFoundError) else f"can't be read: {error.strerror}."
        )
        raise ConfigFaults(name, [Fault(str(path), "", reason)]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        text = f"byte 0x{error.object[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        raise ConfigFaults(name, [Fault(line, "", text)]) from None
    source = Source(name)
    tree = _read(text, name, source.places, source.faults)
    if tree is None:
        raise ConfigFaults(name, [Fault(1, "", "the file is empty. Write at least a name and parameters.")])
    if not isinstance(tree, dict):
        raise ConfigFaults(name, [Fault(1, "", f"the file holds {shown(tree)}, not a group of keys. Write name: value lines.")])
    source.tree = tree
    return source


def _read(text: str, name: str, places: dict[KeyPath, int | str], faults: list[Fault]) -> Any:
    """YAML text -> plain Python. Fills `places` with lines, and `faults` with those that leave the rest readable."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False  # YAML 1.2 lets a later anchor take an earlier one's name
    try:
        node = yaml.compose(io.StringIO(text))
        return None if node is None else _Plain(yaml, places, faults).value(node, ())
    except MaxDepthExceededError:
        raise ConfigFaults(name, [Fault(1, "", f"the file is nested too deep, more than {MAX_DEPTH} levels.")]) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigFaults(name, [Fault(line, "", _syntax(error, text, line))]) from None
    except YAMLError as error:  # the reader's: a character that YAML does not allow
        line = text[: getattr(error, "position", 0)].count("\n") + 1
        raise ConfigFaults(name, [Fault(line, "", f"not YAML: {str(error).splitlines()[0]}.")]) from None
    except RecursionError:
        raise ConfigFaults(name, [Fault(1, "", "the file holds an alias of itself.")]) from None


def _syntax(error: MarkedYAMLError, text: str, line: int) -> str:
    if "\\t" in str(error.problem):
        return "a tab. YAML indents with spaces: replace it."
    begun = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
    context = f" ({error.context}{begun})" if error.context else ""
    lines = text.splitlines()
    at = repr(lines[line - 1].strip()) if line <= len(lines) else "the end of the file"
    return f"not YAML: {error.problem}{context}, at {at}."


@dataclass
class _Plain:
    """Nodes -> plain Python."""

    yaml: YAML
    places: dict[KeyPath, int | str]
    faults: list[Fault]

    def value(self, node: Node, path: KeyPath) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _KINDS[type(node)]:
            tag = str(node.tag).replace(_TAG, "!!")
            self._fault(path, node.start_mark.line + 1, f"the tag {tag} has no meaning here. Remove it.")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return self._sequence(node, path)
        return self._scalar(node, kind, path)

    def _sequence(self, node: SequenceNode, path: KeyPath) -> list[Any]:
        items = []
        for i, item in enumerate(node.value):
            self.places[*path, i] = item.start_mark.line + 1
            items.append(self.value(item, (*path, i)))
        return items

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._fault(path, line, "a key must be a word, not a list or a group.")
            elif str(key_node.tag).removeprefix(_TAG) not in _TEXT:
                self._fault((*path, key), line, f"this key is not text. Write '{key}', in quotes.")
            elif key in plain:
                self._fault((*path, key), line, f"written twice; first on line {first_lines[key]}. Keep one.")
            else:
                first_lines[key] = line
                self.places[*path, key] = line
                plain[key] = self.value(value_node, (*path, key))
        return plain

    def _scalar(self, node: Node, kind: str, path: KeyPath) -> Any:
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
            self._fault(path, node.start_mark.line + 1, f"{shown(node.value)} can't be read as !!{kind}.")
            return node.value

    def _fault(self, path: KeyPath, line: int, text: str) -> None:
        self.faults.append(Fault(line, spell(path), text))
