"""Runs competing processes that prepare batches, without queues, prefetch windows and a loop.

They do the work of a loader's workers. For the dataset every process is a worker, because torch's
own worker loop runs in it. worker_init_fn is called, get_worker_info() works, and seeds, threads
and signals are those of a real worker. Only the queues are replaced by objects inside the process.

with BatchWorkers(loader, count=4, window_s=0.7) as processes:
    processes.mean_pace()        seconds a batch of a process, by the clock and of CPU
"""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data._utils.worker import _worker_loop

from speech.calibration.stages import CodeFailed
from speech.error_records import error_record

MIN_BATCHES = 5  # batches over which a pace is measured
WINDOW_S = 0.7  # approximate duration of the measurement of a figure in a round


class Killed(RuntimeError):
    """Reports that a process has exited or was killed, by a user or by the kernel's OOM killer."""


class Pace(NamedTuple):
    """Holds the seconds that a process takes for a batch."""

    wall_s: float
    cpu_s: float


class BatchWorkers:
    """Runs `count` processes that prepare batches of `loader` until the context ends.

    Every process starts at another batch. All processes are killed at the end of the context. The
    first process calls `refresh` before every pass over the data. An error in a process is raised
    in this one.
    """

    def __init__(
        self,
        loader: DataLoader,
        count: int,
        window_s: float = 0.0,
        refresh: Callable[[], None] = lambda: None,
    ):
        self._loader, self._count, self._window_s, self._refresh = loader, count, window_s, refresh
        self._processes: list[Process] = []

    def __enter__(self) -> "BatchWorkers":
        batches, seed = list(index_batches(self._loader)), draw_seed(self._loader)
        for worker_id in range(self._count):
            first = worker_id * len(batches) // self._count
            passes = _repeat_batches(
                batches[first:] + batches[:first], _do_nothing if worker_id else self._refresh
            )
            worker = Worker(worker_id, self._count, seed)
            self._processes.append(
                start_process(_prepare_continuously, self._loader, worker, passes, self._window_s)
            )
        try:
            for process in self._processes:
                process.receive()  # the first batch is ready, which is slow to prepare
            for process in self._processes:
                process.end.send("go")
        except BaseException:
            self.__exit__()
            raise
        return self

    def all_reported(self) -> bool:
        """Returns whether all processes have completed the window and MIN_BATCHES batches."""
        return len(wait([process.end for process in self._processes], 0)) == len(self._processes)

    def mean_pace(self) -> Pace:
        """Waits until all processes have completed the window, and returns their mean pace."""
        paces = [process.receive() for process in self._processes]
        return Pace(*(statistics.mean(column) for column in zip(*paces, strict=True)))

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()


def measure_pace(
    loader: DataLoader, count: int, window_s: float, refresh: Callable[[], None] = lambda: None
) -> Pace:
    """Measures the mean pace of `count` processes side by side."""
    with BatchWorkers(loader, count, window_s, refresh) as processes:
        return processes.mean_pace()


class Worker(NamedTuple):
    """Identifies a process as a worker of a loader."""

    id: int
    num_workers: int
    base_seed: int


def index_batches(loader: DataLoader) -> Iterable[Any]:
    """Returns the batches of indices that a loader requests from its dataset."""
    return loader._index_sampler


def first_batches(loader: DataLoader, count: int) -> list[Any]:
    """Returns the first `count` of `index_batches`."""
    return list(itertools.islice(index_batches(loader), count))


def count_samples(loader: DataLoader, batch: Any) -> int:
    """Returns the number of samples of one of `index_batches`.

    Without automatic batching an item is the index of one sample (a number, a string, a tuple)
    unless it is a list.
    """
    if hasattr(batch, "clips"):  # a BatchRequest
        return len(batch.clips)
    is_batch = isinstance(batch, list) or (loader._auto_collation and hasattr(batch, "__len__"))
    return len(batch) if is_batch else 1


def draw_seed(loader: DataLoader) -> int:
    """Draws the base seed of an epoch's workers, as torch does at the start of an epoch."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator).item())


def run_worker_loop(
    loader: DataLoader, worker: Worker, batches: Iterable[Any], take: Callable[[Any], bool]
) -> None:
    """Runs torch's worker loop in this process until `batches` end or `take` returns False.

    `take` is called with every prepared batch, or with an ExceptionWrapper of the error that was
    raised instead.
    """
    ends = _LocalQueues(iter(batches), take)
    _worker_loop(
        loader._dataset_kind,
        [loader.dataset],
        ends,
        ends,
        ends,
        loader._auto_collation,
        loader.collate_fn,
        loader.drop_last,
        worker.base_seed,
        loader.worker_init_fn,
        worker.id,
        worker.num_workers,
        False,
        None,
    )


# Prepares batches and passes them to its argument, which returns whether to continue
Prepare = Callable[[Callable[[Any], bool]], None]


class WorkerFailed(CodeFailed):
    """Reports that a worker has raised an error or ended."""


def run_in_worker(
    loader: DataLoader, batches: Iterable[Any], work: Callable[[Prepare], Any]
) -> Any:
    """Runs `work` in a single worker of `loader`, forked from this process; returns its result.

    `work` receives a function that prepares `batches`. Its result must consist of builtin types,
    since modules of this project may not be importable by their names. Raises WorkerFailed.
    """
    process = start_process(_send_result, loader, Worker(0, 1, draw_seed(loader)), batches, work)
    try:
        reply = process.receive()
    except Killed as killed:
        raise WorkerFailed({"type": "Killed", "message": str(killed), "traceback": ""}) from None
    finally:
        process.kill()
    if "error" in reply:
        raise WorkerFailed(reply["error"])
    return reply["value"]


def _send_result(
    loader: DataLoader,
    worker: Worker,
    batches: Iterable[Any],
    work: Callable[[Prepare], Any],
    end: Connection,
) -> None:
    """Sends the result of `work`, or the record of its error, through `end`."""

    def prepare(take: Callable[[Any], bool]) -> None:
        failures: list[ExceptionWrapper] = []

        def check(batch: Any) -> bool:
            if isinstance(batch, ExceptionWrapper):
                failures.append(batch)
                return False
            return take(batch)

        run_worker_loop(loader, worker, batches, check)
        for failure in failures:
            text = failure.exc_msg.strip()
            message = text.splitlines()[-1].removeprefix(f"{failure.exc_type.__name__}: ")
            raise WorkerFailed(
                {"type": failure.exc_type.__name__, "message": message, "traceback": text}
            )

    try:
        end.send({"value": work(prepare)})
    except WorkerFailed as failed:
        end.send({"error": failed.record})
    except Exception as error:
        end.send({"error": error_record(error)})


class _LocalQueues:
    """Replaces both queues of torch's worker loop and its end event, within one process."""

    def __init__(self, batches: Iterator[Any], take: Callable[[Any], bool]) -> None:
        self._batches, self._take, self._done = batches, take, False

    def get(self, timeout: float) -> tuple[int, Any] | None:
        for batch in self._batches if not self._done else ():
            return 0, batch
        self._done = True
        return None

    def put(self, numbered: tuple[int, Any]) -> None:
        self._done = not self._take(numbered[1])

    def is_set(self) -> bool:
        return self._done

    def cancel_join_thread(self) -> None:
        pass

    def close(self) -> None:
        pass


class Process(NamedTuple):
    """Holds a process and the pipe through which it sends objects."""

    process: Any
    end: Connection

    def receive(self) -> Any:
        """Waits for the next object from the process, and returns it.

        Raises the error that was raised in the process, or Killed if the process has ended.
        """
        try:
            reply = self.end.recv()
        except EOFError:
            self.process.join(1.0)
            code = self.process.exitcode
            how = (
                "was killed"
                if code is None or code < 0
                else f"exited with status {code}, as by sys.exit or os._exit"
            )
            raise Killed(f"a process that prepares batches for the calibration {how}") from None
        if isinstance(reply, ExceptionWrapper):
            reply.reraise()
        return reply

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def start_process(target: Callable[..., None], *arguments: Any) -> Process:
    """Forks a process that runs `target`; a pipe's other end is its last argument."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return Process(process, ours)


def _do_nothing() -> None:
    pass


def _repeat_batches(batches: list[Any], refresh: Callable[[], None]) -> Iterator[Any]:
    """Yields the batches again and again; calls `refresh` before every pass."""
    while True:
        refresh()
        yield from batches


def _prepare_continuously(
    loader: DataLoader, worker: Worker, batches: Iterable[Any], window_s: float, end: Connection
) -> None:
    """Prepares one batch after the other in one thread.

    It sends its pace through `end` after the window, and continues.
    """
    count = itertools.count()
    reporting, began, cpu_began = True, 0.0, 0.0

    def take(batch: Any) -> bool:
        nonlocal reporting, began, cpu_began
        if isinstance(batch, ExceptionWrapper):
            end.send(batch)
            return False
        completed = next(count)
        if not completed:
            end.send("ready")
            end.recv()
            began, cpu_began = time.perf_counter(), time.process_time()
        elapsed_s = time.perf_counter() - began
        if reporting and completed >= MIN_BATCHES and elapsed_s >= window_s:
            end.send((elapsed_s / completed, (time.process_time() - cpu_began) / completed))
            reporting = False
        return True

    try:
        run_worker_loop(loader, worker, batches, take)
    except Exception:  # the calibrating process receives and raises it
        end.send(ExceptionWrapper(where="in a process that prepares batches for the calibration"))
