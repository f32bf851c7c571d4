"""One task = one process tree in its own mount and PID namespace, with a /dev/shm of its own size.

    actor ── template ── supervisor ── init ── training ── loader workers
             torch is     enters the    PID 1   fit()
             imported     namespaces

The template is a clean process that has imported torch and run nothing. For each task it forks a supervisor, which unshares the mount
and PID namespaces (and a user namespace where it is not root), mounts a tmpfs of exactly `shm_bytes` on /dev/shm, reads the size back,
and forks init (`sweeps/init.py`). Records leave the tree as JSON lines on one pipe, which closes when its last process is gone.
Every link dies with the one before it: the template when its socket closes, the others by the kernel's parent-death signal.

Where namespaces are forbidden, `private=False` runs the same tree on the node's own /dev/shm.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps import init

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000  # sched.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000  # sys/mount.h

libc = ctypes.CDLL(None, use_errno=True)
Record = dict[str, Any]


class IsolationError(OSError):
    """This machine does not allow a private /dev/shm; the text says which step failed."""


@dataclass(frozen=True)
class Task:
    """What a tree is to do: `name` is one of speech.tasks.TASKS, `arguments` its JSON."""

    name: str
    arguments: Record
    private: bool = True
    shm_bytes: int | None = None  # None: the node's own /dev/shm, untouched
    cpus: list[int] | None = None


class Template:
    """The clean process that trees are forked from. One a Ray actor, kept from trial to trial."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where it works, so that relative paths in a task mean what they mean to whoever wrote them; None: here."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "sweeps.isolation", str(theirs.fileno())]
        root = Path(__file__).resolve().parent.parent
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=folder, env=environment, start_new_session=True, stdin=null, stdout=null
        )
        theirs.close()

    def run(self, task: Task, log: Path, timeout_s: float | None = None) -> Iterator[Record]:
        """Yields the task's records as they come; the last is always {"kind": "exit"}. `log` receives the tree's stdout and stderr.

        The exit record holds `status` (as in subprocess.returncode; None when nobody could tell), what init saw of /dev/shm, and
        `timeout: true` when the tree was killed after `timeout_s` seconds. Leaving the iteration early kills the tree.
        """
        receiving, sending = os.pipe()
        with log.open("ab") as file:
            try:
                socket.send_fds(self._socket, [json.dumps(asdict(task)).encode()], [sending, file.fileno()])
            except OSError as error:
                os.close(receiving)
                raise RuntimeError(f"the process that trials are forked from has ended (exit status {self._process.poll()})") from error
            finally:
                os.close(sending)
        supervisor, ending = None, None
        try:
            for record in _lines(receiving, None if timeout_s is None else time.monotonic() + timeout_s):
                if record["kind"] == "born":
                    supervisor = record["pid"]
                elif record["kind"] == "exit":
                    ending = record
                else:
                    yield record
        finally:
            os.close(receiving)
            if supervisor and (ending is None or ending.get("timeout")):
                _kill(supervisor)
        yield ending or {"kind": "exit", "status": None}

    def close(self) -> None:
        """Ends the template and, with it, any tree."""
        self._socket.close()
        self._process.wait()


def _lines(pipe: int, deadline: float | None) -> Iterator[Record]:
    """JSON lines from a pipe until every writer is gone; past `deadline` an exit record with `timeout` ends them."""
    buffer = b""
    while True:
        patience = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not select.select([pipe], [], [], patience)[0]:
            yield {"kind": "exit", "status": None, "timeout": True}
            return
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end by itself between its last record and now
        os.kill(pid, signal.SIGKILL)


def serve(requests: socket.socket) -> None:
    """The template's life: fork a supervisor for each task that comes, until the socket closes."""
    import speech.tasks  # noqa: F401  what every tree needs, torch above all, imported once

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            _supervise(Task(**json.loads(message)), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(task: Task, records: int, log: int) -> None:
    """Enters the namespaces, forks init in them and waits for it. Never returns."""
    try:
        init.die_with_parent()
        os.dup2(log, 1)
        os.dup2(log, 2)
        init.write_record(records, {"kind": "born", "pid": os.getpid()})
        if task.cpus:
            os.sched_setaffinity(0, task.cpus)
        if task.private:
            enter_namespaces(task.shm_bytes)
        pid = os.fork()
        if pid == 0:
            if task.private:
                mount_proc()
            init.run(task.name, task.arguments, records, private=task.private)
        os.waitpid(pid, 0)
    except OSError as error:
        init.write_record(records, {"kind": "error", "type": type(error).__name__, "message": str(error), "traceback": ""})
    finally:
        os._exit(0)


def enter_namespaces(shm_bytes: int | None) -> None:
    """Unshares mount and PID namespaces and mounts a tmpfs of `shm_bytes` (None: leaves /dev/shm as it is). Raises IsolationError.

    The caller must have a single thread, and is not itself in the new PID namespace: its next child is PID 1 there.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID) != 0:
        _check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "unshare user, mount and PID namespaces")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make the mounts private")
    if shm_bytes is None:
        return
    options = f"size={shm_bytes},mode=1777".encode()
    _check(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", MS_NOSUID | MS_NODEV, options), f"mount a tmpfs of {shm_bytes} bytes on /dev/shm")
    asked, got = -(-shm_bytes // init.PAGE) * init.PAGE, init.shm_usage().limit_bytes
    if asked != got:
        raise IsolationError(f"/dev/shm has {got} bytes where {asked} were asked for")


def mount_proc() -> None:
    """A /proc of the new PID namespace. Containers that mask parts of /proc forbid it; then the old one stays, which only misleads ps."""
    libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None)


def _check(result: int, step: str) -> None:
    if result != 0:
        raise IsolationError(ctypes.get_errno(), f"can't {step}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
