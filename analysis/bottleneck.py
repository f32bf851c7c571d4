"""What bounds an epoch now, and what would help next: said of a row of table 2, with the figures it follows from.

The one idea is that each of four can be asked how much of the epoch it was at work for: the accelerator within its steps, the start of
workers with the fill before the first batch, and, where batches were not ready when the loop asked for them, the CPU preparing them, or
reads, if the loop waits for longer than anything computes and there were any. Whichever was at work longest bounds the epoch; below half
of it none does by itself. Workers that keep up bound nothing, however busy their cores. A rule that lacks a figure says nothing.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from analysis.page import decimals

HALF = 0.5  # of the epoch: what is at work for less doesn't bound it by itself
NOTABLE = 0.05  # of the epoch: a part worth a sentence of its own
NAMES = {
    "accelerator": "the accelerator",
    "preparation": "CPU preparation",
    "reads": "reads",
    "starting": "start-up and fill",
    "unknown": "waiting that these figures don't explain",
}
CHEAPER = {  # a form -> one whose clips take the workers less CPU (make bench-forms)
    "png": "the form packed or device, or wav, which take less CPU than png",
    "wav": "the form packed or device, which take less CPU than wav",
    "packed": "the form device, which takes less CPU than packed",
}


class Bound(NamedTuple):
    """What bounds the epochs of a row of table 2: a key of NAMES or 'several', how much of an epoch that is, and why, in words."""

    by: str
    share: float
    because: str
    next: str  # what would help, '' where nothing is known to


def bound(row: Any, trial: pd.Series) -> Bound | None:
    """Of a row of `epochs.epoch_parts`; `trial`: one of its trials, for its parameters. None where a figure is missing."""
    found = shares(row, trial)
    if not found:
        return None
    by = max(found, key=lambda name: found[name])
    if found[by] < HALF:
        parts = ", ".join(f"{NAMES[name]} {_percent(share)}" for name, share in sorted(found.items(), key=lambda item: -item[1]))
        return Bound("several", found[by], f"none by itself. At work for so much of an epoch: {parts}", "")
    return Bound(by, found[by], _because(by, row), _next(by, row, trial))


def shares(row: Any, trial: pd.Series) -> dict[str, float]:
    """Which part of the epoch each was at work for, by the keys of NAMES; empty where a figure is missing."""
    needed = [row.epoch_s, row.step_s, row.fill_s, row.wait_s, row.main_cpu_s, row.cores, row.machine_cores]
    needed += [row.start_s, row.preparing, row.occupancy] if row.num_workers else []
    if any(map(math.isnan, needed)):
        return {}
    found = {"accelerator": row.step_s} | (_of_workers(row, trial) if row.num_workers else _in_turn(row, trial))
    return {name: seconds / row.epoch_s for name, seconds in found.items()}


def _of_workers(row: Any, trial: pd.Series) -> dict[str, float]:
    """Seconds that workers were at work for; of batches that were ready it doesn't matter how."""
    starting = {"starting": row.start_s + row.fill_s}
    if row.occupancy >= HALF:
        return starting
    of_all = 0.0 if row.device == "cpu" else row.cores / row.machine_cores  # there the steps' threads are most of it
    computed_s = row.epoch_s * max(of_all, row.preparing)
    waiting = {"reads" if _read(row, trial) else "unknown": row.wait_s} if row.wait_s > computed_s else {}
    return starting | {"preparation": computed_s} | waiting


def _in_turn(row: Any, trial: pd.Series) -> dict[str, float]:
    """Without workers there is no start, and CPU time tells preparation from reads, since waiting takes none.

    What steps took is taken off it: on device cpu between one core and all threads, on cuda one, which waits for the device.
    """
    waited_s = row.fill_s + row.wait_s
    steps_s = row.step_s if row.device in ("cpu", "cuda") else row.step_s * _host_part(trial)
    most_s = row.main_cpu_s - steps_s
    least_s = most_s - (row.step_s * (float(trial.get("threads", 1)) - 1) if row.device == "cpu" else 0.0)
    read = _read(row, trial)
    if least_s >= HALF * waited_s or (most_s >= HALF * waited_s and not read):
        return {"preparation": waited_s}
    return {"reads" if read and most_s < HALF * waited_s else "unknown": waited_s}


def _host_part(trial: pd.Series) -> float:
    """The share of a paced step that is the host's CPU."""
    host_s, step_s = (float(trial.get(f"device.{name}", 0.0)) for name in ("host_s", "step_s"))
    return host_s / (host_s + step_s) if host_s > 0 else 0.0


def _read(row: Any, trial: pd.Series) -> bool:
    """Whether anything was read that could be waited for."""
    return row.read_bytes > 0 or trial.get("corpus.read_latency_s", 0.0) > 0


def words(found: Bound, who: str) -> str:
    """'What bounds an epoch of 2 workers: CPU preparation. 1.84 of 2 cores are at work ...'."""
    by = f"{NAMES[found.by]}. " if found.by in NAMES else ""
    return f"What bounds an epoch of {who}: {by}{found.because}." + (f" Next: {found.next}." if found.next else "")


def _because(by: str, row: Any) -> str:
    seconds, epoch = _seconds(row), _seconds(row)(row.epoch_s)
    busy = f"{row.cores:.2f} of {row.machine_cores:.0f} cores are at work"
    waits = f"the loop waits {seconds(row.fill_s + row.wait_s)} of {epoch} s for batches"
    match by:
        case "accelerator":
            where = "on the host's cores" if row.device == "cpu" else "of the accelerator"
            return f"Steps {where} take {seconds(row.step_s)} of {epoch} s, and {waits}"
        case "preparation" if row.device == "cpu" and not row.num_workers:
            return f"{waits[0].upper()}{waits[1:]}, which the same process prepares"
        case "preparation" if row.device == "cpu" or row.preparing > row.cores / row.machine_cores:  # more could compute than do
            return f"Each worker computes for {_percent(row.preparing)} of an epoch, and {waits}"
        case "preparation":
            return f"{busy[0].upper()}{busy[1:]}, and {waits}"
        case "reads":
            stored = f", {row.read_bytes / 2**20:,.1f} MiB an epoch come from storage" if row.read_bytes > 0 else ""
            return f"{waits[0].upper()}{waits[1:]} while {busy}{stored}"
        case "unknown":
            return f"{waits[0].upper()}{waits[1:]} while {busy}: look whether something else used the machine"
        case _:
            return f"Starting workers takes {seconds(row.start_s)} s and the first batch {seconds(row.fill_s)} s of {epoch} s"


def _next(by: str, row: Any, trial: pd.Series) -> str:
    said = [*_main_help(by, row, trial), *_persistence(row, trial), *_pinning(row, trial)]
    return "; ".join(said)


def _main_help(by: str, row: Any, trial: pd.Series) -> Iterator[str]:
    seconds = _seconds(row)
    spared = _percent((row.epoch_s - row.step_s) / row.epoch_s)
    match by:
        case "accelerator":
            yield f"a faster step. All else together is {spared} of the epoch"
        case "preparation":
            cheaper = CHEAPER.get(trial.get("loader.form"), "more cores, or clips that take less CPU")
            yield f"{cheaper}. At most {spared} can be spared: steps alone take {seconds(row.step_s)} s"
        case "reads":
            yield f"faster storage, or a warm page cache. At most {spared} can be spared: steps alone take {seconds(row.step_s)} s"
        case "starting" if row.fill_s >= row.start_s:
            yield f"smaller batches, which fill sooner: filling is {_percent(row.fill_s / row.epoch_s)} of the epoch"


def _persistence(row: Any, trial: pd.Series) -> Iterator[str]:
    if row.num_workers and trial.get("loader.persistent_workers") is False and row.start_s >= NOTABLE * row.epoch_s:
        yield f"persistent_workers, as starting them anew takes {_seconds(row)(row.start_s)} s of every epoch"


def _pinning(row: Any, trial: pd.Series) -> Iterator[str]:
    if row.device == "cuda" and trial.get("loader.pin_memory") is False:
        yield f"pin_memory, as copies that wait for the host are part of the {_seconds(row)(row.step_s)} s of steps"


def _seconds(row: Any) -> Any:
    digits = decimals(row.epoch_s)
    return lambda seconds: f"{seconds:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
