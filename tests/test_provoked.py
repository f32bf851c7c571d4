"""Every way in which a trial can fail, provoked in a real process tree, and the outcome that it
gets."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.sandbox import cgroup
from sweeps.sandbox.isolation import ForkServer, Task
from tests.trees import ROOT, can_isolate, finish, trees, wait_until

pytestmark = pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")

MIB = 1 << 20
GROUP_BYTES = 1536 * MIB


@pytest.fixture(scope="module")
def template():
    made = ForkServer(ROOT, tasks="tests.provoked")
    yield made
    made.close()


def loop(shm_mib: float, **arguments) -> Task:
    return Task("loop", arguments, shm_bytes=round(shm_mib * MIB))


@pytest.mark.parametrize(
    ("task", "sure_to_fit", "outcome", "evidence"),
    [
        (loop(8), True, "completed", "schedule"),
        (loop(8, batch_mib=9), False, "shm_exhausted", "unable to allocate"),
        (
            loop(8, batch_mib=3, num_workers=4),
            False,
            "shm_exhausted",
            "unable to allocate",
        ),
        (
            loop(8, accident="share", num_workers=1),
            False,
            "shm_exhausted",
            "unable to allocate",
        ),
        (
            Task("accident", {"accident": "share"}, shm_bytes=8 * MIB),
            False,
            "shm_exhausted",
            "unable to allocate",
        ),
        (loop(8, accident="fill_shm"), True, "shm_exhausted", "Bus error"),
        (
            Task("accident", {"accident": "fill_shm"}, shm_bytes=8 * MIB),
            True,
            "shm_exhausted",
            "signal 7",
        ),
        (loop(64, accident="sigbus"), True, "crashed", "had room"),
        (loop(64, accident="sigkill"), True, "crashed", "signal: Killed"),
        (loop(64, accident="segfault"), True, "crashed", "signal: Segmentation fault"),
        (loop(64, accident="exit"), True, "crashed", "exited unexpectedly"),
        (loop(64, accident="raises"), True, "crashed", "ZeroDivisionError"),
        (loop(64, accident="open_too_many"), True, "crashed", "ulimit -Hn"),
        (loop(64, accident="memory_error"), True, "oom", "MemoryError"),
        (Task("accident", {"accident": "sigkill"}), True, "crashed", "signal 9"),
        (Task("accident", {"accident": "abort"}), True, "crashed", "signal 6"),
        (Task("accident", {"accident": "exit"}), True, "crashed", "status 3"),
        (Task("accident", {"accident": "memory_error"}), True, "oom", "MemoryError"),
    ],
    ids=lambda value: (
        str(value.arguments | {"shm": value.shm_bytes}) if isinstance(value, Task) else None
    ),
)
def test_each_failure_gets_its_outcome_and_evidence(
    template, tmp_path, task: Task, sure_to_fit: bool, outcome: str, evidence: str
) -> None:
    began = time.monotonic()
    *_, found = finish(template, replace(task, sure_to_fit=sure_to_fit), tmp_path, timeout_s=60)
    assert found.outcome == outcome, found
    assert evidence in found.evidence
    assert time.monotonic() - began < 12
    assert wait_until(lambda: not trees(template), seconds=1)


@pytest.mark.parametrize(
    ("shm_mib", "arguments"),
    [(4, {"batch_mib": 5.0}), (14, {"batch_mib": 4.0, "num_workers": 4, "step_s": 0.2})],
    ids=["empty", "nearly full"],
)
def test_a_silent_hang_is_found_within_fifteen_seconds(
    template, tmp_path, shm_mib: int, arguments: dict
) -> None:
    """With a custom collate function, the batch is lost in the feeder thread, and the loop waits
    forever."""
    began = time.monotonic()
    *_, outcome = finish(
        template, loop(shm_mib, custom_collate=True, **arguments), tmp_path, timeout_s=60
    )
    assert outcome.outcome == "shm_exhausted"
    assert re.search(r" \d+ s .*: unable to ", outcome.evidence)
    assert time.monotonic() - began < 15
    assert wait_until(lambda: not trees(template), seconds=1)


def test_a_hang_whose_workers_have_no_stderr_is_found_by_the_remaining_room(
    template, tmp_path
) -> None:
    began = time.monotonic()
    *_, outcome = finish(
        template, loop(4, batch_mib=5.0, custom_collate=True, mute=True), tmp_path, timeout_s=60
    )
    assert outcome.outcome == "shm_exhausted"
    assert "no room" in outcome.evidence
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("shm_mib", "accident", "sure_to_fit"),
    [
        pytest.param(64, "nap", False, id="asleep on a roomy shm", marks=pytest.mark.slow),
        pytest.param(3.5, "work", False, id="at work on a tight one"),
        pytest.param(
            3.5, "nap", True, id="asleep on a tight one that is sure to fit", marks=pytest.mark.slow
        ),
    ],
)
def test_a_slow_loader_is_not_taken_for_a_hang(
    template, tmp_path, shm_mib: float, accident: str, sure_to_fit: bool
) -> None:
    """With one worker and at most two batches in progress, /dev/shm holds at most three batches of 1
    MiB and the queues' 11 pages."""
    task = replace(
        loop(shm_mib, accident=accident, num_workers=1, prefetch_factor=1, batches=4),
        sure_to_fit=sure_to_fit,
    )
    *_, outcome = finish(template, task, tmp_path, timeout_s=60)
    assert outcome.outcome == "completed", outcome


def test_a_trial_killed_in_the_middle_of_a_record_still_gets_its_outcome(
    template, tmp_path
) -> None:
    records, outcome = finish(template, Task("accident", {"accident": "half_a_line"}), tmp_path)
    assert [record["kind"] for record in records] == ["exit"]
    assert outcome.outcome == "crashed"
    assert outcome.evidence.endswith(" signal 9")


def test_a_trial_that_ignores_sigterm_ends_at_its_timeout(template, tmp_path) -> None:
    began = time.monotonic()
    *_, outcome = finish(
        template, loop(64, step_s=60.0, ignore_sigterm=True), tmp_path, timeout_s=2
    )
    assert outcome.outcome == "timeout"
    assert time.monotonic() - began < 4
    assert wait_until(lambda: not trees(template), seconds=1), (
        "the tree is gone when its end is reported"
    )


MEMORY_GROUPS = (
    Path("/sys/fs/cgroup/memory")
    if Path("/sys/fs/cgroup/memory").is_dir()
    else Path("/sys/fs/cgroup")
)


@pytest.fixture
def small_group():
    """A control group of 1.5 GiB, as a container has one."""
    folder = MEMORY_GROUPS / f"sweep-test-{time.time_ns()}"
    try:
        folder.mkdir()
        limit = folder / (
            "memory.limit_in_bytes" if (folder / "memory.limit_in_bytes").exists() else "memory.max"
        )
        limit.write_text(str(GROUP_BYTES))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    assert wait_until(lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        pytest.param(
            {"batch_mib": 60.0, "batches": 24, "prefetch_factor": 20, "step_s": 2.0},
            "shm_exhausted",
            marks=pytest.mark.slow,
        ),
        ({"accident": "hoard"}, "oom"),
    ],
)
def test_a_kill_by_the_oom_killer_is_an_overflow_or_a_lack_of_memory(
    small_group, tmp_path, arguments: dict, outcome: str
) -> None:
    held = ForkServer(ROOT, tasks="tests.provoked")
    (small_group / "cgroup.procs").write_text(str(held._process.pid))
    try:
        records, found = finish(
            held, loop(4096, num_workers=1, **arguments), tmp_path, timeout_s=60
        )
        assert found.outcome == outcome, found
        assert records[-1]["memory_limit_bytes"] == GROUP_BYTES
        assert records[-1]["oom_kills"] > 0
        assert cgroup.memory_limit() > GROUP_BYTES, "the test itself is outside"
    finally:
        held.close()
