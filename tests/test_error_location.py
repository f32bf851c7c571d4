"""A combination's fault is laid at the value that causes it."""

import pytest

from sweeps.config.error_location import check_points
from sweeps.config.grid import merge, points
from sweeps.config.yaml_source import read

SHARED = "parameters:\n  corpus: {name: synthetic, words: [yes, no]}\n"


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("  loader: {num_workers: -1}\n", 3, "parameters.loader.num_workers"),
        (
            "  loader:\n    num_workers:\n      values:\n        - 0\n        - -1\n",
            7,
            "parameters.loader.num_workers",
        ),
        (
            "  device:\n    values:\n      - cpu\n      - prefer: [cpu]\n        step_s: -1\n",
            7,
            "parameters.device.step_s",
        ),
        (
            "  sgdr:\n    epochs:\n      values: [8,\n        9]\n    cycle_epochs: 4\n",
            6,
            "parameters.sgdr.epochs",
        ),
        # all fail: the group's fault
        (
            "  sgdr:\n    epochs:\n      values: [4, 2]\n    lr: 0.1\n    lr_min: 0.2\n",
            3,
            "parameters.sgdr",
        ),
        (
            "  loader: {x: 1}\nblocks:\n  b:\n    parameters:\n      loader: {num_workers: 2}\n",
            3,
            "parameters.loader.x",
        ),
        (
            (
                "  loader: {num_workers: -1}\nblocks:\n  b:\n    parameters:\n      loader:"
                " {num_workers: -2}\n"
            ),
            7,
            "blocks.b.parameters.loader.num_workers",
        ),
    ],
)
def test_blame(tmp_path, text, where, key):
    path = tmp_path / "sweep.yaml"
    path.write_text(SHARED + text)
    source = read(path)
    tree = merge(source.tree["parameters"], source.at(("blocks", "b", "parameters")) or {})
    check_points(source, "b", list(points(tree)), lambda trial: [], set())
    assert {(fault.where, fault.key) for fault in source.faults} == {(where, key)}


def test_what_a_rule_says_of_a_swept_value_stands_at_that_value(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SHARED + "  sgdr:\n    epochs:\n      values:\n        - 1\n        - 2\n")
    source = read(path)
    check_points(
        source,
        "trials",
        list(points(source.tree["parameters"])),
        lambda trial: [(("sgdr", "epochs"), "too few")] if trial.sgdr.epochs < 2 else [],
        set(),
    )
    assert [(fault.where, fault.key, fault.text) for fault in source.faults] == [
        (6, "parameters.sgdr.epochs", "too few")
    ]
