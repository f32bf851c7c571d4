"""PID 1 of a trial's process tree: forks the training process, reaps, watches /dev/shm, and tells how it ended.

Training is not PID 1 itself, since a process that is ignores SIGTERM and its exit status lies. init samples /dev/shm every few
milliseconds, and ends a training process that hangs because a batch no longer fitted (sweeps/hang.py says how it knows). When init
ends, the kernel kills whatever is left in its PID namespace and the private /dev/shm is gone. Where namespaces are forbidden, init
and the supervisor above it do by hand what the kernel does there: whichever of the two is left ends the tree.
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
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speech.timing import Gauge
from sweeps import cgroup
from sweeps.hang import HangWatch
from sweeps.shm import shm_usage
from sweeps.tree import HandKeptTree, adopt_orphans, die_with_parent, reap, set_name

SAMPLE_S = 0.01  # how often /dev/shm is looked at
INIT_NAME, TRIAL_NAME = "sweep-init", "sweep-trial"  # what ps calls these processes, and how sweeps/hygiene.py knows them
WORKER_DIES_S = 1.0  # from its sockets' end to its death's notice: its memory is freed in between
OOM_SCORE = 500  # the OOM killer takes the training process before what watches it

Record = dict[str, Any]
Run = Callable[[dict[str, Any], Callable[[Record], None], Gauge], None]


class SharedGauge(Gauge):
    """The gauge on memory that init and the training process share; neither ever waits for the other."""

    _LAYOUT = struct.Struct("dqqq")  # since when the loop waits (0: it does not), batch bytes, peak since the epoch began, peak of all

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._LAYOUT.size)

    def _get(self) -> tuple[float, int, int, int]:
        return self._LAYOUT.unpack_from(self._memory)

    def expect(self, batch_bytes: int) -> None:
        struct.pack_into("q", self._memory, 8, batch_bytes)

    def waiting(self) -> None:
        struct.pack_into("d", self._memory, 0, time.monotonic())

    def beat(self) -> None:
        struct.pack_into("d", self._memory, 0, 0.0)

    def take_shm_peak_bytes(self) -> int | None:
        peak = self._get()[2]
        struct.pack_into("q", self._memory, 16, 0)
        return peak

    def see(self, used_bytes: int) -> None:
        """init's side: `used_bytes` are in use now."""
        *_, peak, most = self._get()
        if used_bytes > peak:
            struct.pack_into("q", self._memory, 16, used_bytes)
        if used_bytes > most:
            struct.pack_into("q", self._memory, 24, used_bytes)

    def waited_s(self) -> float:
        since = self._get()[0]
        return time.monotonic() - since if since else 0.0

    @property
    def batch_bytes(self) -> int:
        return self._get()[1]

    @property
    def most_bytes(self) -> int:
        return self._get()[3]


def run(
    work: Run, arguments: dict[str, Any], records: int, alive: int, private: bool, sure_to_fit: bool, modelled_wait_s: float = 0.0
) -> None:
    """init's life, from forking the training process to the exit record. Never returns.

    `alive`: the read end of a pipe that the supervisor holds open while it lives; `sure_to_fit`: /dev/shm holds all that the loaders
    can have under way, so that a wait is never for want of room; `modelled_wait_s`: how long workers may sleep over a batch.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    die_with_parent(signal.SIGKILL if private else signal.SIGTERM)  # by hand there is something left to do
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)  # the supervisor had ended before the line above
    set_name(INIT_NAME)
    if not private:
        adopt_orphans()
    gauge = SharedGauge()
    before, kills = shm_usage(), cgroup.oom_kills()
    tree = None if private else HandKeptTree()
    own = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})
        os.close(alive)
        _train(own, work, arguments, records, gauge)
    room_bytes = None if sure_to_fit else before.limit_bytes - before.used_bytes
    status, hang = _watch(child, gauge, HangWatch(gauge, room_bytes, modelled_wait_s), before.used_bytes, tree)
    if tree:
        tree.end()
    else:
        end_namespace()
    ending = {
        "kind": "exit",
        "status": status,
        "hang": hang,
        "shm_limit_bytes": before.limit_bytes,
        "shm_unrelated_bytes": before.used_bytes,
        "shm_peak_bytes": gauge.most_bytes,
        "batch_bytes": gauge.batch_bytes,
        "memory_limit_bytes": cgroup.memory_limit(),
        "oom_kills": cgroup.oom_kills() - kills,
    }
    os.write(records, b"\n")  # training may have been killed in the middle of a line
    write_record(records, ending)
    os._exit(0)


def _watch(child: int, gauge: SharedGauge, watch: HangWatch, unrelated_bytes: int, tree: HandKeptTree | None) -> tuple[int, str | None]:
    """Until `child` ends: its status as in subprocess.returncode, and why it was called hanging and killed, if it was."""
    hang = None
    while True:
        told = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, SAMPLE_S)
        gauge.see(shm_usage().used_bytes - unrelated_bytes)
        if told and told.si_signo == signal.SIGTERM and tree:  # the supervisor is gone
            tree.end()
            os._exit(1)
        while (ended := reap()) is not None:
            if ended[0] == child:
                return os.waitstatus_to_exitcode(ended[1]), hang
        if tree:
            tree.look_round()
        if hang is None:
            hang = watch.why()
            if hang:
                os.kill(child, signal.SIGKILL)


def end_namespace() -> None:
    """Loader workers that outlive their trainer: in a PID namespace of our own one signal reaches all."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody was left
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass  # all reaped


def _train(parent: int, work: Run, arguments: dict[str, Any], records: int, gauge: SharedGauge) -> None:
    """The training process: does the work, its records and its exception going up the pipe. Never returns."""
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
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a batch under way holds a descriptor for each of its tensors
        os.setsid()
        work(arguments, lambda record: write_record(records, record), gauge)
        code = 0
    except BaseException as error:
        error = _last_word(error)
        text = "".join(traceback.format_exception(error))
        write_record(records, {"kind": "error", "type": type(error).__name__, "message": str(error), "traceback": text})
    finally:
        os._exit(code)


def _last_word(error: BaseException) -> BaseException:
    """What names the death of a loader worker, where `error` is only the first thing that it broke.

    A dying worker closes its sockets before its parent hears of it. Torch raises in the parent's SIGCHLD handler, wherever the parent
    is by then: even in the handling of `error`, where it would be lost.
    """
    try:
        if isinstance(error, (OSError, EOFError)):
            time.sleep(WORKER_DIES_S)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except Exception as named:
        return named
    return error


def write_record(pipe: int, record: Record) -> None:
    """One JSON line, whole."""
    data = memoryview(json.dumps(record).encode() + b"\n")
    while data:
        data = data[os.write(pipe, data) :]
