"""method: forecast measures only the trials whose forecast could change the recommendation; the others are foreseen, and marked.

The one idea is that a trial has to be in reach. What is recommended is the fewest workers, then the least /dev/shm, whose time can't be
told from the fastest (analysis/recommendation.py), so a trial whose epoch is slower than the fastest's even where its interval ends low
and the fastest's ends high decides nothing, and neither does one that is sure to overflow. All else is measured: every repeat of a
cell, every trial without a forecast, every trial of a block that compares something else than its epochs' time.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sweeps.forecast import Forecast
from sweeps.plan import TrialSpec
from sweeps.shm_fit import ShmFit

OF_EPOCHS = ("epoch_s", "clips_per_s")  # metrics that rank the trials of a group as their epochs' seconds do
OF_WORKERS = ("prefetch_factor", "start_method", "persistent_workers")  # of the loader: they mean nothing at 0 workers


def left_out(trials: Iterable[TrialSpec], forecasts: Mapping[str, Forecast], fits: Mapping[str, ShmFit]) -> frozenset[str]:
    """Keys of the trials that need not be measured."""
    timed = [trial for trial in trials if trial.metric.name in OF_EPOCHS]
    groups = _groups(timed)
    in_reach = {trial.key for group in groups for trial in group if trial.key not in forecasts}
    for group in groups:
        possible = [trial for trial in group if trial.key in forecasts and fits[trial.key].verdict != "overflows"]
        # one that may overflow, and so be no answer, puts nothing out of reach
        sure = [forecasts[trial.key].high_s for trial in possible if fits[trial.key].verdict == "fits"]
        in_reach |= {trial.key for trial in possible if forecasts[trial.key].low_s <= min(sure, default=float("inf"))}
    return frozenset(trial.key for trial in timed if trial.key not in in_reach)


def _groups(trials: list[TrialSpec]) -> list[list[TrialSpec]]:
    """Trials that one recommendation is made of: those of a block that differ in nothing but workers, /dev/shm and repeat. The trials
    without workers, of which there is one for all values of what concerns workers alone, belong to each group that they can."""
    groups: dict[str, list[TrialSpec]] = defaultdict(list)
    alone: dict[str, list[TrialSpec]] = defaultdict(list)
    wider: dict[str, str] = {}
    for trial in trials:
        dump = trial.config.model_dump(mode="json")
        for key in ("num_workers", "shm_size"):
            del dump["loader"][key]
        narrow = json.dumps([trial.block, dump])
        for key in OF_WORKERS:
            del dump["loader"][key]
        wide = json.dumps([trial.block, dump])
        if trial.config.loader.num_workers:
            groups[narrow].append(trial)
            wider[narrow] = wide
        else:
            alone[wide].append(trial)
    with_workers = [group + alone[wider[narrow]] for narrow, group in groups.items()]
    return with_workers + [group for wide, group in alone.items() if wide not in wider.values()]
