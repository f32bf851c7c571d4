"""Models how much faster workers can make an epoch, and measures the model's costs of a batch.

The one idea is a bound that no number of workers passes: workers prepare batches beside the step.
The ratio r = s·C / (b·c) is the step's seconds over those in which all cores prepare its batch. An
epoch with this ratio gets at most `max_speedup` times as fast.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from analysis.number_text import percent
from analysis.timed_trials import timed_trials
from analysis.tradeoff import WORKERS

# blocks of sweeps/examples/article.yaml that differ in the step alone
RATIOS = {"quarter": "r/4", "ratio": "r", "fourfold": "4r"}
NONE, FEW, MANY = 0, 8, 64  # workers that the article compares

ARTICLE_MIN = {NONE: 80.0, FEW: 3.2}  # the article's minutes for an epoch, by workers
ARTICLE_CORES = 8  # not a figure of the article: the number of workers that was best

# a block's trials, which differ only in workers, /dev/shm and repeat
Blocks = Mapping[str, pd.DataFrame]


class Costs(NamedTuple):
    """Costs of a batch without workers, as the median over trials."""

    step_s: float
    prepare_s: float  # includes reading
    batch_size: int
    cores: float

    @property
    def ratio(self) -> float:
        """The ratio r: the step's seconds over those in which all cores prepare its batch."""
        return self.step_s * self.cores / self.prepare_s


def max_speedup(workers: int, cores: float, ratio: float) -> float:
    """Returns how many times faster an epoch can get with `workers` that compute than with none.

    Assumes that each worker prepares a batch as fast as the loop did. A batch takes b·c + s without
    workers, and with them at least the longer of s and b·c / min(workers, cores). Over all r the
    maximum is min(workers, cores) + 1. Workers that only wait for reads need no core, and reach
    workers + 1.
    """
    step = ratio / cores  # in units of b·c
    return (1 + step) / max(step, 1 / min(workers, cores))


def costs(trials: pd.DataFrame) -> Costs | None:
    """Returns the costs of a batch from the trials without workers; None if none has a time."""
    baseline = timed_trials(trials[trials[WORKERS] == NONE])
    if baseline.empty or baseline[
        ["first_batch_s", "data_wait_s", "step_s", "clips_per_s"]
    ].isna().any(axis=None):
        return None
    size = int(baseline["loader.batch_size"].iloc[0])
    batches = baseline["clips_per_s"] * baseline["epoch_s"] / size
    step_s, prepare_s = (
        (baseline["step_s"] / batches).median(),
        ((baseline["first_batch_s"] + baseline["data_wait_s"]) / batches).median(),
    )
    return Costs(float(step_s), float(prepare_s), size, float(baseline["cores"].iloc[0]))


def percent_saved(times: float) -> str:
    """Returns the share of time that a speedup saves: 25 times as fast -> '96 %'."""
    return percent(1 - 1 / times)


def two_digits(value: float) -> str:
    """Returns the value with two significant digits."""
    return f"{value:.2g}"
