"""Plain processes that prepare batches at once: what a loader's workers do, without queues, windows and a loop that waits for them.

with Preparing(loader, count=4) as processes:
    processes.pace()        seconds that each takes for a batch, on the clock and of the CPU
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

FEWEST = 5  # batches over which a pace is taken


class Killed(RuntimeError):
    """By the kernel for want of memory, or by somebody."""


class Pace(NamedTuple):
    """Seconds a batch of each process."""

    wall_s: float
    cpu_s: float


class Preparing:
    """So many processes prepare batches of `loader`, each others than its neighbours, until the context ends; none is left behind.

    `refresh` is called before each pass over the data. Whatever goes wrong in a process is raised here.
    """

    def __init__(self, loader: DataLoader, count: int, window_s: float = 0.0, refresh: Callable[[], None] = lambda: None):
        self._loader, self._count, self._window_s, self._refresh = loader, count, window_s, refresh
        self._ends: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> "Preparing":
        context = multiprocessing.get_context("fork")
        batches = list(self._loader.batch_sampler)  # type: ignore[arg-type]
        for own in range(self._count):
            ours, theirs = context.Pipe()
            first = own * len(batches) // self._count
            arguments = (self._loader, batches[first:] + batches[:first], self._window_s, _nothing if own else self._refresh, theirs)
            process = context.Process(target=_live, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        try:
            for end in self._ends:
                _told(end)  # it has made its first batch, which is slow
            for end in self._ends:
                end.send("go")
        except BaseException:
            self.__exit__()
            raise
        return self

    def told(self) -> bool:
        """Whether every one has been through the window, and as many batches as a pace needs."""
        return len(wait(self._ends, 0)) == len(self._ends)

    def pace(self) -> Pace:
        """After the window: their mean."""
        paces = [_told(end) for end in self._ends]
        return Pace(*(statistics.mean(column) for column in zip(*paces, strict=True)))

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def pace_of(loader: DataLoader, count: int, window_s: float, refresh: Callable[[], None] = lambda: None) -> Pace:
    """Of so many processes side by side."""
    with Preparing(loader, count, window_s, refresh) as processes:
        return processes.pace()


def prepare(loader: DataLoader, batch: Any) -> Any:
    """What a worker does with the indices of a batch, as torch's _MapDatasetFetcher does it."""
    dataset: Any = loader.dataset
    samples = dataset.__getitems__(batch) if hasattr(dataset, "__getitems__") else [dataset[index] for index in batch]
    return loader.collate_fn(samples)


def _nothing() -> None:
    pass


def _told(end: Connection) -> Any:
    try:
        told = end.recv()
    except EOFError:
        raise Killed("a process that prepares batches for the calibration was killed") from None
    if isinstance(told, ExceptionWrapper):
        told.reraise()
    return told


def _live(loader: DataLoader, batches: list[Any], window_s: float, refresh: Callable[[], None], end: Connection) -> None:
    """One process: one thread, one batch after the other. Tells its pace after the window, and goes on."""
    try:
        torch.set_num_threads(1)
        refresh()
        prepare(loader, batches[0])
        end.send("ready")
        end.recv()
        began, cpu_began = time.perf_counter(), time.process_time()
        done, telling = 0, True
        while True:
            for batch in batches[1:] or batches:
                prepare(loader, batch)
                done += 1
                took_s = time.perf_counter() - began
                if telling and done >= FEWEST and took_s >= window_s:
                    end.send((took_s / done, (time.process_time() - cpu_began) / done))
                    telling = False
            refresh()
    except Exception:  # told to whoever calibrates, who raises it
        end.send(ExceptionWrapper(where="in a process that prepares batches for the calibration"))
