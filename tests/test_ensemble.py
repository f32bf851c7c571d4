"""Which trial has the best ensemble, and what its run keeps of it."""

import math

import pytest

from sweeps.ensemble import best, download
from tests.conftest import plant_trial


@pytest.fixture
def parent(tracking) -> str:
    return tracking.start_sweep("s", "", [], "")


def test_the_best_is_the_highest_of_the_planned_that_have_completed_and_of_equals_the_first(tracking, parent) -> None:
    plant_trial(tracking, parent, {}, key="paced", epoch_s=1.0)
    plant_trial(tracking, parent, {}, key="diverged", ensemble_accuracy=math.nan)
    plant_trial(tracking, parent, {}, key="lower", ensemble_accuracy=0.5)
    first = plant_trial(tracking, parent, {}, key="first", ensemble_accuracy=0.75)
    plant_trial(tracking, parent, {}, key="second", ensemble_accuracy=0.75)
    plant_trial(tracking, parent, {}, key="cut", outcome="interrupted", ensemble_accuracy=0.9)
    plant_trial(tracking, parent, {}, key="of an earlier plan", ensemble_accuracy=1.0)
    planned = {"paced", "diverged", "lower", "first", "second", "cut"}
    assert best(tracking.trials(parent), planned).info.run_id == first
    assert best(tracking.trials(parent), {"diverged", "lower"}).data.tags["key"] == "lower"
    for none in ({"paced"}, {"diverged"}, {"cut"}, set()):
        with pytest.raises(LookupError, match="has learned anything"):
            best(tracking.trials(parent), none)


def test_all_its_snapshots_are_read_or_it_is_told_how_many_there_are(tracking, parent, tmp_path) -> None:
    run_id = plant_trial(tracking, parent, {}, ensemble_accuracy=0.75)
    for cycle in (1, 2):
        (tmp_path / f"cycle-{cycle}.pt").write_text(f"weights {cycle}")
        tracking.upload(run_id, f"snapshots/cycle-{cycle}.pt", tmp_path / f"cycle-{cycle}.pt")
    run = tracking.client.get_run(run_id)
    (tmp_path / "read").mkdir()
    found = download(tracking.client, run, 2, tmp_path / "read")
    assert {file.name: file.read_text() for file in found.iterdir()} == {"cycle-1.pt": "weights 1", "cycle-2.pt": "weights 2"}
    with pytest.raises(LookupError, match="keeps 2 of its 3 snapshots"):
        download(tracking.client, run, 3, tmp_path / "read")
