"""Tests which cycle length is recommended, with planted ensembles that have one right answer."""

import math
import re

import pytest

from analysis.cycle_recommendation import advise_cycles, cycle_recommendations, sentences
from analysis.cycles import groups
from analysis.statistics import FEWEST_PAIRS
from tests.random_runs import Drawn, runs_of

COSINE = (0.84, 0.85, 0.86)


def choose(schedules, outcome="completed"):
    """Returns a sweep of trials of 8 epochs.

    `schedules`: cycle_epochs -> ensemble accuracy by repeat.
    """
    figures = ("accuracy", "best_snapshot_accuracy", "ensemble_accuracy")
    return runs_of([
        Drawn("cycles", {"sgdr.cycle_epochs": epochs}, repeat, outcome, dict.fromkeys(figures, accuracy), {})
        for epochs, accuracies in schedules.items() for repeat, accuracy in enumerate(accuracies, 1)
    ])  # fmt: skip


def numbers(text):
    """Returns the numbers of a sentence in order, as they are written."""
    return re.findall(r"[+-]?\d+(?:\.\d+)?", text)


def test_an_ensemble_that_gains_in_every_repeat_is_recommended():
    runs = choose({2: [accuracy + 0.03 for accuracy in COSINE], 8: COSINE})
    (text,) = sentences(runs, markdown=True)
    assert numbers(text) == ["2", "4", "88.0", "+3.0", "+3.0", "+3.0"]
    assert "block cycles" in text
    assert "not distinguishable" not in text
    (choice,) = cycle_recommendations(runs).itertuples()
    assert (choice.schedule, choice.snapshots, choice.best_schedule) == ("2", 4, "2")
    assert (choice.ensemble, choice.gain) == pytest.approx((0.88, 0.03))


def test_of_indistinguishable_schedules_the_one_with_fewest_snapshots_is_recommended():
    # 4 against 2: differences -0.01, 0.01, -0.01: mean -0.0033, sd 0.011547; t(0.975, 2) =
    # 4.302653, over the root of 3: +- 0.0287
    runs = choose({2: (0.88, 0.86, 0.88), 4: (0.87, 0.87, 0.87), 8: (0.80, 0.80, 0.80)})
    (group,) = groups(runs)
    advice = advise_cycles(group)
    assert (advice.chosen.lengths, advice.best.lengths) == ((4, 4), (2, 2, 2, 2))
    assert advice.difference == pytest.approx((-0.003333, -0.032018, 0.025351), abs=1e-5)
    (text,) = sentences(runs, markdown=True)
    chosen, _, best = text.partition("not distinguishable")
    assert numbers(chosen) == ["4", "2", "87.0"]
    assert numbers(best)[:6] == ["2", "4", "87.3", "-0.3", "-3.2", "+2.5"]


def test_a_noisy_schedule_that_is_more_than_a_point_worse_is_not_recommended():
    (group,) = groups(choose({2: (0.88, 0.88, 0.88), 8: (0.95, 0.70, 0.90)}))
    assert advise_cycles(group).chosen.lengths == (2, 2, 2, 2)


def test_the_long_cosine_is_recommended_if_it_is_the_best():
    runs = choose({2: (0.8, 0.8, 0.8), 8: COSINE})
    (text,) = sentences(runs, markdown=True)
    assert numbers(text) == ["8", "85.0"]
    assert "cosine" in text
    (choice,) = cycle_recommendations(runs).itertuples()
    assert (choice.snapshots, choice.schedule) == (1, choice.best_schedule)
    assert math.isnan(choice.difference), "it is the best"


def test_two_repeats_are_not_enough_data():
    runs = choose({2: (0.9, 0.9), 8: COSINE})
    (text,) = sentences(runs, markdown=True)
    assert "not enough data" in text
    assert numbers(text) == ["2", "4", "90.0", "2", str(FEWEST_PAIRS)]
    assert cycle_recommendations(runs)["schedule"].tolist() == [""]


def test_without_two_completed_schedules_there_is_no_recommendation():
    assert sentences(choose({8: COSINE})) == []
    assert sentences(choose({2: COSINE, 8: COSINE}, outcome="timeout")) == []
