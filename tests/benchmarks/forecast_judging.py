"""Judges the forecasts of a sweep by its cells, its choices and the bars of `make bench-forecast`."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.forecasts import NEAR, interval_score
from analysis.shm_table import CONTRADICTED
from analysis.statistics import relative_spread
from analysis.text_tables import outcome_words
from analysis.timed_trials import epoch_seconds, reasons_without_time, timed_trials
from analysis.tradeoff import WORKERS
from sweeps.config.plan import TrialSpec
from sweeps.forecast.forecast import Forecast
from sweeps.forecast.shm_fit import ShmRequirement
from sweeps.forecast.trial_selection import EPOCH_TIME_METRICS, skippable_trials
from tests.benchmarks.report import Bar

MEDIAN_ERROR, WORST_ERROR = 0.03, 0.12  # at the speed that the trial met
AHEAD_MEDIAN_ERROR, AHEAD_WORST_ERROR = 0.05, 0.15  # the same, on forecast_ahead.yaml
COVERAGE, HALF_WIDTH = 0.9, 0.25  # of the planned interval; half-width over the forecast
FILL_ERROR, FILL_S, FILLS = 0.25, 0.020, 0.9  # either error will do, in this share of the cells
REGRET = 0.05
SAVED, METHOD_REGRET = 0.4, 0.02  # method: forecast
OUTSIDE = 0.25  # beside a busy program: distance outside the interval, over the measured time
WAYS = ("forecast", "closed form", "workers = cores")  # rules that choose a number of workers
FIGURES = {  # column of `judge` -> figure of the trial
    "forecast_s": "forecast_epoch_s",
    "low_s": "forecast_epoch_low_s",
    "high_s": "forecast_epoch_high_s",
    "start_s": "forecast_at_start_s",
    "start_low_s": "forecast_at_start_low_s",
    "start_high_s": "forecast_at_start_high_s",
    "speed_s": "forecast_at_speed_s",
    "closed_form_s": "forecast_closed_form_s",
    "forecast_first_batch_s": "forecast_first_batch_s",
}


def judge(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns a row a cell: what was measured and what was forecast; NaN where either is missing.

    Columns: block, workers, cell ('wav 4'), n, measured_s, spread, those of FIGURES, error,
    start_error, speed_error, closed_form_error (relative), covered, start_covered, outside
    (distance outside the planned interval, over the measured time), score, start_score,
    first_batch_s, fill_right, verdict, outcomes (of trials without a time), shm_wrong, disturbed.
    """
    planned = trials[trials["planned"].astype(bool)]
    order = list(dict.fromkeys(planned["block"]))
    cells = [
        _judge_cell(str(block), int(workers), cell_trials)
        for (block, workers), cell_trials in planned.sort_values(WORKERS, kind="stable").groupby(
            ["block", WORKERS], sort=False
        )
    ]
    return pd.DataFrame(sorted(cells, key=lambda cell: order.index(cell["block"])))


def _judge_cell(block: str, workers: int, trials: pd.DataFrame) -> dict[str, Any]:
    """Returns the row of one cell."""
    times, with_time = epoch_seconds(trials), timed_trials(trials)
    measured_s, fill_s = times.median(), with_time["first_batch_s"].median()
    figures = trials.reindex(columns=list(FIGURES.values())).astype(float).median()
    cell: dict[str, Any] = {name: figures[figure] for name, figure in FIGURES.items()}
    outside_s = max(cell["low_s"] - measured_s, measured_s - cell["high_s"], 0.0)
    return {
        "block": block,
        "workers": workers,
        "cell": f"{block} {workers}",
        "n": len(times),
        "measured_s": measured_s,
        "spread": relative_spread(times),
        **cell,
        "error": cell["forecast_s"] / measured_s - 1,
        "start_error": cell["start_s"] / measured_s - 1,
        "speed_error": cell["speed_s"] / measured_s - 1,
        "closed_form_error": cell["closed_form_s"] / measured_s - 1,
        "covered": bool(cell["low_s"] <= measured_s <= cell["high_s"]),
        "start_covered": bool(cell["start_low_s"] <= measured_s <= cell["start_high_s"]),
        "outside": outside_s / measured_s,
        "score": interval_score(cell["low_s"], cell["high_s"], measured_s),
        "start_score": interval_score(cell["start_low_s"], cell["start_high_s"], measured_s),
        "first_batch_s": fill_s,
        "fill_right": bool(
            abs(cell["forecast_first_batch_s"] - fill_s) <= max(FILL_ERROR * fill_s, FILL_S)
        ),
        "verdict": " or ".join(sorted(trials["forecast_fit"].dropna().unique())),
        "outcomes": outcome_words(reasons_without_time(trials), len(trials)),
        "shm_wrong": any(
            trial.outcome in CONTRADICTED.get(trial.forecast_fit, ())
            for trial in trials.itertuples()
        ),
        "disturbed": bool(trials["disturbed"].notna().any()),
    }


def choices(cells: pd.DataFrame, cores: int) -> pd.DataFrame:
    """Returns a row a block that has times: the fastest count, and for each of WAYS its count and
    its regret (inf: the chosen cell has no time)."""
    rows = []
    for block, alike in cells.groupby("block", sort=False):
        measured = alike.set_index("workers")["measured_s"]
        if measured.isna().all():
            continue
        best = measured.min()
        counts = (
            fewest_workers(alike, "forecast_s"),
            fewest_workers(alike, "closed_form_s"),
            min(measured.index, key=lambda count: abs(count - cores)),
        )
        chosen = dict(zip(WAYS, counts, strict=True))
        regrets = {f"regret of {way}": _regret(measured, count) for way, count in chosen.items()}
        rows.append(
            {"block": block, "fastest": measured.idxmin(), "fastest_s": best, **chosen, **regrets}
        )
    return pd.DataFrame(
        rows,
        columns=["block", "fastest", "fastest_s", *WAYS, *(f"regret of {way}" for way in WAYS)],
    )


def _regret(measured: pd.Series, count: float) -> float:
    """Returns how much slower a count is than the fastest."""
    if math.isnan(count):
        return math.nan
    return measured[count] / measured.min() - 1 if measured[count] > 0 else math.inf


def fewest_workers(cells: pd.DataFrame, column: str) -> float:
    """Returns the fewest workers within NEAR of the smallest value, as table 3 chooses them."""
    seconds = cells.sort_values("workers").set_index("workers")[column]
    return (
        math.nan
        if seconds.isna().all()
        else int(seconds.index[seconds <= (1 + NEAR) * seconds.min()][0])
    )


def quiet_bars(
    cells: pd.DataFrame, chosen: pd.DataFrame, method: dict[str, Any] | None = None
) -> list[Bar]:
    """Returns the bars of `make bench-forecast`.

    A cell with a time and no forecast misses those that it belongs to.
    """
    with_time = cells[cells["measured_s"].notna()]
    error = with_time["speed_error"].abs()
    complete = len(with_time) > 0 and error.notna().all()
    worst = with_time.loc[error.idxmax(), "cell"] if error.notna().any() else "no forecast"
    half_width = (with_time["high_s"] - with_time["low_s"]) / 2 / with_time["forecast_s"]
    inside, fills = with_time["covered"].sum(), with_time["fill_right"]
    late = with_time.loc[~fills, "cell"].tolist()
    wrong = cells[cells["shm_wrong"] | (cells["verdict"] == "")]
    regret = {way: chosen[f"regret of {way}"] for way in WAYS}
    highest = regret["forecast"].max(skipna=False)
    rivals = min(regret["closed form"].mean(), regret["workers = cores"].mean())
    bars = [
        Bar(
            "error at the speed met, median",
            f"{MEDIAN_ERROR:.0%}",
            percent(error.median()),
            complete and error.median() <= MEDIAN_ERROR,
        ),
        Bar(
            "error at the speed met, worst",
            f"{WORST_ERROR:.0%}",
            f"{percent(error.max())}, {worst}",
            complete and error.max() <= WORST_ERROR,
        ),
        Bar(
            "measured inside the planned interval",
            f"{COVERAGE:.0%}",
            f"{inside} of {len(with_time)}",
            inside >= COVERAGE * len(with_time) > 0,
        ),
        Bar(
            "half-width of the planned interval, median",
            f"{HALF_WIDTH:.0%}",
            percent(half_width.median()),
            complete and half_width.median() <= HALF_WIDTH,
        ),
        Bar(
            f"first batch within {FILL_ERROR:.0%} or {1000 * FILL_S:.0f} ms",
            f"{FILLS:.0%}",
            f"{fills.sum()} of {len(fills)}" + (f", not {', '.join(late)}" if late else ""),
            fills.sum() >= FILLS * len(fills) > 0,
        ),
        Bar(
            "regret of the forecast's choice, worst",
            f"{REGRET:.0%}",
            percent(highest),
            highest <= REGRET,
        ),
        Bar(
            "regret of the forecast's choice, mean",
            f"below {percent(rivals)}",
            percent(regret["forecast"].mean()),
            regret["forecast"].mean() <= rivals,
        ),
        Bar(
            "/dev/shm verdicts contradicted",
            "0",
            f"{len(wrong)} of {len(cells)}",
            len(cells) > 0 and wrong.empty,
        ),
    ]
    if method:
        bars += [
            Bar(
                "method: forecast, training time saved",
                f"{SAVED:.0%}",
                percent(method["saved"]),
                method["saved"] >= SAVED,
            ),
            Bar(
                "method: forecast, worst regret",
                f"{METHOD_REGRET:.0%}",
                percent(method["regret"]),
                method["regret"] <= METHOD_REGRET,
            ),
        ]
    return bars


def busy_bars(cells: pd.DataFrame, quiet: pd.DataFrame, contaminated: Sequence[str]) -> list[Bar]:
    """Returns the bars of `make bench-forecast-busy`.

    `quiet` are the cells of the same sweep on a quiet machine; `contaminated` names cached
    calibrations that the busy program made wrong.
    """
    with_time = cells[cells["measured_s"].notna()]
    farthest = with_time["outside"].max()
    worst = with_time.loc[with_time["outside"].idxmax(), "cell"] if len(with_time) else "no time"
    regrets = {}
    for block, alike in quiet.groupby("block", sort=False):
        measured = alike.set_index("workers")["measured_s"]
        busy = cells[cells["block"] == block]
        if measured.notna().any() and len(busy):
            regrets[block] = _regret(measured, fewest_workers(busy, "measured_s"))
    highest = max(regrets.values(), default=math.nan)
    return [
        Bar(
            "farthest outside the interval, of the measured time",
            f"{OUTSIDE:.0%}",
            f"{percent(farthest)}, {worst}",
            farthest <= OUTSIDE,
        ),
        Bar(
            "cached calibrations that it made wrong",
            "0",
            ", ".join(contaminated) or "0",
            not contaminated,
        ),
        Bar(
            "its choice by measured times, regret on the quiet machine",
            f"{NEAR:.0%}",
            percent(highest),
            highest <= NEAR,
        ),
    ]


def ahead_bars(cells: pd.DataFrame) -> list[Bar]:
    """Returns the bars of the grid on which the loop runs ahead of the accelerator.

    A cell without a time or a forecast misses both.
    """
    error = cells["speed_error"].abs()
    known = error.notna().all() and len(error) > 0
    worst = cells.loc[error.idxmax(), "cell"] if error.notna().any() else "no forecast"
    return [
        Bar(
            "running ahead: error at the speed met, median",
            f"{AHEAD_MEDIAN_ERROR:.0%}",
            percent(error.median()),
            known and error.median() <= AHEAD_MEDIAN_ERROR,
        ),
        Bar(
            "running ahead: error at the speed met, worst",
            f"{AHEAD_WORST_ERROR:.0%}",
            f"{percent(error.max())}, {worst}",
            known and error.max() <= AHEAD_WORST_ERROR,
        ),
    ]


def judge_method(
    trials: pd.DataFrame, cells: pd.DataFrame, specs: Sequence[TrialSpec]
) -> dict[str, Any]:
    """Returns what `method: forecast` would have skipped, from what was known before the trials ran.

    `specs` is the plan. The result holds `saved`, a share of the training time of blocks whose times
    are compared, `regret`, the highest of a block, and `blocks` with the skipped counts of each.
    """
    total_s, saved_s, regrets, blocks = 0.0, 0.0, [0.0], {}
    timed = [spec for spec in specs if spec.metric.name in EPOCH_TIME_METRICS]
    for block in dict.fromkeys(spec.block for spec in timed):
        alike = trials[(trials["block"] == block) & trials["planned"].astype(bool)]
        measured = cells[cells["block"] == block].set_index("workers")["measured_s"]
        if measured.isna().all():
            continue
        ran = {(trial[WORKERS], trial["repeat"]): trial for _, trial in alike.iterrows()}
        block_specs = [spec for spec in timed if spec.block == block]
        pairs = [
            (spec.trial_id, ran[at])
            for spec in block_specs
            if (at := (spec.config.loader.num_workers, spec.repeat)) in ran
            and pd.notna(ran[at]["batch_bytes"])  # else it ended before its setup record
        ]
        forecasts = {
            key: as_forecast(trial) for key, trial in pairs if pd.notna(trial["forecast_epoch_s"])
        }
        out = skippable_trials(
            block_specs, forecasts, {key: as_requirement(trial) for key, trial in pairs}
        )
        skipped = {spec.config.loader.num_workers for spec in block_specs if spec.trial_id in out}
        kept = measured[~measured.index.isin(skipped)]
        total_s += alike["train_s"].sum()
        saved_s += alike.loc[alike[WORKERS].isin(skipped), "train_s"].sum()
        regrets.append(kept.min() / measured.min() - 1)
        blocks[block] = sorted(skipped)
    return {
        "saved": saved_s / total_s if total_s else 0.0,
        "regret": max(regrets),
        "blocks": blocks,
    }


def as_forecast(trial: pd.Series) -> Forecast:
    """Returns the planned forecast of a trial, from its record."""
    return Forecast(
        epoch_s=trial["forecast_epoch_s"],
        low_s=trial["forecast_epoch_low_s"],
        high_s=trial["forecast_epoch_high_s"],
        start_s=math.nan,
        first_batch_s=trial["forecast_first_batch_s"],
        first_batch_low_s=math.nan,
        first_batch_high_s=math.nan,
        wait_fraction=math.nan,
        stall_steps=math.nan,
        shm_peak_bytes=0,
        closed_form_s=trial["forecast_closed_form_s"],
        batch_cpu_s=math.nan,
    )


def as_requirement(trial: pd.Series) -> ShmRequirement:
    """Returns the /dev/shm requirement of a trial, from its record."""
    floor, typical, bound = (
        int(trial[f"forecast_shm_{name}_bytes"]) for name in ("min", "expected", "max")
    )
    return ShmRequirement(
        int(trial["batch_bytes"]), floor, typical, bound, limit_bytes=int(trial["loader.shm_size"])
    )


def percent(share: float | None) -> str:
    """Returns a share for people; inf is a chosen cell without a time."""
    if share is None or math.isnan(share):
        return "-"
    return "no time" if math.isinf(share) else f"{share:.1%}"
