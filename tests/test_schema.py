"""The JSON Schema: it is the file's, every key is explained, shipped sweeps pass and broken ones
don't."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import launch
from sweeps.config.schema import build_schema
from sweeps.config.sweep_file import load
from sweeps.config.yaml_source import read

ROOT = Path(__file__).parent.parent
SHIPPED = [
    ROOT / "sweep.yaml",
    *sorted((ROOT / "sweeps/examples").glob("*.yaml")),
    *sorted((ROOT / "tests/benchmarks").glob("*.yaml")),
]
SCHEMA = build_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
MINIMAL = "name: x\nparameters:\n  corpus: {name: synthetic, words: [yes, no]}\n"


def at(reference: str) -> Any:
    node = SCHEMA
    for part in reference.removeprefix("#/").split("/"):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def keys(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that a file may have, wherever in it."""
    for inner in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from keys(inner)
    if isinstance(node, dict) and isinstance(node.get("properties"), dict):
        yield from node["properties"].items()


def test_it_is_a_schema_and_every_key_has_a_description() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    found = list(keys(SCHEMA))
    assert {
        "parameters",
        "loader.num_workers",
        "num_workers",
        "lr_min",
        "keep",
        "goal",
        "values",
    } <= {name for name, _ in found}
    for name, key in found:
        assert key.get("description") or at(key["$ref"]).get("description"), name


def test_the_committed_file_is_what_the_flag_prints(capsys) -> None:
    assert launch.main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "sweep.schema.json").read_text(), (
        "python launch.py schema > sweep.schema.json"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_sweeps_pass_and_name_the_schema_in_their_first_line(path: Path) -> None:
    assert not [error.message for error in VALIDATOR.iter_errors(read(path).tree)]
    (named,) = re.findall(r"\A# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert (path.parent / named).resolve() == ROOT / "sweep.schema.json"


@pytest.mark.parametrize(
    "text",
    [
        (
            "  loader: {num_workers: {values: [0, 2]}, shm_size: {values: [64M, 128 MiB, 67108864,"
            " null]}}"
        ),
        "  loader: {values: [{num_workers: 0}, {num_workers: 2, shm_size: 1g}]}",
        "  device: auto",
        "  device: {values: [cuda, cpu, {prefer: [simulated], step_s: 0.1}]}",
        "  device: {prefer: {values: [[cpu], [cuda]]}}",
        "  sgdr: {epochs: 8, cycle_epochs: {values: [2, [4, 4], null]}}",
        "  precision: {values: [auto, float32]}",
        "trial_timeout: 1.5 h",
        "trial_timeout: 90",
        "time_budget: 2h",
        "time_budget: null",
        (
            "blocks: {a: {repeats: 2, parameters: {sgdr: {epochs: 3}}, metric: {name: accuracy,"
            " goal: maximize}}, b: {}}"
        ),
        "exclude: [{loader.num_workers: 0}]",
        (
            "exclude: [{loader: {num_workers: [0, 4], format: wav}, device: cpu}, {loader.format: png,"
            " precision: [auto]}]"
        ),
        "resources: {gpus: 0.5, cpus: auto, shm: host}\nthreads: 2",
    ],
)
def test_what_a_file_may_say_passes(text: str, tmp_path) -> None:
    (tmp_path / "sweep.yaml").write_text(f"{MINIMAL}{text}\n")
    assert not [
        error.message for error in VALIDATOR.iter_errors(read(tmp_path / "sweep.yaml").tree)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "  loader: {num_worker: 2}",
        "  loader: {num_workers: -1}",
        "  loader: {num_workers: '2'}",
        "  loader: {num_workers: {values: []}}",
        "  loader: {num_workers: {values: [2, 2]}}",
        "  loader: {num_workers: {values: [2], max: 4}}",
        "  loader: {num_workers: {min: 0, max: 4}}",
        "  loader: {shm_size: 64 potatoes}",
        "  loader: {shm_size: 1024}",
        "  loader: {values: [{num_workers: {values: [0, 2]}}]}",
        "  device: gpu",
        "  device: {prefer: [gpu]}",
        "  features: {kinds: []}",
        "  corpus: {name: synthetic, words: [1, 2]}",
        "trial_timeout: 20 potatoes",
        "trial_timeout: 0",
        "time_budget: 2 potatoes",
        "time_budget: 0",
        "blocks: {'a b': {}}",
        "blocks: {a: {trials: 3}}",
        "exclude: [{loader.num_worker: 0}]",
        "exclude: [{loader: {num_workers: many}}]",
        "exclude: [{}]",
        "metric: {name: epoch_s}",
        "colour: red",
        "seed: -1",
        "name: a b",
    ],
)
def test_what_a_launch_would_refuse_is_underlined(text: str, tmp_path) -> None:
    whole = (
        f"{MINIMAL}{text}\n" if not text.startswith("name") else MINIMAL.replace("name: x", text)
    )
    if text.startswith("  corpus"):
        whole = f"name: x\nparameters:\n{text}\n"
    (tmp_path / "sweep.yaml").write_text(whole)
    assert list(VALIDATOR.iter_errors(read(tmp_path / "sweep.yaml").tree))
    with pytest.raises(Exception, match="fault"):
        load(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_any_key_of_a_shipped_sweep_misspelt_or_of_another_type_is_underlined(path: Path) -> None:
    tree = json.dumps(read(path).tree)
    for place in list(places(json.loads(tree))):
        for change in (misspell, retype):
            changed = json.loads(tree)
            change(changed, place)
            assert not VALIDATOR.is_valid(changed), (change.__name__, place)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys but the names of blocks, which are free."""
    for key, inner in tree.items() if isinstance(tree, dict) else ():
        if path != ("blocks",):
            yield (*path, key)
        yield from places(inner, (*path, key))


def misspell(tree: Any, path: tuple[Any, ...]) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[f"{path[-1]}x"] = tree.pop(path[-1])


def retype(tree: Any, path: tuple[Any, ...]) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = [[[]]]
