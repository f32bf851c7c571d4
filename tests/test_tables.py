"""The page of a sweep: which tables stand on it, and in which order."""

import pytest

from analysis.tables import render
from tests.conftest import make_trial_id
from tests.test_epochs import NONE, TWO


@pytest.fixture
def page(tracking, plant):
    """A page of three blocks: workers with all figures, sizes with old ones, and cycles."""
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


TITLES = (
    "Epoch seconds by num_workers and shm_size, block workers",
    "Where an epoch goes, block workers",
    "Forecast and measured, block workers",
    "Epoch seconds by num_workers and shm_size, block sizes",
    "/dev/shm: forecast and measured, block sizes",
    "Validation accuracy by SGDR cycle length, block cycles",
    "Recommended for block workers: 2 workers",
    "These tables again:",
)


@pytest.mark.parametrize("markdown", [False, True])
def test_tables_stand_block_by_block_each_once_and_what_to_do_last(page, markdown):
    text = page(markdown=markdown)
    assert all(text.count(title) == 1 for title in TITLES)
    assert sorted(TITLES, key=text.index) == list(TITLES)
    assert text.count("Where an epoch goes") == 1
    assert (
        text.count("Recommended for block workers")
        == text.count("Recommended for block cycles")
        == 1
    )


def test_the_page_fits_a_terminal(page):
    body = page().partition("These tables again")[0]
    assert max(map(len, body.splitlines())) <= 100
