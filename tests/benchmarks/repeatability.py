"""make bench-repeatability: can the table be believed?

The workers block of the default sweep.yaml runs twice, from nothing, each time into a tracker of
its own: do both tables hold the same medians, and the same recommendation? Then one point runs
under two names. loader.pin_memory has no effect without a GPU, so its false and its true are the
same trial (an A/A test), shuffled among each other; a difference that is distinguishable there is a
false one. The same pairs, drawn three at a time with their two names swapped at random, make 200
tables more: about one in twenty may be distinguishable. Last line: the figures as one JSON object. 100
trials, and a disturbed one runs again; --set and --repeats make it smaller for a look.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tabulate import tabulate

from analysis.recommendation import WorkerAdvice, advise_workers, sentences
from analysis.runs import SweepRuns, sweep_runs
from analysis.statistics import FEWEST_PAIRS, mean_interval, paired_change
from analysis.text_tables import WIDTH
from analysis.timed_trials import epoch_seconds
from analysis.tradeoff import WORKERS, epoch_times, groups
from sweeps.config.yaml_source import read
from tests.benchmarks.report import Bar, at_most, print_report

ROOT = Path(__file__).parent.parent.parent
BLOCK = "workers"
APART = 0.05  # of the first median: cells that differ by more are flagged
# of the one point: its two names, complete passes over them, its worker counts
NAMES, REPEATS, COUNTS = (False, True), 10, (0, 2)
TABLES = 200  # drawn from its trials
EXPERIMENTS = 100  # simulated beside it


class Launched(NamedTuple):
    """A sweep that has run."""

    runs: SweepRuns
    took_s: float

    @property
    def disturbed(self) -> int:
        return int((self.runs.trials["disturbances"] > 0).sum())


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Runs the default sweep twice and one point under two names."
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as launch.py's, for all three sweeps",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        help="of the point with two names (default: %(default)s)",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        twice = [launch(Path(scratch, name), given.set) for name in ("first", "second")]
        same = launch(Path(scratch, "same"), given.set + one_point(given.repeats))
    cells = compare(*(each.runs for each in twice))
    advised = [sentence for each in twice for sentence in sentences(each.runs, markdown=True)]
    alike = choices(twice[0].runs) == choices(twice[1].runs)
    rows = [name_against_name(same.runs.trials, workers) for workers in COUNTS]
    ratios = [log_ratios(same.runs.trials, workers) for workers in COUNTS]
    false, (low, high) = (
        false_share(ratios, np.random.default_rng(0)),
        by_chance([len(each) for each in ratios]),
    )
    print("\n\nThe default sweep's workers block, twice\n")
    print(tabulate(cells, headers="keys", floatfmt=".3f", missingval="-"))
    flagged = sum(bool(cell["flag"]) for cell in cells)
    print(f"\n{flagged} of {len(cells)} cells flagged.\n")
    print("\n".join(textwrap.fill(each, WIDTH) for each in advised))
    print(f"The recommendation is {'the same' if alike else 'NOT the same'}.")
    print("\nOne point under two names: pin_memory true against false\n")
    print(tabulate([told(row) for row in rows], headers="keys", floatfmt=".3f"))
    print(
        f"\nIn {TABLES} tables drawn from these pairs, {FEWEST_PAIRS} repeats each, {false:.1%} of"
        " the comparisons are distinguishable."
    )
    print(
        f"Nominal: 5.0%; equal times of a known law, as many pairs: {low:.1%} to {high:.1%} in nine"
        " experiments of ten."
    )
    print(
        f"{[each.disturbed for each in (*twice, same)]} trials disturbed,"
        f" {[round(each.took_s) for each in (*twice, same)]} s"
    )
    figures = {
        "cells": cells,
        "recommendations": advised,
        "same_recommendation": alike,
        "one_point_two_names": rows,
        "false_share": false,
        "false_share_by_chance": [low, high],
        "tables": TABLES,
        "disturbed": [each.disturbed for each in (*twice, same)],
        "took_s": [each.took_s for each in (*twice, same)],
    }
    same_text = "the same" if alike else "another"
    bars = [
        Bar("recommendation of the second run", "the same", same_text, alike),
        at_most("one point under two names, told apart", high, false, "{:.1%}"),
    ]
    packages = ["ray", "torch", "mlflow"]
    print_report("repeatability", figures, bars, packages, set=given.set)
    return 0


def launch(folder: Path, overrides: Sequence[str]) -> Launched:
    """Runs the block in `folder`, with a tracker there."""
    folder.mkdir()
    tree = read(ROOT / "sweep.yaml").tree
    tree["blocks"] = {BLOCK: tree["blocks"][BLOCK]}
    (folder / "sweep.yaml").write_text(json.dumps(tree))  # JSON is YAML
    flags = [
        flag
        for override in [*overrides, "tracking.uri=sqlite:///mlflow.db"]
        for flag in ("--set", override)
    ]
    print(f"\n{folder.name}:", flush=True)
    began = time.perf_counter()
    status = subprocess.run(
        [sys.executable, ROOT / "launch.py", "sweep.yaml", *flags], cwd=folder, check=False
    ).returncode
    if status:
        sys.exit(f"launch.py ended with status {status}")
    name = next(
        (override.partition("=")[2] for override in overrides if override.startswith("name=")),
        tree["name"],
    )
    return Launched(sweep_runs(name, f"sqlite:///{folder}/mlflow.db"), time.perf_counter() - began)


def one_point(repeats: int) -> list[str]:
    """Overrides that make of the block one point for each worker count, under two names."""
    loader = f"blocks.{BLOCK}.parameters.loader"
    return [
        "name=one-point-two-names",
        f"blocks.{BLOCK}.repeats={repeats}",
        f"{loader}.num_workers={{values: {list(COUNTS)}}}",
        f"{loader}.shm_size=1G",
        f"{loader}.pin_memory={{values: [false, true]}}",
    ]


def compare(first: SweepRuns, second: SweepRuns) -> list[dict[str, Any]]:
    """A row a cell of table 1: its median in both sweeps, and how they ended where not all have a
    time."""
    keys = ["num_workers", "shm_size"]
    rows = []
    for cell in (
        epoch_times(first)
        .merge(epoch_times(second), how="outer", on=keys, suffixes=("_1", "_2"), sort=False)
        .itertuples()
    ):
        ratio = cell.median_s_2 / cell.median_s_1
        flag = "only one has a time" if pd.isna(cell.median_s_1) != pd.isna(cell.median_s_2) else ""
        rows.append(
            {
                "workers": cell.num_workers,
                "shm": cell.shm_size,
                "first s": None if pd.isna(cell.median_s_1) else cell.median_s_1,
                "second s": None if pd.isna(cell.median_s_2) else cell.median_s_2,
                "ratio": None if pd.isna(ratio) else ratio,
                "n": f"{cell.n_1}, {cell.n_2}",
                "first, else": cell.outcomes_1,
                "second, else": cell.outcomes_2,
                "flag": f"more than {100 * APART:.0f} % apart" if abs(ratio - 1) > APART else flag,
            }
        )
    return rows


def choices(runs: SweepRuns) -> list[tuple[int, float] | None]:
    """What is recommended, group by group: workers and bytes of /dev/shm."""
    advice: list[WorkerAdvice] = [advise_workers(group) for group in groups(runs)]
    return [each.cell.resources if each.cell else None for each in advice]


def times_by_name(trials: pd.DataFrame, workers: int) -> list[pd.Series]:
    """Epoch seconds by repeat under each of the names."""
    return [
        epoch_seconds(trials[(trials[WORKERS] == workers) & (trials["loader.pin_memory"] == name)])
        for name in NAMES
    ]


def name_against_name(trials: pd.DataFrame, workers: int) -> dict[str, Any]:
    """The paired change from the first name to the second. It is known to be none."""
    one, other = times_by_name(trials, workers)
    change = paired_change(other, one)
    row = {
        "workers": workers,
        "false s": one.median(),
        "true s": other.median(),
        "pairs": len(log_ratios(trials, workers)),
    }
    return row | (change._asdict() | {"distinguishable": change.excludes_zero} if change else {})


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `name_against_name` as the terminal shows it."""
    shown = {key: row[key] for key in ("workers", "false s", "true s", "pairs")}
    if "value" not in row:
        return shown | {"change": "not enough data", "": ""}
    change = f"{row['value']:+.1%} ({row['low']:+.1%} to {row['high']:+.1%})"
    return shown | {
        "change": change,
        "": "FALSELY DISTINGUISHED" if row["distinguishable"] else "not distinguishable",
    }


def log_ratios(trials: pd.DataFrame, workers: int) -> np.ndarray:
    """(pairs,) log of the second name's time over the first's, a value a repeat."""
    one, other = times_by_name(trials, workers)
    return (np.log(other) - np.log(one)).dropna().to_numpy()


def false_share(pairs: Sequence[np.ndarray], rng: np.random.Generator) -> float:
    """Share of comparisons that are distinguishable, one a worker count in each of TABLES tables, of FEWEST_PAIRS
    pairs with names swapped at random."""
    apart = [
        interval.excludes_zero
        for _ in range(TABLES)
        for ratios in pairs
        if (
            interval := mean_interval(
                rng.permutation(ratios)[:FEWEST_PAIRS]
                * rng.choice([-1, 1], min(FEWEST_PAIRS, len(ratios)))
            )
        )
    ]
    return float(np.mean(apart)) if apart else float("nan")


def by_chance(pairs: Sequence[int]) -> tuple[float, float]:
    """Between which false shares nine of ten experiments lie whose times are log-normal and equal:
    what `pairs` a worker count can show."""
    rng = np.random.default_rng(0)
    shares = [
        false_share([rng.normal(size=count) for count in pairs], rng) for _ in range(EXPERIMENTS)
    ]
    low, high = np.quantile(shares, (0.05, 0.95))
    return float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
