"""Counters of the kernel, against work whose size is known, and the arithmetic on planted readings."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speech.page_cache import drop
from speech.usage import Usage, cores, look, own, usage_metrics

BEFORE = Usage(clock_s=100.0, main_cpu_s=5.0, read_bytes=1000, busy_s=40.0, cores_s=200.0, waiting_s={"io": 1.0, "memory": 0.0})
AFTER = Usage(clock_s=110.0, main_cpu_s=8.0, read_bytes=1500, busy_s=52.0, cores_s=220.0, waiting_s={"io": 1.5, "memory": 0.0})


def test_what_nobody_of_the_trial_did_was_done_outside() -> None:
    metrics = usage_metrics(BEFORE, AFTER, worker_cpu_s=5.0, worker_read_bytes=250)
    assert metrics == {
        "cpu/main_s": 3.0,
        "cpu/worker_s": 5.0,
        "cpu/outside_fraction": pytest.approx((12 - 3 - 5) / 20),
        "io/read_bytes": 750,
        "pressure/io_fraction": pytest.approx(0.05),
        "pressure/memory_fraction": 0.0,
    }


def test_what_is_not_told_is_absent_and_never_zero() -> None:
    before, after = (each._replace(waiting_s={}) for each in (BEFORE, AFTER))
    assert usage_metrics(before, after, None).keys() == {"cpu/main_s", "cpu/outside_fraction", "io/read_bytes"}


def test_ticks_are_coarse_but_no_share_is_below_nothing() -> None:
    assert usage_metrics(BEFORE, AFTER, worker_cpu_s=9.5)["cpu/outside_fraction"] == 0


def test_another_process_that_computes_is_outside_and_ones_own_work_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        began = look()
        time.sleep(1.0)
        shared = usage_metrics(began, look(), None)
        other.kill()
    began = look()
    while time.process_time() < began.main_cpu_s + 1.0:
        pass
    ended = look()
    own = usage_metrics(began, ended, None)
    one_core = 1 / len(os.sched_getaffinity(0))
    assert shared["cpu/outside_fraction"] > 0.5 * one_core
    assert own["cpu/main_s"] == pytest.approx(1.0, abs=0.1)
    busy = (ended.busy_s - began.busy_s) / (ended.cores_s - began.cores_s)
    assert own["cpu/outside_fraction"] < busy


def test_the_cores_are_those_that_the_process_may_use() -> None:
    (_, one), (_, total) = (float(value) for value in _cores_of(1)), cores()
    assert one == pytest.approx(total / len(os.sched_getaffinity(0)), rel=0.05)


def _cores_of(count: int) -> list[str]:
    code = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{count}]); from speech.usage import cores; print(*cores())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    ).stdout.split()


def test_a_dropped_file_is_read_from_storage_again(tmp_path: Path) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(os.urandom(1 << 20))

    def read() -> int:
        _, before = own()
        file.read_bytes()
        return own()[1] - before

    if os.statvfs(tmp_path).f_files == 0 or _in_memory(tmp_path):
        pytest.skip("the temporary folder lies in memory")
    drop([file])
    assert read() >= 1 << 20
    assert read() == 0, "now it is in the page cache"
    drop([file])
    assert read() >= 1 << 20


def _in_memory(folder: Path) -> bool:
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    return kind in ("tmpfs", "ramfs")
