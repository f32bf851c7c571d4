"""What a launch leaves behind when it ends, however it ends: nothing.

Ray starts a dozen processes and writes thousands of files for a sweep. When launch.py is killed, the kernel ends some of them, others
follow in a minute, and the files stay. So everything that a launch starts carries a mark in its environment, which every descendant
inherits, and all its temporary files, logs among them, lie in one folder. (A process that renames itself may write its name over all of
its environment; its log still tells whose it is.) The janitor is a process of its own session that waits for the launch to end; then
it kills what is marked or writes into the folder, and removes the folder. Should somebody kill the janitor too, the sweep's next launch
does its work: it finds the folder's name in a note, which is there while a launch has not tidied up.
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
def kept_tidy(note: Path) -> Iterator[Path]:
    """A folder for temporary files. What is started meanwhile is gone afterwards, and so is the folder, even if this process is killed.

    `note`: a file that names the folder until then.
    """
    folder = temporary_folder("sweep-", ROOT_LETTERS)
    note.write_text(folder)
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
            tidy(folder, os.getpid())
        note.unlink(missing_ok=True)


def tidy_up_after(note: Path) -> None:
    """Ends what a launch that was killed has left, if it has: a trial of it that still ended now would be settled twice."""
    if note.exists():
        if folder := note.read_text():  # a launch killed before it wrote the name has started nothing, and no name would match every file
            tidy(folder, os.getpid())
        note.unlink()


def tidy(folder: str, launch: int) -> None:
    """Kills what descends from the launch whose folder this is, and removes the folder. `launch`: its own pid, which is left alone."""
    began = last_seen = time.monotonic()
    while time.monotonic() < min(last_seen + QUIET_S, began + PATIENCE_S):
        for process in marked(folder, launch):
            last_seen = time.monotonic()
            with contextlib.suppress(psutil.Error):  # it has ended by itself
                process.kill()
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def marked(folder: str, launch: int) -> Iterator[psutil.Process]:
    """Live processes that descend from the launch whose folder this is."""
    for process in psutil.process_iter():
        if process.pid == launch:  # Ray keeps a log of its own open in it
            continue
        with contextlib.suppress(OSError, psutil.Error):  # it has ended, or is another user's
            if (_carries_mark(process.pid, folder) or _writes_into(process.pid, folder)) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _carries_mark(pid: int, folder: str) -> bool:
    # Read as it is: where a process wrote its name over the beginning of the block, psutil gives up
    return f"{MARK}={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _writes_into(pid: int, folder: str) -> bool:
    """Whether it has a file below the folder open for writing; whoever merely reads one is a stranger who looks on."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            if os.readlink(link).startswith(f"{folder}/"):
                flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().partition("flags:")[2].split()[0]
                if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                    return True
    return False


if __name__ == "__main__":
    parent = os.getppid()
    sys.stdin.read()  # until the launch closes it, or ends
    tidy(sys.argv[1], parent)
