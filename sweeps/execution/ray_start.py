"""Watches whether a Ray that was started starts its trials, and reports why if it does not.

If Ray cannot start its processes, for lack of threads, files, memory or disk space, it tries again
and again, and callers wait forever. The cause is in its logs, which nobody sees. A wait for Ray
therefore has two limits. After the first, a line reports what the logs contain. After the second,
the wait ends.

While Ray itself starts, a separate process watches (`end_if_late`). Ray waits for its processes in
C++ code that holds Python's lock, so that no thread and no signal handler of the launch runs. Once
Ray runs, a thread of the launch watches (`StartWatch`).
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sweeps import environment

POLL_S = 1.0
REPORT_AFTER_S = 45.0  # a trial starts within 15 s of its launch on a busy machine of two cores
END_AFTER_S = 180.0
TAIL_BYTES = 1 << 16
LOGS = (
    "raylet.*",
    "gcs_server.*",
    "worker-*",
    "python-core-*",
    "agent*",
    "dashboard*",
    "runtime_env*",
    "log_monitor*",
    "monitor*",
)

MENDS = (  # pattern of a line in a log -> how to mend the cause
    (
        (
            r"pthread_create|can't start new thread|Resource temporarily unavailable|fork:"
            r" retry|EAGAIN"
        ),
        (
            "no further processes or threads may be started: raise `ulimit -u`, or the limit of"
            " processes of the container or service"
        ),
    ),
    (r"Too many open files|EMFILE", "too many files are open: raise `ulimit -n`"),
    (
        r"No space left on device|ENOSPC|Disk quota exceeded",
        "a disk is full: make room, or set TMPDIR to a folder with room",
    ),
    (
        r"Cannot allocate memory|bad_alloc|MemoryError|ENOMEM",
        "memory is used up: end other processes, or raise `ulimit -v`",
    ),
    (r"Read-only file system", "a folder can't be written: set TMPDIR to another one"),
    (r"Operation not permitted|Permission denied", "this user lacks a permission that Ray needs"),
)


class StartWatch:
    """Measures for how long a launch waits for Ray while no trial runs."""

    def __init__(
        self,
        scratch: Path,
        log: Callable[[str], None],
        ends: bool,
        report_after_s: float = REPORT_AFTER_S,
    ) -> None:
        """Starts the measurement.

        `scratch` is the folder of Ray's logs. `ends` is whether the wait has an end; it has none in
        a cluster that others use too.
        """
        self._scratch, self._log, self._ends, self._report_after_s = (
            scratch,
            log,
            ends,
            report_after_s,
        )
        self._since = time.monotonic()
        self._running: set[str] = set()  # ids of trials
        self.has_reported = False

    def trial_started(self, trial_id: str) -> None:
        """Stops the measurement while this trial runs."""
        self._running.add(trial_id)

    def trial_ended(self, trial_id: str) -> None:
        """Starts the measurement again unless another trial runs.

        While one runs, it may hold the only core or GPU that the next trial needs.
        """
        self._running.discard(trial_id)
        self._since = time.monotonic()

    def check(self) -> str | None:
        """Logs once that no trial starts, and why.

        Returns this as the reason to end the wait if that has taken too long, else None.
        """
        if self._running:
            return None
        waited_s = time.monotonic() - self._since
        if waited_s < self._report_after_s or (
            self.has_reported and not (self._ends and waited_s > END_AFTER_S)
        ):
            return None
        reason = find_reason(self._scratch)
        if not self.has_reported:
            self.has_reported = True
            self._log(
                f"no trial has started for {waited_s:.0f} s."
                f" {reason or 'Its logs show no known cause'}"
            )
        if self._ends and waited_s > END_AFTER_S:
            return (
                f"Ray has started no trial for {waited_s:.0f} s."
                f" {reason or 'Its logs show no known cause'}."
            )
        return None


@contextlib.contextmanager
def end_if_late(scratch: Path, report_after_s: float = REPORT_AFTER_S) -> Iterator[None]:
    """Starts another process that reports why Ray does not start, and that ends this one with exit
    status 3 if it is late.

    The handler of the signal that it sends is C's _exit, which takes the signal's number as the
    exit status. The number of SIGQUIT is 3.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    before = signal.getsignal(signal.SIGQUIT)
    libc.signal(signal.SIGQUIT, ctypes.cast(libc._exit, ctypes.c_void_p))
    command = [
        sys.executable,
        "-P",
        "-m",
        "sweeps.execution.ray_start",
        str(scratch),
        str(report_after_s),
    ]
    watcher = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment.with_project(), start_new_session=True
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()
        signal.signal(signal.SIGQUIT, before)


def end_late_launch(scratch: Path, report_after_s: float, launch: int) -> None:
    """Watches a starting Ray until the launch closes its end of our stdin, or ends the launch.

    A known reason in the logs ends the launch at the first limit: processes that Ray could not
    start then do not come back.
    """
    watch = StartWatch(
        scratch, lambda line: print(f"\n{line}", file=sys.stderr, flush=True), True, report_after_s
    )
    while not select.select([sys.stdin], [], [], POLL_S)[0]:
        problem = watch.check() or (find_reason(scratch) if watch.has_reported else None)
        if problem:
            print("No trial has run. Run the same command again.", file=sys.stderr, flush=True)
            os.kill(launch, signal.SIGQUIT)
            return


def find_reason(scratch: Path) -> str | None:
    """Returns why Ray cannot continue, according to its newest logs, and how to mend it; None if
    they show no known cause.
    """
    for pattern, mend in MENDS:
        for name, line in _read_logs(scratch):
            if re.search(pattern, line):
                return f"Ray's {name} reports: {line.strip()[-200:]} ({mend})"
    return None


def _read_logs(scratch: Path) -> Iterator[tuple[str, str]]:
    """Yields the last lines of each of Ray's logs, with the name of the log."""
    folders = sorted(scratch.glob("session_[0-9]*/logs"))
    files = [
        scratch / "ray.log",
        *(file for folder in folders for pattern in LOGS for file in sorted(folder.glob(pattern))),
    ]
    for file in files:
        try:
            with file.open("rb") as log:
                log.seek(max(file.stat().st_size - TAIL_BYTES, 0))
                text = log.read().decode(errors="replace")
        except OSError:  # the log was renamed or removed meanwhile
            continue
        for line in text.splitlines():
            yield file.name, line


if __name__ == "__main__":
    end_late_launch(Path(sys.argv[1]), float(sys.argv[2]), os.getppid())
