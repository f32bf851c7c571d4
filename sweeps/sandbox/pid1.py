"""Runs PID 1 of a trial's process tree, called init.

init forks the training process, reaps children, watches /dev/shm, and reports how training ended.
Training is not PID 1 itself: PID 1 ignores SIGTERM, and its exit status is misleading. init samples
/dev/shm every few milliseconds. It ends a training process that hangs because /dev/shm had no room
for a batch (sweeps/sandbox/hang.py describes the evidence). When init ends, the kernel kills all
processes of its PID namespace, and the private /dev/shm disappears. Where namespaces are forbidden,
init and its supervisor do the same by hand: the survivor of the two ends the tree.
"""

import contextlib
import json
import mmap
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speech.error_records import error_record, root_cause
from speech.shm_usage import ShmUsage, shm_usage
from speech.timing import Gauge
from speech.training_config import MAX_RANKS
from sweeps.sandbox import cgroup
from sweeps.sandbox.hang import HangWatch
from sweeps.sandbox.process_tree import ProcessTree, adopt_orphans, die_with_parent, reap, set_name

SAMPLE_S = 0.01  # seconds between two samples of /dev/shm
# Names of these processes in ps, by which sweeps/host/hygiene.py recognises them
INIT_NAME, TRIAL_NAME = "sweep-init", "sweep-trial"
OOM_SCORE = 500  # the OOM killer takes the training process before what watches it

Record = dict[str, Any]
# Runs a task, with a function that writes a record and the gauge of /dev/shm
Work = Callable[[Callable[[Record], None], Gauge], None]


class SharedGauge(Gauge):
    """Gauge in memory that init and the training processes share. None waits for another."""

    # Batch bytes, peak since the epoch began, peak of the trial; then each rank's start of the
    # loop's wait (0: none)
    _LAYOUT = struct.Struct("qqq")
    _WAITS = struct.Struct(f"{MAX_RANKS}d")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._LAYOUT.size + self._WAITS.size)
        self._rank = 0

    def of_rank(self, rank: int) -> Gauge:
        gauge = _RankGauge()
        gauge._memory, gauge._rank = self._memory, rank
        return gauge

    def _read(self) -> tuple[int, int, int]:
        return self._LAYOUT.unpack_from(self._memory)

    def _set_wait(self, since_s: float) -> None:
        struct.pack_into("d", self._memory, self._LAYOUT.size + 8 * self._rank, since_s)

    def set_batch_bytes(self, batch_bytes: int) -> None:
        struct.pack_into("q", self._memory, 0, batch_bytes)

    def begin_wait(self) -> None:
        self._set_wait(time.monotonic())

    def end_wait(self) -> None:
        self._set_wait(0.0)

    def take_shm_peak_bytes(self) -> int | None:
        peak = self._read()[1]
        struct.pack_into("q", self._memory, 8, 0)
        return peak

    def record_usage(self, used_bytes: int) -> None:
        """Updates both peaks for `used_bytes` in use now. Only init calls it."""
        *_, epoch_peak, trial_peak = self._read()
        if used_bytes > epoch_peak:
            struct.pack_into("q", self._memory, 8, used_bytes)
        if used_bytes > trial_peak:
            struct.pack_into("q", self._memory, 16, used_bytes)

    def waited_s(self) -> float:
        """Returns for how long some rank has waited for a batch; 0.0 if none waits."""
        waits = self._WAITS.unpack_from(self._memory, self._LAYOUT.size)
        begun = [since for since in waits if since]
        return time.monotonic() - min(begun) if begun else 0.0

    @property
    def batch_bytes(self) -> int:
        """Size of a batch in /dev/shm."""
        return self._read()[0]

    @property
    def max_used_bytes(self) -> int:
        """Peak of /dev/shm over the whole trial."""
        return self._read()[2]


class _RankGauge(SharedGauge):
    """Gauge of a rank other than 0, whose use of /dev/shm is part of rank 0's."""

    def take_shm_peak_bytes(self) -> int | None:
        return None


def run(
    work: Work,
    records: int,
    alive: int,
    private: bool,
    sure_to_fit: bool,
    simulated_wait_s: float = 0.0,
) -> None:
    """Runs init, from forking the training process to writing the exit record. Never returns.

    `alive`: the read end of a pipe that the supervisor holds open while it lives. `sure_to_fit`:
    /dev/shm has room for all that the loaders can have under way, and the loop never waits for want
    of room. `simulated_wait_s`: how long workers may sleep over a batch.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    # Without a namespace init ends the tree by hand, so it must be able to handle the signal
    die_with_parent(signal.SIGKILL if private else signal.SIGTERM)
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)  # the supervisor had ended before the line above
    set_name(INIT_NAME)
    if not private:
        adopt_orphans()
    gauge = SharedGauge()
    before, kills = shm_usage(), cgroup.oom_kills()
    tree = None if private else ProcessTree()
    own = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})
        os.close(alive)
        _train(own, work, records, gauge)
    room_bytes = None if sure_to_fit else before.limit_bytes - before.used_bytes
    status, hang = _watch(
        child, gauge, HangWatch(gauge, room_bytes, simulated_wait_s), before.used_bytes, tree
    )
    if tree:
        tree.end()
    else:
        end_namespace()
    os.write(records, b"\n")  # training may have been killed in the middle of a line
    ending = {"kind": "exit", "status": status, "hang": hang}
    write_record(records, ending | _measurements(gauge, before, kills))
    os._exit(0)


def _measurements(gauge: SharedGauge, before: ShmUsage, kills: int) -> Record:
    """Returns what init measured of /dev/shm and memory, for the exit record.

    `before` and `kills` are the usage of /dev/shm and the OOM killer's count before training.
    """
    return {
        "shm_limit_bytes": before.limit_bytes,
        "shm_unrelated_bytes": before.used_bytes,
        "shm_peak_bytes": gauge.max_used_bytes,
        "batch_bytes": gauge.batch_bytes,
        "memory_limit_bytes": cgroup.memory_limit(),
        "oom_kills": cgroup.oom_kills() - kills,
    }


def _watch(
    child: int, gauge: SharedGauge, watch: HangWatch, unrelated_bytes: int, tree: ProcessTree | None
) -> tuple[int, str | None]:
    """Watches `child` until it ends, and kills it if it hangs.

    Returns its status, as in subprocess.returncode, and the evidence of the hang; None without one.
    """
    hang = None
    while True:
        received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, SAMPLE_S)
        gauge.record_usage(shm_usage().used_bytes - unrelated_bytes)
        if received and received.si_signo == signal.SIGTERM and tree:  # the supervisor is gone
            tree.end()
            os._exit(1)
        while (ended := reap()) is not None:
            if ended[0] == child:
                return os.waitstatus_to_exitcode(ended[1]), hang
        if tree:
            tree.record_descendants()
        if hang is None:
            hang = watch.find_evidence()
            if hang:
                os.kill(child, signal.SIGKILL)


def end_namespace() -> None:
    """Kills and reaps all processes of init's own PID namespace; one signal reaches them all.

    They are loader workers that outlive the training process.
    """
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return  # no process remained
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass  # all are reaped


def _train(parent: int, work: Work, records: int, gauge: SharedGauge) -> None:
    """Runs the training process and writes its records and its exception to the pipe.

    Never returns.
    """
    code = 1
    try:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # init had ended before the line above
        set_name(TRIAL_NAME)
        with contextlib.suppress(OSError):  # some containers mount /proc read-only
            score = Path("/proc/self/oom_score_adj")
            score.write_text(str(max(int(score.read_text()), OOM_SCORE)))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A batch under way holds a descriptor for each of its tensors
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.setsid()
        work(lambda record: write_record(records, record), gauge)
        code = 0
    except BaseException as error:
        write_record(records, {"kind": "error"} | error_record(root_cause(error)))
    finally:
        os._exit(code)


def write_record(pipe: int, record: Record) -> None:
    """Writes `record` to the pipe as one complete JSON line."""
    data = memoryview(json.dumps(record).encode() + b"\n")
    while data:
        data = data[os.write(pipe, data) :]
