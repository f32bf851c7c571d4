"""Counters of the kernel, against work whose size is known, and the arithmetic on planted readings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speech import usage
from speech.cpu import Throttling
from speech.page_cache import drop
from speech.usage import (
    TICK_S,
    QuotaUsage,
    Usage,
    read_core_times,
    read_counters,
    read_descendant_cpu_s,
    read_own_counters,
    usage_metrics,
)

pytestmark = pytest.mark.quiet

BEFORE = Usage(
    100.0,
    main_cpu_s=5.0,
    read_bytes=1000,
    descendant_cpu_s=2.0,
    busy_s=40.0,
    cores_s=200.0,
    waiting_s={"io": 1.0, "memory": 0.0},
)
AFTER = Usage(
    110.0,
    main_cpu_s=8.0,
    read_bytes=1500,
    descendant_cpu_s=7.0,
    busy_s=52.0,
    cores_s=220.0,
    waiting_s={"io": 1.5, "memory": 0.0},
)
LISTED = pytest.mark.skipif(
    not usage.CHILDREN_ARE_LISTED, reason="this kernel doesn't list a process's children"
)
BURN = "import time\nwhile time.process_time() < 0.5: pass\n"


def test_what_nobody_of_the_trial_did_was_done_outside() -> None:
    metrics = usage_metrics(BEFORE, AFTER, worker_cpu_s=4.0, worker_read_bytes=250)
    assert metrics == {
        "cpu/main_s": 3.0,
        "cpu/worker_s": 5.0,
        "cpu/external_fraction": pytest.approx((12 - 3 - 5) / 20),
        "io/read_bytes": 750,
        "pressure/io_fraction": pytest.approx(0.05),
        "pressure/memory_fraction": 0.0,
    }


def test_what_is_not_told_is_absent_and_never_zero() -> None:
    before, after = (each._replace(waiting_s={}) for each in (BEFORE, AFTER))
    assert usage_metrics(before, after, None).keys() == {
        "cpu/main_s",
        "cpu/external_fraction",
        "io/read_bytes",
    }


@pytest.mark.parametrize(("told_s", "outside"), [(None, 9 / 20), (4.0, 5 / 20)])
def test_where_the_kernel_lists_no_children_the_workers_are_believed(
    told_s: float | None, outside: float
) -> None:
    before, after = (each._replace(descendant_cpu_s=None) for each in (BEFORE, AFTER))
    metrics = usage_metrics(before, after, told_s)
    assert metrics["cpu/external_fraction"] == pytest.approx(outside)
    assert metrics.get("cpu/worker_s") == told_s


def test_ticks_are_coarse_but_no_share_is_below_nothing() -> None:
    assert (
        usage_metrics(BEFORE, AFTER._replace(descendant_cpu_s=11.5), worker_cpu_s=9.5)[
            "cpu/external_fraction"
        ]
        == 0
    )


def under_quota(cores: float, group_s: float | None) -> float:
    """Of 10 s on 2 cores, 12 s of whose time were used and 8 s of that by the trial: what is
    outside it under a quota."""
    before = BEFORE._replace(quota=QuotaUsage(cores, 2, None if group_s is None else 1.0))
    after = AFTER._replace(quota=QuotaUsage(cores, 2, None if group_s is None else 1.0 + group_s))
    return usage_metrics(before, after, worker_cpu_s=None)["cpu/external_fraction"]


def test_under_a_quota_others_harm_by_what_they_take_of_it_or_of_more_than_it_leaves() -> None:
    assert under_quota(1.0, 8.0) == 0, "others use a core that the quota leaves idle anyway"
    assert under_quota(1.0, 9.5) == pytest.approx(1.5 / 10), (
        "others under the same quota take of it"
    )
    assert under_quota(1.8, 8.0) == pytest.approx((4 - 0.2 * 10) / 18), (
        "they need more than the 0.2 cores that it leaves"
    )
    assert under_quota(1.0, None) == 0
    changed = (
        AFTER._replace(quota=QuotaUsage(1.0, 2, None)),
        BEFORE._replace(quota=QuotaUsage(2.0, 2, None)),
    )
    assert usage_metrics(changed[1], changed[0], None)["cpu/external_fraction"] == pytest.approx(
        4 / 20
    ), "it was changed meanwhile"


def test_time_held_back_is_of_the_group_that_held_back_longest() -> None:
    own, above, new = Path("/own"), Path("/above"), Path("/new")
    before = BEFORE._replace(
        throttling={own: Throttling(1.0, 5, 50), above: Throttling(4.0, 9, 90)}
    )
    after = AFTER._replace(
        throttling={
            own: Throttling(3.5, 55, 150),
            above: Throttling(4.5, 10, 190),
            new: Throttling(99.0, 9, 9),
        }
    )
    metrics = usage_metrics(before, after, None)
    assert (metrics["cpu/throttled_s"], metrics["cpu/throttled_fraction"]) == (2.5, 0.5)
    assert not {name for name in usage_metrics(BEFORE, AFTER, None) if "throttled" in name}


def test_cores_that_lxcfs_has_numbered_anew_are_all_the_containers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = (
        "cpu  9 0 0 9 0 0 0 0 0 0\ncpu0 100 0 0 100 0 0 0 0 0 0\ncpu1 300 0 0 100 0 0 0 0 0 0\nintr"
        " 1 2\n"
    )
    monkeypatch.setattr(usage, "_read_open_file", lambda file: rows)
    for affinity, expected in (
        ({0}, (100, 200)),
        ({0, 1}, (400, 600)),
        ({1, 5}, (400, 600)),
        ({4, 5}, (400, 600)),
    ):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, affinity=affinity: affinity)
        assert read_core_times() == tuple(ticks * TICK_S for ticks in expected)


@LISTED
@pytest.mark.parametrize(
    "command", [[sys.executable, "-c", BURN], ["sh", "-c", f"'{sys.executable}' -c '{BURN}'; true"]]
)
def test_what_children_and_theirs_compute_is_counted_while_they_live_and_once_when_they_have_ended(
    command: list[str],
) -> None:
    began, before = _told_s(), os.times()
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            living = _told_s()
            time.sleep(0.02)
    after = os.times()
    ended = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert ended >= 0.5 - 2 * TICK_S
    assert living - began >= 0.4, "the last time that it was seen to live"
    assert _told_s() - began == pytest.approx(ended, abs=2 * TICK_S)


def _told_s() -> float:
    told = read_descendant_cpu_s()
    assert told is not None
    return told


def test_another_process_that_computes_is_outside_and_ones_own_work_is_not() -> None:
    other = _start_apart("while True: pass")
    began = read_counters()
    time.sleep(1.0)
    shared = usage_metrics(began, read_counters(), None)
    os.kill(other, signal.SIGKILL)
    began = read_counters()
    while time.process_time() < began.main_cpu_s + 1.0:
        pass
    ended = read_counters()
    own = usage_metrics(began, ended, None)
    one_core = 1 / len(os.sched_getaffinity(0))
    assert shared["cpu/external_fraction"] > 0.5 * one_core
    assert own["cpu/main_s"] == pytest.approx(1.0, abs=0.1)
    busy = (ended.busy_s - began.busy_s) / (ended.cores_s - began.cores_s)
    assert own["cpu/external_fraction"] < busy


def _start_apart(code: str) -> int:
    """A Python that is no child of this process: its parent, a shell, has ended."""
    start = f"'{sys.executable}' -c '{code}' > /dev/null 2>&1 & echo $!"
    return int(
        subprocess.run(["sh", "-c", start], capture_output=True, text=True, check=True).stdout
    )


def test_the_cores_are_those_that_the_process_may_use() -> None:
    (_, one), (_, total) = (float(value) for value in _cores_of(1)), read_core_times()
    assert one == pytest.approx(total / len(os.sched_getaffinity(0)), rel=0.05)


def _cores_of(count: int) -> list[str]:
    code = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{count}]); "
    code += "from speech.usage import read_core_times; print(*read_core_times())"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_a_dropped_file_is_read_from_storage_again(tmp_path: Path) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(os.urandom(1 << 20))

    def read() -> int:
        _, before = read_own_counters()
        file.read_bytes()
        return read_own_counters()[1] - before

    if os.statvfs(tmp_path).f_files == 0 or _in_memory(tmp_path):
        pytest.skip("the temporary folder lies in memory")
    drop([file])
    assert read() >= 1 << 20
    assert read() == 0, "now it is in the page cache"
    drop([file])
    assert read() >= 1 << 20


def _in_memory(folder: Path) -> bool:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True
    ).stdout.strip()
    return kind in ("tmpfs", "ramfs")
