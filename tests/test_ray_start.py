"""A Ray that starts no trial: it is reported once, with the cause in its logs, and the wait ends
unless others use that Ray too."""

import subprocess
import sys
import time

import pytest

from sweeps.execution import ray_start
from sweeps.execution.ray_start import StartWatch, find_reason
from tests.trees import ROOT


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "session_2026" / "logs").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("[2026] thread.cc: pthread_create failed: Resource temporarily unavailable", "ulimit -u"),
        ("accept: Too many open files", "ulimit -n"),
        ("OSError: [Errno 28] No space left on device: '/tmp/x'", "TMPDIR"),
        ("std::bad_alloc", "memory"),
    ],
)
def test_the_reason_is_found_in_any_of_the_logs(scratch, line, remedy) -> None:
    logs = scratch / "session_2026" / "logs"
    (scratch / "ray.log").write_text("all is well\n")
    assert find_reason(scratch) is None
    (logs / "worker-1.err").write_text("one\n" * 50_000 + line + "\n")
    reason = find_reason(scratch)
    assert reason
    assert "worker-1.err" in reason
    assert remedy in reason


def test_the_wait_is_reported_once_and_ended_only_for_a_ray_of_the_launch(
    scratch, monkeypatch
) -> None:
    monkeypatch.setattr(ray_start, "END_AFTER_S", 1e9)
    line = "can't start new thread"
    (scratch / "ray.log").write_text(f"{line}\n")
    said: list[str] = []
    own, shared = (
        StartWatch(scratch, said.append, ends=True, report_after_s=0.0),
        StartWatch(scratch, said.append, ends=False, report_after_s=0.0),
    )
    assert own.check() is shared.check() is own.check() is None
    assert len(said) == 2
    monkeypatch.setattr(ray_start, "END_AFTER_S", 0.0)
    assert line in (own.check() or "")
    assert shared.check() is None


def test_while_a_trial_runs_no_wait_is_counted(scratch, monkeypatch) -> None:
    monkeypatch.setattr(ray_start, "END_AFTER_S", 0.0)
    said: list[str] = []
    watch = StartWatch(scratch, said.append, ends=True, report_after_s=0.0)
    watch.trial_started("long")
    watch.trial_started("short")
    assert watch.check() is None
    watch.trial_ended("short")
    assert watch.check() is None, "a trial that runs may hold the only core that the next one needs"
    assert said == []
    watch.trial_ended("long")
    assert watch.check()


def test_a_launch_that_python_can_not_end_is_ended_by_another_process(scratch) -> None:
    code = f"""
import ctypes, time
from pathlib import Path
from sweeps.execution.ray_start import end_if_late
with end_if_late(Path({str(scratch)!r}), 0.0):
    ctypes.PyDLL(None).sleep(60)  # holds Python's lock, as Ray does while it starts
"""
    (scratch / "ray.log").write_text("thread.cc: pthread_create failed\n")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < 30
    assert "ulimit -u" in done.stderr
