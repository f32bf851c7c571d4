"""Runs one timed pass over the training split, and measures how its time was spent.

A step of the timed loop reads one clock and makes at most one statvfs call. All other figures come
from elsewhere. The workers record fetches (speech/fetches.py), and the GPU records CUDA events. The
kernel's counters are read just before and just after the epoch (speech/usage.py). The device is
synchronised only at the end. The raw steps behind every figure are returned too.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from speech import usage
from speech.fetches import (
    Fetches,
    FetchLog,
    later_batches_cpu_s,
    prefetch_hit_rate,
    worker_values,
)
from speech.loading import choose_fetch
from speech.shm_usage import shm_usage
from speech.timing import Gauge, Interval, Timeline, accelerator_metrics

Record = dict[str, Any]
# Metrics, raw record and start of an epoch, see run_epoch
EpochResult = tuple[dict[str, float], Record, float]
SAMPLE_S = 0.01  # between two readings of /dev/shm; one takes a hundredth of a short step
StepFunction = Callable[[Any, int, int], torch.Tensor | None]  # (batch, epoch, step) -> loss


class Accelerator(Protocol):
    """Describes what executes the steps that the loop queues, if it is not the loop itself."""

    @property
    def skips_steps(self) -> bool:
        """Returns whether steps whose gradients are not finite are skipped."""

    def synchronise(self) -> None:
        """Waits until all queued steps have ended."""

    def take_busy_intervals(self) -> list[Interval] | None:
        """Returns the intervals in which steps ran since the last call, on time.perf_counter's
        clock. None if the loop executes the steps itself.
        """


def run_epoch(
    loader: DataLoader,
    run_step: StepFunction,
    epoch: int,
    accelerator: Accelerator | None,
    gauge: Gauge,
    log: FetchLog,
) -> EpochResult:
    """Runs one epoch; returns its metrics, its raw record and the time.perf_counter of its start.

    All times in the raw record are in seconds since the start of the epoch. The record holds:

    - `steps`, one value a step: request_s (moment of the request), data_wait_s, step_s and other_s.
      With workers it also has shm_bytes, the bytes of /dev/shm in use when the batch was received.
      The value is None if the last reading was less than SAMPLE_S before.
    - `busy`, the accelerator's busy intervals.
    - `fetches`, see speech.fetches.
    - `first_not_finite`, the number of the first step whose loss was not finite, if any.
    """
    gauge.take_shm_peak_bytes()
    before = usage.read_counters()
    timeline = Timeline()
    # The iterator stays alive until the function ends, as its end takes time and stops workers
    batches = iter(loader)
    passed = _run_steps(loader, batches, run_step, epoch, gauge, timeline)
    if accelerator:
        accelerator.synchronise()
        timeline.lap("step")
    after = usage.read_counters()
    steps = _steps(timeline, len(loader))
    if loader.num_workers:
        steps["shm_bytes"] = passed.shm_bytes
    fetches = log.take(timeline.began)
    busy = _busy_intervals(accelerator, steps, timeline.began)
    metrics = (
        timeline.metrics()
        | _loader_metrics(fetches, steps["request_s"])
        | _host_metrics(before, after, fetches)
    )
    metrics |= accelerator_metrics(busy, metrics["time/epoch_s"]) | {
        "rate/clips_per_s": passed.clips / metrics["time/epoch_s"]
    }
    peak = gauge.take_shm_peak_bytes()
    if peak is not None:
        metrics["shm/peak_bytes"] = peak
    loss_metrics, raw = _loss_figures(passed.losses, accelerator)
    columns = {"steps": steps, "busy": _columns(busy), "fetches": fetches}
    raw |= {name: _rounded(values) for name, values in columns.items()}
    return metrics | loss_metrics, raw, timeline.began


@dataclass
class _Passed:
    """Holds what the timed loop collects at its steps, beside their times."""

    losses: list[torch.Tensor] = field(default_factory=list)  # one a step that has a loss
    shm_bytes: list[int | None] = field(default_factory=list)  # see run_epoch
    clips: int = 0


def _run_steps(
    loader: DataLoader,
    batches: Iterator[Any],
    run_step: StepFunction,
    epoch: int,
    gauge: Gauge,
    timeline: Timeline,
) -> _Passed:
    """Runs the timed loop over the `batches` of `loader`; its laps are added to `timeline`."""
    passed, fetch = _Passed(), choose_fetch(loader)
    uses_shm = loader.num_workers > 0  # without workers no batch passes through /dev/shm
    sampled_at = -math.inf
    _, requested = timeline.lap("start")
    for step in range(len(loader)):
        gauge.begin_wait()
        batch = fetch(batches)
        gauge.end_wait()
        if uses_shm and requested - sampled_at >= SAMPLE_S:
            sampled_at = requested
            passed.shm_bytes.append(shm_usage().used_bytes)
        else:
            passed.shm_bytes.append(None)
        timeline.lap("data_wait" if step else "first_batch")
        loss = run_step(batch, epoch, step)
        timeline.lap("step")
        if loss is not None:
            passed.losses.append(loss)
        passed.clips += len(batch[1])
        del batch  # frees its space in /dev/shm before the next batch is requested
        _, requested = timeline.lap("other")
    return passed


def _busy_intervals(
    accelerator: Accelerator | None, steps: dict[str, list[Any]], began: float
) -> list[Interval]:
    """Returns the accelerator's busy intervals, in seconds since the epoch began.

    They are the loop's own steps if it executes them.
    """
    busy = accelerator.take_busy_intervals() if accelerator else None
    if busy is None:
        columns = (steps[name] for name in ("request_s", "data_wait_s", "step_s"))
        return [
            (request_s + wait_s, request_s + wait_s + step_s)
            for request_s, wait_s, step_s in zip(*columns, strict=True)
        ]
    return [(begin - began, end - began) for begin, end in busy]


def _columns(intervals: list[Interval]) -> dict[str, list[Any]]:
    """Returns intervals as two columns."""
    return {
        "begin_s": [begin for begin, _ in intervals],
        "end_s": [end for _, end in intervals],
    }


def _loss_figures(
    losses: list[torch.Tensor], accelerator: Accelerator | None
) -> tuple[dict[str, float], Record]:
    """Returns the metric of the training loss and the raw record's `first_not_finite`, if any."""
    if not losses:
        return {}, {}
    mean, first = _mean_loss(
        torch.stack(losses), skipping=bool(accelerator and accelerator.skips_steps)
    )
    return {"loss/training": mean}, {} if first is None else {"first_not_finite": first}


def _mean_loss(losses: torch.Tensor, skipping: bool) -> tuple[float, int | None]:
    """Returns the mean over the steps, and the first step whose loss is not finite, or None.

    `skipping`: a loss scaler skips non-finite steps in training, as a few occur with float16 at the
    start. The mean then covers only the finite steps, if there are any.
    """
    finite = losses.isfinite()
    if finite.all():
        return losses.mean().item(), None
    counted = losses[finite] if skipping and finite.any() else losses
    return counted.mean().item(), int((~finite).nonzero()[0])


def _steps(timeline: Timeline, count: int) -> dict[str, list[Any]]:
    """Returns the columns of `steps`.

    A step lasts from the request for its batch to the request for the next one.
    """
    laps = timeline.laps
    waits = laps["first_batch"] + laps["data_wait"]
    works, others = laps["step"][:count], laps["other"]
    whole = [sum(parts) for parts in zip(waits, works, others, strict=True)]
    requests = list(accumulate(whole[:-1], initial=laps["start"][0]))
    return {"request_s": requests, "data_wait_s": waits, "step_s": works, "other_s": others}


def _loader_metrics(fetches: Fetches, request_s: Sequence[float]) -> dict[str, float]:
    """Returns the loader's metrics: its prefetch hit rate, unless it has no workers, and the CPU
    time of its batches.
    """
    share = prefetch_hit_rate(fetches, request_s)
    metrics = {} if share is None else {"loader/prefetch_hit_rate": share}
    if batches_cpu_s := later_batches_cpu_s(fetches):
        metrics["cpu/batch_s"] = statistics.median(batches_cpu_s)
    return metrics


def _host_metrics(before: usage.Usage, after: usage.Usage, fetches: Fetches) -> dict[str, float]:
    """Returns the usage of the host's cores and disks, with the workers' part from `fetches`."""
    worker_cpu_s = worker_values(fetches, "cpu_s")
    return usage.usage_metrics(
        before,
        after,
        sum(worker_cpu_s) if worker_cpu_s else None,
        sum(worker_values(fetches, "read_bytes")),
    )


def _rounded(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Rounds all values to microseconds, the precision of the clock."""
    return {
        name: [None if value is None else round(value, 6) for value in values]
        for name, values in columns.items()
    }
