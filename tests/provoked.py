"""Trials that go wrong on purpose, for real: tasks that a Template can be started with, as
Template(tasks="tests.provoked").

`loop` is a training loop of any shape around a real DataLoader; in one of its items a worker, or
the training process at 0 workers, meets with an accident. The other tasks go wrong in the training
process itself.
"""

import ctypes
import mmap
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from speech.audio import BadClip
from speech.shapes import whole_pages
from speech.tasks import TASKS as TRAINING
from speech.tasks import Arguments, Emit
from speech.timing import Gauge, watch_batches

SECONDS_OF_WORK = 1.5


class Items(Dataset[torch.Tensor]):
    """`batches` tensors of `batch_mib` each; making number `at` meets with `accident`."""

    def __init__(self, batches: int, batch_mib: float, at: int, accident: str | None):
        self.batches, self.floats, self.at, self.accident = (
            batches,
            round(batch_mib * 2**18),
            at,
            accident,
        )

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.at and self.accident:
            ACCIDENTS[self.accident]()
        return torch.full((self.floats,), float(index))


def fill_shm() -> None:
    """As a library does that maps a file and writes: beyond the limit the kernel sends SIGBUS."""
    size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize + (8 << 20)
    with open("/dev/shm/of-a-library", "w+b") as file:
        file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def work() -> None:
    until = time.process_time() + SECONDS_OF_WORK
    while time.process_time() < until:
        pass


def open_too_many() -> None:
    held = []
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))


def hoard() -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))


def hold_names() -> None:
    """A named semaphore, and a segment that is caught before torch unlinks it."""
    held = multiprocessing.get_context("spawn").Semaphore()
    descriptor = os.open(f"/dev/shm/torch_{os.getpid()}_1_1", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 1 << 20)
    time.sleep(1000)
    held.release()


def open_strangers() -> None:
    """A worker that has files of others open when its trainer ends."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        held = [os.open(path, os.O_RDONLY) for path in Path("/dev/shm").glob("a-strangers-*")]
        os.write(writing, b"!")
        time.sleep(1000)
        os.close(held[0])
    os.read(reading, 1)
    os._exit(7)


def half_a_line() -> None:
    """Killed while a record is on its way."""
    (records,) = [
        int(name) for name in os.listdir("/proc/self/fd") if _is_the_pipe_of_records(int(name))
    ]
    os.write(records, b'{"kind": "epoch", "metr')
    os.kill(os.getpid(), signal.SIGKILL)


def _is_the_pipe_of_records(descriptor: int) -> bool:
    try:
        return (
            os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:")
            and os.write(descriptor, b"\n") == 1
        )
    except OSError:
        return False


def bad_clip() -> None:
    raise BadClip("yes/a.wav: can't be decoded")


def daemon() -> None:
    """A grandchild in a session of its own, whose parent has ended; its pid is on stdout."""
    process = subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo $!"])
    process.wait()
    time.sleep(0.2)


ACCIDENTS = {
    "hold_names": hold_names,
    "daemon": daemon,
    "raises": lambda: 1 / 0,
    "fill_shm": fill_shm,
    "work": work,
    "nap": lambda: time.sleep(12.5),
    "open_too_many": open_too_many,
    "hoard": hoard,
    "sigbus": lambda: os.kill(os.getpid(), signal.SIGBUS),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "memory_error": lambda: bytearray(1 << 62),
    "share": lambda: torch.ones(128 << 18).share_memory_(),  # 128 MiB
    "bad_clip": bad_clip,
    "open_strangers": open_strangers,
    "half_a_line": half_a_line,
    "asleep": lambda: time.sleep(1000),
}


def custom(samples: list[torch.Tensor]) -> torch.Tensor:
    """A collate function that allocates as people write them: the batch reaches /dev/shm in the
    queue's feeder thread."""
    return torch.stack(samples)


def mute(worker: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def loop(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    keys: dict[str, Any] = {
        "batches": 8,
        "batch_mib": 1.0,
        "at": 2,
        "accident": None,
        "step_s": 0.0,
        "num_workers": 2,
    } | arguments
    if keys.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    workers = keys["num_workers"]
    loader = DataLoader(
        Items(keys["batches"], keys["batch_mib"], keys["at"], keys["accident"]),
        num_workers=workers,
        prefetch_factor=keys.get("prefetch_factor", 2) if workers else None,
        multiprocessing_context="fork" if workers else None,
        collate_fn=custom if keys.get("custom_collate") else None,
        worker_init_fn=mute if keys.get("mute") else None,
    )
    gauge.set_batch_bytes(whole_pages(round(keys["batch_mib"] * 2**20)))
    emit({"kind": "setup", "labels": []})
    for _ in watch_batches(loader, gauge):
        time.sleep(keys["step_s"])
    emit({"kind": "end", "summary": {}})


def accident(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """The training process itself meets with it."""
    ACCIDENTS[arguments["accident"]]()
    emit({"kind": "end", "summary": {}})


def train(arguments: Arguments, emit: Emit, gauge: Gauge) -> None:
    """A trial that meets with the accident its key ends in, as 07-raises; 07-None trains as ever."""
    name = Path(arguments["folder"]).name.partition("-")[2]
    if name in ACCIDENTS:
        loop(
            {"accident": name, "num_workers": arguments["config"]["loader"]["num_workers"]},
            emit,
            gauge,
        )
    else:
        TRAINING["train"](arguments, emit, gauge)


TASKS = TRAINING | {"train": train, "loop": loop, "accident": accident}
