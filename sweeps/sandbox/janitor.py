"""Removes all processes and temporary files of a launch when it ends, however it ends.

Ray starts a dozen processes and writes thousands of files for a sweep. When launch.py is killed,
the kernel ends some of the processes, others follow in a minute, and the files remain. Therefore
every process that a launch starts carries a mark in its environment, which every descendant
inherits. All temporary files of the launch, including logs, lie in one folder. (A process that
renames itself may overwrite its whole environment; its log still identifies its launch.)

The janitor is a process in its own session that waits for the launch to end. It then kills every
process that carries the mark or writes into the folder, and removes the folder. If somebody kills
the janitor too, the sweep's next launch does its work. That launch reads the folder's name from a
note, a file that exists until the launch is cleaned up.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from sweeps import environment
from sweeps.sandbox.isolation import make_temporary_folder

MARK = "SPEECH_SWEEPS_LAUNCH"
MAX_ROOT_LENGTH = 28  # a socket's path may have 107 characters, and Ray's own folders take the rest
CLEAN_UP_TIMEOUT_S = 60.0  # at most PATIENCE_S for processes, and the time of removing the files
# Killed processes are gone in milliseconds, unless the kernel is busy with one
PATIENCE_S = 5.0
# File in the folder with a command that runs after the cleaning, if the launch was killed. A launch
# that ends by itself removes the file.
CLEANUP_COMMAND_FILE = "afterwards.json"
CLEANUP_COMMAND_TIMEOUT_S = 300.0
# A process has no environment for a moment while it starts, and can be recognised only after that
QUIET_S = 1.0


@contextlib.contextmanager
def scratch_dir(note: Path) -> Iterator[Path]:
    """Yields a folder for temporary files, and cleans up afterwards.

    Processes that are started meanwhile are killed and the folder is removed, even if this process
    is killed. `note`: a file that contains the folder's name until then.
    """
    folder = make_temporary_folder("sweep-", MAX_ROOT_LENGTH)
    note.write_text(f"{folder}\n{os.getpid()} {psutil.Process().create_time()}")
    command = [sys.executable, "-P", "-m", "sweeps.sandbox.janitor", folder]
    janitor = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment.with_project(), start_new_session=True
    )
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
        try:
            # Closes the janitor's stdin, which is the sign that the launch has ended
            janitor.communicate(timeout=CLEAN_UP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            janitor.kill()
            janitor.wait()
        if janitor.returncode:  # somebody has killed it
            clean_up(folder, os.getpid())
        note.unlink(missing_ok=True)


def clean_after_crash(note: Path) -> None:
    """Cleans up after a launch that was killed, if `note` exists.

    Otherwise a trial of that launch could still end and be recorded twice.
    """
    if note.exists():
        folder, _, launch = note.read_text().partition("\n")
        # A launch killed before it wrote the name has started nothing. An empty name would match
        # every file.
        if folder and not _is_alive(launch):
            clean_up(folder, os.getpid())
        note.unlink()


def _is_alive(launch: str) -> bool:
    """Returns whether a note's launch is running.

    The note is then a copy, made with the project's folder, of a note of a project that is in use.
    """
    pid, _, began = launch.partition(" ")
    try:
        return (
            bool(began)
            and int(pid) != os.getpid()
            and psutil.Process(int(pid)).create_time() == float(began)
        )
    except (psutil.Error, ValueError):
        return False


def clean_up(folder: str, launch: int) -> None:
    """Kills the descendants of the launch that owns `folder`, and removes the folder.

    `launch`: the launch's own pid, which is not killed.
    """
    began = last_seen = time.monotonic()
    while time.monotonic() < min(last_seen + QUIET_S, began + PATIENCE_S):
        for process in find_descendants(folder, launch):
            last_seen = time.monotonic()
            with contextlib.suppress(psutil.Error):  # the process has ended by itself
                process.kill()
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def find_descendants(folder: str, launch: int) -> Iterator[psutil.Process]:
    """Yields the live processes that descend from the launch that owns `folder`."""
    for process in psutil.process_iter():
        if process.pid == launch:  # Ray keeps a log in the folder open in this process
            continue
        with contextlib.suppress(OSError, psutil.Error):  # it has ended, or is another user's
            if (
                _carries_mark(process.pid, folder) or _writes_into(process.pid, folder)
            ) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _carries_mark(pid: int, folder: str) -> bool:
    """Returns whether the launch's mark is in the environment of the process."""
    # Read directly: psutil fails where a process wrote its name over the beginning of the block
    return f"{MARK}={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _writes_into(pid: int, folder: str) -> bool:
    """Returns whether the process has a file below the folder open for writing.

    A process that only reads such a file does not belong to the launch.
    """
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # the file was closed after it was listed
            if os.readlink(link).startswith(f"{folder}/"):
                flags = (
                    Path(f"/proc/{pid}/fdinfo/{link.name}")
                    .read_text()
                    .partition("flags:")[2]
                    .split()[0]
                )
                if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                    return True
    return False


if __name__ == "__main__":
    parent = os.getppid()
    sys.stdin.read()  # returns when the launch closes it, or ends
    command_file = Path(sys.argv[1], CLEANUP_COMMAND_FILE)
    cleanup_command = json.loads(command_file.read_text()) if command_file.exists() else None
    clean_up(sys.argv[1], parent)
    if cleanup_command:
        null = subprocess.DEVNULL
        with contextlib.suppress(subprocess.TimeoutExpired):  # the next launch does the rest
            subprocess.run(
                cleanup_command,
                stdin=null,
                stdout=null,
                stderr=null,
                timeout=CLEANUP_COMMAND_TIMEOUT_S,
                check=False,
            )
