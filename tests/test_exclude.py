"""Excluded points: flat and nested conditions, values as parsed, counts."""

import pytest

from sweeps.config.exclude import apply_exclusions, read_exclusion
from sweeps.config.grid import points

TREE = {
    "loader": {"num_workers": {"values": [0, 2, 4]}, "shm_size": {"values": ["64M", "1G"]}},
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        ({"loader.num_workers": 0}, {(2, "64M"), (4, "64M"), (2, "1G"), (4, "1G")}),
        (
            {"loader.num_workers": 0, "loader.shm_size": 67108864},
            {(2, "64M"), (4, "64M"), (0, "1G"), (2, "1G"), (4, "1G")},
        ),
        (
            {"loader": {"num_workers": [0, 4], "shm_size": "64m"}},
            {(2, "64M"), (0, "1G"), (2, "1G"), (4, "1G")},
        ),
        (
            {"device.prefer": [["cpu"]], "loader.shm_size": "1G"},
            {(0, "64M"), (2, "64M"), (4, "64M")},
        ),
        ({"device": "cpu", "loader": {"num_workers": [0, 2]}}, {(4, "64M"), (4, "1G")}),
        ({"loader.format": "wav"}, set()),
        ({"loader.num_workers": 3}, {(n, size) for n in (0, 2, 4) for size in ("64M", "1G")}),
    ],
)
def test_which_points_stay(entry, left):
    exclusion, faults = read_exclusion(entry, ("exclude", 0))
    kept, _, _ = apply_exclusions(points(TREE), [exclusion])
    assert faults == []
    assert {
        (point.parameters["loader"]["num_workers"], point.parameters["loader"]["shm_size"])
        for point in kept
    } == left


def test_a_point_counts_for_the_first_entry_that_matches():
    entries = [{"loader.num_workers": 0}, {"loader.shm_size": "1G"}, {"loader.num_workers": 9}]
    exclusions = [read_exclusion(entry, ("exclude", i))[0] for i, entry in enumerate(entries)]
    kept, removed, matched = apply_exclusions(points(TREE), exclusions)
    assert (len(kept), [len(points) for points in removed], matched) == (
        2,
        [2, 2, 0],
        {("exclude", 0), ("exclude", 1)},
    )


@pytest.mark.parametrize(
    ("entry", "path", "words"),
    [
        (
            {"loader.num_worker": 0},
            ("exclude", 0, "loader.num_worker"),
            "Did you mean num_workers?",
        ),
        (
            {"loader": {"shm_size": "big"}},
            ("exclude", 0, "loader", "shm_size"),
            "'big' is not a size",
        ),
        ({"sgdr.epochs.x": 1}, ("exclude", 0, "sgdr.epochs.x"), "sgdr.epochs is a single value"),
        ({"corpora.name": "x"}, ("exclude", 0, "corpora.name"), "Did you mean corpus?"),
        ({"loader.format": []}, ("exclude", 0, "loader.format"), "the list is empty"),
        (
            {"loader.format": ["wav", "gif"]},
            ("exclude", 0, "loader.format"),
            "'gif' is not one of wav, png",
        ),
        ({}, ("exclude", 0), "no parameter"),
    ],
)
def test_faulty_entries_are_told(entry, path, words):
    ((found, text),) = read_exclusion(entry, ("exclude", 0))[1]
    assert found == path
    assert words in text


def test_a_faulty_condition_never_holds():
    exclusion, _ = read_exclusion({"loader.num_workers": 0, "loader.nothing": 1}, ("exclude", 0))
    assert len(apply_exclusions(points(TREE), [exclusion])[0]) == 6
