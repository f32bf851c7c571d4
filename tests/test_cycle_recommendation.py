"""Which cycle length is chosen, against planted ensembles whose answer is plain."""

import pytest

from analysis.cycle_recommendation import advise_cycles, cycle_recommendations, sentences
from analysis.cycles import groups
from tests.random_runs import Drawn, runs_of

COSINE = (0.84, 0.85, 0.86)


def choose(schedules, outcome="completed"):
    """schedules: cycle_epochs of 8 -> ensemble accuracy by repeat."""
    figures = ("accuracy", "best_snapshot_accuracy", "ensemble_accuracy")
    return runs_of([
        Drawn("cycles", {"sgdr.cycle_epochs": epochs}, repeat, outcome, dict.fromkeys(figures, accuracy), {})
        for epochs, accuracies in schedules.items() for repeat, accuracy in enumerate(accuracies, 1)
    ])  # fmt: skip


def test_an_ensemble_that_gains_in_every_repeat_is_taken():
    runs = choose({2: [accuracy + 0.03 for accuracy in COSINE], 8: COSINE})
    (text,) = sentences(runs, markdown=True)
    assert text.startswith("Recommended for block cycles: cycles of 2 epochs, 4 snapshots,")
    assert "88.0 %, the best" in text
    assert "cosine: +3.0 points (+3.0 to +3.0)." in text
    (choice,) = cycle_recommendations(runs).itertuples()
    assert (choice.schedule, choice.snapshots, choice.best_schedule) == ("2", 4, "2")
    assert (choice.ensemble, choice.gain) == pytest.approx((0.88, 0.03))


def test_of_those_not_told_apart_the_one_with_fewest_snapshots():
    # 4 against 2: differences -0.01, 0.01, -0.01: mean -0.0033, sd 0.011547; t(0.975, 2) =
    # 4.302653, over the root of 3: +- 0.0287
    runs = choose({2: (0.88, 0.86, 0.88), 4: (0.87, 0.87, 0.87), 8: (0.80, 0.80, 0.80)})
    (group,) = groups(runs)
    advice = advise_cycles(group)
    assert (advice.chosen.lengths, advice.best.lengths) == ((4, 4), (2, 2, 2, 2))
    assert advice.difference == pytest.approx((-0.003333, -0.032018, 0.025351), abs=1e-5)
    (text,) = sentences(runs, markdown=True)
    chosen, _, best = text.partition("not distinguishable")
    assert "cycles of 4 epochs, 2 snapshots, ensemble 87.0 %" in chosen
    assert "cycles of 2 epochs, 4 snapshots, 87.3 %" in best


def test_one_that_looks_more_than_a_point_worse_is_not_taken_for_being_noisy():
    (group,) = groups(choose({2: (0.88, 0.88, 0.88), 8: (0.95, 0.70, 0.90)}))
    assert advise_cycles(group).chosen.lengths == (2, 2, 2, 2)


def test_the_long_cosine_where_it_is_the_best():
    runs = choose({2: (0.8, 0.8, 0.8), 8: COSINE})
    (text,) = sentences(runs, markdown=True)
    assert text.startswith("Recommended for block cycles: one long cosine of 8 epochs,")
    assert text.endswith("85.0 %, the best.")


def test_two_repeats_are_not_enough_data():
    runs = choose({2: (0.9, 0.9), 8: COSINE})
    (text,) = sentences(runs, markdown=True)
    assert text.startswith("No recommendation for block cycles: not enough data")
    assert "cycles of 2 epochs, 4 snapshots, 90.0 %, has 2 repeats" in text
    assert cycle_recommendations(runs)["schedule"].tolist() == [""]


def test_a_single_schedule_or_none_that_completed_is_nothing_to_choose_from():
    assert sentences(choose({8: COSINE})) == []
    assert sentences(choose({2: COSINE, 8: COSINE}, outcome="timeout")) == []
