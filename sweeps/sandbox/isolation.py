"""Runs a task as one process tree in its own mount and PID namespace, on its own /dev/shm.

    actor ── fork server ── supervisor ── init ── training ── loader workers
             torch is        enters the    PID 1   fit()
             imported        namespaces

The fork server is a clean process that has imported torch and run nothing. For each task it forks a
supervisor. The supervisor unshares the mount and PID namespaces, and a user namespace where it is
not root. It mounts a tmpfs of exactly `shm_bytes` on /dev/shm, reads the size back, and forks init
(`sweeps/sandbox/pid1.py`). Records leave the tree as JSON lines on one pipe, which closes when the
last process is gone. Every process dies with the one before it: the fork server when its socket
closes, the others by the kernel's parent-death signal. The files that the tree writes into TMPDIR
are removed with it.

Where namespaces are forbidden, `private=False` runs the same tree on the node's own /dev/shm. There
sweeps/sandbox/process_tree.py ends it.
"""

import contextlib
import functools
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speech.shm_usage import PAGE_BYTES, shm_usage
from speech.timing import Gauge
from sweeps import environment
from sweeps.sandbox import pid1, process_tree
from sweeps.sandbox.private_shm import enter_namespaces, mount_proc

TREE_END_TIMEOUT_S = 10.0  # longest wait until a killed tree is gone
# A socket's path may have 107 characters. The folders of a fork server and of a tree take the rest.
MAX_ROOT_LENGTH = 57

Record = dict[str, Any]
# Runs a task: its arguments, a function that writes a record, and the gauge of /dev/shm
TaskFunction = Callable[[dict[str, Any], Callable[[Record], None], Gauge], None]


class ShmSizeError(OSError):
    """Reports that the size of /dev/shm, as read back, differs from the requested size."""


def short_folders(max_length: int) -> list[str]:
    """Returns the folders for temporary files with at most `max_length` characters, TMPDIR first.

    The folders contain sockets, and the path of a socket is limited.
    """
    return [
        folder
        for folder in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp"))
        if len(folder) <= max_length
    ]


def make_temporary_folder(prefix: str, max_length: int) -> str:
    """Creates a folder for temporary files in the first of `short_folders` that is writable."""
    folders = short_folders(max_length)
    return tempfile.mkdtemp(
        prefix=prefix,
        dir=next((folder for folder in folders if os.access(folder, os.W_OK)), folders[0]),
    )


@dataclass(frozen=True)
class Task:
    """Task of a process tree: `name` is a key of the fork server's TASKS, `arguments` is JSON."""

    name: str
    arguments: Record
    private: bool = True
    # Size of the private /dev/shm, or the size that the node's own must have; None: the node's size
    shm_bytes: int | None = None
    cpus: list[int] | None = None  # the only cores that it may use; None: all
    # Threads of OpenMP and MKL, set in the environment for libraries that read it; None: unchanged
    threads: int | None = None
    sure_to_fit: bool = False  # /dev/shm has room for all that its loaders can have under way
    # The longest time that a worker of its loaders sleeps over a batch, which is no sign of a hang
    simulated_wait_s: float = 0.0


class ForkServer:
    """Forks process trees from a clean process. A Ray actor reuses one for all of its trials."""

    def __init__(
        self,
        folder: Path | None = None,
        tasks: str = "speech.tasks",
        variables: Mapping[str, str] = os.environ,
    ) -> None:
        """Starts the process.

        `folder`: its working folder, against which relative paths in a task resolve; None: the
        caller's. `tasks`: the module whose TASKS its trees can run. `variables`: its environment.
        """
        self._socket, server_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-P",
            "-m",
            "sweeps.sandbox.isolation",
            str(server_socket.fileno()),
            tasks,
        ]
        self._temporary = make_temporary_folder("t", MAX_ROOT_LENGTH)
        null, env = (
            subprocess.DEVNULL,
            environment.with_project(variables) | {"TMPDIR": self._temporary},
        )
        self._process = subprocess.Popen(
            command,
            pass_fds=[server_socket.fileno()],
            cwd=folder,
            env=env,
            start_new_session=True,
            stdin=null,
            stdout=null,
        )
        server_socket.close()

    def run(self, task: Task, log: Path, timeout_s: float | None = None) -> Iterator[Record]:
        """Yields the task's records as they arrive; the last is always {"kind": "exit"}.

        `log` receives the tree's stdout and stderr. The exit record contains `status` (as in
        subprocess.returncode; None if it is unknown) and the figures of /dev/shm that init
        measured. It contains `timeout: true` if the tree was killed after `timeout_s` seconds.
        Closing the iterator early kills the tree. Raises RuntimeError if the fork server has ended.
        """
        receiving, sending = os.pipe()
        with log.open("ab") as file:
            try:
                socket.send_fds(
                    self._socket, [json.dumps(asdict(task)).encode()], [sending, file.fileno()]
                )
            except OSError as error:
                os.close(receiving)
                raise RuntimeError(
                    f"the fork server of the trials has ended (exit status {self._process.poll()})"
                ) from error
            finally:
                os.close(sending)
        supervisor, ending = None, None
        try:
            for record in _read_records(
                receiving, None if timeout_s is None else time.monotonic() + timeout_s
            ):
                if record["kind"] == "born":
                    supervisor = record["pid"]
                elif record["kind"] == "exit":
                    ending = record
                else:
                    yield record
            if ending is None or not ending.get("timeout"):
                supervisor = None  # its pipe is closed, which shows that it is gone
        finally:
            if supervisor:
                _kill(supervisor)
                _wait_for_end(receiving)
            os.close(receiving)
        yield ending or {"kind": "exit", "status": None}

    @property
    def pid(self) -> int:
        """Process id of the fork server. Its trees are its descendants."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Returns whether the process has ended, as it does when somebody kills it."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Ends the fork server and, with it, any tree."""
        self._socket.close()
        # An orderly end would take a second, for torch and all else that it has imported
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _read_records(pipe: int, deadline: float | None) -> Iterator[Record]:
    """Yields the JSON lines of a pipe until every writer is gone.

    After `deadline` it yields an exit record with `timeout` and ends.
    """
    buffer = b""
    while True:
        timeout_s = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not select.select([pipe], [], [], timeout_s)[0]:
            yield {"kind": "exit", "status": None, "timeout": True}
            return
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in filter(None, lines):
            with contextlib.suppress(json.JSONDecodeError):  # its writer was killed in mid-line
                yield json.loads(line)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended since its last record
        os.kill(pid, signal.SIGKILL)


def _wait_for_end(pipe: int) -> None:
    """Waits until the last process of a killed tree has closed the pipe.

    The tree is then gone before anything else starts. The wait ends after TREE_END_TIMEOUT_S.
    """
    deadline = time.monotonic() + TREE_END_TIMEOUT_S
    while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0] and os.read(
        pipe, 1 << 16
    ):
        pass


def serve(requests: socket.socket, tasks: str) -> None:
    """Runs the fork server: forks a supervisor for each task, until the socket closes."""
    # Imports the packages that every tree needs, torch above all, once
    functions = importlib.import_module(tasks).TASKS
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    server = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            task = Task(**json.loads(message))
            _supervise(server, functions[task.name], task, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(server: int, work: TaskFunction, task: Task, records: int, log: int) -> None:
    """Enters the namespaces, forks init in them and waits until it ends. Never returns."""
    folder = None
    try:
        process_tree.die_with_parent(signal.SIGKILL)
        if os.getppid() != server:
            return  # the fork server had ended before the line above
        os.dup2(log, 1)
        os.dup2(log, 2)
        pid1.write_record(records, {"kind": "born", "pid": os.getpid()})
        folder = _prepare_process(task)
        if task.private:
            enter_namespaces(task.shm_bytes or shm_usage().limit_bytes)
            tree = None
        else:
            process_tree.adopt_orphans()
            tree = process_tree.ProcessTree()
        _check_size(task.shm_bytes)
        # `alive` becomes readable once this process, which holds the other end open, has ended
        alive, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            if task.private:
                mount_proc()
            pid1.run(
                functools.partial(work, task.arguments),
                records,
                alive,
                task.private,
                task.sure_to_fit,
                task.simulated_wait_s,
            )
        os.waitpid(pid, 0)
        if tree:
            tree.end()  # no process remains, unless init was killed
    except OSError as error:
        pid1.write_record(
            records,
            {"kind": "error", "type": type(error).__name__, "message": str(error), "traceback": ""},
        )
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _prepare_process(task: Task) -> str:
    """Sets the cores, the threads and a folder for temporary files, which the whole tree inherits.

    Returns the folder.
    """
    if task.cpus:
        os.sched_setaffinity(0, task.cpus)
    if task.threads:
        os.environ |= {name: str(task.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    folder = os.path.join(os.environ["TMPDIR"], str(os.getpid()))
    os.mkdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    return folder


def _check_size(shm_bytes: int | None) -> None:
    """Reads the size of /dev/shm back, since every figure must belong to the requested size.

    Raises ShmSizeError if it differs from `shm_bytes`, rounded up to whole pages.
    """
    if shm_bytes is not None and (actual := shm_usage().limit_bytes) != (
        requested := -(-shm_bytes // PAGE_BYTES) * PAGE_BYTES
    ):
        raise ShmSizeError(
            f"/dev/shm has {actual:,} bytes but loader.shm_size requests {requested:,}"
        )


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), tasks=sys.argv[2])
