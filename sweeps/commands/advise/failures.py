"""Explains why a loader could not be measured: the error, its place, and the loader's output."""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from speech.byte_sizes import format_size
from sweeps.commands.advise.figures import format_mib
from sweeps.commands.advise.loader_forecast import (
    WORKER_COUNTS,
    MeasuredLoader,
    free_shm_bytes,
    loader_shm_requirement,
)
from sweeps.environment import ROOT
from sweeps.host.node import PreflightError
from sweeps.host.other_programs import ProgramWatch
from sweeps.sandbox.isolation import Record
from sweeps.sandbox.shm_files import EXHAUSTED
from sweeps.sandbox.stacks import LOADER_MACHINERY
from sweeps.user_error import UserError

MAX_OUTPUT_LINES = 8  # lines of the loader's output that an error message shows
OWN_FRAMES = (f"{ROOT}/sweeps", f"{ROOT}/speech", "<frozen importlib")


class AdviceError(UserError):
    """Reports that no advice on the named loader is possible; the text gives reason and remedy."""


@dataclass
class Attempt:
    """A measurement under way, with what its error messages state."""

    target: str  # module:name
    log_file: Path  # output of the loader
    patience_s: float  # the measurement is stopped after this time
    loader: MeasuredLoader | None = None  # None until it is loaded
    at: str = "starting"  # what the measuring process does
    programs: ProgramWatch = field(default_factory=ProgramWatch)  # other users of the cores
    stack: str = ""  # lines at which that process was last seen; empty if they are unknown


def raise_for(record: Record, attempt: Attempt) -> None:
    """Raises the error that a record of the process tree reports, if it reports one.

    Raises AdviceError if the loader is at fault, and PreflightError if this machine is.
    """
    subject = f"advise {attempt.target}"
    if record["kind"] == "error":
        raise _reported_error(record, attempt, subject)
    if record.get("timeout"):
        where = f", at\n{attempt.stack}\n" if attempt.stack else ". "
        hint = "Smaller batches are measured sooner." if attempt.loader else ""
        raise AdviceError(
            f"{subject}: given up after {attempt.patience_s:.0f} s, while"
            f" {attempt.at}{where}{hint}{last_output(attempt.log_file)}".rstrip()
        )
    if record["status"] != 0:
        raise AdviceError(
            f"{subject}: its process ended with status {record['status']}, while"
            f" {attempt.at}.{last_output(attempt.log_file)}"
        )


def _reported_error(record: Record, attempt: Attempt, subject: str) -> UserError:
    """Returns the exception for an error that the measuring process has reported."""
    kind, message, output = record["type"], record["message"], last_output(attempt.log_file)
    if kind == "ForeignError":
        return AdviceError(f"{subject}: {message}")
    if attempt.loader and (kind == "NoRoom" or EXHAUSTED.search(message)):
        return PreflightError(shm_shortage_message(attempt.loader, free_shm_bytes()))
    if kind == "MachineBusy":
        seen = attempt.programs.describe()
        return PreflightError(
            f"{subject}: the machine was busy: {message}{seen and f', most of all {seen}'}."
            " A disturbed measurement would give wrong advice. Run the same command when less"
            " else runs."
        )
    if kind in ("Ended", "Killed"):
        hint = f" {record['hint'][0].upper()}{record['hint'][1:]}" if "hint" in record else ""
        return AdviceError(f"{subject}: {message}, while {attempt.at}.{hint}{output}")
    if kind == "SystemExit":
        module = attempt.target.partition(":")[0]
        mend = (
            f" Put the arguments that {module} reads from its command line after --."
            if attempt.at.startswith("importing")
            else ""
        )
        return AdviceError(
            f"{subject}: it called sys.exit({message}) while {attempt.at}.{mend}{output}"
        )
    hint = f": {record['hint']}" if "hint" in record else f" failed while {attempt.at}:"
    cause = strip_own_frames(record["traceback"]) or f"{kind}: {message}"
    return AdviceError(f"{subject}{hint}\n\n{cause}{output}")


def shm_shortage_message(loader: MeasuredLoader, free_bytes: int) -> str:
    """Returns the message for a /dev/shm that is too small to measure even one worker."""
    bounds = [
        (workers, loader_shm_requirement(loader, workers, 0).max_bytes)
        for workers in WORKER_COUNTS[1:]
    ]
    sizes = ", ".join(
        f"{workers} from {format_size(-(-bound >> 20) << 20)}" for workers, bound in bounds
    )
    return (
        f"A batch is {format_mib(loader.batch_bytes)} MiB and /dev/shm has"
        f" {format_mib(free_bytes)} MiB free, too little to measure even one worker. With"
        f" {loader.fixed_settings}, workers certainly fit: {sizes}. Enlarge /dev/shm (docker run"
        " --shm-size 1g; in Kubernetes an emptyDir with medium: Memory), or make batches"
        " smaller: pictures in uint8 take a quarter of float32."
    )


def last_output(log_file: Path) -> str:
    """Returns the last lines of the loader's output as the end of a message; '' without output."""
    # Stack traces that this program requested are no output of the loader
    stack_lines = re.compile(r'^(?:(?:Current thread|Thread) 0x.*|  File ".*", line \d+ in .*|)$')
    lines = (
        [
            line
            for line in log_file.read_text(errors="replace").splitlines()
            if not stack_lines.match(line)
        ]
        if log_file.exists()
        else []
    )
    return "\n".join(["\n\nIts last output:", *lines[-MAX_OUTPUT_LINES:]]) if lines else ""


def strip_own_frames(traceback: str) -> str:
    """Returns a traceback without its leading frames of this project and of torch's workers."""
    head, *frames = re.split(r'(?m)^(?=  File ")', traceback)
    project_frames = list(itertools.dropwhile(_is_own_frame, frames))
    return "".join([head, *(project_frames or frames[-1:])]).rstrip()


def _is_own_frame(frame: str) -> bool:
    """Returns whether a frame is of this project, the import system or torch's loader."""
    file = frame.removeprefix('  File "').partition('"')[0]
    return file.startswith(OWN_FRAMES) or any(part in file for part in LOADER_MACHINERY)
