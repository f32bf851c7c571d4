"""Detects a training loop that waits for a batch which will never arrive.

A batch that is too large for the free space of /dev/shm is dropped where torch's worker sends it.
The worker writes a traceback to stderr and continues, and the loop waits for ever. A wait counts as
a hang only with evidence. The trial's timeout ends every wait that is merely slow. The evidence is
one of these:

- The loop waits, and the log contains a worker's allocation error.
- The loop waits, and the requirement of the loader may exceed /dev/shm. One batch more than at the
  peak would have exceeded it. For some seconds no process of the trial has computed, read a byte or
  waited for a disk. (Workers without stderr give no other sign.)

A read that sleeps for `corpus.read_latency_s` resembles the second case. The required idle time is
therefore longer by the sleeps of one batch. A process that reads a real drive shows the state of a
disk wait. A drive in user space (FUSE) shows none: if it is silent for that long, and /dev/shm may
be too small, it is taken for a hang.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from speech.config import TrialConfig
from sweeps.sandbox.shm_files import EXHAUSTED

LONG_WAIT_S = 5.0  # a loop that waits longer is examined
CHECK_INTERVAL_S = 0.5  # seconds between two examinations
# CPU time of all processes together that still counts as idle: waking up to poll costs some
# milliseconds
IDLE_CPU_S = 0.25
LOG_BYTES = 1 << 20  # bytes read from the end of the log, where the last traceback is


class LoopGauge(Protocol):
    """Figures of the loop: its current wait for a batch, the batch size, the peak of /dev/shm."""

    def waited_s(self) -> float: ...
    @property
    def batch_bytes(self) -> int: ...
    @property
    def max_used_bytes(self) -> int: ...


def simulated_wait_s(config: TrialConfig) -> float:
    """Returns the longest time that a worker sleeps over one batch for `corpus.read_latency_s`.

    A clip takes one read, and one more where noise is mixed in.
    """
    reads = config.loader.batch_size * (2 if config.augment.noise else 1)
    return reads * config.corpus.read_latency_s


class _WorkDone(NamedTuple):
    """Work that the processes of a trial have done so far."""

    cpu_s: float
    read_bytes: int
    on_disk: bool


class HangWatch:
    """Watches one loop for a hang. init calls it at every sample; it examines only a long wait."""

    def __init__(self, gauge: LoopGauge, room_bytes: int | None, simulated_wait_s: float = 0.0):
        """Starts without evidence.

        `room_bytes`: the part of /dev/shm that the trial may fill; None: more than it can need.
        `simulated_wait_s`: how long its workers may sleep over a batch.
        """
        self._gauge, self._room_bytes, self._simulated_wait_s = gauge, room_bytes, simulated_wait_s
        self._next_check = 0.0
        self._idle: tuple[float, _WorkDone] | None = None  # begin of the idle time, work until then

    def find_evidence(self) -> str | None:
        """Returns the evidence that the loop hangs for want of /dev/shm; None without evidence."""
        waited, now = self._gauge.waited_s(), time.monotonic()
        if waited < LONG_WAIT_S:
            self._idle = None
            return None
        if now < self._next_check:
            return None
        self._next_check = now + CHECK_INTERVAL_S
        if error := EXHAUSTED.search(_read_log_end()):
            return f"no batch for {waited:.0f} s after a worker reported: {error[0]}"
        if (
            self._room_bytes is None
            or self._gauge.max_used_bytes + self._gauge.batch_bytes <= self._room_bytes
        ):
            return None
        if self._update_idle_s(now) > LONG_WAIT_S + self._simulated_wait_s:
            return (
                f"no batch for {waited:.0f} s, all processes are idle, and the peak leaves no room"
                " for one more batch"
            )
        return None

    def _update_idle_s(self, now: float) -> float:
        """Compares the work with that at the last check; returns the idle time in seconds."""
        work = _measure_work()
        if (
            self._idle is None
            or work.on_disk
            or work.read_bytes > self._idle[1].read_bytes
            or work.cpu_s > self._idle[1].cpu_s + IDLE_CPU_S
        ):
            self._idle = now, work
        return now - self._idle[0]


def _measure_work() -> _WorkDone:
    """Returns the work that the descendants of this process have done so far."""
    # The pid comes from /proc, which a container may have mounted for another PID namespace
    own = int(os.readlink("/proc/self"))
    cpu_s, read_bytes, on_disk = 0.0, 0, False
    for process in psutil.Process(own).children(recursive=True):
        try:
            with process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system
                read_bytes += process.io_counters().read_chars
                on_disk |= process.status() == psutil.STATUS_DISK_SLEEP
        except psutil.Error:
            continue  # it has ended since it was listed, which the loop will notice by itself
    return _WorkDone(cpu_s, read_bytes, on_disk)


def _read_log_end() -> str:
    """Reads the end of the log: this process's stderr, which is a file."""
    with Path("/proc/self/fd/2").open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - LOG_BYTES, 0))
        return file.read().decode(errors="replace")
