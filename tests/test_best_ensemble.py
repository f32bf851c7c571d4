"""Which trial has the best ensemble, and what its run keeps of it."""

import math

import pytest

from sweeps.tracking.best_ensemble import best_accuracy_so_far, best_run, download_snapshots
from tests.conftest import plant_trial


@pytest.fixture
def parent(tracking) -> str:
    return tracking.start_sweep("s", "", [], "")


def test_the_best_is_the_highest_of_the_planned_that_have_completed_and_of_equals_the_first(
    tracking, parent
) -> None:
    plant_trial(tracking, parent, {}, trial_id="simulated", epoch_s=1.0)
    plant_trial(tracking, parent, {}, trial_id="diverged", ensemble_accuracy=math.nan)
    plant_trial(tracking, parent, {}, trial_id="lower", ensemble_accuracy=0.5)
    first = plant_trial(tracking, parent, {}, trial_id="first", ensemble_accuracy=0.75)
    plant_trial(tracking, parent, {}, trial_id="second", ensemble_accuracy=0.75)
    plant_trial(tracking, parent, {}, trial_id="cut", outcome="interrupted", ensemble_accuracy=0.9)
    plant_trial(tracking, parent, {}, trial_id="of an earlier plan", ensemble_accuracy=1.0)
    planned = {"simulated", "diverged", "lower", "first", "second", "cut"}
    assert best_run(tracking.trials(parent), planned).info.run_id == first
    assert best_run(tracking.trials(parent), {"diverged", "lower"}).data.tags["trial_id"] == "lower"
    for none in ({"simulated"}, {"diverged"}, {"cut"}, set()):
        with pytest.raises(LookupError, match="no trial"):
            best_run(tracking.trials(parent), none)


def test_all_its_snapshots_are_read_or_it_is_told_how_many_there_are(
    tracking, parent, tmp_path
) -> None:
    run_id = plant_trial(tracking, parent, {}, ensemble_accuracy=0.75)
    for cycle in (1, 2):
        (tmp_path / f"cycle-{cycle}.pt").write_text(f"weights {cycle}")
        tracking.upload(run_id, f"snapshots/cycle-{cycle}.pt", tmp_path / f"cycle-{cycle}.pt")
    run = tracking.client.get_run(run_id)
    (tmp_path / "read").mkdir()
    found = download_snapshots(tracking.client, run, 2, tmp_path / "read")
    assert {file.name: file.read_text() for file in found.iterdir()} == {
        "cycle-1.pt": "weights 1",
        "cycle-2.pt": "weights 2",
    }
    with pytest.raises(LookupError, match="2 of its 3 snapshots"):
        download_snapshots(tracking.client, run, 3, tmp_path / "read")


def test_the_best_ensemble_is_the_blocks_own_and_planned(tracking, parent, plant):
    planned = {"a", "b", "c", "d", "e"}
    assert best_accuracy_so_far(tracking, parent, "cycles", planned) is None
    plant(parent, {"sgdr.cycle_epochs": 2}, block="cycles", trial_id="a", ensemble_accuracy=0.8)
    plant(parent, {"sgdr.cycle_epochs": 4}, block="cycles", trial_id="b", ensemble_accuracy=0.85)
    plant(
        parent, {"sgdr.cycle_epochs": 8}, block="cycles", trial_id="c", ensemble_accuracy=math.nan
    )
    plant(parent, {"sgdr.cycle_epochs": 2}, block="others", trial_id="d", ensemble_accuracy=0.95)
    plant(
        parent,
        {"sgdr.cycle_epochs": 1},
        block="cycles",
        trial_id="e",
        outcome="timeout",
        ensemble_accuracy=0.99,
    )
    plant(
        parent,
        {"sgdr.cycle_epochs": 16},
        block="cycles",
        trial_id="of an earlier plan",
        ensemble_accuracy=0.97,
    )
    assert best_accuracy_so_far(tracking, parent, "cycles", planned) == 0.85
