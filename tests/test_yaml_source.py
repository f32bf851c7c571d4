"""Tests reading YAML 1.2 as plain Python with the place of each key; an unreadable file is a fault,
never a stack trace."""

import errno
import os

import pytest

from sweeps.config.config_errors import ConfigFaults
from sweeps.config.yaml_source import read


@pytest.fixture
def source_of(tmp_path):
    def write(content):
        path = tmp_path / "sweep.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(path)

    return write


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        ("8", 8),
        ("010", 10),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("'8'", "8"),
        ("", None),
        ("~", None),
        ("[up, off]", ["up", "off"]),
    ],
)
def test_words_mean_what_yaml_1_2_says(source_of, written, meant):
    value = source_of(f"key: {written}").tree["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_every_key_and_item_knows_its_line(source_of):
    source = source_of("a: 1\n\nb:\n  # why\n  c: [1,\n    2]\n  d:\n    - x\n    - y: 3\n")
    lines = {("a",): 1, ("b",): 3, ("b", "c"): 5, ("b", "c", 0): 5, ("b", "c", 1): 6, ("b", "d"): 7}
    assert source.places == lines | {("b", "d", 0): 8, ("b", "d", 1): 9, ("b", "d", 1, "y"): 9}


def test_an_alias_repeats_its_anchor(source_of):
    assert source_of("a: &x {n: 1}\nb: *x\n").tree == {"a": {"n": 1}, "b": {"n": 1}}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("- a\n- b\n", 1, "['a', 'b']"),
        ("a:\n\tb: 1\n", 2, "a tab"),
        ("a: [1\nb: 2\n", 2, "at 'b: 2'"),
        ("a: 1\nb: 'open\n", 3, "from line 2), at the end of the file"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb: *c\n", 2, "undefined alias 'c'"),
        ("a: 1\nb: \0\n", 2, "unacceptable character #x0000"),
        ("a: &a {b: *a}\n", 1, "alias of itself"),
        ("a: " + "[" * 1000, 1, "50 nested levels"),
        (b"a: 1\nb: \xe9\n", 2, "byte 0xe9 is not UTF-8"),
    ],
)
def test_unreadable_files_are_one_fault(source_of, content, line, words):
    with pytest.raises(ConfigFaults) as caught:
        source_of(content)
    (fault,) = caught.value.faults
    assert fault.where == line
    assert words in fault.text


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.yaml", "not exist"), (".", os.strerror(errno.EISDIR))]
)
def test_a_path_without_a_file(tmp_path, name, reason):
    with pytest.raises(ConfigFaults) as caught:
        read(tmp_path / name)
    (fault,) = caught.value.faults
    assert fault.where == str(tmp_path / name)
    assert reason in fault.text


def test_lesser_faults_leave_the_rest_readable(source_of):
    source = source_of("a: 1\na: 2\n3: x\nb: !new y\n? [c]\n: 1\nd: !!int z\n")
    assert source.tree == {"a": 1, "b": "y", "d": "z"}
    expected = [
        (2, "a", "line 1"),
        (3, "3", "'3', in quotes"),
        (4, "b", "!new"),
        (5, "", "list or a group"),
        (7, "d", "'z' can't be read as !!int"),
    ]
    for fault, (where, key, words) in zip(source.faults, expected, strict=True):
        assert (fault.where, fault.key) == (where, key)
        assert words in fault.text


def test_overrides_write_into_the_tree_and_take_the_place_of_its_lines(source_of):
    source = source_of("a:\n  b: {c: 1}\n")
    for override in ("a.b={d: [1, no]}", "e.f = 1e-4", "a.b.d=3"):
        source.set(override)
    assert source.tree == {"a": {"b": {"d": 3}}, "e": {"f": 1e-4}}
    assert source.faults == []
    assert source.places == {
        ("a",): 1,
        ("a", "b"): "--set a.b",
        ("a", "b", "d"): "--set a.b.d",
        ("e",): "--set e.f",
        ("e", "f"): "--set e.f",
    }


@pytest.mark.parametrize(
    ("override", "where", "words"),
    [
        ("a.b", "--set a.b", "key=value"),
        ("=1", "--set =1", "key=value"),
        ("a..b=1", "--set a..b=1", "key=value"),
        ("a.b=[1", "--set a.b", "not YAML"),
        ("a.b={x: 1, x: 2}", "--set a.b", "written twice"),
        ("n.b=1", "--set n.b", "n is 7"),
    ],
)
def test_faulty_overrides_change_nothing(source_of, override, where, words):
    source = source_of("a: {b: 1}\nn: 7\n")
    source.set(override)
    (fault,) = source.faults
    assert fault.where == where
    assert words in fault.text
    assert source.tree == {"a": {"b": 1}, "n": 7}
