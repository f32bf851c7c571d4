"""Runs whose launch was killed: closed with their records."""

from sweeps.tracking.orphans import close_orphans
from sweeps.tracking.run_queries import settled_outcomes
from tests.test_mlflow_runs import open_sweep, open_trial


def test_orphans_of_a_dead_launch_are_closed_with_their_records_and_not_settled(tracking, tmp_path):
    parent = open_sweep(tracking)
    done = open_trial(tracking, parent, trial_id="done")
    tracking.finish_trial(done, "completed", "", {})
    orphan = open_trial(tracking, parent, trial_id="orphan")
    (tmp_path / "orphan").mkdir()
    (tmp_path / "orphan" / "records.jsonl").write_text('{"kind": "epoch"}\n')
    assert close_orphans(tracking, parent, tmp_path) == [
        "workers · num_workers=4 shm_size=64M · repeat 1"
    ]
    assert close_orphans(tracking, parent, tmp_path) == []
    assert [file.path for file in tracking.client.list_artifacts(orphan)] == ["records.jsonl"]
    assert not (tmp_path / "orphan").exists()
    run = tracking.client.get_run(orphan)
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "interrupted")
    assert settled_outcomes(tracking.trials(parent)) == {"done": "completed"}
