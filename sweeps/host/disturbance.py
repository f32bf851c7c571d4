"""Decides whether something outside a trial disturbed its timed epochs.

A disturbed epoch is not counted (speech/end_record.py). A trial without an undisturbed epoch is
flagged and runs once more; both runs stay in the tracker. The decision depends on the activity of
the rest of the machine, never on a duration. Discarding slow trials would make every table look
better than it is. A trial disturbed twice stays flagged, and tables report the flag.
"""

from collections.abc import Iterable
from typing import Any

from speech.usage import EXTERNAL_LIMIT, MEMORY_LIMIT, external_limit, is_disturbed
from sweeps.metrics import METRICS


def disturbance(
    summary: dict[str, float], epochs: Iterable[dict[str, Any]], cores: float = 1.0
) -> str | None:
    """Returns the causes of a trial's disturbance as text, or None for a trial with an undisturbed
    epoch.

    `epochs` are the trial's epoch records, and `cores` is the CPU time that it had, in cores.

    Throttling by a quota is no disturbance: a trial that needs more than its quota is throttled in
    every run, and its times are correct for this machine. Use of the same quota by other processes
    is a disturbance: it counts as use outside the trial (speech/usage.py).
    """
    warm = [epoch["metrics"] for epoch in epochs if not epoch["warmup"]]
    if not all(is_disturbed(epoch, cores) for epoch in warm):
        return None
    causes = []
    outside = summary.get("external_cpu_fraction", 0.0)
    if outside > external_limit(cores):
        causes.append(
            f"other processes used {100 * outside:.0f} % of its"
            f" {'CPU quota' if 'throttled_s' in summary else 'cores'}"
        )
    waits = [epoch.get("pressure/memory_fraction", 0.0) for epoch in warm]
    if waits and max(waits) > MEMORY_LIMIT:
        causes.append(f"tasks of the node waited for memory {100 * max(waits):.0f} % of an epoch")
    shares = [epoch.get("gpu/external_fraction", 0.0) for epoch in warm]
    if shares and max(shares) > EXTERNAL_LIMIT:
        causes.append(f"other processes computed on its GPU {100 * max(shares):.0f} % of an epoch")
    return ", ".join(causes) or None


def is_timing(metric: str) -> bool:
    """Returns whether a disturbance distorts a block's metric.

    It distorts times and rates, but not accuracies or bytes.
    """
    return METRICS[metric][0] in ("s", "1/s") or metric in (
        "wait_fraction",
        "busy_fraction",
        "prefetch_hit_rate",
    )
