"""Finds what bounds an epoch and what would help next, for a row of table 2.

The one idea is that the share of the epoch in which each of four causes was at work can be
computed. The causes are the accelerator within its steps, the start of workers and the wait for the
first batch, CPU preparation, and reads. Preparation counts only where batches were not ready
when the loop requested them. Reads count if the loop waits for longer than anything computes and
something was read. The cause with the largest share bounds the epoch; below half of it, none does
by itself. Workers that keep up bound nothing, however busy their cores are. A rule that lacks a
figure gives no result.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from analysis.number_text import decimals, mib, percent

HALF = 0.5  # of the epoch: a cause below this does not bound it by itself
NOTABLE = 0.05  # of the epoch: a part above this gets a sentence of its own
NAMES = {
    "accelerator": "the accelerator",
    "preparation": "CPU preparation",
    "reads": "reads",
    "starting": "start-up and first batch",
    "unknown": "waiting that these figures don't explain",
}
CHEAPER = {  # format -> formats whose clips need less CPU of the workers (make bench-formats)
    "png": "the format packed or on_device, or wav, which take less CPU than png",
    "wav": "the format packed or on_device, which take less CPU than wav",
    "packed": "the format on_device, which takes less CPU than packed",
}


class Bound(NamedTuple):
    """The bound on the epochs of a row of table 2.

    `by` is a key of NAMES or 'several', `share` its share of an epoch, `because` the reason in
    words.
    """

    by: str
    share: float
    because: str
    next: str  # what would help; '' if nothing is known


def find_bound(row: Any, trial: pd.Series) -> Bound | None:
    """Returns the bound for a row of `epochs.epoch_parts`; None if a figure is missing.

    `trial` is one of the row's trials and supplies the parameters.
    """
    fractions = shares(row, trial)
    if not fractions:
        return None
    by = max(fractions, key=lambda name: fractions[name])
    if fractions[by] < HALF:
        parts = ", ".join(
            f"{NAMES[name]} {percent(share)}"
            for name, share in sorted(fractions.items(), key=lambda item: -item[1])
        )
        return Bound(
            "several",
            fractions[by],
            f"no single cause. Shares of an epoch: {parts}",
            "",
        )
    return Bound(by, fractions[by], _reason(by, row), _remedies(by, row, trial))


def shares(row: Any, trial: pd.Series) -> dict[str, float]:
    """Returns the share of the epoch in which each cause was at work, by the keys of NAMES.

    The result is empty if a figure is missing.
    """
    needed = [
        row.epoch_s,
        row.step_s,
        row.busy_fraction,
        row.first_batch_s,
        row.data_wait_s,
        row.main_cpu_s,
        row.cores,
        row.machine_cores,
    ]
    needed += [row.start_s, row.preparing, row.prefetch_hit_rate] if row.num_workers else []
    if any(map(math.isnan, needed)):
        return {}
    busy_s = {"accelerator": _accelerator_s(row)} | (
        _seconds_with_workers(row, trial)
        if row.num_workers
        else _seconds_without_workers(row, trial)
    )
    return {name: seconds / row.epoch_s for name, seconds in busy_s.items()}


def _accelerator_s(row: Any) -> float:
    """Returns the seconds of an epoch in which the accelerator works.

    If the loop runs ahead, these are more than the loop spends in its steps.
    """
    return max(row.step_s, row.busy_fraction * row.epoch_s)


def _seconds_with_workers(row: Any, trial: pd.Series) -> dict[str, float]:
    """Returns the seconds for which workers were at work, by cause.

    Where batches were ready, how they were prepared does not matter, so only the start counts.
    """
    starting = {"starting": row.start_s + row.first_batch_s}
    if row.prefetch_hit_rate >= HALF:
        return starting
    # On device cpu the steps' threads use most of the cores.
    core_fraction = 0.0 if row.device == "cpu" else row.cores / row.machine_cores
    computed_s = row.epoch_s * max(core_fraction, row.preparing)
    waiting = (
        {"reads" if _has_reads(row, trial) else "unknown": row.data_wait_s}
        if row.data_wait_s > computed_s
        else {}
    )
    return starting | {"preparation": computed_s} | waiting


def _seconds_without_workers(row: Any, trial: pd.Series) -> dict[str, float]:
    """Returns the seconds that the loop waited, attributed to preparation or reads.

    Without workers there is no start, and CPU time tells preparation from reads, since waiting
    takes none. The CPU time of the steps is subtracted. On device cpu it lies between one core and
    all threads. On cuda it is one core, which waits for the device.
    """
    waited_s = row.first_batch_s + row.data_wait_s
    steps_s = row.step_s if row.device in ("cpu", "cuda") else _host_cpu_s(row, trial)
    ranks = trial.get("device.ranks", 1)  # each prepares for itself
    most_s = row.main_cpu_s / (ranks if pd.notna(ranks) else 1) - steps_s
    least_s = most_s - (
        row.step_s * (float(trial.get("threads", 1)) - 1) if row.device == "cpu" else 0.0
    )
    has_reads = _has_reads(row, trial)
    if least_s >= HALF * waited_s or (most_s >= HALF * waited_s and not has_reads):
        return {"preparation": waited_s}
    return {"reads" if has_reads and most_s < HALF * waited_s else "unknown": waited_s}


def _host_cpu_s(row: Any, trial: pd.Series) -> float:
    """Returns the CPU seconds of the host in the simulated steps of an epoch."""
    host_cpu_s, step_s = (
        float(trial.get(f"device.{name}", 0.0)) for name in ("host_cpu_s", "step_s")
    )
    if not step_s:
        return row.step_s
    steps = row.busy_fraction * row.epoch_s / step_s
    return steps * host_cpu_s


def _has_reads(row: Any, trial: pd.Series) -> bool:
    """Returns whether anything was read that the loop could have waited for."""
    return row.read_bytes > 0 or trial.get("corpus.read_latency_s", 0.0) > 0


def describe_bound(bound: Bound, subject: str) -> str:
    """Returns for example 'What bounds an epoch of 2 workers: CPU preparation. 1.84 of ...'."""
    by = f"{NAMES[bound.by]}. " if bound.by in NAMES else ""
    return f"What bounds an epoch of {subject}: {by}{bound.because}." + (
        f" Next: {bound.next}." if bound.next else ""
    )


def _reason(by: str, row: Any) -> str:
    """Returns why the cause `by` bounds the epoch, with the figures that show it."""
    seconds, epoch = _seconds_format(row), _seconds_format(row)(row.epoch_s)
    busy = f"{row.cores:.2f} of {row.machine_cores:g} cores are at work"
    waits = (
        f"the loop waits {seconds(row.first_batch_s + row.data_wait_s)} of {epoch} s for batches"
    )
    match by:
        case "accelerator":
            where = "on the host's cores" if row.device == "cpu" else "of the accelerator"
            return f"Steps {where} take {seconds(_accelerator_s(row))} of {epoch} s, and {waits}"
        case "preparation" if row.device == "cpu" and not row.num_workers:
            return f"{waits[0].upper()}{waits[1:]}, which the same process prepares"
        # more workers could compute than do
        case "preparation" if row.device == "cpu" or row.preparing > row.cores / row.machine_cores:
            return f"Each worker computes for {percent(row.preparing)} of an epoch, and {waits}"
        case "preparation":
            return f"{busy[0].upper()}{busy[1:]}, and {waits}"
        case "reads":
            stored = (
                f", {mib(row.read_bytes)} an epoch come from storage" if row.read_bytes > 0 else ""
            )
            return f"{waits[0].upper()}{waits[1:]} while {busy}{stored}"
        case "unknown":
            return (
                f"{waits[0].upper()}{waits[1:]} while {busy}: check whether something else used the"
                " machine"
            )
        case _:
            return (
                f"Starting workers takes {seconds(row.start_s)} s and the first batch"
                f" {seconds(row.first_batch_s)} s of {epoch} s"
            )


def _remedies(by: str, row: Any, trial: pd.Series) -> str:
    """Returns the remedies in words, separated by semicolons; '' if none is known."""
    texts = [
        *_main_remedy(by, row, trial),
        *_persistence_remedy(row, trial),
        *_pinning_remedy(row, trial),
    ]
    return "; ".join(texts)


def _main_remedy(by: str, row: Any, trial: pd.Series) -> Iterator[str]:
    """Yields the remedy for the cause `by`, with the most that it can save."""
    seconds = _seconds_format(row)
    steps_s = _accelerator_s(row)
    spared = percent((row.epoch_s - steps_s) / row.epoch_s)
    match by:
        case "accelerator":
            yield f"a faster step. The other parts together take {spared} of the epoch"
        case "preparation":
            cheaper = CHEAPER.get(
                trial.get("loader.format"), "more cores, or clips that take less CPU"
            )
            yield (
                f"{cheaper}. At most {spared} can be saved: steps alone take {seconds(steps_s)} s"
            )
        case "reads":
            yield (
                f"faster storage, or a warm page cache. At most {spared} can be saved: steps alone"
                f" take {seconds(steps_s)} s"
            )
        case "starting" if row.first_batch_s >= row.start_s:
            yield (
                "smaller batches, so that the first arrives sooner: it takes"
                f" {percent(row.first_batch_s / row.epoch_s)} of the epoch"
            )


def _persistence_remedy(row: Any, trial: pd.Series) -> Iterator[str]:
    """Yields persistent workers as a remedy if starting them takes a notable share."""
    if (
        row.num_workers
        and trial.get("loader.persistent_workers") is False
        and row.start_s >= NOTABLE * row.epoch_s
    ):
        yield (
            f"persistent_workers: starting new workers takes {_seconds_format(row)(row.start_s)} s"
            " of every epoch"
        )


def _pinning_remedy(row: Any, trial: pd.Series) -> Iterator[str]:
    """Yields pinned memory as a remedy on cuda if it is switched off."""
    if row.device == "cuda" and trial.get("loader.pin_memory") is False:
        yield (
            "pin_memory: copies that wait for the host are part of the"
            f" {_seconds_format(row)(row.step_s)} s of steps"
        )


def _seconds_format(row: Any) -> Any:
    """Returns a function that formats seconds with the decimals of this row's epoch."""
    digits = decimals(row.epoch_s)
    return lambda seconds: f"{seconds:.{digits}f}"
