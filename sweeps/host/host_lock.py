"""Identifies a machine, and locks it for timed work.

Two raylets on one machine both assume that they have it exclusively, and two launches are unaware
of each other. A machine is therefore identified by the boot of its kernel. A trial that must run
alone holds an exclusive lock on a file while it runs; trials that may share a machine hold a shared
lock.

The lock is the kernel's (flock). It is released when its process ends, in whatever way. A waiting
process holds a second lock, the gate. Later processes therefore can't overtake it, and a stream of
trials that share the machine can't starve a trial that needs it alone. The holder of the lock
requests no other lock, so that deadlocks are impossible.

    with acquire(exclusive=True, owner="sweep first-look (process 4711)", on_wait=print): ...
"""

import contextlib
import errno
import fcntl
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# The boot id also distinguishes two copies of one disk
IDENTITY_FILES = (Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id"))
LOCK = Path("/tmp/speech-sweeps.lock")  # not in TMPDIR, which may differ between users
GATE = LOCK.with_suffix(".gate")
# Also shared by all users, in this order
FALLBACK_FOLDERS = (Path("/var/tmp"), Path("/run/lock"), Path("/dev/shm"))
# Errors of a file system without locks
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


class NoLock(OSError):
    """Reports that no shared folder accepts a lock file.

    Launches on this machine then can't detect each other.
    """


def identity() -> str:
    """Returns an identifier of this machine that no other machine has.

    It is the same for all processes of the machine, including containers, until the next boot.
    """
    for file in IDENTITY_FILES:
        with contextlib.suppress(OSError):
            return file.read_text().strip()
    return platform.node()


@contextlib.contextmanager
def acquire(exclusive: bool, owner: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Locks the machine for the block, exclusively or shared, and waits for the lock without limit.

    `owner` is the name that other processes see while they wait. `on_wait` is called at most once,
    with the name of the present owner, and not if that is `owner` itself. If no lock is possible
    (`check_lock`), the block runs without one.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoLock):
            stack.enter_context(_hold_lock(exclusive, owner, on_wait))
        yield


def check_lock() -> str | None:
    """Returns why this machine can't be locked, or None if it can."""
    try:
        with _open_lock_file(LOCK) as lock:
            if _try_lock(lock, fcntl.LOCK_SH):
                fcntl.flock(lock, fcntl.LOCK_UN)
    except NoLock as problem:
        return str(problem)
    return None


@contextlib.contextmanager
def _hold_lock(exclusive: bool, owner: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock for the block; the gate is held only until the lock is acquired."""
    with _open_lock_file(GATE) as gate, _open_lock_file(LOCK) as lock:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        if not (_try_lock(gate, fcntl.LOCK_EX) and _try_lock(lock, mode)):
            holder = os.pread(lock, 1000, 0).decode(errors="replace")
            if holder != owner:
                on_wait(holder)
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, mode)
        os.truncate(lock, 0)
        os.pwrite(lock, owner.encode(), 0)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def lock_file_id() -> tuple[int, int]:
    """Returns device and inode of the lock file.

    If they differ between processes of one machine, as in two containers, these processes can't see
    each other's locks.
    """
    with _open_lock_file(LOCK) as lock:
        status = os.fstat(lock)
        return status.st_dev, status.st_ino


def _try_lock(lock: int, mode: int) -> bool:
    """Acquires a lock if that is possible without waiting; returns whether it did.

    Raises NoLock if the file system has no locks.
    """
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLock(error.errno, f"the file system of {LOCK.parent} has no locks") from error
        raise
    return True


@contextlib.contextmanager
def _open_lock_file(path: Path) -> Iterator[int]:
    """Opens a file that every user of the machine may lock, and creates it if necessary.

    The file is never removed. It is in the path's own folder, or in the first of FALLBACK_FOLDERS
    that is writable, which is the same for all users. Raises NoLock if no folder is writable.
    """
    problems: list[str] = []
    for folder in dict.fromkeys((path.parent, *FALLBACK_FOLDERS)):
        try:
            lock = _open_or_create(folder / path.name)
            break
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
    else:
        raise NoLock(errno.ENOLCK, f"no lock file can be created ({'; '.join(problems)})")
    try:
        yield lock
    finally:
        os.close(lock)


def _open_or_create(path: Path) -> int:
    """Opens a lock file, creates it if it does not exist, and returns its descriptor."""
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as new_file:
            os.fchmod(new_file.fileno(), 0o666)
            try:
                os.link(new_file.name, path)
            except FileExistsError:  # another process created it meanwhile
                pass
            except OSError:  # the file system has no hard links
                with contextlib.suppress(FileExistsError):
                    os.close(
                        os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
                    )
                    os.chmod(path, 0o666)
    # Without O_CREAT, which the kernel forbids for another user's file in /tmp, even to root
    # (fs.protected_regular)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
