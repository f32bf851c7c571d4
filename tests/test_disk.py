"""Tests that an error for lack of disk space names the machine and the folder, and that other
errors stay as they are."""

import errno
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.execution.disk import DiskFull, check_disk, translate_disk_errors
from sweeps.host import host_lock
from tests.trees import can_isolate

FULL = """
import errno, pathlib, pickle, sys, types
from sweeps.execution.disk import DiskFull, translate_disk_errors
folder = pathlib.Path(sys.argv[1])
try:
    with translate_disk_errors(types.SimpleNamespace(folder=folder / "planted")):
        (folder / "zeros").write_bytes(bytes(3 << 20))
except DiskFull as error:
    print(*error.places)
"""


def test_a_full_disk_error_names_the_machine_and_can_be_pickled(
    tmp_path,
) -> None:
    with pytest.raises(DiskFull) as raised, translate_disk_errors(SimpleNamespace(folder=tmp_path)):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/planted/file")
    error = pickle.loads(pickle.dumps(raised.value))
    assert (error.machine, error.places) == (host_lock.identity(), ["/planted/file"])
    assert "/planted/file" in str(error)


def test_with_free_space_another_error_stays_as_it_is(tmp_path) -> None:
    check_disk(SimpleNamespace(folder=tmp_path / "not" / "made" / "yet"))
    with (
        pytest.raises(OSError, match="planted") as raised,
        translate_disk_errors(SimpleNamespace(folder=tmp_path)),
    ):
        raise OSError(errno.EIO, "planted")
    assert not isinstance(raised.value, DiskFull)


def test_the_folder_without_space_is_found(tmp_path) -> None:
    if not can_isolate():
        pytest.skip("this machine forbids mount namespaces")
    command = 'mount -t tmpfs -o size=2m tmpfs "$2" && exec "$1" -c "$3" "$2"'
    unshare = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        command,
        "sh",
        sys.executable,
        str(tmp_path),
        FULL,
    ]
    done = subprocess.run(
        unshare, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{tmp_path}/planted\n", "")
