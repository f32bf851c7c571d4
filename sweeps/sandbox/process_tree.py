"""Ties the processes of a tree together, and ends the tree where no namespace does.

The kernel ends a PID namespace with its first process, and a private tmpfs with its mount
namespace. A tree on the node's own /dev/shm has neither. There a parent-death signal notifies init
that the supervisor is gone. Orphans are adopted, since otherwise the machine's own init gets them.
The surviving process kills its descendants and removes the files that they held by name in
/dev/shm.
"""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

import psutil

from sweeps.sandbox.shm_files import held_files, torch_segments

RECORD_INTERVAL_S = 1.0  # seconds between two records of the tree's processes
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36  # sys/prctl.h

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int) -> None:
    """Makes the kernel send this process a signal when its parent's main thread ends.

    A parent that ended before the call goes unnoticed.
    """
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def adopt_orphans() -> None:
    """Makes descendants whose parent ends children of this process."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_name(name: str) -> None:
    """Sets the name of this process in ps and /proc/<pid>/comm."""
    libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def reap() -> tuple[int, int] | None:
    """Reaps a child that has ended; returns its process id and wait status, None without one."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


class ProcessTree:
    """Descendants of this process on the node's own /dev/shm, where no namespace ends them."""

    def __init__(self) -> None:
        # Files that were present before, whichever process opens them
        self._unrelated = set(Path("/dev/shm").iterdir())
        self._pids: set[int] = set()
        self._next_record = 0.0

    def record_descendants(self) -> None:
        """Records the pids of all descendants, at most once in RECORD_INTERVAL_S.

        The pids later distinguish a file that the tree did not remove from an unrelated file.
        """
        if time.monotonic() >= self._next_record:
            self._next_record = time.monotonic() + RECORD_INTERVAL_S
            self._pids |= {process.pid for process in psutil.Process().children(recursive=True)}

    def end(self) -> None:
        """Kills all descendants, including those that they start meanwhile.

        Then it removes the files that they held by name in /dev/shm.
        """
        files: set[Path] = set()
        while tree := psutil.Process().children(recursive=True):
            for process in tree:
                _send_signal(process.pid, signal.SIGSTOP)  # stopped, so that its files can be read
            for process in tree:
                files |= held_files(process.pid)
                self._pids.add(process.pid)
                _send_signal(process.pid, signal.SIGKILL)
            while reap() is not None:
                pass
            time.sleep(0.01)
        for file in (files | torch_segments(self._pids)) - self._unrelated:
            with contextlib.suppress(OSError):  # it is gone already, a folder, or another user's
                file.unlink()


def _send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # the process has ended by itself
