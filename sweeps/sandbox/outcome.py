"""Determines a trial's outcome from evidence: its exception, init's record and its stderr.

An overflow of /dev/shm is a result, a cell of the table. It has several forms: an exception from a
worker, a bus error, a hang, the OOM killer. One pure function distinguishes it from a full disk, a
lost worker, a lack of descriptors or a bad clip. It returns the evidence with the outcome.
"""

import re
from typing import Any, NamedTuple

from speech.shm_usage import PAGE_BYTES
from sweeps.sandbox.shm_files import EXHAUSTED
from sweeps.trial_states import Outcome

DATA_ERRORS = ("BadClip", "CorpusError")
KILLED = re.compile(
    r"(?:DataLoader (worker) \(pid \d+\) is|(rank \d+) was) (killed by signal: ([\w ]+))"
)
SIGBUS = 7
OUT_OF_MEMORY = re.compile(
    r"[^\n]*(out of memory|can't allocate memory|Cannot allocate memory)[^\n]*", re.IGNORECASE
)
OUT_OF_DESCRIPTORS = re.compile(r"[^\n]*(Too many open files|received 0 items of ancdata)[^\n]*")


class ClassifiedOutcome(NamedTuple):
    """Outcome of a trial with its evidence."""

    outcome: Outcome
    evidence: str  # one line for people


class TrainingEnd(NamedTuple):
    """Describes the end of a training that has sent its end record."""

    diverged: str | None = None  # how it diverged; None if it did not
    # Whether a snapshot was taken before that, in which case an ensemble exists all the same
    learned: bool = True


def classify(
    error: dict[str, Any] | None,
    ending: dict[str, Any],
    training_end: TrainingEnd | None,
    log: str,
    sure_to_fit: bool = False,
) -> ClassifiedOutcome:
    """Returns the outcome of a trial that has ended.

    `error`: the record of an exception that ended training, if there is one. `ending`: the exit
    record. `training_end`: None if the end record has not arrived. `log`: the text that the tree
    wrote to stderr. `sure_to_fit`: whether /dev/shm has room for all that the loaders can have
    under way.
    """
    if training_end is not None and ending["status"] == 0:
        return _classify_finished(training_end)
    if ending.get("hang"):
        return ClassifiedOutcome(
            Outcome.SHM_EXHAUSTED, f"{_describe_shm(ending)}: {ending['hang']}"
        )
    if ending.get("timeout"):
        return ClassifiedOutcome(Outcome.TIMEOUT, "killed at trial_timeout")
    raised = f"{error['message']}\n{error['traceback']}" if error else ""
    if message := EXHAUSTED.search(raised) or EXHAUSTED.search(log):
        return ClassifiedOutcome(
            Outcome.SHM_EXHAUSTED, f"{_describe_shm(ending)}: {message[0].strip().splitlines()[-1]}"
        )
    killed = KILLED.search(raised)
    death = _describe_exit(ending)
    if killed:
        death = f"{killed[2] or 'a loader worker'} was {killed[3]}"
    if (killed and killed[4] == "Bus error") or ending["status"] == -SIGBUS:
        if _is_shm_full(ending) or not sure_to_fit:
            return ClassifiedOutcome(Outcome.SHM_EXHAUSTED, f"{_describe_shm(ending)}: {death}")
        return ClassifiedOutcome(
            Outcome.CRASHED, f"{death}, although /dev/shm had room: {_describe_shm(ending)}"
        )
    # Any exception but that of a killed worker has a cause of its own
    if ending.get("oom_kills") and (killed or error is None):
        return _classify_oom_kill(ending, death)
    return (
        _classify_error(error, raised)
        if error and not killed
        else ClassifiedOutcome(Outcome.CRASHED, death)
    )


def _classify_finished(training_end: TrainingEnd) -> ClassifiedOutcome:
    """Returns the outcome of a trial whose process has ended without a fault."""
    if training_end.diverged is None:
        return ClassifiedOutcome(Outcome.COMPLETED, "the schedule ran to its end")
    if training_end.learned:
        return ClassifiedOutcome(Outcome.COMPLETED, f"diverged in part: {training_end.diverged}")
    return ClassifiedOutcome(Outcome.DIVERGED, training_end.diverged)


def _is_shm_full(ending: dict[str, Any]) -> bool:
    """Returns whether one batch more than at the peak would have filled /dev/shm or exceeded it.

    Without batches, it is one page more. The peak is sampled, and the moment at which /dev/shm was
    full may lie between two samples.
    """
    if "shm_limit_bytes" not in ending:
        return False
    more = max(ending["batch_bytes"], PAGE_BYTES)
    return (
        ending["shm_peak_bytes"] + more >= ending["shm_limit_bytes"] - ending["shm_unrelated_bytes"]
    )


def _classify_oom_kill(ending: dict[str, Any], death: str) -> ClassifiedOutcome:
    """Returns the outcome of a trial during which the OOM killer struck.

    Pages of /dev/shm count as memory. A /dev/shm larger than the container's memory therefore
    overflows at the OOM killer.
    """
    struck, memory = (
        f"the kernel's OOM killer acted during the trial; {death}",
        ending["memory_limit_bytes"],
    )
    if ending["shm_limit_bytes"] > memory and ending["shm_peak_bytes"] > memory / 2:
        return ClassifiedOutcome(
            Outcome.SHM_EXHAUSTED,
            f"{_describe_shm(ending)}, more than the memory of {memory / 2**20:.1f} MiB: {struck}",
        )
    return ClassifiedOutcome(Outcome.OOM, struck)


def _classify_error(error: dict[str, Any], raised: str) -> ClassifiedOutcome:
    """Returns the outcome that an exception determines; `raised` is its message and traceback."""
    lines = [
        line.strip()
        for line in error["message"].strip().splitlines()
        if "For further information visit" not in line
    ]
    # pydantic writes the key in the line above its message
    last = (
        " ".join(lines[-2:] if error["type"] == "ValidationError" else lines[-1:]) or "(no message)"
    )
    if error["type"] in DATA_ERRORS or any(f"{name}:" in error["message"] for name in DATA_ERRORS):
        return ClassifiedOutcome(Outcome.DATA_ERROR, last)
    if error["type"] in ("MemoryError", "OutOfMemoryError"):
        return ClassifiedOutcome(Outcome.OOM, f"{error['type']}: {last}")
    if message := OUT_OF_MEMORY.search(raised):
        return ClassifiedOutcome(Outcome.OOM, message[0].strip())
    if message := OUT_OF_DESCRIPTORS.search(raised):
        remedy = (
            "each tensor in transit needs a descriptor: raise `ulimit -Hn`, or lower num_workers or"
            " prefetch_factor"
        )
        return ClassifiedOutcome(Outcome.CRASHED, f"{message[0].strip()} ({remedy})")
    return ClassifiedOutcome(Outcome.CRASHED, f"{error['type']}: {last}")


def _describe_shm(ending: dict[str, Any]) -> str:
    """Returns size and use of /dev/shm, and the batch size, for the evidence."""
    if "shm_limit_bytes" not in ending:
        return "the use of /dev/shm was not recorded"
    sizes = [ending[name] / 2**20 for name in ("shm_limit_bytes", "shm_peak_bytes", "batch_bytes")]
    unrelated = (
        f", {ending['shm_unrelated_bytes'] / 2**20:.1f} MiB used by others"
        if ending["shm_unrelated_bytes"]
        else ""
    )
    return (
        "/dev/shm of {:.1f} MiB, {:.1f} MiB used at most, {:.1f} MiB a batch".format(*sizes)
        + unrelated
    )


def _describe_exit(ending: dict[str, Any]) -> str:
    """Returns how the training process ended, for the evidence."""
    status = ending["status"]
    if status is None:
        return "the process tree was killed from outside"
    return (
        f"the training process was killed by signal {-status}"
        if status < 0
        else f"the training process exited with status {status}"
    )
