"""Computes the record that ends a trial: its summary, and the cause of a divergence.

The summary holds medians over the timed epochs, the peak of /dev/shm, and the accuracies of the
snapshots and of their ensemble on the validation split. The timed epochs are the warm ones that
nothing outside the trial disturbed; if all were disturbed, they are all warm epochs. Of a trial
that shares its cores with others on purpose, all warm epochs are timed.
"""

import math
import statistics
from collections.abc import Sequence

from speech import snapshots
from speech.account import Account
from speech.config import Trial
from speech.continuation import Progress
from speech.cpu import usable_cores
from speech.divergence import MEND, Divergence
from speech.epoch import Record
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


def end_record(
    trial: Trial, progress: Progress, divergence: Divergence | None, learns: bool, account: Account
) -> Record:
    """Returns the end record of a trial; `learns` is False for a simulated accelerator.

    `cycles_without_member` lists the cycles that contributed no member to the ensemble. `diverged`
    states the cause in a sentence. Both are absent if every cycle contributed a member.
    """
    ensemble, cycles = progress.ensemble, range(len(trial.config.sgdr.cycles()))
    finite = ensemble.finite() if ensemble else []
    missing_cycles = (
        [cycle for cycle in cycles if cycle >= len(finite) or not finite[cycle]] if learns else []
    )
    summary = epoch_figures(progress.epochs, trial.warmup_epochs, usable_cores(), trial.alone)
    if ensemble:
        summary |= _accuracies(ensemble, missing_cycles, account)
    if missing_cycles:
        summary["diverged_snapshots"] = len(missing_cycles)
    end: Record = {"kind": "end", "summary": summary}
    if ensemble and any(finite):
        end["confusion"] = ensemble.confusion()
    if missing_cycles:
        end["cycles_without_member"] = missing_cycles
        end["diverged"] = _describe_divergence(trial, len(progress.epochs), divergence, end)
    return end


def _describe_divergence(
    trial: Trial, trained: int, divergence: Divergence | None, end: Record
) -> str:
    """Returns a sentence on the cause of the divergence and its effect on epochs and ensemble.

    `trained` is the number of trained epochs; `end` is the end record without this sentence.
    """
    config, missing_cycles = trial.config.sgdr, end["cycles_without_member"]
    cycle_numbers = ", ".join(str(cycle + 1) for cycle in missing_cycles)
    cause = (
        f"{divergence}"
        if divergence
        else f"predictions on validation were not finite at the end of cycle {cycle_numbers}"
    )
    shortened = (
        f", trained for {trained} of {config.epochs} epochs" if trained < config.epochs else ""
    )
    cycles = len(config.cycles())
    members = (
        f"; the ensemble has {cycles - len(missing_cycles)} of {cycles} snapshots"
        if "confusion" in end
        else ""
    )
    return f"{cause}{shortened}{members}; {MEND}"


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


def _accuracies(
    ensemble: snapshots.Ensemble, missing_cycles: list[int], account: Account
) -> dict[str, float]:
    """Returns the accuracies of the snapshots and of their ensemble on the validation split.

    `missing_cycles` are the cycles that contributed no member to the ensemble. If the last cycle is
    among them, the last snapshot's accuracy is absent. If no cycle contributed a member, all
    accuracies are absent.
    """
    accuracies = [accuracy for accuracy in ensemble.accuracies() if not math.isnan(accuracy)]
    if not accuracies:
        return {}
    figures = {
        "best_snapshot_accuracy": max(accuracies),
        "ensemble_accuracy": snapshots.accuracy(ensemble.mean(), ensemble.labels),
    } | account.accuracy_context()
    if not missing_cycles or len(ensemble.members) - 1 > max(missing_cycles):
        figures["accuracy"] = accuracies[-1]
    return figures
