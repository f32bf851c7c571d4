"""PID 1 of a trial's process tree: forks the training process, reaps, watches /dev/shm, and tells how it ended.

Training is not PID 1 itself, since a process that is ignores SIGTERM and its exit status lies. init samples /dev/shm every few
milliseconds, and ends a training process that hangs because a batch no longer fitted: PyTorch's feeder thread drops such a batch and
the loop waits for ever. It calls it so only on evidence: the loop is waiting, and either a worker's allocation error stands in
the log or another batch would not fit. When init ends, the kernel kills whatever is left in the namespace.
"""

import ctypes
import json
import mmap
import os
import re
import signal
import struct
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from speech.timing import Gauge

PAGE = os.sysconf("SC_PAGESIZE")
SAMPLE_S = 0.01  # how often /dev/shm is looked at
STALL_S = 5.0  # a loop that waits this long is looked into
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # sys/prctl.h

# What torch and the C library say when /dev/shm is full; a full disk says "No space left" too, hence the words around it.
SHM_ERROR = re.compile(
    r"unable to (allocate|mmap|resize|write to) [^\n]*(shared memory|shm|torch_)[^\n]*|Bus error|SemLock[\s\S]*No space left"
)

libc = ctypes.CDLL(None, use_errno=True)


class ShmUsage(NamedTuple):
    limit_bytes: int
    used_bytes: int


def shm_usage() -> ShmUsage:
    """Size and use of /dev/shm as this process sees it. Segments torch has unlinked already count, which `ls` does not show."""
    stat = os.statvfs("/dev/shm")
    return ShmUsage(stat.f_blocks * stat.f_frsize, (stat.f_blocks - stat.f_bfree) * stat.f_frsize)


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


def run(task: str, arguments: dict[str, Any], records: int, private: bool) -> None:
    """init's life, from forking the training process to the exit record. Never returns."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if not private:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gauge = SharedGauge()
    before, kills = shm_usage(), oom_kills()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        _work(task, arguments, records, gauge)
    status, hang = _watch(child, gauge, before.used_bytes)
    _kill_the_rest(private)
    ending = {"status": status, "shm_limit_bytes": before.limit_bytes, "shm_peak_bytes": gauge.most_bytes, "batch_bytes": gauge.batch_bytes}
    write_record(records, {"kind": "exit", **ending, "hang": hang, "oom_kills": oom_kills() - kills})
    os._exit(0)


def _watch(child: int, gauge: SharedGauge, unrelated_bytes: int) -> tuple[int, str | None]:
    """Until `child` ends: its status as in subprocess.returncode, and why it was called hanging and killed, if it was."""
    hang = None
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, SAMPLE_S)
        usage = shm_usage()
        gauge.see(usage.used_bytes - unrelated_bytes)
        while (ended := _reap()) is not None:
            if ended[0] == child:
                return os.waitstatus_to_exitcode(ended[1]), hang
        if hang is None and gauge.waited_s() > STALL_S:
            hang = _why_hanging(gauge, usage)
            if hang:
                os.kill(child, signal.SIGKILL)


def _why_hanging(gauge: SharedGauge, usage: ShmUsage) -> str | None:
    said = SHM_ERROR.search(_log())
    if said:
        return f"no batch for {gauge.waited_s():.0f} s after a worker said: {said[0]}"
    if gauge.waited_s() > 2 * STALL_S and usage.used_bytes + gauge.batch_bytes > usage.limit_bytes:
        return f"no batch for {gauge.waited_s():.0f} s and {usage.limit_bytes - usage.used_bytes} bytes free for one of {gauge.batch_bytes}"
    return None


def _log() -> str:
    """What the tree has written to its stderr, which is a file."""
    return Path("/proc/self/fd/2").read_text(errors="replace")


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _kill_the_rest(private: bool) -> None:
    """Loader workers that outlive their trainer. In a PID namespace one signal reaches all; else init adopts and kills them in turn."""
    if private:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return  # nobody was left
    else:
        while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)
            os.wait()
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass  # all reaped


def _work(task: str, arguments: dict[str, Any], records: int, gauge: SharedGauge) -> None:
    """The training process: runs the task, its records and its exception going up the pipe. Never returns."""
    from speech.tasks import TASKS

    code = 1
    try:
        die_with_parent()
        os.setsid()
        TASKS[task](arguments, lambda record: write_record(records, record), gauge)
        code = 0
    except BaseException as error:
        text = traceback.format_exc()
        write_record(records, {"kind": "error", "type": type(error).__name__, "message": str(error), "traceback": text})
    finally:
        os._exit(code)


def write_record(pipe: int, record: dict[str, Any]) -> None:
    """One JSON line, whole."""
    data = memoryview(json.dumps(record).encode() + b"\n")
    while data:
        data = data[os.write(pipe, data) :]


def die_with_parent() -> None:
    """The kernel kills this process when its parent's main thread ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def oom_kills() -> int:
    """How often the kernel's OOM killer has struck in this cgroup, or on this machine where cgroup v2 is not mounted."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        if path.exists():
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0
