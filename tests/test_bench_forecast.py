"""Tests how the forecast benchmark judges a sweep, with planted ones.

How it launches a sweep is covered by test_launch.py.
"""

import json
import math
import re

import pytest

from analysis.runs import sweep_runs
from speech.synthetic import SHARES
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from sweeps.forecast.shm_fit import shm_requirement
from tests.benchmarks.forecast import (
    SWEEP,
    choices,
    judge,
    judged,
    method,
    rows,
    said_of,
    shown_choice,
    table,
)
from tests.conftest import make_trial_id

MB = 1 << 20


def foreseen(epoch_s, closed_s=1.0, first_batch_s=0.1, width=0.1):
    """Returns the figures of a forecast whose interval is `width` to either side."""
    ends = {
        "forecast_epoch_low_s": epoch_s * (1 - width),
        "forecast_epoch_high_s": epoch_s * (1 + width),
    }
    return {
        "forecast_epoch_s": epoch_s,
        "forecast_closed_form_s": closed_s,
        "forecast_first_batch_s": first_batch_s,
    } | ends


@pytest.fixture
def sweep(tracking, plant):
    """Returns sweep([(block, workers, repeat, outcome, verdict, figures), ...]), which returns the
    frame of a sweep of these trials."""

    def planted(trials, tags=None):
        def swept(workers):
            return {"loader.num_workers": workers, "loader.shm_size": 30 * MB}

        keys = [
            {"trial_id": make_trial_id(block, swept(workers), repeat)}
            for block, workers, repeat, *_ in trials
        ]
        parent = tracking.start_sweep("planted", "", keys, "")
        for block, workers, repeat, outcome, verdict, figures in trials:
            known = {"forecast_fit": verdict, "batch_bytes": MB} | (tags or {})
            plant(parent, swept(workers), repeat, outcome, block=block, tags=known, **figures)
        return sweep_runs("planted", tracking.uri).trials

    return planted


def cell(block, workers, measured, forecast, closed=1.0, fill=(0.1, 0.1), verdict="fits"):
    """Returns two repeats of a trial, a percent to either side of the given time."""
    figures = foreseen(forecast, closed, fill[1])
    return [
        (
            block,
            workers,
            repeat,
            "completed",
            verdict,
            figures
            | {"epoch_s": measured * off, "first_batch_s": fill[0], "train_s": 3 * measured},
        )
        for repeat, off in ((1, 0.99), (2, 1.01))
    ]


def test_a_cell_is_judged_by_its_median_and_its_forecast(sweep) -> None:
    overflow = [
        ("wav", 4, 1, "shm_exhausted", "fits", foreseen(1.0)),
        ("wav", 8, 1, "shm_exhausted", "overflows", foreseen(1.0)),
    ]
    trials = [
        *cell("wav", 2, 2.0, 2.1, 1.5, (0.1, 0.13)),
        *overflow,
        *cell("wav", 0, 4.0, 5.0, 4.0, (0.05, 0.069)),
        *cell("png", 0, 1, 1),
    ]
    cells = judge(sweep(trials)).set_index("cell")
    assert list(cells.index) == ["wav 0", "wav 2", "wav 4", "wav 8", "png 0"]
    assert cells["error"].tolist()[:2] == pytest.approx([0.25, 0.05])
    assert cells["closed_form_error"].tolist()[:2] == pytest.approx([0.0, -0.25])
    assert cells["spread"].tolist()[:2] == pytest.approx([0.02, 0.02])
    assert cells["covered"].tolist() == [False, True, False, False, True]
    assert cells["fill_right"].tolist()[:2] == [True, False], "19 ms off, and 30 ms and 30 % off"
    assert cells["shm_wrong"].tolist() == [False, False, True, False, False]
    assert math.isnan(cells.loc["wav 4", "error"])
    assert cells.loc["wav 8", "outcomes"] == "1 of 1 overflowed"


def test_regret_is_how_much_slower_the_chosen_is_than_the_fastest(sweep) -> None:
    # measured, forecast, closed form
    times = {0: (3.0, 3.0, 1.0), 1: (2.0, 2.1, 1.2), 2: (1.1, 1.3, 1.3), 8: (1.0, 1.2, 1.4)}
    cells = judge(
        sweep([trial for workers, each in times.items() for trial in cell("wav", workers, *each)])
    )
    (chosen,) = rows(choices(cells, cores=2))
    assert (
        chosen["fastest"],
        chosen["forecast"],
        chosen["closed form"],
        chosen["workers = cores"],
    ) == (8, 8, 0, 2)
    assert [
        chosen[f"regret of {way}"] for way in ("forecast", "closed form", "workers = cores")
    ] == pytest.approx([0.0, 2.0, 0.1])
    assert shown_choice(chosen)["closed form"] == "0 (200.0%)"
    bars = judged(cells, choices(cells, cores=2))
    median, worst, aimed_at, _, _, _, mean_regret, below_closed_form, inside = bars
    assert mean_regret.met
    # errors of the forecast: 0, 5, 18 and 20 %; of the closed form: 67, 40, 18 and 40 %
    assert (median.wanted, median.got, median.met) == ("10%", "11.6%", False)
    assert (worst.wanted, worst.got, worst.met) == ("25%", "20.0%, wav 8", True)
    assert (aimed_at.wanted, aimed_at.got, aimed_at.met) == ("4%", "11.6%", False)
    assert (below_closed_form.got, below_closed_form.met) == ("11.6%", True)
    assert inside.got == "2 of 4"


def test_a_choice_without_a_time_has_infinite_regret(sweep) -> None:
    lost = [("wav", 2, repeat, "shm_exhausted", "depends", foreseen(0.5)) for repeat in (1, 2)]
    chosen = choices(judge(sweep([*cell("wav", 0, 1.0, 1.0), *lost])), cores=2)
    assert chosen["regret of forecast"].tolist() == [math.inf]
    assert shown_choice(chosen.to_dict("records")[0])["forecast"] == "2 (no time)"
    assert rows(chosen)[0]["regret of forecast"] is None


def test_cells_without_a_forecast_meet_no_bar(sweep) -> None:
    bare = [
        ("wav", workers, 1, "completed", None, {"epoch_s": 1.0, "first_batch_s": 0.1})
        for workers in (0, 2)
    ]
    cells = judge(sweep(bare))
    chosen = choices(cells, cores=2)
    assert not any(bar.met for bar in judged(cells, chosen))
    # raises for a NaN, which is no JSON
    json.dumps([bar._asdict() for bar in judged(cells, chosen)], allow_nan=False)
    assert "1.00" in table(cells)


def test_bars_of_a_sweep_without_a_single_time_are_missed(sweep) -> None:
    cells = judge(sweep([("wav", 1, 1, "shm_exhausted", "overflows", {})]))
    bars = judged(cells, choices(cells, cores=2))
    (met,) = [bar for bar in bars if bar.met]
    assert "/dev/shm" in met.name
    assert met.got == "1 of 1"


def test_a_disturbed_cell_is_flagged(sweep) -> None:
    cells = judge(sweep(cell("wav", 0, 1.0, 1.0), tags={"disturbed": "a compiler"}))
    assert cells["disturbed"].tolist() == [True]
    assert table(cells).endswith("disturbed")


def test_method_forecast_skips_cells_that_cannot_be_fastest_and_saves_their_time(sweep) -> None:
    need = {
        f"forecast_shm_{name}_bytes": size
        for name, size in {"min": 0, "expected": 0, "max": 0, "peak": 0}.items()
    }
    # 10 % to either side: all below 1.1 / 0.9
    times = {0: (4.0, 4.2), 1: (3.0, 3.1), 2: (1.02, 1.05), 4: (1.0, 1.0), 8: (0.98, 1.15)}
    trials = [
        (*trial[:-1], trial[-1] | need)
        for workers, each in times.items()
        for trial in cell("wav", workers, *each)
    ]
    frame = sweep(trials)
    found = method(frame, judge(frame), [])
    assert (found["measured"], found["forecast only"], found["chosen"]) == ([2, 4, 8], [0, 1], 8)
    assert found["regret"] == 0.0
    assert found["minutes saved"] == pytest.approx(2 * 3 * 7.0 / 60)  # two repeats of three epochs
    assert found["minutes"] == pytest.approx(2 * 3 * 10.0 / 60)
    measured, forecast_only = said_of(found).splitlines()[0].split("; ")
    assert re.findall(r"\d+", measured) == ["2", "4", "8"]
    assert re.findall(r"\d+", forecast_only) == ["0", "1"]


def test_the_grid_plans_and_its_sizes_of_shm_are_just_enough() -> None:
    trials = plan(load(SWEEP), lambda corpus: corpus.selection_key()).trials
    assert {trial.block for trial in trials} == {"wav", "packed", "training", "cold", "cramped"}
    for trial in trials:
        keys, clips = trial.config.loader, trial.config.corpus.clips
        held_out = [10 * round(share * clips / 10) for share in SHARES.values()]
        need = shm_requirement(trial.config, clips - sum(held_out), held_out[0], keys.shm_size)
        assert need.verdict == ("overflows" if trial.block == "cramped" else "fits")
        if keys.num_workers == 8 and trial.block in ("wav", "packed", "cold"):
            assert need.max_bytes > 0.98 * keys.shm_size
