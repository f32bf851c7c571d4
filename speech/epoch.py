"""One timed pass over the training split: what its time went into, and the raw steps behind every figure.

The timed loop reads one clock and at most one statvfs a step; all else is either counted by others (speech/fetches.py by the workers, CUDA
events by the GPU) or looked at just before and just after the epoch (speech/usage.py). Nothing here synchronises but the end.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader

from speech import usage
from speech.fetches import Fetches, FetchLog, occupancy, of_workers, shm_used_bytes
from speech.learner import Interval, Learner
from speech.timing import Gauge, Timeline, accelerator_metrics

Record = dict[str, Any]
SAMPLE_S = 0.01  # between looks at /dev/shm: they take a hundredth of a short step
Work = Callable[[Any, int, int], tuple[torch.Tensor | None, Interval | None]]  # (batch, epoch, step) -> loss, when the device was busy


def run_epoch(
    loader: DataLoader, work: Work, epoch: int, learner: Learner | None, gauge: Gauge, log: FetchLog
) -> tuple[dict[str, float], Record, float]:
    """Its metrics, its raw record and the moment of time.perf_counter at which its clock started.

    Raw: `steps` (a value a step: ask_s since the epoch began, wait_s, step_s, other_s, and with workers shm_bytes in use when the batch
    had come, None less than SAMPLE_S after the last look), `busy` (the accelerator's intervals) and `fetches` (see speech.fetches), all
    times in seconds since the epoch began.
    """
    gauge.take_shm_peak_bytes()
    busy: list[Interval] = []
    losses: list[torch.Tensor] = []
    shm: list[int | None] = []
    sampled = loader.num_workers > 0  # otherwise no batch travels through it
    looked = -math.inf
    clips = 0
    before = usage.look()
    timeline = Timeline()
    batches = iter(loader)
    _, asked = timeline.lap("start")
    for step in range(len(loader)):
        gauge.waiting()
        batch = next(batches)
        gauge.beat()
        if sampled and asked - looked >= SAMPLE_S:
            looked = asked
            shm.append(shm_used_bytes())
        else:
            shm.append(None)
        timeline.lap("wait" if step else "fill")
        loss, interval = work(batch, epoch, step)
        spent = timeline.lap("step")
        busy.append(interval or spent)
        if loss is not None:
            losses.append(loss)
        clips += len(batch[1])
        del batch  # its room in /dev/shm is free before the loader is asked for more
        _, asked = timeline.lap("other")
    if learner:
        learner.synchronise()
        timeline.lap("step")
    after = usage.look()
    steps = _steps(timeline, len(loader)) | ({"shm_bytes": shm} if sampled else {})
    fetches = log.take(timeline.began)
    metrics = timeline.metrics() | _of_loader(fetches, steps["ask_s"]) | _of_node(before, after, fetches)
    on_gpu = learner.take_busy() if learner else None
    begun = steps["ask_s"][0] + steps["wait_s"][0] if on_gpu else timeline.began  # a GPU counts from its first step
    busy = [(begin + begun, end + begun) for begin, end in on_gpu] if on_gpu else [(begin - begun, end - begun) for begin, end in busy]
    metrics |= accelerator_metrics(busy, metrics["time/epoch_s"]) | {"rate/clips_per_s": clips / metrics["time/epoch_s"]}
    peak = gauge.take_shm_peak_bytes()
    if peak is not None:
        metrics["shm/peak_bytes"] = peak
    if losses:
        metrics["loss/training"] = torch.stack(losses).mean().item()
    intervals = {"begin_s": [begin for begin, _ in busy], "end_s": [end for _, end in busy]}
    return metrics, {"steps": _rounded(steps), "busy": _rounded(intervals), "fetches": _rounded(fetches)}, timeline.began


def _steps(timeline: Timeline, count: int) -> dict[str, list[Any]]:
    """A step lasts from asking for its batch to asking for the next one."""
    laps = timeline.laps
    waits, works, others = laps["fill"] + laps["wait"], laps["step"][:count], laps["other"]
    whole = [sum(parts) for parts in zip(waits, works, others, strict=True)]
    asked = list(accumulate(whole[:-1], initial=laps["start"][0]))
    return {"ask_s": asked, "wait_s": waits, "step_s": works, "other_s": others}


def _of_loader(fetches: Fetches, asked: Sequence[float]) -> dict[str, float]:
    share = occupancy(fetches, asked)
    return {} if share is None else {"loader/occupancy": share}


def _of_node(before: usage.Usage, after: usage.Usage, fetches: Fetches) -> dict[str, float]:
    worker_cpu_s = of_workers(fetches, "cpu_s")
    return usage.usage_metrics(before, after, sum(worker_cpu_s) if worker_cpu_s else None, sum(of_workers(fetches, "read_bytes")))


def _rounded(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """To microseconds, which is what the clock is good for."""
    return {name: [None if value is None else round(value, 6) for value in values] for name, values in columns.items()}
