"""What holds a process tree together, and ends it where no namespace does.

The kernel ends a PID namespace with its first process, and a private tmpfs with its mount namespace. On the node's own /dev/shm neither
is there: a parent-death signal tells init that the supervisor is gone, orphans are adopted instead of lost to the machine's own init,
and whoever is left kills what descends from it and removes what that held by name in /dev/shm.
"""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

import psutil

from sweeps.shm import names_held, names_made

LOOK_ROUND_S = 1.0  # how often the tree's processes are noted
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36  # sys/prctl.h

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int) -> None:
    """The kernel sends this process a signal when its parent's main thread ends. What happened before the call goes unnoticed."""
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_name(name: str) -> None:
    """What ps and /proc/<pid>/comm call this process."""
    libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def reap() -> tuple[int, int] | None:
    """Process id and wait status of a child that has ended; None where none has."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


class HandKeptTree:
    """The descendants of this process on the node's own /dev/shm, where no namespace ends them and no tmpfs goes with them."""

    def __init__(self) -> None:
        self._strangers = set(Path("/dev/shm").iterdir())  # what was there before, whoever opens it
        self._seen: set[int] = set()
        self._look_at = 0.0

    def look_round(self) -> None:
        """Notes who is there, so that a name which a process left behind can be told from a stranger's."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_ROUND_S
            self._seen |= {process.pid for process in psutil.Process().children(recursive=True)}

    def end(self) -> None:
        """Kills all descendants, whatever they start meanwhile, and removes what they hold by name in /dev/shm."""
        names: set[Path] = set()
        while tree := psutil.Process().children(recursive=True):
            for process in tree:
                _signal(process.pid, signal.SIGSTOP)  # held still while it is read
            for process in tree:
                names |= names_held(process.pid)
                self._seen.add(process.pid)
                _signal(process.pid, signal.SIGKILL)
            while reap() is not None:
                pass
            time.sleep(0.01)
        for name in (names | names_made(self._seen)) - self._strangers:
            with contextlib.suppress(OSError):  # gone already, a folder, or another user's
                name.unlink()


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended by itself
