"""The error block, and pydantic's errors in plain words."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from speech.byte_sizes import Size
from speech.config_group import Group
from sweeps.config.config_errors import ConfigFaults, Fault, format_path, translate


def test_the_block_is_aligned_and_sorted_and_tells_each_fault_once():
    faults = [
        Fault("--set a", "a", "wrong"),
        Fault(12, "b", "wrong"),
        Fault(3, "", "not YAML"),
        Fault(12, "b", "wrong"),
    ]
    assert (
        str(ConfigFaults("x.yaml", faults))
        == "x.yaml has 3 faults:\n  line  3  not YAML\n  line 12  b: wrong\n  --set a  a: wrong"
    )
    assert str(ConfigFaults("x.yaml", faults[:1])) == "x.yaml has 1 fault:\n  --set a  a: wrong"


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
    ("key", "value", "sentence"),
    [
        ("whole", "8", "'8' is not a whole number. Write 8 without quotes."),
        ("whole", 8.0, "8.0 is not a whole number. Write 8."),
        ("whole", True, "true is not a whole number."),
        ("whole", None, "it has no value. Write a whole number."),
        ("whole", -1, "-1 is too small. Write at least 0."),
        ("whole", 9, "9 is too large. Write at most 8."),
        ("number", 0, "0 is too small. Write more than 0."),
        ("number", 2, "2 is too large. Write less than 2."),
        ("number", float("inf"), "inf is not a finite number."),
        ("number", "fast", "'fast' is not a number."),
        ("truth", "on", "'on' is not true or false. Write true."),
        ("truth", "no", "'no' is not true or false. Write false."),
        ("truth", 1, "1 is not true or false."),
        ("text", 3, "3 is not text. Write '3', in quotes."),
        ("text", "", "'' is empty. Write a word."),
        ("word", "wave", "'wave' is not one of wav, png. Did you mean wav?"),
        ("word", 3, "3 is not one of wav, png."),
        ("size", "64 potatoes", "'64 potatoes' is not a size. Write 64M or 2G."),
        ("size", "1K", "'1K' is too small. Write at least 64K."),
        ("size", 1.5, "1.5 is not a whole number."),
        ("some", "a", "'a' is not a list. Write [a]."),
        ("some", [], "[] has 0 values. Write at least 1."),
        ("some", ["a", "b", "a"], "['a', 'b', 'a'] has 3 values. Write at most 2."),
        ("pair", (1,), "[1] has too few values."),
        ("either", "all", "'all' is not auto or a whole number."),
        ("either", 0, "0 is too small. Write at least 1."),
        ("cycle", "x", "'x' is not a whole number or a list."),
        ("inner", 3, "3 is not a group of keys. Its keys: n."),
        ("inner", {}, "missing. It has no default, so write it."),
        ("wold", 3, "unknown key. Did you mean word?"),
    ],
)
def test_sentences(key, value, sentence):
    ((_, text),) = _translated({key: value})
    assert text == sentence


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
