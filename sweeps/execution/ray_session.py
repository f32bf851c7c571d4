"""Starts a Ray of the launch's own, and ends a session that has lost what it needs.

A Ray of the launch's own stores its files, its object store among them, in the launch's temporary
folder: all of /dev/shm belongs to the trials. Ray's output goes to a log file there.
"""

import contextlib
import functools
import logging
import os
import secrets
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from sweeps import environment
from sweeps.execution.ray_start import end_if_late
from sweeps.execution.ray_variables import OWN_RAY
from sweeps.host.node import Node
from sweeps.sandbox.janitor import scratch_dir
from sweeps.user_error import UserError

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

OBJECT_STORE_BYTES = 80 * 2**20  # Ray's minimum is 75 MiB; nothing but numbers travels through it
POLL_S = 1.0
SHUTDOWN_S = 25.0  # for the orderly end of a session that has lost what it needs

_late_end: threading.Timer | None = None  # ends this process if a session's end takes too long
OWN_LABELS = {"speech-sweeps": "own"}  # label of the nodes of a launch's own Ray


class RayEnded(UserError):
    """Reports that Ray ended while trials ran, or that a process that it needs was killed."""

    exit_code = 1


FindProblem = Callable[[], str | None]


class Session(NamedTuple):
    """A running Ray."""

    scratch: Path  # the folder for temporary files of the session
    request: "PlacementGroupFactory"  # resources of every trial
    needed: Collection[int]  # ids of processes without which the session ends
    find_problem: "FindProblem" = lambda: None  # returns any other reason to end the session
    own: bool = False  # whether the launch alone uses this Ray


@contextlib.contextmanager
def start_own_ray(node: Node, request: dict[str, float], crash_note: Path) -> Iterator[Session]:
    """Starts a Ray of the launch's own on this machine, and stops it at the end of the context.

    `request` holds the resources of one trial, for example {"CPU": 2, "GPU": 1}. `crash_note` is
    the file that names the scratch folder, so that it can be removed when the launch has ended.
    """
    environment.apply()
    environment.apply(*OWN_RAY)
    os.environ |= environment.with_project() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _auth_token(),
    }
    import ray
    from ray import tune

    with scratch_dir(crash_note) as scratch:
        try:
            with end_if_late(scratch), restore_signal_handlers(scratch / "ray.log"):
                ray.init(
                    address="local",
                    num_cpus=node.whole_cores,
                    num_gpus=len(node.gpus),
                    include_dashboard=False,
                    labels=OWN_LABELS,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _plasma_directory=str(scratch),
                    _temp_dir=str(scratch),
                    logging_level=logging.CRITICAL,
                    log_to_driver=False,
                )
            needed = [
                child.pid
                for child in psutil.Process().children()
                if child.name() in ("raylet", "gcs_server")
            ]
            yield Session(scratch, tune.PlacementGroupFactory([request]), needed, own=True)
        finally:
            with redirect_output(scratch / "ray.log"):
                ray.shutdown()
            if _late_end:
                _late_end.cancel()  # the launch may start Ray again and go on


@functools.cache
def _auth_token() -> str:
    """Returns the token that clients of this launch's Ray present.

    Ray would store one in the home folder, which may not exist.
    """
    return secrets.token_hex(32)


@contextlib.contextmanager
def restore_signal_handlers(log_file: Path) -> Iterator[None]:
    """Redirects Ray's output to `log_file` and restores the SIGTERM handler and log level that Ray
    overwrites.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with redirect_output(log_file):
            yield
    finally:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        signal.signal(signal.SIGTERM, terminate)  # Ray's own handler prints a stack trace


@contextlib.contextmanager
def redirect_output(log_file: Path) -> Iterator[None]:
    """Redirects stdout and stderr to `log_file`, stderr on the level of the file descriptor.

    Ray prints from its own threads, also below Python, and a paragraph for a lost actor. The launch
    reports the same in one line.
    """
    sys.stderr.flush()
    own_stderr = os.dup(2)
    try:
        with (
            log_file.open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            os.dup2(log.fileno(), 2)
            yield
    finally:
        os.dup2(own_stderr, 2)
        os.close(own_stderr)


@contextlib.contextmanager
def as_ray_error() -> Iterator[None]:
    """Raises RayEnded for a RuntimeError of Tune.

    Tune ends a sweep with a stack trace where Ray takes a worker from it.
    """
    try:
        yield
    except RuntimeError as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise RayEnded(f"Ray ended during the sweep: {reason}") from error


@contextlib.contextmanager
def watch_processes(needed: Collection[int], find_problem: FindProblem) -> Iterator[None]:
    """Raises RayEnded in the block when one of the `needed` processes has ended, or when
    `find_problem` returns a problem.

    It calls `find_problem` about once a second. Ray itself would continue to wait for a node that
    never comes back.
    """
    names = {pid: _process_name(pid) for pid in needed}
    descriptors = {
        descriptor: names[pid] for pid in needed if (descriptor := _open_process(pid)) is not None
    }
    stop, stopped = os.pipe()
    problems: list[str] = []

    def watch() -> None:
        ready: list[int] = []
        problem = None
        while not ready and not problem:
            ready, _, _ = select.select([stop, *descriptors], [], [], POLL_S)
            problem = None if ready else find_problem() or _find_ended(names)
        if stop not in ready:
            if problem:
                _end_within(SHUTDOWN_S, problem)
            problems.append(
                problem or f"Ray's {descriptors[ready[0]]} was killed during the sweep."
            )
            os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)  # Tune uses SIGUSR1 itself
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if not problems:
            raise
        raise RayEnded(problems[0]) from None
    finally:
        os.close(stopped)  # wakes the watcher
        watcher.join()
        signal.signal(signal.SIGUSR2, before)
        for descriptor in (stop, *descriptors):
            os.close(descriptor)


def _open_process(pid: int) -> int | None:
    """Returns a descriptor that is readable when the process has ended; None if the kernel has none
    (before Linux 5.3, gVisor).
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _process_name(pid: int) -> str:
    """Returns the name of one of Ray's processes, even if it has just ended."""
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return f"process {pid}"


def _find_ended(names: Mapping[int, str]) -> str | None:
    """Returns a message on the first process that has ended; None if all run.

    `names` holds the names of processes by their ids.
    """
    for pid, name in names.items():
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                continue
        except psutil.NoSuchProcess:
            pass
        return f"Ray's {name} was killed during the sweep."
    return None


def _end_within(seconds: float, problem: str) -> None:
    """Ends the process after `seconds` with a line and exit code 1, unless it has ended by then.

    Without the head of the cluster, calls of Ray may block the main thread, which then receives no
    signals. Ray would later end the process with a stack trace. The records of trials are on disk.
    `start_own_ray` cancels it when its session has ended.
    """
    global _late_end

    def end_process() -> None:
        # To stdout, since stderr may be Ray's log
        os.write(
            1,
            (
                f"\n{problem} Settled trials are not run again; the same command runs the rest.\n"
            ).encode(),
        )
        os._exit(1)

    _late_end = threading.Timer(seconds, end_process)
    _late_end.daemon = True
    _late_end.start()
