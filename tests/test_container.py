"""Whole launches in the surroundings of users: in a container with 64 MB of /dev/shm and without
namespaces, and as an ordinary user."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech.shm_usage import shm_usage
from sweeps.environment import with_project
from tests.trees import ROOT, can_isolate

SWEEP = """
name: contained
calibrate: false
warmup_epochs: 0
parameters:
  corpus: {name: synthetic, words: [yes, no], clips: 200}
  loader: {format: png, batch_size: 32, num_workers: {values: [0, 1, 4]}}      # 18.4 MiB a batch, 4 batches
  device: {prefer: [simulated], step_s: 0.2}
  sgdr: {epochs: 1}
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own folders."""
    folder = Path(tempfile.mkdtemp(prefix="home-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "sweep.yaml").write_text(SWEEP)
    yield folder
    shutil.rmtree(folder)


def contained(kind: str, home: Path, *command: str) -> subprocess.CompletedProcess:
    variables = with_project() | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    whole = [sys.executable, "-m", "tests.container", kind, str(home), *command]
    return subprocess.run(
        whole, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600, check=False
    )


def launch_in_docker(home: Path, *flags: str) -> subprocess.CompletedProcess:
    return contained("docker", home, sys.executable, str(ROOT / "launch.py"), "sweep.yaml", *flags)


needs_namespaces = pytest.mark.skipif(
    not can_isolate(),
    reason="this machine forbids the namespaces that the surroundings are made of",
)
needs_root = pytest.mark.skipif(
    os.getuid() != 0,
    reason="becomes another user, which needs root; as an ordinary user all tests try it",
)


@needs_namespaces
@pytest.mark.slow
def test_in_a_container_without_namespaces_the_remedies_are_named(home) -> None:
    done = launch_in_docker(home)
    assert done.returncode == 3
    for way in (
        "--cap-add SYS_ADMIN",
        "max_user_namespaces",
        "resources: {shm: host}",
        "loader.shm_size: 64M",
    ):
        assert way in done.stderr
    assert not (home / "mlflow.db").exists() or "trial" not in done.stdout


@needs_namespaces
@pytest.mark.slow
def test_a_size_that_the_container_does_not_have_is_rejected(home) -> None:
    done = launch_in_docker(
        home, "--set", "resources.shm=host", "--set", "parameters.loader.shm_size=1G"
    )
    assert done.returncode == 3
    assert "loader.shm_size: 1G" in done.stderr
    assert "/dev/shm of 64M" in done.stderr


@needs_namespaces
@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--set", "parameters.loader.shm_size=64M")])
def test_a_whole_sweep_in_64_mb_for_everything(home, flags) -> None:
    # Four batches overflow only if the last worker has made its own before the first has been
    # stepped on and is given back
    done = launch_in_docker(
        home, "--set", "resources.shm=host", "--set", "parameters.device.step_s=2", *flags
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "contained: 2 completed, 1 overflowed" in done.stdout
    assert "shm_exhausted: /dev/shm of 64.0 MiB" in done.stdout
    assert done.stderr == ""


@needs_namespaces
@needs_root
@pytest.mark.slow
def test_a_whole_sweep_as_an_ordinary_user(home) -> None:
    before = set(os.listdir("/dev/shm")), shm_usage()
    done = contained(
        "nobody",
        home,
        "python3",
        "repo/launch.py",
        "sweep.yaml",
        "--set",
        "parameters.loader.shm_size={values: [16M, 1G]}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "contained: 4 completed, 2 overflowed" in done.stdout
    assert (set(os.listdir("/dev/shm")), shm_usage()) == before


@needs_namespaces
@needs_root
@pytest.mark.slow
def test_every_outcome_and_every_end_of_a_tree_as_an_ordinary_user(home) -> None:
    files = [f"repo/tests/test_{name}.py" for name in ("isolation", "provoked", "process_tree")]
    done = contained(
        "nobody",
        home,
        "python3",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        "repo/pyproject.toml",
        *files,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
