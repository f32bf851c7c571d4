"""How a trial ended, from evidence: its exception, what init saw, and what its processes wrote to stderr.

An overflow of /dev/shm is a result, a cell of the table, and looks different each time: an exception from a worker, a bus error, a
hang, the OOM killer. One pure function tells it from a full disk, a lost worker, a want of descriptors or a bad clip; the evidence it
went by is kept beside the outcome.
"""

import re
from typing import Any, NamedTuple

from sweeps.shm import EXHAUSTED, PAGE

DATA_ERRORS = ("BadClip", "CorpusError")
WORKER_KILLED = re.compile(r"DataLoader worker \(pid \d+\) is (killed by signal: ([\w ]+))")
SIGBUS = 7
OUT_OF_MEMORY = re.compile(r"[^\n]*(out of memory|can't allocate memory|Cannot allocate memory)[^\n]*", re.IGNORECASE)
OUT_OF_DESCRIPTORS = re.compile(r"[^\n]*(Too many open files|received 0 items of ancdata)[^\n]*")


class Outcome(NamedTuple):
    name: str  # one of tracking.STATUS
    evidence: str  # one line for people


def classify(error: dict[str, Any] | None, ending: dict[str, Any], finished: bool, log: str, sure_to_fit: bool = False) -> Outcome:
    """`error`: the record of the exception, if one left the tree; `ending`: the exit record; `finished`: the end record came;
    `log`: what the tree wrote to stderr; `sure_to_fit`: /dev/shm holds the most that the loaders can have under way."""
    if finished and ending["status"] == 0:
        return Outcome("completed", "the schedule ran to its end")
    if ending.get("hang"):
        return Outcome("shm_exhausted", f"{_shm(ending)}: {ending['hang']}")
    if ending.get("timeout"):
        return Outcome("timeout", "killed at trial_timeout")
    raised = f"{error['message']}\n{error['traceback']}" if error else ""
    if said := EXHAUSTED.search(raised) or EXHAUSTED.search(log):
        return Outcome("shm_exhausted", f"{_shm(ending)}: {said[0].strip().splitlines()[-1]}")
    killed = WORKER_KILLED.search(raised)
    what = f"a loader worker was {killed[1]}" if killed else _status(ending)
    if (killed and killed[2] == "Bus error") or ending["status"] == -SIGBUS:
        if _full(ending) or not sure_to_fit:
            return Outcome("shm_exhausted", f"{_shm(ending)}: {what}")
        return Outcome("crashed", f"{what}, though there was room: {_shm(ending)}")
    if ending.get("oom_kills") and (killed or error is None):  # an exception of its own has a cause of its own
        return _oom_killed(ending, what)
    return _of_error(error, raised) if error and not killed else Outcome("crashed", what)


def _full(ending: dict[str, Any]) -> bool:
    """Whether one batch more than there were at most would not have fitted; without batches, one page."""
    if "shm_limit_bytes" not in ending:
        return False
    more = max(ending["batch_bytes"], PAGE)
    return ending["shm_peak_bytes"] + more > ending["shm_limit_bytes"] - ending["shm_unrelated_bytes"]


def _oom_killed(ending: dict[str, Any], what: str) -> Outcome:
    """Pages of /dev/shm count as memory: one that is larger than the container's memory overflows here."""
    struck, memory = f"the kernel's OOM killer struck while it ran; {what}", ending["memory_limit_bytes"]
    if ending["shm_limit_bytes"] > memory and ending["shm_peak_bytes"] > memory / 2:
        return Outcome("shm_exhausted", f"{_shm(ending)}, more than the {memory / 2**20:.1f} MiB of memory there are: {struck}")
    return Outcome("oom", struck)


def _of_error(error: dict[str, Any], raised: str) -> Outcome:
    last = (error["message"].strip() or "(no message)").splitlines()[-1]
    if error["type"] in DATA_ERRORS or any(f"{name}:" in error["message"] for name in DATA_ERRORS):
        return Outcome("data_error", last)
    if error["type"] in ("MemoryError", "OutOfMemoryError"):
        return Outcome("oom", f"{error['type']}: {last}")
    if said := OUT_OF_MEMORY.search(raised):
        return Outcome("oom", said[0].strip())
    if said := OUT_OF_DESCRIPTORS.search(raised):
        mend = "each tensor under way holds a descriptor: raise `ulimit -Hn`, or lower num_workers or prefetch_factor"
        return Outcome("crashed", f"{said[0].strip()} ({mend})")
    return Outcome("crashed", f"{error['type']}: {last}")


def _shm(ending: dict[str, Any]) -> str:
    if "shm_limit_bytes" not in ending:
        return "nobody was left to read /dev/shm"
    sizes = [ending[name] / 2**20 for name in ("shm_limit_bytes", "shm_peak_bytes", "batch_bytes")]
    others = f", {ending['shm_unrelated_bytes'] / 2**20:.1f} MiB used by others" if ending["shm_unrelated_bytes"] else ""
    return "/dev/shm of {:.1f} MiB, {:.1f} MiB used at most, {:.1f} MiB a batch".format(*sizes) + others


def _status(ending: dict[str, Any]) -> str:
    status = ending["status"]
    if status is None:
        return "the process tree was killed from outside"
    return f"the training process was killed by signal {-status}" if status < 0 else f"the training process exited with status {status}"
