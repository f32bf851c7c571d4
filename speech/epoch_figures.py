"""Computes the figures of a trial's summary that follow from the metrics of its epochs.

They are medians over the timed epochs, and the peak of /dev/shm. The timed epochs are the warm ones
that nothing outside the trial disturbed; if all were disturbed, they are all warm epochs. Of a
trial that shares its cores with others on purpose, all warm epochs are timed. The module does not
import torch: what others did on a GPU is known only outside the trial's process tree, where the
figures are then computed again.
"""

import statistics
from collections.abc import Sequence

from speech.timing import SPANS
from speech.usage import is_disturbed

# Figure of the summary -> metric of which it is the median, over the timed epochs that have it
MEDIANS = {
    **{f"{span}_s": f"time/{span}_s" for span in ("epoch", *SPANS)},
    "clips_per_s": "rate/clips_per_s",
    "busy_fraction": "accelerator/busy_fraction",
    "stall_steps": "stall/steps",
    "max_gap_s": "stall/max_gap_s",
    "prefetch_hit_rate": "loader/prefetch_hit_rate",
    "main_cpu_s": "cpu/main_s",
    "worker_cpu_s": "cpu/worker_s",
    "batch_cpu_s": "cpu/batch_s",
    "read_bytes": "io/read_bytes",
    "throttled_s": "cpu/throttled_s",
    "throttled_fraction": "cpu/throttled_fraction",
    "gpu_utilisation": "gpu/utilisation",
    "gpu_memory_bytes": "gpu/memory_bytes",
}


def epoch_figures(
    epochs: Sequence[dict[str, float]], warmup_epochs: int, cores: float, alone: bool
) -> dict[str, float]:
    """Returns the figures of the summary that follow from the epochs' metrics.

    They are medians over the timed epochs, and the peak of /dev/shm over all epochs. `cores` is the
    CPU time that the trial had, in cores; `alone` means that it does not share them on purpose.
    """
    warm = epochs[warmup_epochs:]
    timed = [epoch for epoch in warm if not (alone and is_disturbed(epoch, cores))]
    figures = {"train_s": sum(epoch["time/epoch_s"] for epoch in epochs)}
    for name, metric in MEDIANS.items():
        values = [epoch[metric] for epoch in timed or warm if metric in epoch]
        if values:
            figures[name] = statistics.median(values)
    if batch_cpu_s := [epoch["cpu/batch_s"] for epoch in timed or warm if "cpu/batch_s" in epoch]:
        figures["batch_cpu_min_s"] = min(batch_cpu_s)
        figures["batch_cpu_max_s"] = max(batch_cpu_s)
    if warm:
        figures["disturbed_epochs"] = len(warm) - len(timed)
        waits = [
            (epoch["time/first_batch_s"] + epoch["time/data_wait_s"]) / epoch["time/epoch_s"]
            for epoch in timed or warm
        ]
        figures["wait_fraction"] = statistics.median(waits)
    outside_shares = [
        (epoch["cpu/external_fraction"], epoch["time/epoch_s"])
        for epoch in timed or warm
        if "cpu/external_fraction" in epoch
    ]
    if outside_shares:
        figures["external_cpu_fraction"] = sum(
            share * seconds for share, seconds in outside_shares
        ) / sum(seconds for _, seconds in outside_shares)
    peaks = [epoch["shm/peak_bytes"] for epoch in epochs if "shm/peak_bytes" in epoch]
    if peaks:
        figures["shm_peak_bytes"] = max(peaks)
    return figures
