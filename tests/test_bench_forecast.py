"""Tests how the forecast benchmark judges a sweep, with planted ones.

How it launches a sweep is covered by test_launch.py.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.runs import sweep_runs
from speech.calibration.costs import Speed
from speech.synthetic import SHARES
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from sweeps.forecast.calibration import save_calibration
from sweeps.forecast.shm_fit import shm_requirement
from tests.benchmarks.forecast import SWEEP, choice_texts, find_contaminated, rows, table
from tests.benchmarks.forecast_judging import (
    ahead_bars,
    busy_bars,
    choices,
    judge,
    judge_method,
    quiet_bars,
)
from tests.benchmarks.report import print_report
from tests.conftest import make_trial_id
from tests.planted_calibrations import planted

MB = 1 << 20
WORKER_KEYS = {"prefetch_factor": 2, "start_method": "fork", "persistent_workers": True}


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
        "forecast_at_start_s": epoch_s,
        "forecast_at_start_low_s": 0.95 * epoch_s,
        "forecast_at_start_high_s": 1.05 * epoch_s,
        "forecast_at_speed_s": epoch_s,
    } | ends


@pytest.fixture
def sweep(tracking, plant):
    """Returns sweep([(block, workers, repeat, outcome, verdict, figures), ...]), which returns the
    frame of a sweep of these trials."""

    def plant_all(trials, tags=None):
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

    return plant_all


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
    assert choice_texts(chosen)["closed form"] == "0 (200.0%)"
    bars = {bar.name: bar for bar in quiet_bars(cells, choices(cells, cores=2))}
    got = {name: (bar.got, bar.met) for name, bar in bars.items()}
    # errors: 0, 5, 18 and 20 %
    assert got["error at the speed met, median"] == ("11.6%", False)
    assert got["error at the speed met, worst"] == ("20.0%, wav 8", False)
    assert got["measured inside the planned interval"] == ("2 of 4", False)
    assert got["half-width of the planned interval, median"] == ("10.0%", True)
    assert got["regret of the forecast's choice, worst"] == ("0.0%", True)
    assert got["regret of the forecast's choice, mean"] == ("0.0%", True)


def test_a_choice_without_a_time_has_infinite_regret(sweep) -> None:
    lost = [("wav", 2, repeat, "shm_exhausted", "depends", foreseen(0.5)) for repeat in (1, 2)]
    chosen = choices(judge(sweep([*cell("wav", 0, 1.0, 1.0), *lost])), cores=2)
    assert chosen["regret of forecast"].tolist() == [math.inf]
    assert choice_texts(chosen.to_dict("records")[0])["forecast"] == "2 (no time)"
    assert rows(chosen)[0]["regret of forecast"] is None


def test_cells_without_a_forecast_meet_no_bar(sweep, capsys) -> None:
    bare = [
        ("wav", workers, 1, "completed", None, {"epoch_s": 1.0, "first_batch_s": 0.1})
        for workers in (0, 2)
    ]
    cells = judge(sweep(bare))
    chosen = choices(cells, cores=2)
    assert not any(bar.met for bar in quiet_bars(cells, chosen))
    assert not any(bar.met for bar in ahead_bars(cells))
    assert "1.00" in table(cells)
    print_report("forecast", rows(cells), quiet_bars(cells, chosen))
    document = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert [bar["met"] for bar in document["bars"]] == [False] * len(quiet_bars(cells, chosen))


def test_a_loop_that_runs_ahead_has_bars_of_its_own(sweep) -> None:
    at_speed = [
        (*trial[:-1], trial[-1] | {"forecast_at_speed_s": forecast_s})
        for workers, forecast_s in ((0, 1.04), (1, 1.02), (2, 1.2))
        for trial in cell("wav", workers, 1.0, 1.0)
    ]
    median, worst = ahead_bars(judge(sweep(at_speed)))
    assert (median.got, median.met) == ("4.0%", True)
    assert (worst.got, worst.met) == ("20.0%, wav 2", False)


def test_bars_of_a_sweep_without_a_single_time_are_missed(sweep) -> None:
    cells = judge(sweep([("wav", 1, 1, "shm_exhausted", "overflows", {})]))
    bars = quiet_bars(cells, choices(cells, cores=2))
    (met,) = [bar for bar in bars if bar.met]
    assert "/dev/shm" in met.name
    assert met.got == "0 of 1"


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
    specs = [
        SimpleNamespace(
            trial_id=f"{workers} {repeat}",
            block="wav",
            repeat=repeat,
            metric=SimpleNamespace(name="epoch_s"),
            config=planned_config(workers),
        )
        for workers in times
        for repeat in (1, 2)
    ]
    found = judge_method(frame, judge(frame), specs)
    assert found["blocks"] == {"wav": [0, 1, 8]}
    assert found["saved"] == pytest.approx(7.98 / 10.0)
    assert found["regret"] == pytest.approx(1.0 / 0.98 - 1)


def planned_config(workers: int):
    """Returns a stand-in for a trial's configuration, as far as the selection reads it."""
    dump = {"loader": {"num_workers": workers, "shm_size": 30 * MB, **WORKER_KEYS}}
    return SimpleNamespace(
        loader=SimpleNamespace(num_workers=workers),
        model_dump=lambda mode: {"loader": dict(dump["loader"])},
    )


def test_a_busy_run_is_judged_by_its_intervals_and_by_the_quiet_run(sweep) -> None:
    quiet = judge(sweep([*cell("wav", 0, 2.0, 2.0), *cell("wav", 2, 1.0, 1.0)]))
    assert [bar.met for bar in busy_bars(quiet, quiet, [])] == [True, True, True]
    wrong = quiet.assign(measured_s=[0.9, 1.0], outside=[0.3, 0.0])
    outside, contaminated, choice = busy_bars(wrong, quiet, ["abc inline_s"])
    assert (outside.got, outside.met) == ("30.0%, wav 0", False)
    assert (contaminated.got, contaminated.met) == ("abc inline_s", False)
    assert (choice.got, choice.met) == ("100.0%", False)


def test_calibrations_that_differ_widely_from_the_quiet_ones_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "quiet"))
    beside = tmp_path / "beside"
    (beside / "calibrations").mkdir(parents=True)
    for name, inline_s in {"same": 0.09, "wrong": 0.8, "new": 0.8}.items():
        if name != "new":
            save_calibration(name, planted())
        text = planted(inline_s=inline_s).model_dump_json()
        (beside / "calibrations" / f"{name}.json").write_text(text)
    slow = planted(inline_s=0.8, prepare_s=0.8)
    slow = slow.model_copy(update={"speed": Speed(prepare_s=10 * slow.speed.prepare_s)})
    save_calibration("slow cores", planted())
    (beside / "calibrations" / "slow cores.json").write_text(slow.model_dump_json())
    assert find_contaminated(beside) == ["wrong inline_s"]


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
