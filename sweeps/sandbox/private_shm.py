"""Moves a process into mount and PID namespaces of its own, with a /dev/shm of its own.

A process that is not root also gets a user namespace, in which it may mount.
"""

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000  # sched.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000  # sys/mount.h

libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(OSError):
    """Reports that this machine allows no private /dev/shm; the text names the failed step."""


def enter_namespaces(shm_bytes: int) -> None:
    """Unshares mount and PID namespaces and mounts a tmpfs of `shm_bytes`. Raises IsolationError.

    The caller must have a single thread. It is not itself in the new PID namespace: its next child
    is PID 1 of that namespace.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID) != 0:
        _check(
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID),
            "unshare user, mount and PID namespaces",
        )
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            try:
                Path("/proc/self", name).write_text(text)
            except OSError as error:  # some distributions allow the namespace but forbid its use
                raise IsolationError(
                    error.errno,
                    f"can't write /proc/self/{name} of a user namespace: {error.strerror}",
                ) from error
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make the mounts private")
    options = f"size={shm_bytes},mode=1777".encode()
    _check(
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", MS_NOSUID | MS_NODEV, options),
        f"mount a tmpfs of {shm_bytes} bytes on /dev/shm",
    )


def mount_proc() -> None:
    """Mounts a /proc of the new PID namespace.

    Containers that mask parts of /proc forbid it. The old one then remains, which misleads only ps.
    """
    libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None)


def _check(result: int, step: str) -> None:
    """Raises IsolationError with the name of `step` if the C call's `result` reports a failure."""
    if result != 0:
        raise IsolationError(ctypes.get_errno(), f"can't {step}: {os.strerror(ctypes.get_errno())}")
