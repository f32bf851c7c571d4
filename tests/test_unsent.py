"""What trials leave unsent, in a real database: set aside, delivered, refused, read as it lies."""

import shutil
import sqlite3
import threading
import time

import pytest

from sweeps.outbox import FILE, Outbox
from sweeps.unsent import attempts_in, deliver, left_in, remove, set_aside, told
from tests.outboxes import artifacts, drain, filled


@pytest.fixture
def parent(tracking) -> str:
    return tracking.start_sweep("s", "name: s\n", [{"key": "k"}], "")


def test_who_sets_aside_waits_for_whoever_is_sending_and_finds_it_gone(tracking, parent, tmp_path) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    sending = Outbox(folder)
    waiting = threading.Thread(target=set_aside, args=[folder])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    while sending.waiting:
        sending.send_next(tracking)
    remove(folder)
    sending.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert not list((tmp_path / "work").iterdir())


def test_attempts_that_wait_are_read_as_the_runs_that_they_will_be(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    set_aside(filled(work, tracking, parent, "first"))
    filled(work, tracking, "of another sweep", "other")
    drain(filled(work, tracking, parent, "sent whole"), tracking)
    for key, ended in (("under way", False), ("second", True)):
        time.sleep(0.002)  # MLflow's clock has milliseconds
        filled(work, tracking, parent, key, ended)
    held = Outbox(work / "second")  # by a relay that sends it: the reader needs no lock
    with (work / "second" / FILE).open("ab") as file:
        file.write(b'{"call": "log_ep')
    waiting = attempts_in(work, parent)
    held.close()
    assert [(run.data.tags["key"], run.data.tags.get("outcome"), run.info.status) for run in waiting] == [
        ("second", "completed", "FINISHED"), ("under way", None, "RUNNING"), ("first", "completed", "FINISHED"),
    ]  # fmt: skip
    shutil.rmtree(work / "other")
    deliver(work)
    sent = [run for run in tracking.trials(parent) if run.data.tags["key"] != "sent whole"]
    assert [(run.info.start_time, run.info.status) for run in waiting] == [(run.info.start_time, run.info.status) for run in sent]
    for read, there in zip(waiting, sent, strict=True):
        assert read.data.tags.items() <= there.data.tags.items()
        assert {"key", "node", "attempt_id"} <= read.data.tags.keys()


def test_ended_trials_are_delivered_with_their_outcome_and_the_rest_stays_for_the_orphans(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    for key, ended in (("done", True), ("cut", False)):
        filled(work, tracking, parent, key, ended)
    assert deliver(work) == []
    assert [folder.name for folder in left_in(work)] == ["cut"]
    assert tracking.close_orphans(parent, work) == ["workers · num_workers=4 · repeat 1"]
    assert not left_in(work)
    outcomes = {run.data.tags["key"]: (run.info.status, run.data.tags["outcome"]) for run in tracking.trials(parent)}
    assert outcomes == {"done": ("FINISHED", "completed"), "cut": ("KILLED", "interrupted")}


def test_what_waits_makes_room_for_the_next_attempt_and_one_that_nobody_ended_is_interrupted(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    for ended in (True, False):
        set_aside(filled(work, tracking, parent, ended=ended))
    assert [path.name for path in work.iterdir()] == ["unsent"]
    assert len(left_in(work)) == 2
    assert deliver(work) == []
    assert not list(work.iterdir())
    assert sorted(run.data.tags["outcome"] for run in tracking.trials(parent)) == ["completed", "interrupted"]
    assert len(artifacts(tracking)) == 2


def test_a_trial_that_is_sent_whole_is_not_set_aside(tracking, parent, tmp_path) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    drain(folder, tracking)
    set_aside(folder)
    set_aside(tmp_path)
    assert folder.exists()


def test_a_refusal_keeps_that_trial_and_lets_the_others_through(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    for key in ("deleted", "other"):
        set_aside(filled(work, tracking, parent, key))
    (outbox,) = [Outbox(folder) for folder in left_in(work) if "deleted" in folder.name]
    outbox.send_next(tracking)
    outbox.close()
    (run,) = tracking.trials(parent)
    tracking.client.delete_run(run.info.run_id)
    (unsent,) = deliver(work, patience_s=600)  # no patience helps where it is refused
    assert not unsent.away
    assert "deleted" in unsent.folder.name
    text = told([unsent])
    assert "refuses what a trial has recorded" in text
    assert str(unsent.folder) in text
    assert tracking.settled_keys(parent) == {"other": "completed"}
    tracking.client.restore_run(run.info.run_id)
    assert deliver(work) == []
    assert tracking.settled_keys(parent) == {"other": "completed", "deleted": "completed"}


def test_what_an_interrupted_attempt_has_to_tell_of_a_run_that_is_no_more_is_dropped(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    folder = filled(work, tracking, parent, ended=False)
    outbox = Outbox(folder)
    outbox.send_next(tracking)
    outbox.close()
    set_aside(folder)
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:  # as in another database in its place
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", [outbox.run_id])
    assert deliver(work) == []
    assert not list(work.iterdir())
