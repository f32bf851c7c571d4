"""Memory and processes as planted control groups lend them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.sandbox.cgroup import memory_available, memory_limit, oom_kills, process_room
from tests.groups import v1, v2
from tests.trees import ROOT

GIB = 1 << 30
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def with_machine(root: Path, total_kb: int = 1 << 40, available_kb: int = 1 << 40) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:  {total_kb} kB\nMemFree: 1 kB\nMemAvailable: {available_kb}"
        " kB\nHugePages_Total: 0\n"
    )
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"a/b/memory.max": "max", "a/memory.max": f"{GIB}"}, GIB),
        ({"a/b/memory.max": f"{GIB}", "a/memory.max": f"{GIB // 2}"}, GIB // 2),
        ({"a/b/memory.max": f"{GIB}", "a/b/memory.high": f"{GIB // 4}"}, GIB // 4),
        ({"a/b/memory.max": "a lot"}, MACHINE),
        ({"a/b/x": ""}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, files: dict, limit: int) -> None:
    assert memory_limit(with_machine(v2(tmp_path, "/a/b", files))) == limit


def test_version_1_writes_no_limit_as_a_number(tmp_path: Path) -> None:
    files = {
        "memory/x/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.limit_in_bytes": f"{GIB}",
    }
    assert memory_limit(with_machine(v1(tmp_path, "/x", files))) == GIB


def test_lxcfs_shows_a_container_its_own_memory(tmp_path: Path) -> None:
    assert memory_limit(with_machine(v2(tmp_path, "/", {"x": ""}), total_kb=1 << 19)) == GIB // 2


def test_page_cache_is_there_to_be_taken_and_what_lies_in_shm_is_not(tmp_path: Path) -> None:
    stat = (
        f"anon 1\nfile {GIB}\nshmem {GIB // 2}\ninactive_file {GIB // 4}\nactive_file"
        f" {GIB // 8}\nslab_reclaimable 4096"
    )
    root = v2(
        tmp_path / "2",
        "/a",
        {"a/memory.max": f"{2 * GIB}", "a/memory.current": f"{GIB}", "a/memory.stat": stat},
    )
    assert memory_available(with_machine(root)) == GIB + GIB // 4 + GIB // 8 + 4096
    stat = f"inactive_file 1\ntotal_inactive_file {GIB // 4}\ntotal_active_file {GIB // 8}"
    files = {"limit_in_bytes": f"{2 * GIB}", "usage_in_bytes": f"{GIB}", "stat": stat}
    root = v1(
        tmp_path / "1", "/a", {f"memory/a/memory.{name}": text for name, text in files.items()}
    )
    assert memory_available(with_machine(root)) == GIB + GIB // 4 + GIB // 8


def test_what_is_available_is_the_least_of_all_groups_and_of_the_machine(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": f"{GIB}",
        "a/b/memory.current": "0",
        "a/memory.max": f"{2 * GIB}",
        "a/memory.current": f"{2 * GIB - 4096}",
    }
    root = v2(tmp_path, "/a/b", files)
    assert memory_available(with_machine(root)) == 4096
    assert memory_available(with_machine(root, available_kb=2)) == 2048
    (root / "sys/fs/cgroup/a/memory.current").write_text(f"{3 * GIB}")
    assert memory_available(with_machine(root)) == 0, "a limit that was lowered below what is used"


def test_here_no_more_is_available_than_there_is() -> None:
    assert 0 < memory_available() <= memory_limit() <= MACHINE


def test_what_the_oom_killer_ended_is_the_groups_own_count(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a", {"a/memory.events": "oom 3\noom_kill 2"})
    (root / "proc/vmstat").write_text("oom_kill 9\n")
    assert oom_kills(root) == 2
    (root / "sys/fs/cgroup/a/memory.events").unlink()
    assert oom_kills(root) == 9


def test_processes_are_limited_by_the_group_with_the_fewest_left(tmp_path: Path) -> None:
    files = {
        "a/b/pids.max": "max",
        "a/b/pids.current": "3",
        "a/pids.max": "100",
        "a/pids.current": "60",
    }
    room = process_room(v2(tmp_path, "/a/b", files))
    assert room
    assert (room.free, room.limit) == (40, 100)
    assert str(tmp_path / "sys/fs/cgroup/a/pids.max") in room.name


def test_nothing_limits_processes_where_nothing_says_so(tmp_path: Path) -> None:
    if os.getuid() == 0 or resource.getrlimit(resource.RLIMIT_NPROC)[0] == resource.RLIM_INFINITY:
        assert process_room(v2(tmp_path, "/", {"pids.max": "max", "pids.current": "3"})) is None
    else:
        assert process_room(v2(tmp_path, "/", {"pids.max": "max", "pids.current": "3"})) is not None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without processes")
def test_a_users_limit_counts_threads_of_that_user() -> None:
    code = (
        "import os, resource, sys, threading; sys.path.insert(0, '.'); from sweeps.sandbox.cgroup"
        " import process_room\nresource.setrlimit(resource.RLIMIT_NPROC, (150, 150));"
        " os.setgid(54321); os.setuid(54321)\none = process_room().free;"
        " threading.Thread(target=threading.Event().wait, daemon=True).start(); print(one,"
        " process_room().free)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["149", "148"]
