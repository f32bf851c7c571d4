"""make bench-forecast: is what was forecast what happened?

The sweep forecast_unseen.yaml runs with its calibrations, on a grid that neither saw: each block
has a format, a batch size and a prefetch factor of its own, one trains for real, one reads from a
cold drive. What was forecast is in the tracker before each trial starts, and is judged from there,
beside two rivals that need no simulation: the closed form max(), and the rule `workers = cores`. A
cell that something outside disturbed is judged like the others and flagged. Bars are printed as
they are, met or missed; last line: the figures as one JSON object. --folder keeps the tracker, so
that the same command judges again without running a trial; --method-forecast adds what `method:
forecast` would have measured of the first block, and what that would have saved and cost.
"""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tabulate import tabulate

from analysis.forecasts import NEAR
from analysis.runs import sweep_runs
from analysis.shm_table import CONTRADICTED
from analysis.statistics import relative_spread
from analysis.text_tables import outcome_words
from analysis.tradeoff import WORKERS, epoch_seconds, timed_trials
from speech.cpu import cpu_model
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from sweeps.forecast.forecast import Forecast
from sweeps.forecast.shm_fit import ShmRequirement
from sweeps.forecast.trial_selection import skippable_trials

ROOT = Path(__file__).parent.parent.parent
SWEEP = Path(__file__).with_name("forecast_unseen.yaml")
SWEPT_BY_METHOD = "wav"  # the block whose full grid --method-forecast is held against

MEDIAN_ERROR, WORST_ERROR = 0.10, 0.25  # of the measured epoch seconds
AIM = 0.04  # of DS-Analyzer's steady speeds
FILL_ERROR, FILL_S = 0.25, 0.020  # either will do
REGRET = 0.05
WAYS = ("forecast", "closed form", "workers = cores")  # to choose a number of workers


class Bar(NamedTuple):
    """One of the bars, and whether it was met."""

    name: str
    wanted: str
    got: str
    met: bool


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Runs a sweep that no calibration has seen, and judges its forecasts."
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as launch.py's"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep the tracker there; what it holds already doesn't run again",
    )
    parser.add_argument(
        "--method-forecast",
        action="store_true",
        help=f"what method: forecast would have measured of block {SWEPT_BY_METHOD}",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        began = time.perf_counter()
        trials = launch(given.folder or Path(scratch), given.set)
        took_s = time.perf_counter() - began
    cells, cores = judge(trials), len(os.sched_getaffinity(0))
    chosen = choices(cells, cores)
    bars = judged(cells, chosen)
    figures: dict[str, Any] = {
        "cells": rows(cells),
        "choices": rows(chosen),
        "bars": [bar._asdict() for bar in bars],
        "took_s": took_s,
    }

    for block, alike in cells.groupby("block", sort=False):
        print(f"\n\nBlock {block}\n\n{table(alike)}")
    print(
        "\nmeasured: median over repeats; spread: fastest to slowest; closed: the closed form's"
        " error; *: outside the forecast's interval"
    )
    print(
        "\n\nWhat each would have chosen, and how much slower that is than the fastest measured\n"
    )
    print(tabulate([shown_choice(row) for row in chosen.to_dict("records")], headers="keys"))
    if given.method_forecast:
        figures["method_forecast"] = method(trials, cells, given.set)
        print(
            "\n\nmethod: forecast, block"
            f" {SWEPT_BY_METHOD}\n\n{said_of(figures['method_forecast'])}"
        )
    print("\n\nBars\n")
    print(
        tabulate(
            [(bar.name, bar.wanted, bar.got, "met" if bar.met else "MISSED") for bar in bars],
            disable_numparse=True,
        )
    )
    machine = {
        "cpu": cpu_model(),
        "cores": cores,
        "kernel": platform.release(),
        "date": f"{datetime.date.today()}",
    }
    disturbed = [cell["cell"] for cell in rows(cells) if cell["disturbed"]]
    print(
        f"\n{len(disturbed)} of {len(cells)} cells disturbed from"
        f" outside{': ' if disturbed else ''}{', '.join(disturbed)}; {took_s:.0f} s"
    )
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    versions = {name: version(name) for name in ("ray", "torch", "mlflow")}
    print(
        json.dumps(
            {
                "benchmark": "forecast",
                "figures": figures,
                "set": given.set,
                "machine": machine,
                "versions": versions,
            }
        )
    )
    return 0


def launch(folder: Path, overrides: Sequence[str]) -> pd.DataFrame:
    """Runs what `folder` doesn't hold of the sweep, with the tracker there."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        flag
        for override in [*overrides, "tracking.uri=sqlite:///mlflow.db"]
        for flag in ("--set", override)
    ]
    status = subprocess.run(
        [sys.executable, ROOT / "launch.py", SWEEP, *flags], cwd=folder, check=False
    ).returncode
    if status not in (0, 1):  # 1: some trial failed, which is a row of the tables below
        sys.exit(f"launch.py ended with status {status}")
    trials = sweep_runs(
        load(SWEEP, overrides).name, f"sqlite:///{folder.absolute()}/mlflow.db"
    ).trials
    return trials if len(trials) else sys.exit("launch.py ran no trial")


def judge(trials: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: what was measured, what was forecast, and how far apart they are. NaN where one
    of the two is missing.

    Columns: block, workers, cell (str: 'wav 4'), n, measured_s, spread, forecast_s, low_s, high_s,
    error, covered, closed_form_s, closed_form_error, first_batch_s, forecast_first_batch_s, fill_right, verdict,
    outcomes (of trials without a time), shm_wrong, disturbed.
    """
    planned = trials[trials["planned"].astype(bool)]
    found = []
    for (block, workers), alike in planned.sort_values(WORKERS, kind="stable").groupby(
        ["block", WORKERS], sort=False
    ):
        times, with_time = epoch_seconds(alike), timed_trials(alike)
        measured, fill = times.median(), with_time["first_batch_s"].median()
        forecast, low, high, closed, fill_forecast = (
            alike[f"forecast_{name}_s"].median()
            for name in ("epoch", "epoch_low", "epoch_high", "closed_form", "first_batch")
        )
        found.append(
            {
                "block": block,
                "workers": int(workers),
                "cell": f"{block} {workers}",
                "n": len(times),
                "measured_s": measured,
                "spread": relative_spread(times),
                "forecast_s": forecast,
                "low_s": low,
                "high_s": high,
                "error": forecast / measured - 1,
                "covered": bool(low <= measured <= high),
                "closed_form_s": closed,
                "closed_form_error": closed / measured - 1,
                "first_batch_s": fill,
                "forecast_first_batch_s": fill_forecast,
                "fill_right": bool(abs(fill_forecast - fill) <= max(FILL_ERROR * fill, FILL_S)),
                "verdict": " or ".join(sorted(alike["forecast_fit"].dropna().unique())),
                "outcomes": outcome_words(
                    alike.loc[~alike.index.isin(with_time.index), "outcome"], len(alike)
                ),
                "shm_wrong": any(
                    trial.outcome in CONTRADICTED.get(trial.forecast_fit, ())
                    for trial in alike.itertuples()
                ),
                "disturbed": bool(alike["disturbed"].notna().any()),
            }
        )
    order = list(dict.fromkeys(planned["block"]))
    return pd.DataFrame(sorted(found, key=lambda cell: order.index(cell["block"])))


def choices(cells: pd.DataFrame, cores: int) -> pd.DataFrame:
    """A row a block that has times: the fastest count, and for each way to choose one its count and
    its regret (inf: it has no time)."""
    found = []
    for block, alike in cells.groupby("block", sort=False):
        measured = alike.set_index("workers")["measured_s"]
        if measured.isna().all():
            continue
        best = measured.min()
        counts = (
            _least(alike, "forecast_s"),
            _least(alike, "closed_form_s"),
            min(measured.index, key=lambda count: abs(count - cores)),
        )
        chosen = dict(zip(WAYS, counts, strict=True))
        regrets = {
            f"regret of {way}": (
                math.nan
                if math.isnan(count)
                else measured[count] / best - 1
                if measured[count] > 0
                else math.inf
            )
            for way, count in chosen.items()
        }
        found.append(
            {"block": block, "fastest": measured.idxmin(), "fastest_s": best, **chosen, **regrets}
        )
    return pd.DataFrame(
        found,
        columns=["block", "fastest", "fastest_s", *WAYS, *(f"regret of {way}" for way in WAYS)],
    )


def _least(cells: pd.DataFrame, column: str) -> float:
    """The fewest workers within NEAR of the smallest, as table 3 has it."""
    seconds = cells.sort_values("workers").set_index("workers")[column]
    return (
        math.nan
        if seconds.isna().all()
        else int(seconds.index[seconds <= (1 + NEAR) * seconds.min()][0])
    )


def judged(cells: pd.DataFrame, chosen: pd.DataFrame) -> list[Bar]:
    """Every bar. A cell with a time and no forecast misses those that it belongs to."""
    with_time = cells[cells["measured_s"].notna()]
    error, closed = with_time["error"].abs(), with_time["closed_form_error"].abs()
    foreseen = len(with_time) > 0 and error.notna().all()
    worst = with_time.loc[error.idxmax(), "cell"] if error.notna().any() else "no forecast"
    fills, wrong = with_time["fill_right"], cells[cells["shm_wrong"] | (cells["verdict"] == "")]
    late = with_time.loc[~fills, "cell"].tolist()
    regret = {way: chosen[f"regret of {way}"] for way in WAYS}
    highest = {way: values.max(skipna=False) for way, values in regret.items()}
    means = ", ".join(
        f"{way} {_percent(values.mean())} (at most {_percent(highest[way])})"
        for way, values in regret.items()
    )
    better = regret["forecast"].mean() <= min(
        regret["closed form"].mean(), regret["workers = cores"].mean()
    )
    inside = with_time["covered"].sum()
    bars = [
        Bar(
            "epoch seconds, median error",
            f"{MEDIAN_ERROR:.0%}",
            _percent(error.median()),
            foreseen and error.median() <= MEDIAN_ERROR,
        ),
        Bar(
            "epoch seconds, worst error",
            f"{WORST_ERROR:.0%}",
            f"{_percent(error.max())}, {worst}",
            foreseen and error.max() <= WORST_ERROR,
        ),
        Bar(
            "the same, median, aimed at",
            f"{AIM:.0%}",
            _percent(error.median()),
            foreseen and error.median() <= AIM,
        ),
        Bar(
            f"first batch within {FILL_ERROR:.0%} or {1000 * FILL_S:.0f} ms",
            "every cell",
            f"{fills.sum()} of {len(fills)}" + (f", not {', '.join(late)}" if late else ""),
            len(fills) > 0 and not late,
        ),
        Bar(
            "/dev/shm verdicts never contradicted",
            "every cell",
            f"{len(cells) - len(wrong)} of {len(cells)}"
            + (f", not {', '.join(wrong['cell'])}" if len(wrong) else ""),
            len(cells) > 0 and wrong.empty,
        ),
        Bar(
            "regret of the forecast's choice",
            f"{REGRET:.0%}",
            _percent(highest["forecast"]),
            highest["forecast"] <= REGRET,
        ),
        Bar("mean regret, no more than the rivals'", "both", means, better),
        Bar(
            "median error, below the closed form's",
            _percent(closed.median()),
            _percent(error.median()),
            foreseen and error.median() < closed.median(),
        ),
        Bar(
            "measured inside the forecast's interval",
            "9 in 10",
            f"{inside} of {len(with_time)}",
            inside >= 0.9 * len(with_time) > 0,
        ),
    ]
    return [bar._replace(met=bool(bar.met)) for bar in bars]  # numpy's is none of JSON's


def method(trials: pd.DataFrame, cells: pd.DataFrame, overrides: Sequence[str]) -> dict[str, Any]:
    """What `method: forecast` would have measured of SWEPT_BY_METHOD, from what was known before
    its trials ran."""
    block = trials[(trials["block"] == SWEPT_BY_METHOD) & trials["planned"].astype(bool)]
    ran = {(trial[WORKERS], trial["repeat"]): trial for _, trial in block.iterrows()}
    every = plan(load(SWEEP, overrides), lambda corpus: corpus.selection_key()).trials
    specs = [spec for spec in every if spec.block == SWEPT_BY_METHOD]
    pairs = [
        (spec.trial_id, ran[at])
        for spec in specs
        if (at := (spec.config.loader.num_workers, spec.repeat)) in ran
    ]
    forecasts = {
        key: as_forecast(trial) for key, trial in pairs if pd.notna(trial["forecast_epoch_s"])
    }
    out = skippable_trials(
        specs, forecasts, {key: as_fit(trial) for key, trial in pairs if key in forecasts}
    )
    spared = {spec.config.loader.num_workers for spec in specs if spec.trial_id in out}
    measured = cells[(cells["block"] == SWEPT_BY_METHOD) & ~cells["workers"].isin(spared)]
    best = cells.loc[cells["block"] == SWEPT_BY_METHOD, "measured_s"].min()
    seconds = block["train_s"].sum()
    return {
        "measured": sorted(measured["workers"].tolist()),
        "forecast only": sorted(spared),
        "minutes": seconds / 60,
        "minutes saved": block.loc[block[WORKERS].isin(spared), "train_s"].sum() / 60,
        "chosen": _least(measured, "measured_s"),
        "regret": measured["measured_s"].min() / best - 1,
    }


def as_forecast(trial: pd.Series) -> Forecast:
    """What was foreseen of a trial, as its record has it."""
    return Forecast(
        epoch_s=trial["forecast_epoch_s"],
        low_s=trial["forecast_epoch_low_s"],
        high_s=trial["forecast_epoch_high_s"],
        start_s=math.nan,
        first_batch_s=trial["forecast_first_batch_s"],
        first_batch_low_s=trial["forecast_first_batch_low_s"],
        first_batch_high_s=trial["forecast_first_batch_high_s"],
        wait_fraction=trial["forecast_wait_fraction"],
        stall_steps=trial["forecast_stall_steps"],
        shm_peak_bytes=int(trial["forecast_shm_peak_bytes"]),
        closed_form_s=trial["forecast_closed_form_s"],
    )


def as_fit(trial: pd.Series) -> ShmRequirement:
    floor, typical, bound = (
        int(trial[f"forecast_shm_{name}_bytes"]) for name in ("min", "expected", "max")
    )
    return ShmRequirement(
        int(trial["batch_bytes"]), floor, typical, bound, limit_bytes=int(trial["loader.shm_size"])
    )


def said_of(figures: dict[str, Any]) -> str:
    """What `method` found, in words."""
    counts = {
        name: ", ".join(map(str, figures[name])) or "none" for name in ("measured", "forecast only")
    }
    return (
        f"measured: {counts['measured']} workers; forecast only: {counts['forecast only']}\n"
        f"{figures['minutes saved']:.1f} of {figures['minutes']:.1f} minutes of training saved; "
        f"chosen: {_number(figures['chosen'], 0)} workers, regret {_percent(figures['regret'])}"
    )


def table(cells: pd.DataFrame) -> str:
    """A block's cells for the terminal."""
    texts = [
        {
            "workers": cell["workers"],
            "measured s": _number(cell["measured_s"], 2),
            "spread": _percent(cell["spread"]),
            "forecast s": _interval(cell),
            "error": (
                _percent(cell["error"], signed=True)
                + ("" if cell["covered"] or math.isnan(cell["error"]) else " *")
            ),
            "closed": _percent(cell["closed_form_error"], signed=True),
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


def shown_choice(row: dict[str, Any]) -> dict[str, Any]:
    first = {"block": row["block"], "fastest": f"{row['fastest']} ({row['fastest_s']:.2f} s)"}
    return first | {
        way: f"{_number(row[way], 0)} ({_percent(row[f'regret of {way}'])})" for way in WAYS
    }


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame as JSON has it: null for what is not a number."""
    return json.loads(frame.to_json(orient="records"))


def _interval(cell: dict[str, Any]) -> str:
    return (
        "-"
        if math.isnan(cell["forecast_s"])
        else f"{cell['forecast_s']:.2f} ({cell['low_s']:.2f}-{cell['high_s']:.2f})"
    )


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float | None, signed: bool = False) -> str:
    if share is None or math.isnan(share):
        return "-"
    return "no time" if math.isinf(share) else f"{share:{'+' if signed else ''}.1%}"


if __name__ == "__main__":
    sys.exit(main())
