"""Tests how unsent records are quarantined, delivered, refused and read, with a real database."""

import shutil
import sqlite3
import threading
import time

import pytest

from sweeps.tracking.orphans import close_orphans
from sweeps.tracking.outbox import FILE, Outbox
from sweeps.tracking.outbox_recovery import (
    end_and_flush_all,
    flush_all,
    format_message,
    outbox_folders,
    quarantine,
    remove_folder,
    unsent_attempts,
)
from sweeps.tracking.run_queries import settled_outcomes
from tests.outboxes import artifacts, drain, filled


@pytest.fixture
def parent(tracking) -> str:
    return tracking.start_sweep("s", "name: s\n", [{"trial_id": "k"}], "")


def test_who_sets_aside_waits_for_whoever_is_sending_and_finds_it_gone(
    tracking, parent, tmp_path
) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    sending = Outbox(folder)
    waiting = threading.Thread(target=quarantine, args=[folder])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    while sending.pending_count:
        sending.send_next(tracking)
    remove_folder(folder)
    sending.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert not list((tmp_path / "work").iterdir())


def test_attempts_that_wait_are_read_as_the_runs_that_they_will_be(
    tracking, parent, tmp_path
) -> None:
    work = tmp_path / "work"
    quarantine(filled(work, tracking, parent, "first"))
    filled(work, tracking, "of another sweep", "other")
    drain(filled(work, tracking, parent, "sent whole"), tracking)
    for key, ended in (("under way", False), ("second", True)):
        time.sleep(0.002)  # MLflow's clock has milliseconds
        filled(work, tracking, parent, key, ended)
    held = Outbox(work / "second")  # by a relay that sends it: the reader needs no lock
    with (work / "second" / FILE).open("ab") as file:
        file.write(b'{"call": "log_ep')
    waiting = unsent_attempts(work, parent)
    held.close()
    assert [(run.data.tags["trial_id"], run.data.tags.get("outcome"), run.info.status) for run in waiting] == [
        ("second", "completed", "FINISHED"), ("under way", None, "RUNNING"), ("first", "completed", "FINISHED"),
    ]  # fmt: skip
    shutil.rmtree(work / "other")
    flush_all(work)
    sent = [run for run in tracking.trials(parent) if run.data.tags["trial_id"] != "sent whole"]
    assert [(run.info.start_time, run.info.status) for run in waiting] == [
        (run.info.start_time, run.info.status) for run in sent
    ]
    for read, there in zip(waiting, sent, strict=True):
        assert read.data.tags.items() <= there.data.tags.items()
        assert {"trial_id", "node", "attempt_id"} <= read.data.tags.keys()


def test_ended_trials_are_delivered_with_their_outcome_and_the_rest_stays_for_the_orphans(
    tracking, parent, tmp_path
) -> None:
    work = tmp_path / "work"
    for key, ended in (("done", True), ("cut", False)):
        filled(work, tracking, parent, key, ended)
    assert flush_all(work) == []
    assert [folder.name for folder in outbox_folders(work)] == ["cut"]
    assert close_orphans(tracking, parent, work) == ["workers · num_workers=4 · repeat 1"]
    assert not outbox_folders(work)
    outcomes = {
        run.data.tags["trial_id"]: (run.info.status, run.data.tags["outcome"])
        for run in tracking.trials(parent)
    }
    assert outcomes == {"done": ("FINISHED", "completed"), "cut": ("KILLED", "interrupted")}


def test_what_waits_makes_room_for_the_next_attempt_and_one_that_nobody_ended_is_interrupted(
    tracking, parent, tmp_path
) -> None:
    work = tmp_path / "work"
    for ended in (True, False):
        quarantine(filled(work, tracking, parent, ended=ended))
    assert [path.name for path in work.iterdir()] == ["unsent"]
    assert len(outbox_folders(work)) == 2
    assert flush_all(work) == []
    assert not list(work.iterdir())
    assert sorted(run.data.tags["outcome"] for run in tracking.trials(parent)) == [
        "completed",
        "interrupted",
    ]
    assert len(artifacts(tracking)) == 2


def test_a_trial_that_is_sent_whole_is_not_set_aside(tracking, parent, tmp_path) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    drain(folder, tracking)
    quarantine(folder)
    quarantine(tmp_path)
    assert folder.exists()


def test_a_refusal_keeps_that_trial_and_lets_the_others_through(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    for key in ("deleted", "other"):
        quarantine(filled(work, tracking, parent, key))
    (outbox,) = [Outbox(folder) for folder in outbox_folders(work) if "deleted" in folder.name]
    outbox.send_next(tracking)
    outbox.close()
    (run,) = tracking.trials(parent)
    tracking.client.delete_run(run.info.run_id)
    (unsent,) = flush_all(work, patience_s=600)  # no patience helps where it is refused
    assert not unsent.unavailable
    assert "deleted" in unsent.folder.name
    text = format_message([unsent])
    assert "refuses the records" in text
    assert str(unsent.folder) in text
    assert settled_outcomes(tracking.trials(parent)) == {"other": "completed"}
    tracking.client.restore_run(run.info.run_id)
    assert flush_all(work) == []
    assert settled_outcomes(tracking.trials(parent)) == {
        "other": "completed",
        "deleted": "completed",
    }


def test_what_an_interrupted_attempt_has_to_tell_of_a_run_that_is_no_more_is_dropped(
    tracking, parent, tmp_path
) -> None:
    work = tmp_path / "work"
    folder = filled(work, tracking, parent, ended=False)
    outbox = Outbox(folder)
    outbox.send_next(tracking)
    outbox.close()
    quarantine(folder)
    # as in another database in its place
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", [outbox.run_id])
    assert flush_all(work) == []
    assert not list(work.iterdir())


def test_what_dead_relays_left_is_ended_and_sent_and_a_live_ones_is_left_alone(
    tracking, parent, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("sweeps.tracking.outbox_recovery.ENDING_S", 0.2)
    work = tmp_path / "work"
    for key, ended in (("cut", False), ("whole", True), ("live", False)):
        filled(work, tracking, parent, key, ended)
    monkeypatch.setattr(
        "sweeps.tracking.outbox_recovery._attempt_folders",
        lambda folder: [work / key for key in ("live", "cut", "whole") if (work / key).exists()],
    )
    live = Outbox(work / "live")
    assert end_and_flush_all(work, 0) == []
    assert {
        run.data.tags["trial_id"]: (run.data.tags["outcome"], run.info.status)
        for run in tracking.trials(parent)
    } == {
        "cut": ("interrupted", "KILLED"),
        "whole": ("completed", "FINISHED"),
    }
    assert [folder.name for folder in outbox_folders(work)] == ["live"]
    live.close()
    end_and_flush_all(work, 0)
    assert [run.info.status for run in tracking.trials(parent)].count("KILLED") == 2
    assert outbox_folders(work) == []


def test_the_records_of_an_abandoned_attempt_are_sent_and_settle_nothing(
    tracking, parent, tmp_path
) -> None:
    folder = filled(tmp_path / "unplugged", tracking, parent, "k")
    outbox = Outbox(folder)
    outbox.send_next(tracking)  # it opens its run, then its machine is unplugged
    outbox.close()
    close_orphans(tracking, parent, tmp_path / "elsewhere")
    drain(folder, tracking)
    (run,) = tracking.trials(parent)
    assert (run.data.tags["outcome"], run.info.status) == ("interrupted", "KILLED")
    attempt, _, evidence = run.data.tags["evidence"].rpartition(": ")
    assert attempt.endswith(" completed"), "the outcome of the attempt itself"
    assert evidence.endswith(" its end"), "its own evidence, of tests/outboxes.py"
    assert run.data.metrics["epoch_s"] == 3.0


def test_an_attempt_whose_run_was_not_open_yet_does_not_settle_what_was_run_again(
    tracking, parent, tmp_path
) -> None:
    unplugged = filled(tmp_path / "unplugged", tracking, parent, "k")
    time.sleep(0.002)  # MLflow's clock has milliseconds
    drain(filled(tmp_path / "again", tracking, parent, "k"), tracking)
    drain(unplugged, tracking)
    assert [run.data.tags["outcome"] for run in tracking.trials(parent)] == [
        "completed",
        "interrupted",
    ]
    time.sleep(0.002)
    drain(filled(tmp_path / "rerun", tracking, parent, "k", attempt=3), tracking)
    assert [run.data.tags["outcome"] for run in tracking.trials(parent)] == [
        "completed",
        "completed",
        "interrupted",
    ]
