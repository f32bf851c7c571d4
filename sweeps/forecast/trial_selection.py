"""Selects the trials that `method: forecast` need not measure; they are only forecast, and marked.

A trial is measured only if it is expected to matter for the recommendation. The recommendation is
the fewest workers, then the least /dev/shm, whose time cannot be distinguished from the fastest
(analysis/recommendation.py). Three kinds of trials are not expected to matter:

- A trial that is slower than the fastest even if both forecasts are wrong by RELATIVE_ERROR.
- A trial that is forecast to be slower than one with fewer workers, by more than NO_SLOWER. To be
  recommended it would have to be clearly faster.
- A trial that certainly overflows /dev/shm.

The intervals of the forecasts are too wide for this comparison. Most of their width is the speed of
the machine, and a slower machine makes both trials slower.

All other trials are measured: every repeat of a cell, every trial without a forecast, and every
trial of a block that compares something other than the time of its epochs.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sweeps.config.plan import TrialSpec
from sweeps.forecast.forecast import Forecast
from sweeps.forecast.shm_fit import ShmRequirement
from sweeps.trial_states import ShmVerdict

# Error of a forecast in relation to another one by the same calibration
RELATIVE_ERROR = 0.06
# Part by which a trial with more workers may be forecast to be slower, and is still measured
NO_SLOWER = 0.01
# Metrics that rank the trials of a group as the seconds of their epochs do
EPOCH_TIME_METRICS = ("epoch_s", "clips_per_s")
# Loader settings without a meaning at 0 workers
WORKER_SETTINGS = ("prefetch_factor", "start_method", "persistent_workers")


def skippable_trials(
    trials: Iterable[TrialSpec],
    forecasts: Mapping[str, Forecast],
    requirements: Mapping[str, ShmRequirement],
) -> frozenset[str]:
    """Returns the keys of the trials that need not be measured."""
    timed = [trial for trial in trials if trial.metric.name in EPOCH_TIME_METRICS]
    groups = _groups(timed)
    in_reach = {
        trial.trial_id for group in groups for trial in group if trial.trial_id not in forecasts
    }
    for group in groups:
        possible = [
            trial
            for trial in group
            if trial.trial_id in forecasts
            and requirements[trial.trial_id].verdict != ShmVerdict.OVERFLOWS
        ]
        # A trial that may overflow is perhaps no valid choice, so it rules out no other trial
        certain = [
            (trial.config.loader.num_workers, forecasts[trial.trial_id].epoch_s)
            for trial in possible
            if requirements[trial.trial_id].verdict == ShmVerdict.FITS
        ]
        for trial in possible:
            workers, epoch_s = (
                trial.config.loader.num_workers,
                forecasts[trial.trial_id].epoch_s,
            )
            fastest_s = min((seconds for _, seconds in certain), default=math.inf)
            with_fewer_s = min(
                (seconds for fewer, seconds in certain if fewer < workers), default=math.inf
            )
            if (1 - RELATIVE_ERROR) * epoch_s <= (1 + RELATIVE_ERROR) * fastest_s and epoch_s <= (
                1 + NO_SLOWER
            ) * with_fewer_s:
                in_reach.add(trial.trial_id)
    return frozenset(trial.trial_id for trial in timed if trial.trial_id not in in_reach)


def _groups(trials: list[TrialSpec]) -> list[list[TrialSpec]]:
    """Groups trials by the recommendation that they serve.

    The trials of a group differ only in workers, /dev/shm and repeat, and belong to one block. A
    trial without workers stands for all values of WORKER_SETTINGS. It therefore belongs to every
    group that matches its other parameters.
    """
    groups: dict[str, list[TrialSpec]] = defaultdict(list)
    without_workers: dict[str, list[TrialSpec]] = defaultdict(list)
    wider: dict[str, str] = {}
    for trial in trials:
        dump = trial.config.model_dump(mode="json")
        for key in ("num_workers", "shm_size"):
            del dump["loader"][key]
        narrow = json.dumps([trial.block, dump])
        for key in WORKER_SETTINGS:
            del dump["loader"][key]
        wide = json.dumps([trial.block, dump])
        if trial.config.loader.num_workers:
            groups[narrow].append(trial)
            wider[narrow] = wide
        else:
            without_workers[wide].append(trial)
    with_workers = [group + without_workers[wider[narrow]] for narrow, group in groups.items()]
    return with_workers + [
        group for wide, group in without_workers.items() if wide not in wider.values()
    ]
