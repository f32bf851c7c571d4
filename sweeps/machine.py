"""The machine, told from every other, and held by whoever times something on it.

Two raylets on one machine each believe that they have it alone, and two launches know nothing of each other. So a machine is known by the
boot of its kernel, and a trial that is to run alone holds a lock file while it runs; trials that may share a machine hold it together.

The lock is the kernel's (flock), so it goes with the process that holds it, however that ends. There is a gate before it, which is held
while waiting: nobody who came later gets past, and a stream of trials that share the machine can't keep one out that wants it alone.
Whoever holds the lock asks for no other, so no two can wait for each other.

    with held(alone=True, who="sweep first-look (process 4711)", waiting=print): ...
"""

import contextlib
import fcntl
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

TOLD_BY = (Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id"))  # the boot also tells two copies of one disk apart
LOCK = Path("/tmp/speech-sweeps.lock")  # and not in TMPDIR, which may be each user's own
GATE = LOCK.with_suffix(".gate")


def identity() -> str:
    """The same for all processes of this machine, containers among them, until it starts anew; no other machine has it."""
    for file in TOLD_BY:
        with contextlib.suppress(OSError):
            return file.read_text().strip()
    return platform.node()


@contextlib.contextmanager
def held(alone: bool, who: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the machine, alone or together with others that don't want it alone; waits for it as long as it takes.

    `who` is what others are told while they wait. `waiting` hears, once, who holds it; nothing where that is `who` itself.
    """
    with _lock_file(GATE) as gate, _lock_file(LOCK) as lock:
        how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        if not (_is_free(gate, fcntl.LOCK_EX) and _is_free(lock, how)):
            holder = os.pread(lock, 1000, 0).decode(errors="replace")
            if holder != who:
                waiting(holder)
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, how)
        os.truncate(lock, 0)
        os.pwrite(lock, who.encode(), 0)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def lock_place() -> tuple[int, int]:
    """Device and inode of the lock file: processes of one machine for which they differ, as in two containers, don't see each other's."""
    with _lock_file(LOCK) as lock:
        found = os.fstat(lock)
        return found.st_dev, found.st_ino


def _is_free(lock: int, how: int) -> bool:
    """Takes the lock if nobody is in the way."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    """Opens a file that every user of the machine may lock, and makes it where there is none; it stays."""
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as made:
            os.fchmod(made.fileno(), 0o666)
            with contextlib.suppress(FileExistsError):  # another process was quicker
                os.link(made.name, path)
    # Never O_CREAT: on a file of another user in /tmp the kernel forbids it, even to root (fs.protected_regular)
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield lock
    finally:
        os.close(lock)
