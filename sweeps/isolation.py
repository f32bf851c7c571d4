"""One task = one process tree in its own mount and PID namespace, with a /dev/shm of its own size.

    actor ── template ── supervisor ── init ── training ── loader workers
             torch is     enters the    PID 1   fit()
             imported     namespaces

The template is a clean process that has imported torch and run nothing. For each task it forks a supervisor, which unshares the mount
and PID namespaces (and a user namespace where it is not root), mounts a tmpfs of exactly `shm_bytes` on /dev/shm, reads the size back,
and forks init (`sweeps/init.py`). Records leave the tree as JSON lines on one pipe, which closes when its last process is gone.
Every link dies with the one before it: the template when its socket closes, the others by the kernel's parent-death signal. What the
tree puts into TMPDIR goes with it.

Where namespaces are forbidden, `private=False` runs the same tree on the node's own /dev/shm (sweeps/tree.py ends it there).
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps import init, tree
from sweeps.shm import PAGE, shm_usage

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000  # sched.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000  # sys/mount.h

END_S = 10.0  # a tree that was killed is given this long to be gone
ROOT_LETTERS = 57  # what is left of the 107 that a socket's path may have, below a template's folder and a tree's

libc = ctypes.CDLL(None, use_errno=True)
Record = dict[str, Any]


class IsolationError(OSError):
    """This machine does not allow a private /dev/shm; the text says which step failed."""


def environment() -> dict[str, str]:
    """This process's environment, for a Python that is to find this project's packages from any folder."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


class ShmSizeError(OSError):
    """The /dev/shm that was read back is not of the size that was asked for."""


def temporary_folder(prefix: str, letters: int) -> str:
    """Makes a folder for temporary files, in TMPDIR where that is no longer: sockets lie in it, whose paths are limited."""
    root = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix=prefix, dir=root if len(root) <= letters else "/tmp")


@dataclass(frozen=True)
class Task:
    """What a tree is to do: `name` is one of the template's TASKS, `arguments` its JSON."""

    name: str
    arguments: Record
    private: bool = True
    shm_bytes: int | None = None  # of its /dev/shm, which the node's own must have where it isn't private; None: as many as the node's
    cpus: list[int] | None = None  # the only cores it may use; None: all
    threads: int | None = None  # of OpenMP and MKL, in the environment for what reads it there; None: as it is
    sure_to_fit: bool = False  # /dev/shm holds all that its loaders can have under way
    modelled_wait_s: float = 0.0  # the longest that its loaders' workers sleep over a batch, which is no sign of a hang


class Template:
    """The clean process that trees are forked from. One a Ray actor, kept from trial to trial."""

    def __init__(self, folder: Path | None = None, tasks: str = "speech.tasks") -> None:
        """`folder`: where it works, so that relative paths in a task mean what they mean to whoever wrote them; None: here.
        `tasks`: the module whose TASKS its trees can do."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "sweeps.isolation", str(theirs.fileno()), tasks]
        self._temporary = temporary_folder("t", ROOT_LETTERS)
        null, variables = subprocess.DEVNULL, environment() | {"TMPDIR": self._temporary}
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=folder, env=variables, start_new_session=True, stdin=null, stdout=null
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
            if ending is None or not ending.get("timeout"):
                supervisor = None  # its pipe is closed: it is gone
        finally:
            if supervisor:
                _kill(supervisor)
                _wait_for_end(receiving)
            os.close(receiving)
        yield ending or {"kind": "exit", "status": None}

    @property
    def ended(self) -> bool:
        """Whether somebody has killed it."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Ends the template and, with it, any tree."""
        self._socket.close()
        self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)  # it has removed it itself, unless it was killed


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
        for line in filter(None, lines):
            with contextlib.suppress(json.JSONDecodeError):  # its writer was killed in the middle of it
                yield json.loads(line)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end by itself between its last record and now
        os.kill(pid, signal.SIGKILL)


def _wait_for_end(pipe: int) -> None:
    """Until the last process of a killed tree has let go of the pipe, so that it is gone before anything else starts."""
    deadline = time.monotonic() + END_S
    while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0] and os.read(pipe, 1 << 16):
        pass


def serve(requests: socket.socket, tasks: str) -> None:
    """The template's life: fork a supervisor for each task that comes, until the socket closes."""
    known = importlib.import_module(tasks).TASKS  # what every tree needs, torch above all, imported once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    template = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            task = Task(**json.loads(message))
            _supervise(template, known[task.name], task, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(template: int, work: init.Run, task: Task, records: int, log: int) -> None:
    """Enters the namespaces, forks init in them and waits for it. Never returns."""
    folder = None
    try:
        tree.die_with_parent(signal.SIGKILL)
        if os.getppid() != template:
            return  # it had ended before the line above
        os.dup2(log, 1)
        os.dup2(log, 2)
        init.write_record(records, {"kind": "born", "pid": os.getpid()})
        folder = _surroundings(task)
        if task.private:
            enter_namespaces(task.shm_bytes or shm_usage().limit_bytes)
            kept = None
        else:
            tree.adopt_orphans()
            kept = tree.HandKeptTree()
        _check_size(task.shm_bytes)
        alive, ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            if task.private:
                mount_proc()
            init.run(work, task.arguments, records, alive, task.private, task.sure_to_fit, task.modelled_wait_s)
        os.waitpid(pid, 0)
        if kept:
            kept.end()  # nobody is left, unless init was killed
    except OSError as error:
        init.write_record(records, {"kind": "error", "type": type(error).__name__, "message": str(error), "traceback": ""})
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _surroundings(task: Task) -> str:
    """Cores, threads and a folder for temporary files, as all of the tree inherits them; returns the folder."""
    if task.cpus:
        os.sched_setaffinity(0, task.cpus)
    if task.threads:
        os.environ |= {name: str(task.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    folder = os.path.join(os.environ["TMPDIR"], str(os.getpid()))
    os.mkdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    return folder


def enter_namespaces(shm_bytes: int) -> None:
    """Unshares mount and PID namespaces and mounts a tmpfs of `shm_bytes`. Raises IsolationError.

    The caller must have a single thread, and is not itself in the new PID namespace: its next child is PID 1 there.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID) != 0:
        _check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "unshare user, mount and PID namespaces")
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            try:
                Path("/proc/self", name).write_text(text)
            except OSError as error:  # some distributions allow the namespace and forbid its use
                raise IsolationError(error.errno, f"can't write /proc/self/{name} of a user namespace: {error.strerror}") from error
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make the mounts private")
    options = f"size={shm_bytes},mode=1777".encode()
    _check(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", MS_NOSUID | MS_NODEV, options), f"mount a tmpfs of {shm_bytes} bytes on /dev/shm")


def _check_size(shm_bytes: int | None) -> None:
    """Reads back what was asked for, so that no figure is ever of another size. Raises ShmSizeError."""
    if shm_bytes is not None and (got := shm_usage().limit_bytes) != (asked := -(-shm_bytes // PAGE) * PAGE):
        raise ShmSizeError(f"/dev/shm has {got:,} bytes where loader.shm_size asks for {asked:,}")


def mount_proc() -> None:
    """A /proc of the new PID namespace. Containers that mask parts of /proc forbid it; then the old one stays, which only misleads ps."""
    libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None)


def _check(result: int, step: str) -> None:
    if result != 0:
        raise IsolationError(ctypes.get_errno(), f"can't {step}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), tasks=sys.argv[2])
