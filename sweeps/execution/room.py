"""Compares the processes, threads and open files of a trial with the limits of this machine, before
the first trial runs.

The count includes only what is certain. A loader with W workers is W processes, each with the
thread that sends its batches, and W threads of the training process that send indices. A trial that
learns has a second loader for validation. Each rank is a training process with a loader of its own.
Every batch on its way holds an open file for each of its tensors. The usage of Ray was measured
once: a launch on 2 cores had 190 processes and threads beside its trial, and more cores mean more
threads. A limit below the certain count ends the launch. A limit close to it is logged.
"""

import contextlib
import resource

from speech.config import TrialConfig
from sweeps.host.node import Log, PreflightError
from sweeps.sandbox.cgroup import process_room

TREE_PROCESSES = 3  # supervisor, init and training
TASKS_PER_WORKER = 3  # its process, and one thread each for batches and for indices
RAY_AT_LEAST, RAY_USUALLY = 150, 250  # processes and threads of a launch's own Ray
TENSORS_PER_BATCH = 2  # of a batch: clips and labels
BASE_FILES, FILES_PER_WORKER = 48, 4  # open in a training process; per worker a pidfd and pipes


def count_tasks(config: TrialConfig, threads: int) -> int:
    """Returns the largest number of processes and threads in the process tree of a trial."""
    loader = config.loader
    ranks = config.device.ranks
    # Workers that persist remain beside those of the validation loader
    validates = loader.persistent_workers and config.device.prefer[0] != "simulated"
    loaders = ranks + (1 if validates else 0)
    training = ranks * max(threads // ranks, 1)
    return TREE_PROCESSES - 1 + training + TASKS_PER_WORKER * loader.num_workers * loaders


def count_files(config: TrialConfig, batches: int) -> int:
    """Returns the number of open files of a training process while `batches` batches are on their
    way.
    """
    workers = config.loader.num_workers
    return (
        BASE_FILES + FILES_PER_WORKER * workers + TENSORS_PER_BATCH * batches
        if workers
        else BASE_FILES
    )


def check_process_limits(
    configs: list[TrialConfig], threads: int, starts_ray: bool, log: Log, parallel_trials: int = 1
) -> None:
    """Logs limits that trials may exceed, of which up to `parallel_trials` run at once.

    Raises PreflightError if some trial certainly exceeds the limit of processes or open files.
    First raises the limits of this process as far as the system permits; processes that it starts
    inherit them.
    """
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (hard, hard))
    if not configs:
        return
    largest = max(configs, key=lambda config: count_tasks(config, threads))
    room, workers = process_room(), largest.loader.num_workers
    least, usual = (
        count_tasks(largest, threads) * trials + (ray if starts_ray else 0)
        for trials, ray in ((1, RAY_AT_LEAST), (parallel_trials, RAY_USUALLY))
    )
    if room and room.free < usual:
        trials = "a trial" if parallel_trials == 1 else f"{parallel_trials} trials at once, each"
        of = f"{trials} with {workers} workers{' and Ray' if starts_ray else ''}"
        text = (
            f"processes and threads: {max(room.free, 0)} more can start, of {room.limit} by"
            f" {room.name}, but {of} "
        )
        if room.free < least:
            raise PreflightError(
                f"{text}take at least {least}. Raise that limit, or lower loader.num_workers."
            )
        log(
            f"{text}may take {usual}: if a trial or Ray can't start a thread, this limit is the"
            " cause"
        )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    for config in configs if files != resource.RLIM_INFINITY else []:
        if count_files(config, 1) > files:
            raise PreflightError(
                f"open files: a trial with {config.loader.num_workers} workers has at least"
                f" {count_files(config, 1)} open, and `ulimit -Hn` allows {files}. Raise it, or"
                " lower loader.num_workers."
            )
    most_files = max(configs, key=lambda config: count_files(config, _max_batches(config)))
    if (
        files != resource.RLIM_INFINITY
        and count_files(most_files, _max_batches(most_files)) > files
    ):
        log(
            f"open files: a trial with {most_files.loader.num_workers} workers and prefetch_factor"
            f" {most_files.loader.prefetch_factor} may have"
            f" {count_files(most_files, _max_batches(most_files))} open, and `ulimit -Hn` allows"
            f" {files}: it may end with 'Too many open files'"
        )


def _max_batches(config: TrialConfig) -> int:
    """Returns the largest number of batches on their way at once."""
    return config.loader.num_workers * config.loader.prefetch_factor + 1
