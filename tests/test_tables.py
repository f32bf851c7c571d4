"""Tests the page of a sweep: which tables stand on it, and in which order."""

import pytest

from analysis.tables import render
from tests.conftest import make_trial_id
from tests.test_epochs import NONE, TWO


@pytest.fixture
def page(tracking, plant):
    """Returns a page of three blocks: workers with all figures, sizes with old ones, and cycles."""
    foreseen = {
        f"forecast_{name}": 1.0
        for name in ("epoch_s", "epoch_low_s", "epoch_high_s", "first_batch_s", "closed_form_s")
    }
    points = [
        ("workers", {"loader.num_workers": workers, "loader.shm_size": None}, figures | foreseen)
        for workers, figures in ((0, NONE), (2, TWO))
    ]
    points += [
        ("sizes", {"loader.num_workers": 2, "loader.shm_size": size << 20}, {"epoch_s": 1.0})
        for size in (64, 128)
    ]
    points += [
        (
            "cycles",
            {"sgdr.cycle_epochs": epochs},
            dict.fromkeys(("accuracy", "best_snapshot_accuracy", "ensemble_accuracy"), 0.5),
        )
        for epochs in (4, 8)
    ]
    keys = [
        {"trial_id": make_trial_id(block, swept, repeat)}
        for block, swept, _ in points
        for repeat in (1, 2, 3)
    ]
    parent = tracking.start_sweep("first-look", "", keys, "")
    for block, swept, figures in points:
        for repeat in (1, 2, 3):
            plant(parent, swept, repeat, block=block, **figures)
    return lambda **how: render("first-look", tracking.uri, **how)


TABLES = [  # kind, block
    ("Epoch seconds", "workers"),
    ("Where an epoch", "workers"),
    ("Forecast and measured", "workers"),
    ("Epoch seconds", "sizes"),
    ("/dev/shm", "sizes"),
    ("Validation accuracy", "cycles"),
]


@pytest.mark.parametrize("markdown", [False, True])
def test_each_table_and_each_recommendation_stands_once_and_the_commands_last(page, markdown):
    lines = [line.lstrip("#- ") for line in page(markdown=markdown).splitlines()]
    titles = [
        (kind, line.rpartition("block ")[2])
        for line in lines
        for kind in dict(TABLES)
        if line.startswith(kind) and ", block " in line
    ]
    assert titles == TABLES
    after = max(place for place, line in enumerate(lines) if line.startswith("Validation accuracy"))
    advised = [
        (place, line.split()[3].rstrip(":"))
        for place, line in enumerate(lines)
        if line.startswith("Recommended for block")
    ]
    assert [block for _, block in advised] == ["workers", "cycles"]
    assert all(place > after for place, _ in advised)
    assert "block workers: 2 workers" in lines[advised[0][0]]
    (command,) = [
        place for place, line in enumerate(lines) if "python -m analysis first-look" in line
    ]
    assert command > advised[-1][0]


def test_the_page_fits_a_terminal(page):
    body = page().partition("python -m analysis")[0]
    assert max(map(len, body.splitlines())) <= 100
