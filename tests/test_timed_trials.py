"""Tests which trials' times count, by hand-written frames of one or two points."""

import pandas as pd
import pytest

from analysis.timed_trials import epoch_seconds, find_timed, reasons_without_time
from analysis.trial_rows import SURROUNDINGS


def make_trials(*points: str) -> pd.DataFrame:
    """Returns trials, a letter each: q quiet, d disturbed, o overflowed, n diverged; a point a text.

    The epoch seconds of a trial are its position among all.
    """
    rows = [
        {
            "block": "workers",
            "planned": True,
            "repeat": repeat,
            "outcome": {"o": "shm_exhausted", "n": "diverged"}.get(letter, "completed"),
            "disturbed": "a compiler" if letter == "d" else None,
            "loader.num_workers": workers,
            "seed": repeat,
        }
        | dict.fromkeys(SURROUNDINGS, "x")
        for workers, point in enumerate(points)
        for repeat, letter in enumerate(point)
    ]
    trials = pd.DataFrame(rows)
    trials["epoch_s"] = trials.index.astype(float)
    return trials.assign(timed=find_timed(trials))


@pytest.mark.parametrize(
    ("point", "counted"),
    [
        ("qq", "11"),
        ("d", "1"),
        ("dd", "11"),
        ("qd", "10"),
        ("qdo", "100"),
        ("qqd", "111"),
        ("qdd", "111"),
        ("ddd", "111"),
        ("qqdn", "1111"),
        ("qqqd", "1111"),
        ("ddq", "111"),
        ("qqdd", "1111"),
        ("oqq", "011"),
    ],
)
def test_a_disturbed_time_is_left_out_unless_too_few_remain(point: str, counted: str) -> None:
    trials = make_trials(point)
    assert "".join(str(int(timed)) for timed in trials["timed"]) == counted
    assert epoch_seconds(trials).tolist() == [i for i, timed in enumerate(counted) if timed == "1"]
    assert reasons_without_time(trials).to_dict() == {
        i: "shm_exhausted" if point[i] == "o" else "disturbed"
        for i, timed in enumerate(counted)
        if timed == "0"
    }


def test_each_point_is_judged_by_its_own_trials() -> None:
    trials = make_trials("qqq", "dd", "qd")
    assert trials["timed"].tolist() == [True] * 3 + [True] * 2 + [True, False]


def test_trials_that_left_the_plan_or_ran_elsewhere_are_another_point() -> None:
    trials = make_trials("qd", "qd")
    assert find_timed(trials).tolist() == [True, False, True, False]
    trials.loc[0, "planned"] = False
    trials.loc[2, "cores"] = "64"
    assert find_timed(trials).all()


def test_a_trial_without_a_time_is_not_counted_among_the_undisturbed() -> None:
    trials = make_trials("qd")
    trials.loc[0, "epoch_s"] = float("nan")
    assert find_timed(trials).tolist() == [False, True]
