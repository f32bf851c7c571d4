"""Surroundings that users have and a test machine has not, made for one command.

    python -m tests.container docker HOME COMMAND...     /dev/shm of 64 MB for everything, namespaces forbidden: root in a default container
    python -m tests.container nobody HOME COMMAND...     an ordinary user, who owns nothing here but HOME (needs root to become one)

The command runs in HOME, an empty folder.
"""

import ctypes
import os
import shutil
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 0x4000, 0x40000
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21
NOBODY = 65534
ROOT = Path(__file__).resolve().parent.parent

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def docker(home: Path) -> None:
    """A user namespace that forbids further ones, and after the next exec a root without
    CAP_SYS_ADMIN: mount and unshare fail."""
    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    check(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64m,mode=1777"))
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    check(libc.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0))


def nobody(home: Path) -> None:
    """Mounts what it runs where an ordinary user may read it, in a mount namespace of its own, and
    becomes that user."""
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    seen = {"repo": ROOT, "venv": Path(sys.prefix), "python": Path(sys.base_prefix)}
    for name, place in seen.items():
        (home / name).mkdir(exist_ok=True)
        check(
            libc.mount(str(place).encode(), str(home / name).encode(), None, MS_BIND | MS_REC, None)
        )
    shutil.chown(home, NOBODY, NOBODY)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.environ.clear()  # the tests' own names places that this user may not enter
    python, version = home / "python", f"python{sys.version_info.major}.{sys.version_info.minor}"
    os.environ |= {
        "HOME": str(home),
        "USER": "nobody",
        "PATH": f"{python / 'bin'}:/usr/bin:/bin",
        # a Python built with a shared library looks for it where it was built
        "LD_LIBRARY_PATH": str(python / "lib"),
        "PYTHONPATH": f"{home / 'repo'}:{home / 'venv' / 'lib' / version / 'site-packages'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


if __name__ == "__main__":
    _, kind, home, *command = sys.argv
    {"docker": docker, "nobody": nobody}[kind](Path(home))
    os.chdir(home)
    os.execvp(command[0], command)
