"""Folders that can't be used are told before anything is written, each by its name; those that can
leave nothing behind."""

import os
import subprocess
import sys
import tempfile

import pytest

from speech.cache_folder import cache_dir
from sweeps.config.sweep_file import load
from sweeps.execution.folder_checks import check_places, find_problem
from sweeps.host import host_lock
from sweeps.host.node import PreflightError
from tests.test_schema import MINIMAL
from tests.trees import ROOT, can_isolate

needs_mounts = pytest.mark.skipif(
    not (can_isolate() and os.geteuid() == 0), reason="mounts folders read-only, which needs root"
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(MINIMAL)
    return load(tmp_path / "sweep.yaml")


def test_a_folder_that_can_be_used_is_made_and_left_empty(tmp_path) -> None:
    assert find_problem(tmp_path / "a" / "b") is None
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_all_places_of_a_launch_are_named_at_once(config, tmp_path, monkeypatch) -> None:
    check_places(config, tmp_path / ".sweeps")  # as they are, they can be used
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(PreflightError) as problem:
        check_places(config, file / "sweeps")
    named = str(problem.value).splitlines()
    assert len(named) == 2
    assert named[0].startswith(f"{file}/sweeps ")
    assert named[1].startswith(f"{file}/speech-sweeps ")
    assert "XDG_CACHE_HOME" in named[1]


def test_without_a_temporary_folder_all_other_places_are_named_too(
    config, tmp_path, monkeypatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError) as problem:
        check_places(config, tmp_path / "file" / "sweeps")
    assert len(str(problem.value).splitlines()) == 2


def run_alone(mounts: str, code: str) -> subprocess.CompletedProcess:
    """Runs Python after `mounts`, shell words, in a mount namespace of its own."""
    script = f"mount --make-rprivate / && {mounts} && exec {sys.executable} -c '{code}'"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_mounts
def test_a_read_only_folder_is_a_problem_and_no_exception(tmp_path) -> None:
    code = (
        "from pathlib import Path; from sweeps.execution.folder_checks import find_problem;"
        f' print(find_problem(Path("{tmp_path}/x")))'
    )
    done = run_alone(
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}", code
    )
    assert done.returncode == 0, done.stderr
    assert "Read-only file system" in done.stdout


@needs_mounts
def test_where_tmp_is_read_only_the_machine_is_held_by_a_file_elsewhere() -> None:
    code = (
        "from sweeps.host import host_lock\nwith host_lock.acquire(True, chr(97), print):\n    with"
        " host_lock._open_lock_file(host_lock.LOCK) as lock: print(host_lock._try_lock(lock, 2),"
        " host_lock.check_lock())"
    )
    # a /tmp without the lock file that the machine may have
    done = run_alone("mount -t tmpfs -o ro tmpfs /tmp", code)
    assert done.stdout == "False None\n", done.stderr


def test_without_any_lock_file_the_machine_is_not_held_and_that_is_told(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(host_lock, "LOCK", tmp_path / "none" / "lock")
    monkeypatch.setattr(host_lock, "GATE", tmp_path / "none" / "gate")
    monkeypatch.setattr(host_lock, "FALLBACK_FOLDERS", ())
    entered = False
    with host_lock.acquire(True, "who", print):
        entered = True
    assert entered
    assert str(tmp_path / "none") in (host_lock.check_lock() or "")


def test_a_relative_cache_is_one_place_from_every_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / "relative" / "speech-sweeps"


@needs_mounts
def test_a_user_whom_the_system_does_not_know_has_a_home_for_the_launch() -> None:
    code = (
        "import os; from pathlib import Path; from sweeps import environment\n"
        'os.setgid(54321); os.setuid(54321); del os.environ["HOME"]\n'
        'environment.apply(); print(os.environ["HOME"]); print(Path.home())'
    )
    done = run_alone("true", code)
    assert done.stdout.splitlines() == [f"{tempfile.gettempdir()}/speech-sweeps-54321"] * 2, (
        done.stderr
    )
