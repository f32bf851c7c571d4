"""Tests the error block, and the data in the sentences for pydantic's errors.

The wording stands in tests/golden/config_errors.txt.
"""

import re
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from speech.byte_sizes import Size
from speech.config_group import Group
from sweeps.config.config_errors import ConfigFaults, Fault, format_path, translate


def test_the_block_is_aligned_and_sorted_and_lists_each_fault_once():
    faults = [
        Fault("--set a", "a", "wrong"),
        Fault(12, "b", "wrong"),
        Fault(3, "", "not YAML"),
        Fault(12, "b", "wrong"),
    ]
    heading, *lines = str(ConfigFaults("x.yaml", faults)).splitlines()
    assert re.findall(r"x\.yaml|\d+ \w+", heading) == ["x.yaml", "3 faults"]
    assert lines == ["  line  3  not YAML", "  line 12  b: wrong", "  --set a  a: wrong"]
    heading, *lines = str(ConfigFaults("x.yaml", faults[:1])).splitlines()
    assert re.findall(r"x\.yaml|\d+ \w+", heading) == ["x.yaml", "1 fault"]
    assert lines == ["  --set a  a: wrong"]


def test_paths_are_spelt_without_the_index_of_a_swept_value():
    assert (
        format_path(("parameters", "corpus", "values", 1, "words", 2))
        == "parameters.corpus.words[2]"
    )


class Inner(Group):
    n: int


class Sample(Group):
    whole: int = Field(1, ge=0, le=8)
    number: float = Field(1.0, gt=0, lt=2)
    truth: bool = True
    text: str = Field("a", min_length=1)
    word: Literal["wav", "png"] = "wav"
    size: Size | None = Field(None, ge=1 << 16)
    some: list[Literal["a", "b"]] = Field(["a"], min_length=1, max_length=2)
    pair: tuple[float, float] = (0.0, 1.0)
    either: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cycle: int | list[int] | None = None
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("key", "value", "facts"),
    [
        ("whole", "8", ["'8'", "whole number", "Write 8 without"]),
        ("whole", 8.0, ["8.0", "whole number", "Write 8."]),
        ("whole", True, ["true", "whole number"]),
        ("whole", None, ["no value", "Write a whole number"]),
        ("whole", -1, ["-1", "too small", "Write at least 0."]),
        ("whole", 9, ["9", "too large", "Write at most 8."]),
        ("number", 0, ["0", "too small", "Write more than 0."]),
        ("number", 2, ["2", "too large", "Write less than 2."]),
        ("number", float("inf"), ["inf", "finite"]),
        ("number", "fast", ["'fast'", "a number"]),
        ("truth", "on", ["'on'", "true or false", "Write true."]),
        ("truth", "no", ["'no'", "true or false", "Write false."]),
        ("truth", 1, ["1 ", "true or false"]),
        ("text", 3, ["3 ", "text", "Write '3', in quotes."]),
        ("text", "", ["''", "empty", "Write"]),
        ("word", "wave", ["'wave'", "wav, png", "mean wav?"]),
        ("word", 3, ["3 ", "wav, png"]),
        ("size", "64 potatoes", ["'64 potatoes'", "size", "Write 64M"]),
        ("size", "1K", ["'1K'", "too small", "Write at least 64K."]),
        ("size", 1.5, ["1.5", "whole number"]),
        ("some", "a", ["'a'", "list", "Write [a]."]),
        ("some", [], ["[]", "0 values", "Write at least 1."]),
        ("some", ["a", "b", "a"], ["['a', 'b', 'a']", "3 values", "Write at most 2."]),
        ("pair", (1,), ["[1]", "too few"]),
        ("either", "all", ["'all'", "auto or", "whole number"]),
        ("either", 0, ["0", "too small", "Write at least 1."]),
        ("cycle", "x", ["'x'", "whole number", "or a list"]),
        ("inner", 3, ["3 ", "group of keys", "keys: n."]),
        ("inner", {}, ["missing", "no default", "write"]),
        ("wold", 3, ["unknown key", "mean word?"]),
    ],
)
def test_a_sentence_states_the_value_and_what_is_legal(key, value, facts):
    ((_, text),) = _translated({key: value})
    assert [fact for fact in facts if fact not in text] == []
    advice = re.compile(r"Write|\?")
    assert len(advice.findall(text)) == len(advice.findall(" ".join(facts))), "no other advice"


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"some": ["a", "c"]}, ("some", 1)),
        ({"cycle": [1, "x"]}, ("cycle", 1)),
        ({"inner": {}}, ("inner", "n")),
        ({"inner": {"m": 3, "n": 1}}, ("inner", "m")),
        ({"either": 0}, ("either",)),
    ],
)
def test_paths_hold_what_the_file_holds(tree, path):
    ((found, _),) = _translated(tree)
    assert found == path


def _translated(tree):
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate(tree)
    return translate(Sample, tree, caught.value)
