"""What one batch costs here, measured in half a minute to a minute: by plain processes that prepare batches, a loader of one worker, steps.

The one idea is never to run what is to be forecast. No loader has more than one worker: how preparing slows down when cores are shared is
measured with plain processes side by side, which know neither queue nor window, and what it takes to hand a batch over with a loader of
one worker among such processes. A virtual core may be half as fast again for some seconds and then not, as its host's neighbours come and
go, so all figures are taken in turn and in several rounds, and are means of them.

    costs = calibrate_loader(make, cores=2)        make(num_workers, prefetch_factor, persistent_workers) -> DataLoader
"""

import itertools
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from speech import accelerator, corpora, page_cache
from speech.clips import Clips
from speech.config import Trial
from speech.costs import Calibration, LoaderCosts, StepCosts, paced_step
from speech.learner import make_learner
from speech.loading import make_loader
from speech.plain_processes import FEWEST, Pace, Preparing, pace_of
from speech.shapes import batch_bytes

Figures = TypeVar("Figures", bound=tuple[float, ...])  # a NamedTuple of them
Make = Callable[[int, int | None, bool], DataLoader]  # num_workers, prefetch_factor, persistent_workers

ROUNDS = 3
ENOUGH_S = 25.0  # no further round is begun then: batches take seconds each
FEWEST_STEPS = 2
STEP_ROUNDS = 2  # a step whose threads wait for each other takes seconds beside other processes
WINDOW_S = 0.7  # over about this long each figure of a round is taken
AHEAD = 4  # batches that lie ready when taking them is timed
MOST = 32  # plain processes at once, unless there are more cores
PAUSE_S = 0.005  # in the place of a training step
PASSES = 5
AGAIN = 1  # first batches of later epochs in a round
ELSE_BYTES = 1 << 26  # more than caches hold


def calibrate_trial(trial: Trial) -> Calibration:
    """What a batch costs `trial`, whatever its number of workers; its folder is not written to. Its device is cpu or paced."""
    began = time.perf_counter()
    config, pinned = trial.config, trial.pinned
    torch.set_num_threads(pinned.threads)
    corpus = corpora.prepare(config.corpus)

    def make(num_workers: int, prefetch_factor: int | None, persistent_workers: bool) -> DataLoader:
        keys = {"num_workers": num_workers, "prefetch_factor": prefetch_factor or 1, "persistent_workers": persistent_workers}
        loader = config.loader.model_copy(update=keys)
        return make_loader(config.model_copy(update={"loader": loader}), corpus, "training", trial.seed)[0]

    plain = make(0, None, False)
    files = cast(Clips, plain.dataset).files() if config.corpus.cache == "cold" else []
    size = batch_bytes(config, config.loader.batch_size)

    def refresh() -> None:
        page_cache.drop(files)

    costs = calibrate_loader(make, len(os.sched_getaffinity(0)), size, refresh)
    modelled = accelerator.choose(config.device) == "paced"
    step = paced_step(config.device) if modelled else _step_costs(trial, corpus, costs, plain, refresh)
    return Calibration(loader=costs, step=step, modelled=modelled, took_s=time.perf_counter() - began)


def _step_costs(
    trial: Trial, corpus: corpora.PreparedCorpus, costs: LoaderCosts, plain: DataLoader, refresh: Callable[[], None]
) -> StepCosts:
    """Of real training on the host's cores."""
    learner, batch = make_learner(trial, corpus, "cpu"), next(iter(plain))

    def step() -> None:
        learner.learn(batch, lr=1e-6, mixup=1.0)

    return calibrate_step(step, trial.pinned.threads, costs, plain, refresh)


def calibrate_loader(make: Make, cores: int, batch_bytes: int, refresh: Callable[[], None] = lambda: None) -> LoaderCosts:
    """Measures `make`'s loader on `cores` cores that nothing else uses; `refresh` is called before each pass over its data.

    ValueError: the loader doesn't say which samples make a batch (an IterableDataset, or batch_size=None).
    """
    plain = make(0, None, False)
    if isinstance(plain.dataset, IterableDataset) or plain.batch_sampler is None:
        raise ValueError("only a loader over a map-style dataset, with a batch_size or a batch_sampler, can be calibrated")
    most = min(4 * cores, max(cores, MOST))
    counts = sorted({1, 2, cores, min(2 * cores, most), most})
    began, rounds = time.perf_counter(), [_round(make, plain, counts, cores, refresh)]
    while len(rounds) < ROUNDS and time.perf_counter() - began < ENOUGH_S:
        rounds.append(_round(make, plain, counts, cores, refresh))
    paces = {count: _mean(Pace, [each.paces[count] for each in rounds]) for count in counts}
    handed = {others: _mean(_Handed, [each.handed[others] for each in rounds]) for others in rounds[0].handed}
    late = {others: statistics.mean(each.late_s[others] for each in rounds) for others in handed}
    worker = _mean(_Worker, [each.worker for each in rounds])
    read_s = paces[1].wall_s - paces[1].cpu_s
    read_s = read_s if read_s > 0.02 * paces[1].wall_s else 0.0  # less is the clock's and the scheduler's
    plain_s = _share_s(paces[1], 1, cores, read_s)
    prepare_s = max(worker.batch_s - read_s, plain_s)  # a worker computes at least what a plain process does
    sending_s = prepare_s - plain_s
    inline_s = _inline(plain, refresh)  # last: what it opens, no process that was forked shares
    batches_s = [each.worker.batch_s for each in rounds]
    return LoaderCosts(
        cores=cores,
        batch_size=_clips(plain),
        batch_bytes=batch_bytes,
        inline_s=max(inline_s - read_s, 0.0),
        prepare_s=prepare_s,
        sending=sending_s / prepare_s,
        read_s=read_s,
        read_slower=[(n, max((paces[n].wall_s - paces[n].cpu_s) / read_s, 1.0)) for n in paces if n <= cores] if read_s else [],
        receive_s=[(others, of.receive_s) for others, of in handed.items()],
        deliver_s=[(others, max(seconds - handed[others].receive_s, 0.0)) for others, seconds in late.items()],
        wake_s=[(others + 1, of.wake_s) for others, of in handed.items() if others < cores],  # workers that wait in turn leave it a core
        release_s=handed[0].release_s,
        fork_s=worker.fork_s,
        ready_s=max(worker.first_s - worker.batch_s - handed[0].receive_s, 0.0),
        cold_s=max(worker.again_s - worker.batch_s - late[0], 0.0),
        shared=[(n, (_share_s(pace, n, cores, read_s) + sending_s) / prepare_s) for n, pace in paces.items()],
        spread=(max(batches_s) - min(batches_s)) / 2 / worker.batch_s,
    )


class _Round(NamedTuple):
    """Everything once but the inline pace: by how many processes, or by how many others."""

    paces: dict[int, Pace]
    worker: "_Worker"
    handed: dict[int, "_Handed"]
    late_s: dict[int, float]


def _round(make: Make, plain: DataLoader, counts: list[int], cores: int, refresh: Callable[[], None]) -> _Round:
    paces = {count: pace_of(plain, count, WINDOW_S, refresh) for count in counts}
    worker = _fresh_worker(make, refresh)
    others = sorted({0, cores - 1, counts[-1] - 1})
    handed = {count: _handed_over(make, plain, worker.batch_s, count, cores) for count in others}
    return _Round(paces, worker, handed, {count: _late_s(make, plain, count) for count in others})


def _mean(kind: Callable[..., Figures], rounds: list[Figures]) -> Figures:
    """Of each figure."""
    return kind(*(statistics.mean(column) for column in zip(*rounds, strict=True)))


def _share_s(pace: Pace, count: int, cores: int, read_s: float) -> float:
    """Seconds a batch of an even share of the cores, as so many processes got on. Where they wait for reads they hardly meet on the
    cores, and only what each used of them can be told."""
    return pace.cpu_s if read_s else pace.wall_s / max(1.0, count / cores)


def _inline(plain: DataLoader, refresh: Callable[[], None]) -> float:
    """Seconds a batch of the training process itself, which does something else between batches: its threads and caches cool down.

    In several passes, as one is faster than the other by how its memory comes to lie.
    """
    took: list[float] = []
    for timed in range(PASSES + 1):  # the first is not: memory that was asked for before is given again faster
        refresh()
        batches = iter(plain)
        until = time.perf_counter() + WINDOW_S
        for _ in range(len(plain)):
            asked = time.perf_counter()
            batch = next(batches)
            del batch
            if timed:
                took.append(time.perf_counter() - asked)
            if time.perf_counter() > until:
                break
            time.sleep(PAUSE_S)
    return statistics.mean(took)


class _Worker(NamedTuple):
    """The only one of a loader, newly started, nothing else being asked of the machine. Seconds."""

    fork_s: float  # to start it
    first_s: float  # from there to the first batch
    batch_s: float  # a batch, later
    again_s: float  # from asking for the first batch of a later epoch until it comes


def _fresh_worker(make: Make, refresh: Callable[[], None]) -> _Worker:
    loader = make(1, AHEAD, True)
    refresh()
    began = time.perf_counter()
    batches = iter(loader)
    forked = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    for _ in batches:  # untimed: a new worker copies the pages of memory that it touches
        if time.perf_counter() - first > WINDOW_S / 2:
            break
    batch_s = statistics.mean(_intervals(loader, refresh))
    again_s = statistics.mean(_again(loader, batch_s, refresh) for _ in range(AGAIN))
    return _Worker(forked - began, first - forked, batch_s, again_s)


def _again(loader: DataLoader, batch_s: float, refresh: Callable[[], None]) -> float:
    """After the worker was idle and something else was done, as validation is between epochs."""
    time.sleep(1.2 * AHEAD * batch_s)  # for what the last pass left it to do
    refresh()
    torch.ones(ELSE_BYTES // 4)
    time.sleep(PAUSE_S)
    batches = iter(loader)
    asked = time.perf_counter()
    next(batches)
    return time.perf_counter() - asked


class _Stamped:
    """A collate_fn that says when it was done."""

    def __init__(self, collate: Callable[[list[Any]], Any]):
        self.collate = collate

    def __call__(self, samples: list[Any]) -> tuple[Any, float]:
        return self.collate(samples), time.perf_counter()


def _late_s(make: Make, plain: DataLoader, others: int) -> float:
    """From a batch's end in the only worker, beside `others` plain processes, until a loop that waits for it has it; mean seconds."""
    loader = make(1, AHEAD, True)
    loader.collate_fn = _Stamped(loader.collate_fn)
    next(iter(loader))  # its first one starts what sends the others
    late: list[float] = []
    with Preparing(plain, others):
        until = time.perf_counter() + WINDOW_S / 2
        while time.perf_counter() < until or len(late) < FEWEST:
            for _, made in loader:
                late.append(time.perf_counter() - made)
                if time.perf_counter() > until and len(late) >= FEWEST:
                    break
    return statistics.mean(late)


class _Handed(NamedTuple):
    """What a batch that lies ready costs the loop, in seconds."""

    receive_s: float  # to take it
    release_s: float  # to let it go
    wake_s: float  # by which the loop wakes late after it waited for a moment


def _handed_over(make: Make, plain: DataLoader, batch_s: float, others: int, cores: int) -> _Handed:
    """By one worker beside `others` plain processes, where the loop is the slow side."""
    loader = make(1, AHEAD, True)
    slower = batch_s * max(1.0, (others + 1) / cores)
    next(iter(loader))  # or the first batches would wait for the worker's start
    handed: list[_Handed] = []
    with Preparing(plain, others):
        until = time.perf_counter() + WINDOW_S
        while time.perf_counter() < until or not handed:
            batches = iter(loader)
            time.sleep(1.2 * slower * AHEAD)  # they lie ready
            for _ in range(min(AHEAD, len(loader))):
                began = time.perf_counter()
                batch = next(batches)
                received = time.perf_counter()
                del batch
                released = time.perf_counter()
                pause_s = random.random() * slower / 2
                time.sleep(pause_s)  # the worker is on the next one
                handed.append(_Handed(received - began, released - received, time.perf_counter() - released - pause_s))
    return _Handed(*(statistics.mean(column) for column in zip(*handed, strict=True)))


def _intervals(loader: DataLoader, refresh: Callable[[], None]) -> list[float]:
    """Seconds from one batch of a pass to the next, each taken and let go at once; of a pass with a single one until it came."""
    found: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < WINDOW_S or len(found) < FEWEST:
        moments = _pass(loader, refresh)
        found += [later - earlier for earlier, later in itertools.pairwise(moments if len(moments) < 3 else moments[1:])]
    return found


def _pass(loader: DataLoader, refresh: Callable[[], None]) -> list[float]:
    """When the first batch was asked for and when each came, of a pass that ends with the data or after the window."""
    refresh()
    batches = iter(loader)
    moments = [time.perf_counter()]
    for batch in batches:
        moments.append(time.perf_counter())
        del batch
        if moments[-1] - moments[0] > WINDOW_S:
            break
    return moments


def _clips(loader: DataLoader) -> int:
    batch = next(iter(loader.batch_sampler))  # type: ignore[arg-type]
    return len(getattr(batch, "clips", batch))


def calibrate_step(
    step: Callable[[], None], threads: int, beside: LoaderCosts, loader: DataLoader, refresh: Callable[[], None] = lambda: None
) -> StepCosts:
    """A training step that computes on `threads` threads of the host, alone and while plain processes prepare batches of `loader`.

    `step` runs one to its end; `beside`: what preparing costs where no step runs; `refresh` as there.
    """
    step()
    counts = sorted({1, beside.cores})
    alone: list[list[float]] = []
    steps: dict[int, list[float]] = {count: [] for count in counts}
    paces: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(STEP_ROUNDS):
        alone.append(_steps(step))
        for count in counts:
            with Preparing(loader, count, WINDOW_S, refresh) as processes:
                steps[count] += _steps(step, processes.told)
                pace = processes.pace()
            paces[count].append(max(pace.wall_s - beside.read_s, pace.cpu_s))
    step_s = statistics.median(itertools.chain(*alone))  # now and then threads that wait for each other take ten times as long
    cpu_s = step_s / max(1.0, threads / beside.cores)
    prepare_s = beside.prepare_s * (1 - beside.sending)  # none of these processes sends its batches
    slower, preparing = [], []
    for count in counts:
        even = max(1.0, (threads + count) / beside.cores)
        slower.append((count, statistics.median(steps[count]) / (cpu_s * even)))
        preparing.append((count, statistics.mean(paces[count]) / (prepare_s * even)))
    of_rounds = [statistics.median(each) for each in alone]
    spread = (max(of_rounds) - min(of_rounds)) / 2 / step_s
    return StepCosts(cpu_s=cpu_s, threads=threads, beside=slower, prepare_beside=preparing, spread=spread)


def _steps(step: Callable[[], None], enough: Callable[[], bool] = lambda: True) -> list[float]:
    """Seconds of each step, over the window, at least two, and until `enough`."""
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < FEWEST_STEPS or time.perf_counter() - began < WINDOW_S or not enough():
        asked = time.perf_counter()
        step()
        took.append(time.perf_counter() - asked)
    return took
