"""The outbox against a real database: whatever fails and wherever it is killed, each record is there once."""

import contextlib
import json
import os
import signal
import sqlite3
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from sweeps.isolation import enter_namespaces
from sweeps.outbox import FILE, Outbox, deliver, ended_in, left_in, remove, set_aside, told
from sweeps.sender import Sender
from sweeps.tracking import Tracking
from tests.conftest import tracking_in
from tests.trees import can_isolate

ABOUT = {"key": "k", "block": "workers", "repeat": 1, "seed": 42, "swept": {"loader.num_workers": 4}, "config": {"sgdr": {"epochs": 3}}}


def filled(sweep_folder: Path, tracking: Tracking, parent: str, key: str = "k", ended: bool = True) -> Path:
    """A trial's folder with its outbox: nothing of it is sent yet."""
    folder = sweep_folder / key
    folder.mkdir(parents=True)
    outbox = Outbox.new(folder, tracking.uri, "speech")
    outbox.start(parent, **ABOUT | {"key": key}, tags={"node": "box"})
    outbox.put("log_summary", metrics={"forecast_epoch_s": 2.0})
    for epoch in range(3):
        metrics = {"time/epoch_s": 2.0 + epoch, "loss/training": float("nan"), "lr": 0.1, "shm/peak_bytes": None}
        outbox.put("log_epoch", epoch=epoch, metrics=metrics)
    outbox.put("log_snapshot", cycle=0, metrics={"snapshot/accuracy": 0.75})
    (folder / "records.jsonl").write_text('{"kind": "end"}\n')
    if ended:
        outbox.finish("completed", "ran to its end", {"epoch_s": 3.0}, {"status": 0}, {"files/records.jsonl": folder / "records.jsonl"})
    outbox.close()
    return folder


def rows(tracking: Tracking) -> dict[str, list]:
    """All that the database holds of trials' runs, as it is; ids and times of its own left out."""
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:
        trials = "run_uuid in (select run_uuid from tags where key = 'kind' and value = 'trial')"
        queries = {
            "runs": f"select name, status, lifecycle_stage, start_time, end_time from runs where {trials}",
            "metrics": f"select key, step, value, is_nan, timestamp from metrics where {trials} order by 1, 2",
            "latest": f"select key, step, value, is_nan, timestamp from latest_metrics where {trials} order by 1",
            "params": f"select key, value from params where {trials} order by 1",
            "tags": f"select key, value from tags where {trials} and key not like 'mlflow.%' order by 1",
        }
        return {name: database.execute(query).fetchall() for name, query in queries.items()}


def artifacts(tracking: Tracking) -> list[tuple[str, str]]:
    place = Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    return [(file.name, file.read_text()) for file in place.rglob("records.jsonl")]


class Faulty:
    """A tracker of which each call fails once, before or after it has done its work."""

    def __init__(self, tracking: Tracking, when: str) -> None:
        self.tracking, self.when, self.failed = tracking, when, set()

    def __getattr__(self, call: str):
        def faulty(*arguments, **named):
            what = json.dumps([call, *arguments, named], default=str)
            first, done = what not in self.failed, None
            if self.when == "after" or not first:
                done = getattr(self.tracking, call)(*arguments, **named)
            if first:
                self.failed.add(what)
                raise MlflowException("planted")
            return done

        return faulty


def drain(folder: Path, tracking) -> int:
    """Sends all of an outbox, opening it anew after each failure, as after a kill; returns how often it failed."""
    failures = 0
    while True:
        outbox = Outbox(folder)
        try:
            while outbox.waiting:
                outbox.send_next(tracking)
            return failures
        except MlflowException:
            failures += 1
        finally:
            outbox.close()


@pytest.fixture
def parent(tracking) -> str:
    return tracking.start_sweep("s", "name: s\n", [{"key": "k"}], "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_operation_may_fail_and_is_there_once(tracking, parent, tmp_path, when) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    told = [json.loads(line) for line in (folder / "outbox.jsonl").read_text().splitlines()][1:]
    attempt = told[0]["arguments"]["attempt_id"]
    assert drain(folder, Faulty(tracking, when)) == len(told) == 9
    found = rows(tracking)
    began, *epochs = [each["at"] for each in told]
    assert found["runs"] == [("workers · num_workers=4 · repeat 1", "FINISHED", "active", began, told[-1]["at"])]
    series = {name: [row[1:] for row in found["metrics"] if row[0] == name] for name in ("time/epoch_s", "loss/training", "lr")}
    assert series["time/epoch_s"] == [(epoch, 2.0 + epoch, 0, epochs[1 + epoch]) for epoch in range(3)]
    assert series["loss/training"] == [(epoch, 0.0, 1, epochs[1 + epoch]) for epoch in range(3)]
    assert len(found["metrics"]) == 3 * 3 + 3  # and the forecast, the snapshot, the summary
    assert dict(row[:1] + row[2:3] for row in found["latest"])["time/epoch_s"] == 4.0
    assert dict(found["params"]) == {"sgdr.epochs": "3", "seed": "42", "repeat": "1"}
    tags = dict(found["tags"])
    assert (tags["attempt_id"], tags["outcome"], tags["node"], tags["status"]) == (attempt, "completed", "box", "0")
    assert artifacts(tracking) == [("records.jsonl", '{"kind": "end"}\n')]


def test_what_is_sent_twice_is_as_what_is_sent_once(tracking, parent, tmp_path) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    drain(folder, tracking)
    once = rows(tracking)
    (folder / "sent").unlink()
    drain(folder, tracking)
    assert rows(tracking) == once


def test_a_second_run_of_an_attempt_is_deleted(tracking, parent, tmp_path) -> None:
    """As a server leaves it that answers a request which has been given up and sent again."""
    folder = filled(tmp_path / "work", tracking, parent)
    outbox = Outbox(folder)
    outbox.send_next(tracking)
    twin = tracking.client.create_run(tracking.experiment_id, tags={"attempt_id": outbox.head["attempt_id"], "kind": "trial"})
    outbox.close()
    drain(folder, tracking)
    assert {run.info.status for run in tracking.trials(parent)} == {"FINISHED"}
    assert tracking.client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"


def test_a_line_cut_short_is_dropped_and_the_next_one_is_whole(tracking, parent, tmp_path) -> None:
    folder = filled(tmp_path / "work", tracking, parent, ended=False)
    with (folder / "outbox.jsonl").open("a") as file:
        file.write('{"call": "log_epoch", "at": 17, "argu')
    (folder / "sent").write_text("0123456789abcdef0123456789ab")  # killed while marking the first
    outbox = Outbox(folder)
    assert outbox.waiting == 6
    outbox.put("log_epoch", epoch=3, metrics={"time/epoch_s": 5.0})
    outbox.close()
    drain(folder, tracking)
    assert [row[1] for row in rows(tracking)["metrics"] if row[0] == "time/epoch_s"] == [0, 1, 2, 3]
    assert len(rows(tracking)["runs"]) == 1


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_an_outbox_cut_off_within_its_first_line_is_no_fault(tmp_path, tracking, length) -> None:
    outbox = Outbox.new(tmp_path, tracking.uri, "speech")
    outbox.close()
    os.truncate(tmp_path / "outbox.jsonl", length)
    set_aside(tmp_path)
    assert deliver(tmp_path.parent) == []


def test_a_killed_sender_leaves_each_record_once(tracking, parent, tmp_path) -> None:
    """SIGKILL of a process that sends, when it has sent an operation, before the mark is written or after."""
    folder = filled(tmp_path / "work", tracking, parent)

    def send(steps: int, marked: bool) -> None:
        outbox, there = Outbox(folder), Tracking(tracking.uri, "speech")
        for _ in range(steps - 1):
            outbox.send_next(there)
        if not marked:
            outbox._marks.close()
            outbox._marks = Killer()
        outbox.send_next(there)
        os.kill(os.getpid(), signal.SIGKILL)

    for steps, marked in ((1, False), (1, True), (3, False), (2, True), (2, False)):
        assert in_child(send, steps, marked) == -signal.SIGKILL
    drain(folder, tracking)
    found = rows(tracking)
    assert len(found["runs"]) == 1
    assert len(found["metrics"]) == 12
    assert len(artifacts(tracking)) == 1


class Killer:
    def write(self, line: bytes) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[..., None], *arguments: Any) -> int:
    """Runs it in a fork of this process, which has MLflow already; returns its exit status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_disk_that_is_full_keeps_nobody_and_what_waited_is_sent_when_there_is_room(empty_database, tmp_path) -> None:
    assert in_child(with_a_disk_of_its_own, empty_database, tmp_path) == 0


def with_a_disk_of_its_own(*arguments: Path) -> None:
    enter_namespaces(8 << 20)
    assert in_child(on_a_small_disk, *arguments) == 0  # which may have threads, other than who entered


def on_a_small_disk(empty_database: Path, scratch: Path) -> None:
    """The database and its artifacts lie on a tmpfs of 8 MiB; a file takes what the database leaves."""
    disk = Path("/dev/shm/disk")
    disk.mkdir()
    tracking = tracking_in(disk, empty_database)
    parent = tracking.start_sweep("s", "name: s\n", [{"key": "k"}], "")
    trial = scratch / "work" / "k"
    trial.mkdir(parents=True)
    with Sender(Outbox.new(trial, tracking.uri, "speech")) as sender:
        sender.outbox.start(parent, **ABOUT, tags={})
        assert sender.flush()
        fill(disk / "ballast")
        for epoch in range(500):  # more than the free pages of the database can hold
            sender.put("log_epoch", epoch=epoch, metrics={"time/epoch_s": 1.0 + epoch, "lr": 0.1})
        assert not sender.flush()
        (trial / "records.jsonl").write_text("x" * 100_000)
        sender.outbox.finish("completed", "why", {"epoch_s": 1.0}, {}, {"records.jsonl": trial / "records.jsonl"})
        assert not sender.flush()
    set_aside(trial)
    (unsent,) = deliver(scratch / "work")
    assert unsent.away
    assert "full" in told([unsent])
    assert rows(tracking)["runs"][0][1] == "RUNNING"
    (disk / "ballast").unlink()
    assert deliver(scratch / "work") == []
    assert [row[1] for row in rows(tracking)["metrics"] if row[0] == "time/epoch_s"] == list(range(500))
    assert [row[1] for row in rows(tracking)["runs"]] == ["FINISHED"]
    assert [len(text) for _, text in artifacts(tracking)] == [100_000]


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 4096)


def test_an_outbox_is_open_in_one_place_at_a_time(tracking, parent, tmp_path) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    held = Outbox(folder)
    with pytest.raises(BlockingIOError):
        Outbox(folder)
    assert deliver(tmp_path / "work") == []
    assert rows(tracking)["runs"] == []
    held.close()
    assert deliver(tmp_path / "work") == []
    assert len(rows(tracking)["runs"]) == 1
    assert not folder.exists()


def test_a_new_outbox_is_never_there_without_its_lock(tracking, tmp_path) -> None:
    """Another relay delivers over and over while attempts begin; it opens none of them, and none is kept from beginning."""
    folder = tmp_path / "work" / "k"
    folder.mkdir(parents=True)
    stop = threading.Event()
    opened: list[Path] = []

    def look() -> None:
        while not stop.is_set():
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                Outbox(folder).close()
                opened.append(folder)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(300):
            outbox = Outbox.new(folder, tracking.uri, "speech")
            (folder / FILE).unlink()  # before it is given back
            outbox.close()
    finally:
        stop.set()
        watcher.join()
    assert opened == []


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


def test_ended_attempts_that_wait_are_read_as_the_runs_that_they_will_be(tracking, parent, tmp_path) -> None:
    work = tmp_path / "work"
    set_aside(filled(work, tracking, parent, "first"))
    filled(work, tracking, parent, "under way", ended=False)
    filled(work, tracking, parent, "second")
    held = Outbox(work / "second")  # by a relay that sends it: the reader needs no lock
    with (work / "second" / FILE).open("ab") as file:
        file.write(b'{"call": "log_ep')
    waiting = ended_in(work)
    held.close()
    assert [run.data.tags["key"] for run in waiting] == ["second", "first"]
    deliver(work)
    sent = [run for run in tracking.trials(parent) if run.info.status != "RUNNING"]
    assert [run.info.start_time for run in waiting] == pytest.approx([run.info.start_time for run in sent], abs=1000)
    for read, there in zip(waiting, sent, strict=True):
        assert read.info.status == there.info.status
        assert read.data.tags.items() <= there.data.tags.items()
        assert {"key", "outcome", "node", "status", "attempt_id"} <= read.data.tags.keys()


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


def test_a_sender_sends_what_is_put_and_flush_waits_for_it(tracking, parent, tmp_path) -> None:
    with Sender(Outbox.new(tmp_path, tracking.uri, "speech")) as sender:
        assert sender.flush()
        sender.outbox.start(parent, **ABOUT, tags={})
        sender.put("log_epoch", epoch=0, metrics={"time/epoch_s": 1.0})
        assert sender.flush()
        assert len(rows(tracking)["metrics"]) == 1
        sender.put("log_epoch", epoch=1, metrics={"time/epoch": 1.0})  # a bug: no such metric
        assert not sender.flush()
        sender.put("log_epoch", epoch=2, metrics={"time/epoch_s": 1.0})
        assert not sender.flush()
    assert len(rows(tracking)["metrics"]) == 1
    outbox = Outbox(tmp_path)
    assert outbox.waiting == 2
    outbox.close()


def test_only_writes_of_a_trial_can_be_put(tmp_path, tracking) -> None:
    outbox = Outbox.new(tmp_path, tracking.uri, "speech")
    with pytest.raises(ValueError, match="log_plan is none of start_trial"):
        outbox.put("log_plan", plan=[])
    outbox.close()
