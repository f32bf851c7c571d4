"""make bench-forecast and make bench-forecast-busy: is what was forecast what happened?

The sweep forecast_unseen.yaml runs with its calibrations, on a grid that nothing was tuned on. Each
block has a format, a batch size and a prefetch factor of its own, one trains for real, and one reads
from a cold drive. What was forecast is in the tracker before each trial starts, and is judged from
there, beside two rivals that need no simulation: the closed form max(), and the rule
`workers = cores`. A second sweep, forecast_ahead.yaml, is of accelerators that run ahead. Bars are
printed as they are, met or missed. The last line holds the figures as one JSON object.

With --busy, a seeded program keeps one core busy in bursts of 2 to 20 s during calibrations and
trials. Its calibrations are measured anew, and compared with those in the user's cache, which are
the quiet run's.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from analysis.runs import sweep_runs
from speech.cache_folder import cache_dir
from speech.calibration.costs import Calibration
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from tests.benchmarks.forecast_judging import (
    WAYS,
    ahead_bars,
    busy_bars,
    choices,
    judge,
    judge_method,
    percent,
    quiet_bars,
)
from tests.benchmarks.report import print_report
from tests.busy import bursts

ROOT = Path(__file__).parent.parent.parent
SWEEP = Path(__file__).with_name("forecast_unseen.yaml")
AHEAD = Path(__file__).with_name("forecast_ahead.yaml")
CONTAMINATED = 1.6  # factor between costs measured beside the program and on the quiet machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as launch.py's"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep the quiet run's tracker there; what it holds already does not run again",
    )
    parser.add_argument(
        "--busy",
        type=int,
        metavar="SEED",
        help="also run it beside a busy program, and judge that run by the quiet one",
    )
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        quiet_folder = options.folder or Path(scratch, "quiet")
        trials = launch(SWEEP, quiet_folder, options.set)
        cells = judge(trials)
        busy_cells, contaminated, ahead_cells = None, list[str](), cells.iloc[:0]
        if options.busy is None:
            ahead_cells = judge(launch(AHEAD, quiet_folder, options.set))
        else:
            folder = Path(scratch, "busy")
            cache = private_cache(folder)
            with bursts(options.busy):
                busy_cells = judge(launch(SWEEP, folder, options.set, cache.parent))
            contaminated = find_contaminated(cache)
    cores = len(os.sched_getaffinity(0))
    chosen = choices(cells, cores)
    specs = plan(load(SWEEP, options.set), lambda corpus: corpus.selection_key()).trials
    method = judge_method(trials, cells, specs)
    if busy_cells is None:
        bars = quiet_bars(cells, chosen, method) + ahead_bars(ahead_cells)
    else:
        bars = busy_bars(busy_cells, cells, contaminated)
    shown = cells if busy_cells is None else busy_cells
    for of_sweep in (shown, ahead_cells):
        for block, alike in of_sweep.groupby("block", sort=False):
            print(f"\n\nBlock {block}\n\n{table(alike)}")
    print(
        "\nmeasured: median over repeats; spread: fastest to slowest; planned: before the first"
        "\ntrial; at start: after a probe as each trial started; *: outside the interval; met: error"
        "\nat the speed that the trial met; closed: error of the closed form"
    )
    print("\n\nWhat each rule chooses, and how much slower that is than the fastest measured\n")
    print(tabulate([choice_texts(row) for row in chosen.to_dict("records")], headers="keys"))
    skipped = "; ".join(
        f"{block} {', '.join(map(str, counts)) or 'none'}"
        for block, counts in method["blocks"].items()
    )
    print(
        f"\nmethod: forecast would have skipped these workers: {skipped}. Of the training time"
        f" {percent(method['saved'])} saved, regret at most {percent(method['regret'])}"
    )
    score, start_score = shown["score"].mean(), shown["start_score"].mean()
    print(
        f"\nIntervals: planned, {shown['covered'].sum()} of {shown['n'].gt(0).sum()} inside, score"
        f" {score:.2f}; at start, {shown['start_covered'].sum()} inside, score {start_score:.2f}"
    )
    took_s = time.perf_counter() - began
    figures = {
        "cells": rows(cells),
        "busy_cells": None if busy_cells is None else rows(busy_cells),
        "ahead_cells": rows(ahead_cells),
        "choices": rows(chosen),
        "method_forecast": method,
        "scores": {"planned": score, "at start": start_score},
        "took_s": took_s,
    }
    print_report(
        "forecast" if busy_cells is None else "forecast-busy",
        figures,
        bars,
        ["ray", "torch", "mlflow"],
        set=options.set,
        seed=options.busy,
    )
    return 0


def launch(
    sweep: Path, folder: Path, overrides: Sequence[str], cache: Path | None = None
) -> pd.DataFrame:
    """Runs the trials of a sweep that the tracker in `folder` lacks; returns all its trials.

    `cache` replaces the user's XDG_CACHE_HOME.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        flag
        for override in [*overrides, "tracking.uri=sqlite:///mlflow.db"]
        for flag in ("--set", override)
    ]
    environment = os.environ | ({"XDG_CACHE_HOME": f"{cache}"} if cache else {})
    status = subprocess.run(
        [sys.executable, ROOT / "launch.py", sweep, *flags],
        cwd=folder,
        check=False,
        env=environment,
    ).returncode
    if status not in (0, 1):  # 1: some trial failed, which is a row of the tables below
        sys.exit(f"launch.py ended with status {status}")
    trials = sweep_runs(
        load(sweep, overrides).name, f"sqlite:///{folder.absolute()}/mlflow.db"
    ).trials
    return trials if len(trials) else sys.exit("launch.py ran no trial")


def private_cache(folder: Path) -> Path:
    """Makes a cache folder without calibrations, whose other data are those of the user's cache."""
    cache = folder / "cache" / "speech-sweeps"
    cache.mkdir(parents=True)
    for entry in cache_dir().iterdir():
        if entry.name != "calibrations":
            (cache / entry.name).symlink_to(entry)
    return cache


def find_contaminated(cache: Path) -> list[str]:
    """Returns calibrations of `cache` that differ widely from the user's, with the cost that does.

    Costs are compared relative to the speed of the cores that each calibration probed, since both
    may have met another one.
    """
    wrong = []
    for file in sorted((cache / "calibrations").glob("*.json")):
        with contextlib.suppress(OSError):
            quiet, busy = (
                Calibration.model_validate_json(path.read_bytes())
                for path in (cache_dir() / "calibrations" / file.name, file)
            )
            slower = busy.speed.slowdown(quiet.speed).prepare if busy.speed and quiet.speed else 1.0
            for name in ("inline_s", "prepare_s"):
                factor = getattr(busy.loader, name) / getattr(quiet.loader, name) / slower
                if not 1 / CONTAMINATED <= factor <= CONTAMINATED:
                    wrong.append(f"{file.stem} {name}")
    return wrong


def table(cells: pd.DataFrame) -> str:
    """Returns the cells of a block as a table for the terminal."""
    texts = [
        {
            "workers": cell["workers"],
            "measured s": _number(cell["measured_s"], 2),
            "spread": percent(cell["spread"]),
            "planned s": _interval(cell, "forecast_s", "low_s", "high_s", cell["covered"]),
            "error": _signed(cell["error"]),
            "at start s": _interval(
                cell, "start_s", "start_low_s", "start_high_s", cell["start_covered"]
            ),
            "met": _signed(cell["speed_error"]),
            "closed": _signed(cell["closed_form_error"]),
            "first batch s": _number(cell["first_batch_s"], 3),
            "forecast": (
                _number(cell["forecast_first_batch_s"], 3)
                + ("" if cell["fill_right"] or math.isnan(cell["first_batch_s"]) else " off")
            ),
            "/dev/shm": " ".join(
                filter(
                    None,
                    [
                        "WRONG:" if cell["shm_wrong"] else "",
                        cell["verdict"] or "-",
                        cell["outcomes"],
                    ],
                )
            ),
            "": "disturbed" if cell["disturbed"] else "",
        }
        for cell in cells.to_dict("records")
    ]
    return tabulate(texts, headers="keys", disable_numparse=True, stralign="right")


def choice_texts(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of `choices` for the terminal."""
    first = {"block": row["block"], "fastest": f"{row['fastest']} ({row['fastest_s']:.2f} s)"}
    return first | {
        way: f"{_number(row[way], 0)} ({percent(row[f'regret of {way}'])})" for way in WAYS
    }


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows of a frame for JSON: null for what is not a number."""
    return json.loads(frame.to_json(orient="records"))


def _interval(cell: dict[str, Any], likely: str, low: str, high: str, inside: bool) -> str:
    """Returns a forecast with its interval."""
    if math.isnan(cell[likely]):
        return "-"
    mark = "" if inside or math.isnan(cell["measured_s"]) else " *"
    return f"{cell[likely]:.2f} ({cell[low]:.2f}-{cell[high]:.2f}){mark}"


def _number(value: float, digits: int) -> str:
    """Returns a number, or a dash if there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(share: float) -> str:
    """Returns a relative error with its sign."""
    return "-" if math.isnan(share) else f"{share:+.1%}"


if __name__ == "__main__":
    sys.exit(main())
