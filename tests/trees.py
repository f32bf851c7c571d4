"""What tests of process trees share: running one to its outcome, and looking at its processes from
outside."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from sweeps.sandbox.isolation import ForkServer, Task
from sweeps.sandbox.outcome import ClassifiedOutcome, TrainingEnd, classify

ROOT = Path(__file__).parent.parent


def can_isolate() -> bool:
    """Whether this machine, and this user, may have a private /dev/shm."""
    code = "from sweeps.sandbox.private_shm import enter_namespaces as e; e(1 << 20)"
    return (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True
        ).returncode
        == 0
    )


def finish(
    template: ForkServer, task: Task, folder: Path, timeout_s: float | None = None
) -> tuple[list[dict], ClassifiedOutcome]:
    """Runs a task to its end: all its records, and how it ended as a trial's end is read."""
    log = folder / "stderr.log"
    *records, ending = template.run(task, log, timeout_s)
    error = next((record for record in records if record["kind"] == "error"), None)
    finished = any(record["kind"] == "end" for record in records)
    return [*records, ending], classify(
        error,
        ending,
        TrainingEnd() if finished else None,
        log.read_text(errors="replace"),
        task.sure_to_fit,
    )


def descendants(of: int) -> list[psutil.Process]:
    return psutil.Process(of).children(recursive=True)


def trees(template: ForkServer) -> list[psutil.Process]:
    """What lives below the template: supervisor, init, training, workers. Supervisors come first."""
    return descendants(template._process.pid)


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()
