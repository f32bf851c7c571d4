"""How a trial ended, from evidence: its exception, what init saw, and what its processes wrote to stderr.

An overflow of /dev/shm is a result, a cell of the table, and looks different each time: an exception from a worker, a bus error, a
hang. One pure function tells it from a full disk, a lost worker or a bad clip; the evidence it went by is kept beside the outcome.
"""

from typing import Any, NamedTuple

from sweeps.init import SHM_ERROR

DATA_ERRORS = ("BadClip", "CorpusError")


class Outcome(NamedTuple):
    name: str  # one of tracking.STATUS
    evidence: str  # one line for people


def classify(error: dict[str, Any] | None, ending: dict[str, Any], finished: bool, log: str) -> Outcome:
    """`error`: the record of the exception, if one left the tree; `ending`: the exit record; `finished`: the end record came;
    `log`: what the tree wrote to stderr."""
    if finished and ending["status"] == 0:
        return Outcome("completed", "the schedule ran to its end")
    if ending.get("hang"):
        return Outcome("shm_exhausted", f"{_shm(ending)}: {ending['hang']}")
    if ending.get("timeout"):
        return Outcome("timeout", "killed at trial_timeout")
    said = SHM_ERROR.search(_text(error)) or SHM_ERROR.search(log)
    if said:
        return Outcome("shm_exhausted", f"{_shm(ending)}: {said[0].strip()}")
    if ending.get("oom_kills"):
        return Outcome("oom", f"the kernel's OOM killer struck while it ran; {_status(ending)}")
    if error and (error["type"] in DATA_ERRORS or any(f"{name}:" in error["message"] for name in DATA_ERRORS)):
        return Outcome("data_error", error["message"].strip().splitlines()[-1])
    if error:
        return Outcome("crashed", f"{error['type']}: {(error['message'].strip() or '(no message)').splitlines()[-1]}")
    return Outcome("crashed", _status(ending))


def _text(error: dict[str, Any] | None) -> str:
    return f"{error['message']}\n{error['traceback']}" if error else ""


def _shm(ending: dict[str, Any]) -> str:
    if "shm_limit_bytes" not in ending:
        return "nobody was left to read /dev/shm"
    sizes = [ending["shm_limit_bytes"], ending["shm_peak_bytes"], ending["batch_bytes"]]
    return "/dev/shm of {:.1f} MiB, {:.1f} MiB used at most, {:.1f} MiB a batch".format(*(size / 2**20 for size in sizes))


def _status(ending: dict[str, Any]) -> str:
    status = ending["status"]
    if status is None:
        return "the process tree was killed from outside"
    return f"the training process was killed by signal {-status}" if status < 0 else f"the training process exited with status {status}"
