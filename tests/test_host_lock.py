"""Tests the lock of a machine, with real processes that wait for each other and are killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.config.config import SweepConfig
from sweeps.config.sweep_file import load
from sweeps.execution.host_tasks import ChooseRuntimes
from sweeps.host import host_lock
from sweeps.host.node import Node
from sweeps.sandbox.isolation import ForkServer
from tests.trees import can_isolate, wait_until

pytestmark = pytest.mark.quiet

ROOT = Path(__file__).parent.parent
NODE = Node((), tuple(sorted(os.sched_getaffinity(0))))


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Returns holder('a', alone=True): it starts a process that locks the machine as sweep a until
    its stdin closes, and that writes what happens to a file."""
    monkeypatch.setattr(host_lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(host_lock, "GATE", tmp_path / "gate")
    started: list[subprocess.Popen] = []

    def start(name: str, alone: bool) -> tuple[subprocess.Popen, Path]:
        told = tmp_path / f"{name}.told"
        code = f"""
import sys
from pathlib import Path
from sweeps.host import host_lock
host_lock.LOCK, host_lock.GATE = Path({str(host_lock.LOCK)!r}), Path({str(host_lock.GATE)!r})
told = open({str(told)!r}, "w", buffering=1)
with host_lock.acquire({alone}, {"sweep " + name[0]!r}, lambda holder: print("waits for", holder, file=told)):
    print("has it", file=told)
    sys.stdin.read()
"""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
        started.append(process)
        return process, told

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()


def has_it(told: Path) -> bool:
    return wait_until(lambda: told.exists() and "has it" in told.read_text())


def waits(told: Path) -> bool:
    return wait_until(lambda: told.exists() and "waits for" in told.read_text())


def test_one_has_it_alone_and_the_next_is_told_who_and_gets_it_when_that_one_is_killed(
    holder,
) -> None:
    first, first_told = holder("a", True)
    assert has_it(first_told)
    _, second_told = holder("b", True)
    assert waits(second_told)
    (line,) = second_told.read_text().splitlines()
    assert line.endswith(" sweep a")
    first.kill()
    assert has_it(second_told)


def test_those_that_share_have_it_together_and_keep_one_out_that_wants_it_alone(holder) -> None:
    (one, one_told), (two, two_told) = holder("a", False), holder("b", False)
    assert has_it(one_told)
    assert has_it(two_told)
    _, alone_told = holder("c", True)
    assert waits(alone_told)
    _, late_told = holder("d", False)
    assert waits(late_told), "a stream of those that share must not pass by the one that waits"
    one.stdin.close()
    assert "has it" not in alone_told.read_text()
    two.stdin.close()
    assert has_it(alone_told)
    assert "has it" not in late_told.read_text()


def test_a_sweep_that_waits_for_itself_says_nothing(holder) -> None:
    first, first_told = holder("a", True)
    assert has_it(first_told)
    second, second_told = holder("a2", True)
    assert wait_until(
        lambda: any(
            "->" in line and f" {second.pid} " in line
            for line in Path("/proc/locks").read_text().splitlines()
        )
    )
    first.stdin.close()
    assert has_it(second_told)
    assert "waits" not in second_told.read_text()


def test_the_lock_file_is_everybodys(holder) -> None:
    previous = os.umask(0o077)
    try:
        host_lock.lock_file_id()
    finally:
        os.umask(previous)
    assert host_lock.LOCK.stat().st_mode & 0o777 == 0o666
    place = host_lock.lock_file_id()
    assert (
        place
        == host_lock.lock_file_id()
        == (host_lock.LOCK.stat().st_dev, host_lock.LOCK.stat().st_ino)
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_may_hold_the_lock_that_root_made(monkeypatch) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)  # as /tmp itself is
    monkeypatch.setattr(host_lock, "LOCK", folder / "lock")
    monkeypatch.setattr(host_lock, "GATE", folder / "gate")
    host_lock.lock_file_id()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            with host_lock.acquire(False, "nobody", print):
                os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(folder)
    assert status == 0


def test_a_machine_is_the_same_for_its_processes() -> None:
    command = [
        sys.executable,
        "-c",
        "from sweeps.host.host_lock import identity; print(identity(), end='')",
    ]
    assert (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == host_lock.identity()
    )


@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_the_precision_is_measured_alone_and_what_needs_no_measuring_waits_for_nobody(
    holder, tone_trial, tmp_path
) -> None:
    config = config_of(tmp_path, exclusive=True)
    first, told = holder("a", True)
    assert has_it(told)
    said: list[str] = []
    with closing(ForkServer(ROOT)) as template, ThreadPoolExecutor(1) as pool:
        simulated = {"simulated": tone_trial(device={"prefer": ["simulated"], "step_s": 0.1})}
        task = ChooseRuntimes(config, NODE, simulated, tmp_path / "log", "sweep b")
        assert task.run(template, said.append).keys() == {"simulated"}
        assert not said
        found = pool.submit(
            replace(task, examples={"cpu": tone_trial()}).run,
            template,
            said.append,
        )
        assert wait_until(
            lambda: [line for line in said if "sweep a" in line and "precision" in line]
        )
        first.kill()
        assert found.result(60)["cpu"].precision
    assert said[1].startswith("precision: ")


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_where_trials_share_the_machine_the_precision_is_measured_beside_them(
    holder, tone_trial, tmp_path
) -> None:
    config = config_of(tmp_path, exclusive=False)
    _, told = holder("a", False)
    assert has_it(told)
    said: list[str] = []
    with closing(ForkServer(ROOT)) as template:
        task = ChooseRuntimes(config, NODE, {"cpu": tone_trial()}, tmp_path / "log", "sweep b")
        assert task.run(template, said.append)["cpu"].precision
    assert [line.split(":")[0] for line in said] == ["precision"]


def config_of(folder: Path, exclusive: bool) -> SweepConfig:
    file = folder / "sweep.yaml"
    file.write_text("name: x\nparameters: {corpus: {name: synthetic, words: [yes, no]}}\n")
    return load(file, [f"resources.exclusive_node={str(exclusive).lower()}"])
