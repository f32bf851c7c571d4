"""The outbox against a real database: whatever fails and wherever it is killed, each record is
there once."""

import contextlib
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from sweeps.sandbox.private_shm import enter_namespaces
from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from sweeps.tracking.outbox import FILE, Outbox
from sweeps.tracking.outbox_recovery import flush_all, format_message, quarantine
from sweeps.tracking.sender import Sender
from tests.conftest import tracking_in
from tests.outboxes import ABOUT, artifacts, drain, filled, rows
from tests.trees import can_isolate


class Faulty:
    """A tracker of which each call fails once, before or after it has done its work."""

    def __init__(self, tracking: RunLogger, when: str) -> None:
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


@pytest.fixture
def parent(tracking) -> str:
    return tracking.start_sweep("s", "name: s\n", [{"trial_id": "k"}], "")


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_operation_may_fail_and_is_there_once(tracking, parent, tmp_path, when) -> None:
    folder = filled(tmp_path / "work", tracking, parent)
    told = [json.loads(line) for line in (folder / "outbox.jsonl").read_text().splitlines()][1:]
    attempt = told[0]["arguments"]["attempt_id"]
    assert drain(folder, Faulty(tracking, when)) == len(told) == 9
    found = rows(tracking)
    began, *epochs = [each["at"] for each in told]
    assert found["runs"] == [
        ("workers · num_workers=4 · repeat 1", "FINISHED", "active", began, told[-1]["at"])
    ]
    series = {
        name: [row[1:] for row in found["metrics"] if row[0] == name]
        for name in ("time/epoch_s", "loss/training", "lr")
    }
    assert series["time/epoch_s"] == [
        (epoch, 2.0 + epoch, 0, epochs[1 + epoch]) for epoch in range(3)
    ]
    assert series["loss/training"] == [(epoch, 0.0, 1, epochs[1 + epoch]) for epoch in range(3)]
    assert len(found["metrics"]) == 3 * 3 + 3  # and the forecast, the snapshot, the summary
    assert dict(row[:1] + row[2:3] for row in found["latest"])["time/epoch_s"] == 4.0
    assert dict(found["params"]) == {"sgdr.epochs": "3", "seed": "42", "repeat": "1"}
    tags = dict(found["tags"])
    assert (tags["attempt_id"], tags["outcome"], tags["node"], tags["status"]) == (
        attempt,
        "completed",
        "box",
        "0",
    )
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
    twin = tracking.client.create_run(
        tracking.experiment_id, tags={"attempt_id": outbox.head["attempt_id"], "kind": "trial"}
    )
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
    assert outbox.pending_count == 6
    outbox.put("log_epoch", epoch=3, metrics={"time/epoch_s": 5.0})
    outbox.close()
    drain(folder, tracking)
    assert [row[1] for row in rows(tracking)["metrics"] if row[0] == "time/epoch_s"] == [0, 1, 2, 3]
    assert len(rows(tracking)["runs"]) == 1


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_an_outbox_cut_off_within_its_first_line_is_no_fault(tmp_path, tracking, length) -> None:
    outbox = Outbox.create(tmp_path, tracking.uri, "speech")
    outbox.close()
    os.truncate(tmp_path / "outbox.jsonl", length)
    quarantine(tmp_path)
    assert flush_all(tmp_path.parent) == []


def test_a_killed_sender_leaves_each_record_once(tracking, parent, tmp_path) -> None:
    """SIGKILL of a process that sends, when it has sent an operation, before the mark is written or
    after."""
    folder = filled(tmp_path / "work", tracking, parent)

    def send(steps: int, marked: bool) -> None:
        outbox, there = Outbox(folder), RunLogger(tracking.uri, "speech")
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
def test_a_disk_that_is_full_keeps_nobody_and_what_waited_is_sent_when_there_is_room(
    empty_database, tmp_path
) -> None:
    assert in_child(with_a_disk_of_its_own, empty_database, tmp_path) == 0


def with_a_disk_of_its_own(*arguments: Path) -> None:
    enter_namespaces(8 << 20)
    # which may have threads, other than who entered
    assert in_child(on_a_small_disk, *arguments) == 0


def on_a_small_disk(empty_database: Path, scratch: Path) -> None:
    """The database and its artifacts lie on a tmpfs of 8 MiB; a file takes what the database
    leaves."""
    disk = Path("/dev/shm/disk")
    disk.mkdir()
    tracking = tracking_in(disk, empty_database)
    parent = tracking.start_sweep("s", "name: s\n", [{"trial_id": "k"}], "")
    trial = scratch / "work" / "k"
    trial.mkdir(parents=True)
    with Sender(Outbox.create(trial, tracking.uri, "speech")) as sender:
        sender.outbox.start(parent, TrialDescription(**ABOUT, tags={}))
        assert sender.flush()
        fill(disk / "ballast")
        for epoch in range(500):  # more than the free pages of the database can hold
            sender.put("log_epoch", epoch=epoch, metrics={"time/epoch_s": 1.0 + epoch, "lr": 0.1})
        assert not sender.flush()
        (trial / "records.jsonl").write_text("x" * 100_000)
        sender.outbox.finish(
            "completed", "why", {"epoch_s": 1.0}, {}, {"records.jsonl": trial / "records.jsonl"}
        )
        assert not sender.flush()
    quarantine(trial)
    (unsent,) = flush_all(scratch / "work")
    assert unsent.unavailable
    assert "full" in format_message([unsent])
    assert rows(tracking)["runs"][0][1] == "RUNNING"
    (disk / "ballast").unlink()
    assert flush_all(scratch / "work") == []
    assert [row[1] for row in rows(tracking)["metrics"] if row[0] == "time/epoch_s"] == list(
        range(500)
    )
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
    assert flush_all(tmp_path / "work") == []
    assert rows(tracking)["runs"] == []
    held.close()
    assert flush_all(tmp_path / "work") == []
    assert len(rows(tracking)["runs"]) == 1
    assert not folder.exists()


def test_a_new_outbox_is_never_there_without_its_lock(tracking, tmp_path) -> None:
    """Another relay delivers over and over while attempts begin; it opens none of them, and none is
    kept from beginning."""
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
            outbox = Outbox.create(folder, tracking.uri, "speech")
            (folder / FILE).unlink()  # before it is given back
            outbox.close()
    finally:
        stop.set()
        watcher.join()
    assert opened == []


def test_a_sender_sends_what_is_put_and_flush_waits_for_it(tracking, parent, tmp_path) -> None:
    with Sender(Outbox.create(tmp_path, tracking.uri, "speech")) as sender:
        assert sender.flush()
        sender.outbox.start(parent, TrialDescription(**ABOUT, tags={}))
        sender.put("log_epoch", epoch=0, metrics={"time/epoch_s": 1.0})
        assert sender.flush()
        assert len(rows(tracking)["metrics"]) == 1
        sender.put("log_epoch", epoch=1, metrics={"time/epoch": 1.0})  # a bug: no such metric
        assert not sender.flush()
        sender.put("log_epoch", epoch=2, metrics={"time/epoch_s": 1.0})
        assert not sender.flush()
    assert len(rows(tracking)["metrics"]) == 1
    outbox = Outbox(tmp_path)
    assert outbox.pending_count == 2
    outbox.close()


def test_only_writes_of_a_trial_can_be_put(tmp_path, tracking) -> None:
    outbox = Outbox.create(tmp_path, tracking.uri, "speech")
    with pytest.raises(ValueError, match=r"log_plan.*start_trial"):
        outbox.put("log_plan", plan=[])
    outbox.close()
