"""Measures the costs of one batch on this host, in half a minute to a minute.

The measurement uses competing processes that prepare batches, a loader of one worker, and training
steps. It never runs the configurations that are to be forecast: no loader has more than one worker.
Competing processes without queue or prefetch window show how preparation slows down when cores are
shared. A loader of one worker among such processes shows the cost of the handover of a batch. The
speed of a virtual core may vary by half for some seconds, as its host's neighbours come and go. All
figures are therefore measured in turn, in several rounds, and are medians of the rounds. Values
that other programs disturbed are dropped (speech/calibration/undisturbed_rounds.py).

    costs = calibrate_loader(make, cores=2, batch_bytes=4096)
    make(num_workers, prefetch_factor, persistent_workers) -> DataLoader
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from speech import accelerator, corpora, page_cache
from speech.calibration.agreement import Disagreement, find_disagreement
from speech.calibration.batch_workers import Pace, count_samples, first_batches
from speech.calibration.costs import (
    Calibration,
    LoaderCosts,
    Speed,
    StepCosts,
    simulated_step,
)
from speech.calibration.loader_timings import (
    DELIVERY,
    HANDOVER,
    MAX_ROUNDS_S,
    PACE,
    PAUSE_S,
    WORKER,
    Handover,
    Make,
    WorkerTimings,
    loader_figures,
    medians,
    time_inline_pass,
)
from speech.calibration.queued_steps import CudaSteps, measure_pinning, measure_queued_step
from speech.calibration.speed import make_step, measure_speed
from speech.calibration.step_interplay import add_interplay
from speech.calibration.step_timings import calibrate_step
from speech.calibration.undisturbed_rounds import Measure, Values, measure_rounds
from speech.config import Trial
from speech.cpu import allowed_cpus, cpu_quota, usable_cores
from speech.dataset import ClipDataset
from speech.loading import choose_fetch, make_loader
from speech.shapes import batch_bytes

INLINE, SPEED = "inline", "speed"  # figures of a trial's loader beside loader_figures
ROUNDS = 3
MAX_PROCESSES = 32  # competing processes at once, unless there are more cores
SATURATED = 0.95  # share of a quota below one core; a process that used more was throttled


def calibrate_trial(trial: Trial) -> Calibration:
    """Measures the costs of a batch of `trial`, which do not depend on its number of workers.

    Its folder is not written to. Raises MachineBusy, or Disagreement if figures contradict each
    other twice. On CUDA this has not run yet.
    """
    began = time.perf_counter()
    config, runtime = trial.config, trial.runtime
    torch.set_num_threads(runtime.threads)
    corpus = corpora.prepare_corpus(config.corpus)

    def make(num_workers: int, prefetch_factor: int | None, persistent_workers: bool) -> DataLoader:
        changes = {
            "num_workers": num_workers,
            "prefetch_factor": prefetch_factor or 1,
            "persistent_workers": persistent_workers,
        }
        loader = config.loader.model_copy(update=changes)
        return make_loader(
            config.model_copy(update={"loader": loader}), corpus, "training", trial.seed
        )[0]

    plain = make(0, None, False)
    files = cast(ClipDataset, plain.dataset).files() if config.corpus.cache == "cold" else []
    size = batch_bytes(config, config.loader.batch_size)

    def refresh() -> None:
        page_cache.drop(files)

    def measure() -> tuple[LoaderCosts, Values]:
        more: dict[Hashable, Measure] = {
            INLINE: lambda _: _time_inline(plain, refresh),
            SPEED: lambda _: measure_speed(plain, None, files).prepare_s,
        }
        return _measure_loader(make, usable_cores(), size, refresh, lambda pid: None, more)

    costs, values = measure()
    if find_disagreement(costs):
        costs, values = measure()
        if disagreement := find_disagreement(costs):
            raise Disagreement(disagreement)
    device, step_s = accelerator.choose_device(config.device), None
    if device == "simulated":
        step = simulated_step(config.device)
    elif device == "cuda":
        step = measure_queued_step(CudaSteps(make_step(trial, corpus, plain, device)))
        if config.loader.pin_memory:
            costs = costs.model_copy(update={"pin_s": measure_pinning(next(iter(plain)))})
    else:
        run_step = make_step(trial, corpus, plain, device)
        step = _measure_step_costs(trial, costs, run_step, make, refresh)
        step_s = step.host_s(costs.cores)
    return Calibration(
        loader=costs,
        step=step,
        simulated=device == "simulated",
        speed=Speed(prepare_s=statistics.median(values[SPEED]), step_s=step_s),
        took_s=time.perf_counter() - began,
    )


def _measure_step_costs(
    trial: Trial,
    costs: LoaderCosts,
    step: Callable[[], None],
    make: Make,
    refresh: Callable[[], None],
) -> StepCosts:
    """Measures the costs of a training step on the host's cores."""
    plain = make(0, None, False)
    step_costs = calibrate_step(step, trial.runtime.threads, costs, plain, refresh)
    return add_interplay(step_costs, costs, step, make, refresh)


def calibrate_loader(
    make: Make,
    cores: float,
    batch_bytes: int,
    refresh: Callable[[], None] = lambda: None,
    inline: bool = True,
    watch: Callable[[int], None] = lambda pid: None,
) -> LoaderCosts:
    """Measures the loader that `make` builds, on `cores` cores that no other process uses.

    Under a quota, `cores` is the core time that it grants. `refresh` is called before every pass
    over the loader's data. With `inline` false, this process never reads the dataset itself, and
    `inline_s` is 0; the caller measures it separately. `watch` is called with the process id of a
    worker that has worked for a while. Raises MachineBusy if other programs disturb too much, and
    ValueError for a loader over an IterableDataset, which does not define the samples of a batch.
    """
    plain = make(0, None, False)
    more: dict[Hashable, Measure] = {INLINE: lambda _: _time_inline(plain, refresh)}
    return _measure_loader(make, cores, batch_bytes, refresh, watch, more if inline else {})[0]


def _measure_loader(
    make: Make,
    cores: float,
    batch_bytes: int,
    refresh: Callable[[], None],
    watch: Callable[[int], None],
    more: Mapping[Hashable, Measure],
) -> tuple[LoaderCosts, Values]:
    """Returns what calibrate_loader does, and the undisturbed values of all its and `more` figures.

    All are measured in the same rounds: the cores may change their speed between two figures that
    are measured one after the other.
    """
    plain = make(0, None, False)
    if isinstance(plain.dataset, IterableDataset):
        raise ValueError("only a loader over a map-style dataset can be calibrated")
    whole = math.ceil(cores)
    max_processes = min(4 * whole, max(whole, MAX_PROCESSES))
    counts = sorted({1, 2, whole, min(2 * whole, max_processes), max_processes})
    figures = loader_figures(make, plain, counts, cores, refresh, watch) | dict(more)
    if INLINE in more:
        _time_inline(plain, refresh)  # not counted: memory is allocated faster later
    # The handover's measurement requires the pace of a worker
    known = measure_rounds({WORKER: figures[WORKER]}, 1)
    values = measure_rounds(figures, ROUNDS, MAX_ROUNDS_S, known)
    inline_s = statistics.median(values.get(INLINE, [0.0]))
    samples = count_samples(plain, first_batches(plain, 1)[0])
    return _derive_costs(values, inline_s, cores, samples, batch_bytes), values


def _time_inline(plain: DataLoader, refresh: Callable[[], None]) -> float:
    """Measures the mean seconds of a batch that this process prepares itself.

    Under a quota it first waits for a new period, since the figure before may have used up the
    present one.
    """
    if quota := cpu_quota():
        time.sleep(quota.period_s)
    return time_inline_pass(plain, refresh, choose_fetch(plain))


def _derive_costs(
    values: Values, inline_s: float, cores: float, batch_size: int, batch_bytes: int
) -> LoaderCosts:
    """Derives the costs of a batch from the measurements of all rounds."""
    worker = medians(WorkerTimings, values[WORKER])
    paces = {count: medians(Pace, measured) for count, measured in _by_count(values, PACE)}
    handovers = {
        others: medians(Handover, measured) for others, measured in _by_count(values, HANDOVER)
    }
    delivery_s = {
        others: statistics.median(measured) for others, measured in _by_count(values, DELIVERY)
    }
    idle, quota, cpus = handovers[0], cpu_quota(), len(allowed_cpus())
    prepare_s, sending_s, read_s = _derive_preparation(paces[1], worker.batch_s, cores)
    worker_batches_s = [measured.batch_s for measured in values[WORKER]]
    return LoaderCosts(
        cores=cores,
        cpus=cpus if cores < cpus else None,
        period_s=quota.period_s if quota else LoaderCosts.model_fields["period_s"].default,
        batch_size=batch_size,
        batch_bytes=batch_bytes,
        inline_s=cpu_seconds(inline_s, inline_s + PAUSE_S, read_s, cores),
        prepare_s=prepare_s,
        sending=sending_s / prepare_s,
        read_s=read_s,
        read_slower=_read_slowdowns(paces, cores, read_s),
        receive_s=[(others, handover.receive_s) for others, handover in handovers.items()],
        deliver_s=[
            (others, max(seconds - handovers[others].receive_s, 0.0))
            for others, seconds in delivery_s.items()
        ],
        # With more processes, workers that wait in turn leave the loop a core
        wake_s=[
            (others + 1, handover.wake_s)
            for others, handover in handovers.items()
            if others < math.ceil(cores)
        ],
        release_s=idle.release_s,
        fork_s=worker.fork_s,
        ready_s=max(worker.first_s - worker.batch_s - idle.receive_s, 0.0) * min(1.0, cores),
        cold_s=max(worker.later_epoch_s - worker.batch_s - delivery_s[0], 0.0) * min(1.0, cores),
        pace_cpu_s=[(n, pace.cpu_s) for n, pace in paces.items()],
        shared=[
            (n, (_even_share_s(pace, n, cores, read_s) + sending_s) / prepare_s)
            for n, pace in paces.items()
        ],
        spread=(max(worker_batches_s) - min(worker_batches_s)) / 2 / worker.batch_s,
    )


def _by_count(values: Values, name: str) -> Iterator[tuple[int, list[Any]]]:
    """Yields the values of the figures (name, count), with each count of competing processes."""
    for figure, measured in values.items():
        if isinstance(figure, tuple) and figure[0] == name:
            yield figure[1], measured


class _Preparation(NamedTuple):
    """Holds the costs of preparing a batch in a worker, in seconds."""

    prepare_s: float  # of CPU, including its copy to /dev/shm
    sending_s: float  # part of prepare_s for that copy
    read_s: float  # of waiting for reads


def _derive_preparation(alone: Pace, worker_s: float, cores: float) -> _Preparation:
    """Derives the costs of preparing a batch from a competing process and from a worker."""
    read_s = alone.wall_s - alone.cpu_s
    read_s = read_s if read_s > 0.02 * alone.wall_s else 0.0  # less is timing noise
    if alone.cpu_s > SATURATED * cores * alone.wall_s:
        read_s = 0.0  # a quota below one core throttled it, and longer than it waited for reads
    plain_s = _even_share_s(alone, 1, cores, read_s)
    # A worker takes at least as long as a competing process, which does not send its batches
    prepare_s = max(cpu_seconds(worker_s, worker_s, read_s, cores), plain_s)
    return _Preparation(prepare_s, prepare_s - plain_s, read_s)


def _read_slowdowns(paces: dict[int, Pace], cores: float, read_s: float) -> list[tuple[int, float]]:
    """Returns by which factor reads take longer, for every number of processes up to `cores`.

    Returns an empty list if a batch does not wait for reads.
    """
    if not read_s:
        return []
    return [
        (n, max((pace.wall_s - pace.cpu_s) / read_s, 1.0))
        for n, pace in paces.items()
        if n <= cores
    ]


def cpu_seconds(took_s: float, turn_s: float, read_s: float, cores: float) -> float:
    """Returns the CPU seconds a batch of a process that took `took_s` for it, reads included.

    The process prepares a batch every `turn_s`. A quota below one core grants it at most that share
    of the turn, and throttles it for the rest.
    """
    return min(max(took_s - read_s, 0.0), cores * turn_s)


def _even_share_s(pace: Pace, count: int, cores: float, read_s: float) -> float:
    """Returns the seconds a batch takes with an even share of the cores, for `count` processes.

    Processes that wait for reads hardly compete for the cores. Then only the CPU time of one
    process is known, and is returned.
    """
    return pace.cpu_s if read_s else pace.wall_s / max(1.0, count / cores)
