"""Whether something outside a trial disturbed its timed epochs. Such a trial is flagged and runs once more; both runs are kept.

The decision looks at what the rest of the machine did, never at how long the trial took: throwing slow trials out would make every
table look better than it is. A trial disturbed twice stays flagged, and tables say so.
"""

from collections.abc import Iterable
from typing import Any

from sweeps.metrics import METRICS

OUTSIDE_LIMIT = 0.1  # of the trial's cores; a quiet launch's own processes took 0.02 to 0.04 of two in the 27 timed trials of sweep.yaml
MEMORY_LIMIT = 0.05  # of the time


def disturbance(summary: dict[str, float], epochs: Iterable[dict[str, Any]]) -> str | None:
    """What disturbed a trial, in words; None where nothing did. `epochs`: its epoch records."""
    found = []
    outside = summary.get("outside_fraction", 0.0)
    if outside > OUTSIDE_LIMIT:
        found.append(f"other processes used {100 * outside:.0f} % of its cores")
    warm = [epoch["metrics"] for epoch in epochs if not epoch["warmup"]]
    waits = [epoch["pressure/memory_fraction"] for epoch in warm if "pressure/memory_fraction" in epoch]
    if waits and max(waits) > MEMORY_LIMIT:
        found.append(f"tasks of the node waited for memory {100 * max(waits):.0f} % of an epoch")
    return ", ".join(found) or None


def is_timing(metric: str) -> bool:
    """Whether a disturbance spoils what a block is after: times and rates, not accuracies or bytes."""
    return METRICS[metric][0] in ("s", "1/s") or metric in ("wait_fraction", "busy_fraction", "occupancy")
