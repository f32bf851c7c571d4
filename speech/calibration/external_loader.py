"""Measures the costs of a batch of another project's loader, in the same way as for this project.

A loader's behaviour is defined by its attributes. Rebuilt with another number of workers, it reads
the same dataset in the same batches through the same collate_fn. The costs of a batch with at most
one worker (speech/calibration/calibrate.py) therefore hold for any number of workers.

The project's code is used only as its training would use it. Two stages
(speech/calibration/stages.py) import its module and call its function once per stage. In the first
stage only workers read the dataset. In the second the process reads it itself, as with 0 workers,
after the step was timed. No worker therefore shares files that another process has opened, and a
dataset that only works in a worker can be measured too.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from speech.calibration.batch_sample import SAMPLE_BATCHES, LoaderSample, sample_batches
from speech.calibration.batch_workers import WorkerFailed, first_batches, index_batches
from speech.calibration.calibrate import calibrate_loader, cpu_seconds
from speech.calibration.costs import Calibration, LoaderCosts, StepCosts
from speech.calibration.loader_source import (
    enter_run,
    load_callable,
    load_loader,
    rebuild_loader,
    shared_bytes,
    start_method,
)
from speech.calibration.loader_timings import PAUSE_S, PREFETCHED, measure_inline
from speech.calibration.stages import StageFailed, run_stage
from speech.calibration.step_timings import measure_step
from speech.calibration.undisturbed_rounds import MachineBusy
from speech.calibration.worker_memory import (
    list_batches,
    measure_memory,
    read_pages,
    replace_copies,
)
from speech.cpu import usable_cores

# Seconds and numbers of the epoch's first batches in a calibrating pass, for any length of epoch
PASS_S, PASS_BATCHES = 2.5, (8, 48)

Emit = Callable[[dict[str, Any]], None]


class NoRoom(RuntimeError):
    """Reports that /dev/shm is too small to measure with a single worker."""


def advise(arguments: dict[str, Any], emit: Emit) -> None:
    """Measures a loader, and emits a `loader` record, an `advice` record and `at` progress records.

    The `loader` record describes the loader, and the `advice` record holds the costs of its batches
    on this host. The keys of `arguments` are:

    - `target` and `step`, both as module:name, and `folder`, where they are searched;
    - `batch_size` of a Dataset, `step_s`, and `run_ahead` of its loop;
    - `arguments` of the project's own run;
    - `environment`, the original values of variables that this project has changed.

    `step`, `batch_size` and `step_s` may be None. If the loader is unsuitable or the project's code
    raises an error, an `error` record is emitted and StageFailed is raised.
    """
    began = time.perf_counter()
    try:
        workers = run_stage(lambda: measure_workers(arguments, emit))
        if "worker_error" in workers:
            _raise_worker_error(arguments, workers["worker_error"])
        costs = LoaderCosts.model_validate(workers["costs"])
        alone = run_stage(lambda: measure_alone(arguments, costs, workers["batches"], emit))
    except StageFailed as failed:
        emit({"kind": "error"} | failed.record)
        raise
    inline_s = alone["inline_s"]
    costs = costs.model_copy(
        update={
            "inline_s": (
                cpu_seconds(inline_s, inline_s + PAUSE_S, costs.read_s, costs.cores)
                if inline_s
                else 0.0
            )
        }
    )
    step = StepCosts.model_validate(alone["step"])
    calibration = Calibration(loader=costs, step=step, took_s=time.perf_counter() - began)
    further = {"memory": workers["memory"], "only_workers": alone["inline_error"]}
    emit({"kind": "advice", "calibration": calibration.model_dump()} | further)


def _enter(arguments: dict[str, Any], emit: Emit) -> None:
    """Sets this process up as the project's own run, and imports its module."""
    emit({"kind": "at", "at": f"importing {arguments['target'].partition(':')[0]}"})
    enter_run(
        arguments["target"],
        arguments["folder"],
        arguments.get("arguments", []),
        arguments.get("environment", {}),
    )


def _load(arguments: dict[str, Any], emit: Emit) -> DataLoader:
    """Calls the project's function, and returns its loader."""
    emit({"kind": "at", "at": f"calling {arguments['target']}"})
    return load_loader(arguments["target"], arguments["folder"], arguments["batch_size"])


def measure_workers(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Runs the first stage: measures workers in a process that never reads the dataset itself.

    Returns the costs, the number of batches in a pass and the memory of a worker, or the error of a
    worker. Raises NoRoom if /dev/shm is too small.
    """
    before_import, free_before_bytes = read_pages(), _free_shm_bytes()
    _enter(arguments, emit)
    if arguments["step"]:
        load_callable(arguments["step"], arguments["folder"])  # reports a missing step early
    loader = _load(arguments, emit)
    after_loader, held_bytes = read_pages(), max(free_before_bytes - _free_shm_bytes(), 0)
    emit({"kind": "at", "at": "reading the first batches in a worker"})
    listed, complete = list_batches(iter(index_batches(loader)))
    try:
        sample = sample_batches(loader, listed)
    except WorkerFailed as failed:
        return {"worker_error": failed.record}
    emit({"kind": "loader"} | _describe(loader, sample, held_bytes))
    if _free_shm_bytes() < (PREFETCHED + 1) * sample.batch_bytes:
        raise NoRoom("/dev/shm has no room for one worker")
    emit({"kind": "at", "at": "measuring the workers"})
    memory = None
    if sample.growth and before_import and after_loader:
        memory = measure_memory(
            loader,
            sample.growth,
            listed if complete else None,
            after_loader.anonymous,
            after_loader.anonymous - before_import.anonymous,
        )
    batches, copies = listed[: _pass_batches(sample.prepare_s)], []

    def make(num_workers: int, prefetch_factor: int | None, persistent: bool) -> DataLoader:
        return rebuild_loader(loader, num_workers, prefetch_factor, persistent, batches)

    def watch(worker: int) -> None:
        copies.append(read_pages(worker))

    costs = calibrate_loader(make, usable_cores(), sample.batch_bytes, inline=False, watch=watch)
    if memory and start_method(loader) != "fork":
        memory = replace_copies(memory, copies)
    return {
        "costs": costs.model_dump(),
        "batches": _pass_batches(sample.prepare_s),
        "memory": memory.model_dump() if memory else None,
    }


def _pass_batches(prepare_s: float) -> int:
    """Returns the number of batches in a calibrating pass, by the seconds that a batch takes."""
    return min(max(round(PASS_S / max(prepare_s, 1e-6)), PASS_BATCHES[0]), PASS_BATCHES[1])


def measure_alone(
    arguments: dict[str, Any], beside: LoaderCosts, batches: int, emit: Emit
) -> dict[str, Any]:
    """Runs the second stage: measures a step, and a batch that this process prepares itself.

    An error of the second measurement is returned as `inline_error`, since some datasets work only
    in a worker.
    """
    _enter(arguments, emit)
    step = load_callable(arguments["step"], arguments["folder"]) if arguments["step"] else None
    loader = _load(arguments, emit)
    plain = rebuild_loader(loader, 0, None, False, first_batches(loader, batches))
    timed = StepCosts(wait_s=arguments["step_s"] or 0.0, run_ahead=arguments["run_ahead"])
    if step:
        emit({"kind": "at", "at": f"timing {arguments['step']}"})
        first = first_batches(plain, SAMPLE_BATCHES)
        timed = measure_step(step, list(rebuild_loader(loader, 1, 1, False, first)), beside, plain)
    emit({"kind": "at", "at": "measuring without workers"})
    inline_s, inline_error = None, None
    try:
        inline_s = measure_inline(plain)
    except MachineBusy:
        raise
    except Exception as error:  # the dataset works in a worker
        inline_error = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        )
    return {"step": timed.model_dump(), "inline_s": inline_s, "inline_error": inline_error}


def _raise_worker_error(arguments: dict[str, Any], error: dict[str, Any]) -> None:
    """Raises StageFailed with a worker's error.

    A hint is added if the training process itself can read the dataset. This second attempt emits
    no `at` record, since the error occurred at the place of the last one.
    """

    def read() -> bool:
        _enter(arguments, lambda record: None)
        loader = _load(arguments, lambda record: None)
        next(iter(rebuild_loader(loader, 0, None, False, first_batches(loader, 1))))
        return True

    try:
        run_stage(read)
    except StageFailed:
        raise StageFailed(error) from None
    message = (
        "a worker can't read this data set, but the process itself can: until that is mended, only"
        " num_workers=0 works."
    )
    raise StageFailed(error | {"hint": message})


def _free_shm_bytes() -> int:
    """Returns the free space of /dev/shm."""
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize


def _describe(loader: DataLoader, sample: LoaderSample, held_bytes: int) -> dict[str, Any]:
    """Returns the fields of the `loader` record."""
    return {
        "dataset": type(loader.dataset).__name__,
        "clips": len(loader.dataset),  # type: ignore[arg-type]
        "batches": len(loader),
        "batch_bytes": sample.batch_bytes,
        "varies": sample.varies,
        "held_bytes": held_bytes,
        "sent_bytes": (
            0
            if start_method(loader) == "fork"
            else max(shared_bytes(loader.dataset) - held_bytes, 0)
        ),
        "num_workers": loader.num_workers,
        "prefetch_factor": loader.prefetch_factor or 2,
        "persistent": loader.persistent_workers,
        "first_wait_s": sample.wait_s,
        "first_read_bytes": sample.read_bytes,
    }
