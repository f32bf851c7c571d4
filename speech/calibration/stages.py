"""Runs a stage: work in a separate process, forked from this one, whose result is JSON.

Everything that a stage opens, starts and imports ends with it. The next stage therefore begins in
the same clean state as this process. Unlike a process of multiprocessing, a stage is the main
process for the code that it runs, and may have daemonic processes of its own.
"""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from speech.error_records import error_record

# Makes a stage, and the processes that it forks, write the stacks of their threads to stderr
# (projects have uses of their own for SIGUSR1, such as the warning of a batch scheduler)
FRAMES_SIGNAL = signal.SIGRTMIN + 13


class CodeFailed(RuntimeError):
    """Reports that code in another process has raised an error, or has ended that process.

    `record` holds the error's `type`, `message` and `traceback`.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(f"{record['type']}: {record['message']}")
        self.record = record


class StageFailed(CodeFailed):
    """Reports that a stage has raised an error, or ended without a result."""


def run_stage(work: Callable[[], Any]) -> Any:
    """Runs `work` in a separate process, and returns its result. Raises StageFailed."""
    _flush_output()
    result_file = os.memfd_create("stage")  # no pipe, which an orphan of the stage would hold open
    pid = os.fork()
    if pid == 0:
        _run_child(work, result_file)
    _, status = os.waitpid(pid, 0)
    try:
        with os.fdopen(result_file, "rb") as file:
            file.seek(0)
            reply = json.loads(file.read() or b"null")
    except json.JSONDecodeError:
        reply = None
    if reply is None:
        code = os.waitstatus_to_exitcode(status)
        how = (
            f"was killed by signal {-code}"
            if code < 0
            else f"exited with status {code}, as by os._exit"
        )
        raise StageFailed({"type": "Ended", "message": f"its process {how}", "traceback": ""})
    if "error" in reply:
        raise StageFailed(reply["error"])
    return reply["value"]


def _run_child(work: Callable[[], Any], result_file: int) -> None:
    """Runs the stage, writes its result or error, and exits; never returns."""
    try:
        faulthandler.register(FRAMES_SIGNAL, file=os.fdopen(os.dup(2), "w"), all_threads=True)
        data = json.dumps({"value": work()})
    except BaseException as error:
        data = json.dumps({"error": error_record(error)})
    try:
        _flush_output()
        with os.fdopen(result_file, "wb", closefd=False) as file:
            file.write(data.encode())
    finally:
        os._exit(0)


def _flush_output() -> None:
    """Flushes Python's output buffers, which would otherwise be written twice or never."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # the stream is closed, or replaced by another object
