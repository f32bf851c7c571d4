"""What a launch leaves behind when it ends, however it ends: nothing.

Ray starts a dozen processes and writes thousands of files for a sweep. When launch.py is killed, the kernel ends some of them, others
follow in a minute, and the files stay. So everything that a launch starts carries a mark in its environment, which every descendant
inherits and which stays readable whatever a process renames itself to, and all its temporary files lie in one folder. The janitor is a
process of its own session that waits for the launch to end; then it kills what is marked and removes the folder.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from sweeps.isolation import environment, temporary_folder

MARK = "SPEECH_SWEEPS_LAUNCH"
ROOT_LETTERS = 28  # what Ray's own folders leave of the 107 that a socket's path may have
PATIENCE_S = 5.0  # processes that are killed are gone in milliseconds, unless the kernel is busy with one
QUIET_S = 1.0  # a process has no environment for a moment while it starts, so that it is seen only a little later


@contextlib.contextmanager
def kept_tidy() -> Iterator[Path]:
    """A folder for temporary files. What is started meanwhile is gone afterwards, and so is the folder, even if this process is killed."""
    folder = temporary_folder("sweep-", ROOT_LETTERS)
    command = [sys.executable, "-P", "-m", "sweeps.janitor", folder]
    janitor = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(), start_new_session=True)
    before = {name: os.environ.get(name) for name in (MARK, "TMPDIR")}
    os.environ |= {MARK: folder, "TMPDIR": folder}
    try:
        yield Path(folder)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        janitor.communicate()  # closes its stdin, which tells it that the launch has ended
        if janitor.returncode:  # somebody has killed it
            tidy(folder)


def tidy(folder: str) -> None:
    """Kills every process that carries the folder's mark, and removes the folder."""
    began = last_seen = time.monotonic()
    while time.monotonic() < min(last_seen + QUIET_S, began + PATIENCE_S):
        for process in marked(folder):
            last_seen = time.monotonic()
            with contextlib.suppress(psutil.Error):  # it has ended by itself
                process.kill()
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def marked(folder: str) -> Iterator[psutil.Process]:
    """Live processes that descend from the launch whose folder this is."""
    mark = f"{MARK}={folder}".encode()
    for process in psutil.process_iter():
        # Read as it is: a process that renames itself writes over the beginning of the block, at which psutil gives up
        with contextlib.suppress(OSError, psutil.Error):  # it has ended, or is another user's
            if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0") and process.status() != psutil.STATUS_ZOMBIE:
                yield process


if __name__ == "__main__":
    sys.stdin.read()  # until the launch closes it, or ends
    tidy(sys.argv[1])
