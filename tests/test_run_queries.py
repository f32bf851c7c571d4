"""Tests what follows for trials from the runs of their sweep."""

import pytest

from analysis.runs import sweep_runs
from sweeps.tracking.run_queries import UnreadableRecords, settled_outcomes
from tests.test_mlflow_runs import open_sweep, open_trial


def test_a_failed_attempt_does_not_unsettle_a_key_and_a_retry_settles_it(tracking):
    parent = open_sweep(tracking)
    for outcome in ("crashed", "shm_exhausted", "interrupted"):
        tracking.finish_trial(open_trial(tracking, parent), outcome, "", {})
    assert settled_outcomes(tracking.trials(parent)) == {"k": "shm_exhausted"}
    assert len(tracking.trials(parent)) == 3


def test_a_sweep_of_another_version_is_refused_with_its_name(tracking, plant) -> None:
    parent = tracking.start_sweep("old", "name: old\n", [{"key": "a"}], "")
    run = plant(parent, {"loader.num_workers": 0}, trial_id="a")
    tracking.client.delete_tag(run, "trial_id")
    tracking.client.set_tag(run, "key", "a")
    with pytest.raises(UnreadableRecords, match="another version") as problem:
        tracking.trials(parent)
    assert "sweep old" in str(problem.value)
    with pytest.raises(UnreadableRecords):
        sweep_runs("old", tracking.uri)
