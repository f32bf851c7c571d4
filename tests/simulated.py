"""Sweeps that never ran: times drawn from a known law, in the SweepRuns that analysis starts from, so
that false differences can be counted."""

import numpy as np
import pandas as pd

from analysis.runs import SweepRuns
from analysis.trial_rows import SURROUNDINGS
from sweeps.metrics import SUMMARY


def simulated_sweep(
    seconds: dict[int, float], tables: int, repeats: int, drift: float, noise: float, seed: int
) -> SweepRuns:
    """`tables` sweeps, each as a block of its own, as `runs.sweep_runs` gives them.

    seconds: num_workers -> median epoch seconds. The law is log-normal; drift is the deviation that
    all trials of a repeat share, noise each trial's own.
    """
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, drift, (tables, repeats))
    rows = []
    for (table, repeat), of_repeat in np.ndenumerate(shared):
        for workers, median_s in seconds.items():
            rows.append(
                dict.fromkeys(SURROUNDINGS, "simulated")
                | dict.fromkeys(SUMMARY, float("nan"))
                | {
                    "sweep": "simulated",
                    "trial_id": f"{table} {workers} {repeat}",
                    "run_name": f"table {table} num_workers={workers} repeat {repeat + 1}",
                    "block": f"table {table}",
                    "repeat": repeat + 1,
                    "outcome": "completed",
                    "planned": True,
                    "disturbed": None,
                    "disturbances": 0,
                    "timed": True,
                    "forecast_fit": "fits",
                    "loader.num_workers": workers,
                    "epoch_s": median_s * np.exp(of_repeat + rng.normal(0, noise)),
                }
            )
    return SweepRuns("simulated", pd.DataFrame(rows), len(rows))
