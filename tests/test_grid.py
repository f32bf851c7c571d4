"""Trees of parameters: merging, sweeping, and values as a trial sees them."""

import itertools

import pytest

from sweeps.config.grid import (
    count_points,
    find_swept_faults,
    merge,
    parameter_value,
    points,
    swept_values,
)


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        (
            {"loader": {"a": 1, "b": 2}},
            {"loader": {"b": 3, "c": 4}},
            {"loader": {"a": 1, "b": 3, "c": 4}},
        ),
        ({"a": {"values": [1, 2]}}, {"a": 3}, {"a": 3}),
        ({"a": 3}, {"a": {"values": [1, 2]}}, {"a": {"values": [1, 2]}}),
        ({"a": {"values": [{"b": 1}]}}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"device": {"prefer": ["cuda"]}}, {"device": "cpu"}, {"device": "cpu"}),
    ],
)
def test_merge(below, above, merged):
    assert merge(below, above) == merged


def test_points_are_the_product_of_the_swept_values():
    tree = {
        "loader": {"num_workers": {"values": [0, 2]}, "format": "wav"},
        "device": {"values": ["cpu", {"prefer": ["cuda"]}]},
    }
    found = [
        (point.parameters["loader"]["num_workers"], point.parameters["device"])
        for point in points(tree)
    ]
    assert found == list(itertools.product([0, 2], ["cpu", {"prefer": ["cuda"]}]))
    assert count_points(tree) == 4
    assert all(point.parameters["loader"]["format"] == "wav" for point in points(tree))


def test_without_swept_values_there_is_one_point():
    assert [point.parameters for point in points({"loader": {"num_workers": 2}})] == [
        {"loader": {"num_workers": 2}}
    ]


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"values": [], "a": 1}, ("loader", "shm_size", "a"), "beside values"),
        ({"values": []}, ("loader", "shm_size"), "values is empty"),
        ({"values": "64M"}, ("loader", "shm_size"), "'64M', not a list"),
        (
            {"values": ["64M", "1G", 1 << 26]},
            ("loader", "shm_size", "values", 2),
            "67108864 is the same as '64M'",
        ),
        (
            {"values": [{"values": ["1G"]}]},
            ("loader", "shm_size", "values", 0),
            "another one",
        ),
    ],
)
def test_malformed_swept_values(tree, path, words):
    path_found, text = next(iter(find_swept_faults({"loader": {"shm_size": tree}})))
    assert path_found == path
    assert words in text


def test_true_is_not_the_same_as_1():
    assert list(find_swept_faults({"loader": {"num_workers": {"values": [1, True]}}})) == []


@pytest.mark.parametrize(
    ("parameters", "path", "value"),
    [
        ({"loader": {"shm_size": "64M"}}, "loader.shm_size", 64 << 20),
        ({"loader": {}}, "loader.num_workers", 0),
        ({}, "loader.format", "wav"),
        ({"device": "auto"}, "device.prefer", ["cuda", "cpu"]),
        ({"loader": {"num_workers": "many"}}, "loader.num_workers", None),
        ({}, "corpus.name", None),
    ],
)
def test_parsed_at_reads_defaults_and_short_forms(parameters, path, value):
    assert parameter_value(parameters, tuple(path.split("."))) == value


def test_swept_keeps_the_order_of_the_file():
    assert list(
        swept_values({"sgdr": {"lr": {"values": [1]}}, "loader": {"format": {"values": ["wav"]}}})
    ) == [
        ("sgdr", "lr"),
        ("loader", "format"),
    ]
