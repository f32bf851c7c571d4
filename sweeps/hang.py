"""Whether a loop that waits for its next batch will ever get it.

A batch that does not fit into /dev/shm is dropped where torch's worker sends it: the worker writes a traceback to stderr and goes on, and
the loop waits for ever. A wait is called a hang only on evidence, and every wait that is merely slow is left to the trial's timeout:

- the loop waits, and a worker's allocation error stands in the log; or
- the loop waits, /dev/shm may be too small for the loader, one more batch than there were at most would not have fitted, and for a while
  no process of the trial has computed, read a byte or waited for a disk. (Workers that lost their stderr leave no other sign.) A read
  that waits for `corpus.read_latency_s` looks like this too, so the while is longer by what those of one batch may wait. A real drive
  shows as a disk, but for one in user space (FUSE): silent for so long it looks like this too, on a /dev/shm that is not sure to fit.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from speech.config import TrialConfig
from sweeps.shm import EXHAUSTED

STALL_S = 5.0  # a loop that waits this long is looked into
LOOK_S = 0.5  # and this often
IDLE_CPU_S = 0.25  # of all processes together in STALL_S: waking up to poll costs some milliseconds
LOG_BYTES = 1 << 20  # of the end of the log, where the last traceback stands


class Wait(Protocol):
    """What is known of the loop: for how long it has waited for a batch, and how much batches take."""

    def waited_s(self) -> float: ...
    @property
    def batch_bytes(self) -> int: ...
    @property
    def most_bytes(self) -> int: ...


def modelled_wait_s(config: TrialConfig) -> float:
    """The longest that a worker sleeps over one batch for `corpus.read_latency_s`: a read a clip, and one of noise where it is mixed in."""
    reads = config.loader.batch_size * (2 if config.augment.noise else 1)
    return reads * config.corpus.read_latency_s


class _Work(NamedTuple):
    cpu_s: float
    read_bytes: int
    on_disk: bool


class HangWatch:
    """Asked at every sample of init's; looks only at a loop that waits long."""

    def __init__(self, wait: Wait, room_bytes: int | None, modelled_wait_s: float = 0.0):
        """`room_bytes`: what the trial may fill of its /dev/shm; None: more than it can ever need. `modelled_wait_s`: how long its workers
        may sleep over a batch."""
        self._wait, self._room_bytes, self._modelled_wait_s = wait, room_bytes, modelled_wait_s
        self._look_at = 0.0
        self._idle: tuple[float, _Work] | None = None  # since when, and what had been done until then

    def why(self) -> str | None:
        """The evidence that the loop hangs for want of /dev/shm; None while it may go on."""
        waited, now = self._wait.waited_s(), time.monotonic()
        if waited < STALL_S:
            self._idle = None
            return None
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_S
        if said := EXHAUSTED.search(_log()):
            return f"no batch for {waited:.0f} s after a worker said: {said[0]}"
        if self._room_bytes is None or self._wait.most_bytes + self._wait.batch_bytes <= self._room_bytes:
            return None
        if self._idle_s(now) > STALL_S + self._modelled_wait_s:
            return f"no batch for {waited:.0f} s, no process at work, and no room for one batch more than there were at most"
        return None

    def _idle_s(self, now: float) -> float:
        work = _work()
        if (
            self._idle is None
            or work.on_disk
            or work.read_bytes > self._idle[1].read_bytes
            or work.cpu_s > self._idle[1].cpu_s + IDLE_CPU_S
        ):
            self._idle = now, work
        return now - self._idle[0]


def _work() -> _Work:
    """What the descendants of this process have done so far."""
    own = int(os.readlink("/proc/self"))  # as /proc counts, which a container may have mounted for another PID namespace
    cpu_s, read_bytes, on_disk = 0.0, 0, False
    for process in psutil.Process(own).children(recursive=True):
        try:
            with process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system
                read_bytes += process.io_counters().read_chars
                on_disk |= process.status() == psutil.STATUS_DISK_SLEEP
        except psutil.Error:
            continue  # it has ended between the two looks, which the loop will notice by itself
    return _Work(cpu_s, read_bytes, on_disk)


def _log() -> str:
    """The end of what the tree has written to its stderr, which is a file."""
    with Path("/proc/self/fd/2").open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - LOG_BYTES, 0))
        return file.read().decode(errors="replace")
