"""Mutated sweep files: each becomes a plan or a list of faults with exit code 2, and never causes a
traceback, a trial, or an endless loop.

Files that are shipped are changed as text (lines, tabs, broken syntax) and as trees (keys dropped,
renamed, moved; hostile values), and overridden by --set. What a launch accepts, the schema that
editors are given must accept too.
"""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import launch
from sweeps.config.config import SweepConfig
from sweeps.config.config_errors import ConfigFaults
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from sweeps.config.yaml_source import read
from tests.test_schema import MINIMAL, SHIPPED, VALIDATOR

TEXTS = [path.read_text() for path in SHIPPED]
TREES = [json.dumps(read(path).tree) for path in SHIPPED]
DEEP = 300

SCALARS = [
    *[
        "null",
        "~",
        "''",
        "true",
        "yes",
        "off",
        "0",
        "-1",
        "-0",
        "010",
        "0x1F",
        "1_000",
        "1e3",
        "1e999",
        "-1e999",
        "1e-400",
        ".nan",
        ".inf",
    ],
    *[
        "9" * 30,
        "9" * 5000,
        "0." + "3" * 400,
        "3.0",
        "2026-11-24",
        "12:30:45",
        "64M",
        "1e3M",
        "9999999T",
        "20m",
        "1e9h",
        "wav",
        "auto",
    ],
    *[
        "=",
        "<<",
        "a" * 6000,
        "'a b'",
        '"\\0"',
        '"\\ud800"',
        '"\\x07"',
        "\u2028",
        "\ufeffx",
        "名前",
        "🎤",
    ],
    *[
        "../../etc/passwd",
        "/dev/null",
        "/proc/self/mem",
        "\\",
        "|",
        ">-",
        "@x",
        "`x`",
        "%x",
        "? x",
        "\t1",
        "'",
        '"',
        "# x",
    ],
    *[
        "(",
        "(a+)+$",
        "a{99999999999}",
        "(" * 300 + ")" * 300,
        "[\\w-\\d]",
        "(?P<x>a)(?P<x>b)",
        "(?i",
        "^(" + "a?" * 3000 + ")",
    ],
    *[
        "*nowhere",
        "&a [1, *a]",
        "!!int x",
        "!!binary aGk=",
        "!!set {a}",
        "!!python/object/apply:os.system ['false']",
        "!mine x",
    ],
    *[
        "[]",
        "{}",
        "[[]]",
        "[null]",
        "{a: 1}",
        "{1: 2}",
        "{? [a] : b}",
        "{",
        "[1, 2",
        "- 1",
        "a: b: c",
        "[8, 14, 24]",
        "[0]",
    ],
    *[
        "{values: [0, 1]}",
        "{values: []}",
        "{values: 3}",
        "{values: {values: [1]}}",
        "{values: [{values: [1, 2]}, 3]}",
    ],
    *[
        "{values: [1, 1.0, true]}",
        "{min: 0, max: 4}",
        "{prefer: [simulated], step_s: 1}",
        "{loader.num_workers: 0}",
    ],
    *["[" * DEEP + "]" * DEEP, "{a: " * DEEP + "1" + "}" * DEEP],
]
KEYS = [
    "",
    "values",
    "name",
    "corpus",
    "loader",
    "loader.num_workers",
    "epoch",
    "null",
    "<<",
    "a b",
    "é",
    "x" * 300,
    "__class__",
    "0",
]
scalars = st.sampled_from(SCALARS) | st.text(max_size=12)


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    """Draws a shipped file with some of its lines changed."""
    lines = draw(st.sampled_from(TEXTS)).splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        line = lines[at] if lines else ""
        key, colon, _ = line.partition(":")
        changed = draw(
            st.sampled_from(
                [
                    [],
                    [line, line],
                    ["\t" + line],
                    [" " + line],
                    [line[:-1]],
                    [line.lstrip()],
                    [f"&x {line}"],
                    ["---", line],
                ]
            )
            | st.builds(lambda value, key=key, colon=colon: [f"{key}{colon} {value}"], scalars)
            | st.builds(
                lambda text, line=line: [line[: len(line) // 2] + text + line[len(line) // 2 :]],
                scalars,
            )
            | st.builds(
                lambda name, line=line, key=key: [line.replace(key.strip() or "x", name, 1)],
                st.sampled_from(KEYS),
            )
        )
        lines[at : at + 1] = changed
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\r\n", "\n..."]))


def groups_of(tree: Any) -> list[dict[str, Any]]:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tree] * isinstance(tree, dict) + [
        group for value in inner for group in groups_of(value)
    ]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["cpu", "64M", "wav"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "prefer", "step_s"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated_trees(draw: st.DrawFn) -> str:
    """Draws a shipped file with keys dropped, renamed, moved or given other values, as JSON, which
    is YAML."""
    tree = json.loads(draw(st.sampled_from(TREES)))
    for _ in range(draw(st.integers(1, 4))):
        group = draw(st.sampled_from(groups_of(tree)))
        if not group:
            continue
        key = draw(st.sampled_from(sorted(group)))
        match draw(st.sampled_from(["drop", "rename", "move", "value", "sweep", "add"])):
            case "drop":
                del group[key]
            case "rename":
                group[draw(st.sampled_from(KEYS))] = group.pop(key)
            case "move":
                moved = group.pop(key)
                draw(st.sampled_from(groups_of(tree)))[key] = moved
            case "value":
                group[key] = draw(PLAIN)
            case "sweep":
                group[key] = {"values": [group[key], *draw(st.lists(PLAIN, max_size=2))]}
            case "add":
                group[draw(st.sampled_from(KEYS))] = draw(PLAIN)
    return json.dumps(tree, ensure_ascii=draw(st.booleans()))


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    keys = ["seed", "repeats", "parameters", "parameters.loader.num_workers", "parameters.corpus.speaker", "parameters.model.weights",
            "parameters.sgdr.cycle_epochs", "blocks", "blocks.workers.repeats", "exclude", "trial_timeout", "", ".", "a..b"]  # fmt: skip
    return [
        f"{draw(st.sampled_from(keys))}={draw(scalars)}" for _ in range(draw(st.integers(0, 2)))
    ]


def end(folder: Path, text: str, sets: list[str]) -> None:
    """Asserts that the file becomes a plan or a list of faults."""
    file = folder / "sweep.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    config = loaded(file, sets)
    if isinstance(config, ConfigFaults):
        assert config.faults
        assert all(fault.text.strip() for fault in config.faults)
        code, said = told([str(file), *(part for override in sets for part in ("--set", override))])
        assert (code, said.splitlines()[:1]) == (2, str(config).splitlines()[:1])
        heading, first_fault = said.splitlines()[:2]
        assert re.findall(r"\d+", heading) == [str(len(config.faults))]
        assert heading.startswith("sweep.yaml ")
        assert first_fault.startswith("  ")
        return
    trials = plan(config, lambda corpus: "f00d").trials
    assert trials
    assert len({trial.trial_id for trial in trials}) == len(trials)
    if not sets:
        assert not [error.message for error in VALIDATOR.iter_errors(read(file).tree)]


def loaded(file: Path, sets: list[str]) -> SweepConfig | ConfigFaults:
    try:
        return load(file, sets)
    except ConfigFaults as faults:
        return faults


def told(arguments: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = launch.main([*arguments, "--dry-run"])
    return code, said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


FILES = st.tuples(mutated_texts() | mutated_trees(), overrides())
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


KEYS_OF_A_TRIAL = [
    *[
        "corpus.speaker",
        "corpus.words",
        "corpus.path",
        "loader.num_workers",
        "loader.shm_size",
        "loader.format",
        "features.kinds",
    ],
    *[
        "features.window_ms",
        "augment.noise_snr_db",
        "model.weights",
        "sgdr.cycle_epochs",
        "sgdr.epochs",
        "sgdr.lr",
        "device",
        "precision",
    ],
]


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize("value", SCALARS, ids=range(len(SCALARS)))
def test_every_hostile_value_of_every_kind_of_key_ends_well(folder: Path, value: str) -> None:
    for key in [
        *(f"parameters.{key}" for key in KEYS_OF_A_TRIAL),
        *SweepConfig.model_fields,
        "blocks.a.exclude",
    ]:
        end(folder, MINIMAL, [f"{key}={value}"])
        end(folder, MINIMAL, [f"{key}={{values: [{value}, 3]}}"])


@given(FILES)
@settings(max_examples=100, derandomize=True, **QUIET)
def test_a_mutated_file_ends_as_a_plan_or_as_a_list_of_faults(
    folder: Path, file: tuple[str, list[str]]
) -> None:
    end(folder, *file)


@pytest.mark.slow
@pytest.mark.beside
@given(FILES)
@settings(max_examples=2000, **QUIET)
def test_two_thousand_mutated_files_end_as_plans_or_as_lists_of_faults(
    folder: Path, file: tuple[str, list[str]]
) -> None:
    end(folder, *file)
