"""Computes the record that ends a trial: its summary, and the cause of a divergence.

The summary holds the figures of the epochs (speech/epoch_figures.py), and the accuracies of the
snapshots and of their ensemble on the validation split.
"""

import math

from speech import snapshots
from speech.account import Account
from speech.config import Trial
from speech.continuation import Progress
from speech.cpu import usable_cores
from speech.divergence import MEND, Divergence
from speech.epoch import Record
from speech.epoch_figures import epoch_figures


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
