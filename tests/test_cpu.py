"""CPU quotas and weights, read from planted control groups as Docker, Kubernetes, systemd and LXC
make them."""

import os
from pathlib import Path

import pytest

from speech import cpu
from speech.control_groups import group_folders
from speech.cpu import (
    Throttling,
    allowed_cpus,
    cpu_quota,
    cpu_weight,
    group_cpu_s,
    lent_cores,
    read_throttling,
    usable_cores,
    whole_cores,
)
from tests.groups import V1, plant, v1, v2

ACCT = "cpu,cpuacct"
POD = "kubepods.slice/kubepods-pod1.slice"
TREES = {  # name -> (how it is planted, the quota in cores)
    "docker --cpus 1.5": (lambda root: v2(root, "/", {"cpu.max": "150000 100000"}), 1.5),
    "half a core": (lambda root: v2(root, "/", {"cpu.max": "50000 100000"}), 0.5),
    "no limit": (lambda root: v2(root, "/", {"cpu.max": "max 100000"}), None),
    "a bare host": (lambda root: v2(root, "/user.slice/a.scope", {"user.slice/a.scope/cgroup.procs": "1"}), None),
    "systemd CPUQuota of a slice above": (
        lambda root: v2(
            root, "/a.slice/a-b.slice/c.service",
            {
                "a.slice/cpu.max": "200000 100000",
                "a.slice/a-b.slice/cpu.max": "20000 20000",
                "a.slice/a-b.slice/c.service/cpu.max": "max 100000",
            },
        ),
        1.0,
    ),
    "Kubernetes, the pod's limit below the container's": (
        lambda root: v2(root, f"/{POD}/cri-1.scope", {f"{POD}/cpu.max": "100000 100000", f"{POD}/cri-1.scope/cpu.max": "400000 100000"}),
        1.0,
    ),
    "version 1, in a container that sees its own group only": (
        lambda root: v1(
            root, "/docker/abc", {f"{ACCT}/cpu.cfs_quota_us": "150000", f"{ACCT}/cpu.cfs_period_us": "100000", "memory/x": ""},
            "/docker/abc",
        ),
        1.5,
    ),
    "version 1, on the host": (
        lambda root: v1(
            root, "/kubepods/pod1/c",
            {
                f"{ACCT}/kubepods/pod1/c/cpu.cfs_quota_us": "-1",
                f"{ACCT}/kubepods/pod1/c/cpu.cfs_period_us": "100000",
                f"{ACCT}/kubepods/pod1/cpu.cfs_quota_us": "25000",
                f"{ACCT}/kubepods/pod1/cpu.cfs_period_us": "50000",
            },
        ),
        0.5,
    ),
    "version 1, LXC": (
        lambda root: v1(root, "/lxc/c1", {f"{ACCT}/cpu.cfs_quota_us": "300000", f"{ACCT}/cpu.cfs_period_us": "100000"}, "/lxc/c1"),
        3.0,
    ),
    "a group outside the namespace": (lambda root: v2(root, "/../..", {"cpu.max": "100000 100000"}), 1.0),
    "a group that was removed": (lambda root: v2(root, "/gone (deleted)", {"cpu.max": "100000 100000"}), 1.0),
    "mounted elsewhere, with a space": (
        lambda root: plant(
            root, "0::/j\n", ["30 23 0:26 / /mnt/my\\040groups rw - cgroup2 none rw"], {"mnt/my groups/j/cpu.max": "70000 100000"}
        ),
        0.7,
    ),
    "a part of the hierarchy is mounted": (
        lambda root: v2(root, "/a/b/c", {"c/cpu.max": "max 100000", "cpu.max": "30000 100000"}, seen="/a/b", point="/cg"), 0.3,
    ),
    "no mountinfo": (
        lambda root: _without_mountinfo(v2(root, "/x", {"x/cpu.max": "100000 100000"})), 1.0,
    ),
    "garbage": (lambda root: v2(root, "/", {"cpu.max": "lots of it", "cpu.weight": "heavy", "cpu.stat": "\x00 1\nusage_usec many"}), None),
    "one word": (lambda root: v2(root, "/", {"cpu.max": "100000"}), None),
    "a period of nothing": (lambda root: v2(root, "/", {"cpu.max": "100000 0"}), None),
    "an empty file": (lambda root: v2(root, "/", {"cpu.max": ""}), None),
    "nothing at all": (lambda root: root, None),
}  # fmt: skip


def _without_mountinfo(root: Path) -> Path:
    (root / "proc/self/mountinfo").unlink()
    return root


@pytest.mark.parametrize("name", TREES)
def test_the_tightest_quota_counts_wherever_it_stands(tmp_path: Path, name: str) -> None:
    make, cores = TREES[name]
    quota = cpu_quota(make(tmp_path))
    assert (quota and quota.cores) == (pytest.approx(cores) if cores else None)


@pytest.mark.parametrize(
    ("cpus", "quota", "lent"),
    [
        (2, None, 2),
        (2, 1.0, 1),
        (2, 1.5, 1.5),
        (2, 0.5, 0.5),
        (2, 4.0, 2),
        (2, 2.0, 2),
        (64, 1.9999, 2),
        (8, 2.5, 2.5),
        (1, 0.001, 0.01),
    ],
)
def test_no_more_cores_can_be_used_than_there_are_or_than_the_quota_makes(
    cpus: int, quota: float | None, lent: float
) -> None:
    found = lent_cores(cpus, quota)
    assert found == lent
    assert isinstance(found, int) is (lent == int(lent)), "a whole number is told as one"


@pytest.mark.parametrize(("cores", "threads"), [(0.5, 1), (1, 1), (1.5, 1), (2, 2), (3.9, 3)])
def test_a_thread_more_than_whole_cores_would_hold_the_others_up(
    cores: float, threads: int
) -> None:
    assert whole_cores(cores) == threads


def test_the_quota_binds_below_the_affinity_only(tmp_path: Path) -> None:
    root = v2(tmp_path, "/", {"cpu.max": "50000 100000"})
    assert usable_cores(root=root) == 0.5
    assert usable_cores(4, root) == 0.5
    (root / "sys/fs/cgroup/cpu.max").write_text("6400000 100000\n")
    assert usable_cores(4, root) == 4


@pytest.mark.parametrize(
    ("files", "weight"),
    [
        ({"a/b/cpu.weight": "100", "a/cpu.weight": "100"}, 1.0),
        ({"a/b/cpu.weight": "100", "a/cpu.weight": "20"}, 0.2),
        ({"a/b/cpu.weight": "400"}, 4.0),
        ({"a/b/cpu.weight": "nothing"}, None),
        ({"a/b/other": ""}, None),
    ],
)
def test_the_smallest_weight_of_the_groups_counts(
    tmp_path: Path, files: dict, weight: float | None
) -> None:
    assert cpu_weight(v2(tmp_path, "/a/b", files)) == weight


def test_a_weight_of_version_1_is_in_shares(tmp_path: Path) -> None:
    assert (
        cpu_weight(
            v1(tmp_path, "/x", {f"{ACCT}/x/cpu.shares": "512", f"{ACCT}/cpu.shares": "1024"})
        )
        == 0.5
    )


def test_what_a_quota_held_back_is_told_by_group_in_seconds(tmp_path: Path) -> None:
    stat = "usage_usec 7000000\nuser_usec 1\nnr_periods 40\nnr_throttled 10\nthrottled_usec 2500000"
    root = v2(
        tmp_path / "2",
        "/a/b",
        {
            "a/b/cpu.max": "max 100000",
            "a/b/cpu.stat": "usage_usec 1",
            "a/cpu.max": "1 2",
            "a/cpu.stat": stat,
        },
    )
    assert read_throttling(root) == {root / "sys/fs/cgroup/a": Throttling(2.5, 10, 40)}
    quota = cpu_quota(root)
    assert quota
    assert group_cpu_s(quota, root) == 7.0
    stat = "nr_periods 40\nnr_throttled 10\nthrottled_time 2500000000"
    files = {
        "cpu.cfs_quota_us": "100000",
        "cpu.cfs_period_us": "100000",
        "cpu.stat": stat,
        "cpuacct.usage": "7000000000",
    }
    root = v1(tmp_path / "1", "/a", {f"{ACCT}/a/{name}": text for name, text in files.items()})
    quota = cpu_quota(root)
    assert quota
    assert (read_throttling(root), group_cpu_s(quota, root)) == (
        {root / f"sys/fs/cgroup/{ACCT}/a": Throttling(2.5, 10, 40)},
        7.0,
    )


@pytest.mark.parametrize(("of_accounting", "used"), [("/a", 3.0), ("/", None)])
def test_what_a_group_used_is_not_taken_from_another_group(
    tmp_path: Path, of_accounting: str, used: float | None
) -> None:
    """Version 1 mounts each controller apart here, and a process may be in one group for this and
    in another for that."""
    mounts = [
        V1.format(n=n, root="/", point=f"/cg/{name}", controllers=name)
        for n, name in enumerate(("cpu", "cpuacct"))
    ]
    files = {
        "cg/cpu/a/cpu.cfs_quota_us": "100000",
        "cg/cpu/a/cpu.cfs_period_us": "100000",
        "cg/cpuacct/a/cpuacct.usage": "3000000000",
    }
    root = plant(
        tmp_path,
        f"2:cpuacct:{of_accounting}\n1:cpu:/a\n0::/\n",
        mounts,
        files | {"cg/cpuacct/cpuacct.usage": "9000000000"},
    )
    quota = cpu_quota(root)
    assert quota
    assert group_cpu_s(quota, root) == used


def test_the_own_group_comes_first_and_nothing_above_the_mount(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a/b", {"a/b/x": ""})
    top = root / "sys/fs/cgroup"
    assert group_folders("cpu", root) == [top / "a/b", top / "a", top]


@pytest.mark.parametrize(
    ("isolated", "left"),
    [("", {2, 3, 4, 5}), ("4-5", {2, 3}), ("2-3,5", {4}), ("0-7", {2}), ("junk", {2, 3, 4, 5})],
)
def test_of_isolated_cores_a_process_tree_uses_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: str, left: set
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5})
    file = tmp_path / "sys/devices/system/cpu/isolated"
    file.parent.mkdir(parents=True)
    file.write_text(isolated + "\n")
    assert set(allowed_cpus(tmp_path)) == left
    assert cpu.allowed_cpus(tmp_path / "nowhere") == [2, 3, 4, 5]
