"""Combines what the ranks of a trial have measured of an epoch into the record of the trial.

The ranks wait for each other in every step, so the slowest one decides how long an epoch takes, and
all end it together. The times are those of the rank that waited longest for its batches: the others
have spent that time waiting for it, within their steps. The CPU time of a batch is that of the rank
whose batches took longest. What the machine
did is the sum over the ranks, or what rank 0 has seen of it: the other ranks and their workers are
its descendants. The raw steps of every rank are kept.
"""

import statistics
from collections.abc import Sequence

from speech import usage
from speech.epoch import EpochResult

SUMMED = ("cpu/main_s", "io/read_bytes")
# What rank 0 has read of the whole machine and of /dev/shm
OF_RANK_0 = (
    "cpu/external_fraction",
    "cpu/throttled_s",
    "cpu/throttled_fraction",
    "pressure/io_fraction",
    "pressure/memory_fraction",
    "shm/peak_bytes",
)


def combine_ranks(results: Sequence[EpochResult]) -> EpochResult:
    """Returns the epoch of all ranks as `run_epoch` returns that of one; `results` is by rank.

    The raw record is that of rank 0. It gains `ranks`: of every further rank its number, the start
    of its epoch after rank 0's, its metrics and its raw record. `first_not_finite` is the first of
    all ranks, since averaged gradients make the next step of every rank not finite too. If the rank
    is not 0, its number is `not_finite_rank`.
    """
    metrics_by_rank = [metrics for metrics, _, _ in results]
    slowest = max(metrics_by_rank, key=_wait_s)
    combined = {name: value for name, value in slowest.items() if name not in OF_RANK_0}
    own = metrics_by_rank[0]
    combined |= {name: own[name] for name in OF_RANK_0 if name in own}
    for name in SUMMED:
        if name in own:
            combined[name] = sum(metrics[name] for metrics in metrics_by_rank)
    if usage.read_descendant_cpu_s() is None:
        # Rank 0 has taken the other ranks for other programs
        combined.pop("cpu/external_fraction", None)
    if "cpu/worker_s" in own:
        combined["cpu/worker_s"] = _worker_cpu_s(metrics_by_rank)
    if "cpu/batch_s" in own:
        # All ranks end an epoch together, so its duration does not show which one was slow
        combined["cpu/batch_s"] = max(metrics["cpu/batch_s"] for metrics in metrics_by_rank)
    combined["rate/clips_per_s"] = len(results) * slowest["rate/clips_per_s"]
    if "loss/training" in own:
        combined["loss/training"] = statistics.mean(
            metrics["loss/training"] for metrics in metrics_by_rank
        )
    _, raw, began = results[0]
    others = [
        {
            "rank": rank,
            "began_s": round(other_began - began, 6),
            "metrics": {name: metrics[name] for name in metrics if name not in OF_RANK_0},
            **other_raw,
        }
        for rank, (metrics, other_raw, other_began) in enumerate(results[1:], 1)
    ]
    raw = raw | {"ranks": others}
    not_finite = [
        (other_raw["first_not_finite"], rank)
        for rank, (_, other_raw, _) in enumerate(results)
        if "first_not_finite" in other_raw
    ]
    if not_finite:
        raw["first_not_finite"], rank = min(not_finite)
        if rank:
            raw["not_finite_rank"] = rank
    return combined, raw, began


def _wait_s(metrics: dict[str, float]) -> float:
    """Returns the seconds that a rank waited for its batches."""
    return metrics["time/first_batch_s"] + metrics["time/data_wait_s"]


def _worker_cpu_s(metrics_by_rank: Sequence[dict[str, float]]) -> float:
    """Returns the CPU seconds of all loader workers.

    Where the kernel lists descendants, those of rank 0 are all workers and the other ranks.
    """
    workers_s = [metrics["cpu/worker_s"] for metrics in metrics_by_rank]
    if usage.read_descendant_cpu_s() is None:
        return sum(workers_s)
    others_s = sum(metrics["cpu/main_s"] for metrics in metrics_by_rank[1:])
    return max(workers_s[0] - others_s, 0.0)
