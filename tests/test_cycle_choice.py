"""Which cycle length is chosen, against planted ensembles whose answer is plain."""

import pytest

from analysis.cycle_choice import advise, cycle_recommendations, sentences
from analysis.cycles import groups
from tests.random_runs import Drawn, frame_of

COSINE = (0.84, 0.85, 0.86)


def choose(schedules, outcome="completed"):
    """schedules: cycle_epochs of 8 -> ensemble accuracy by repeat."""
    figures = ("accuracy", "best_snapshot_accuracy", "ensemble_accuracy")
    return frame_of([
        Drawn("cycles", {"sgdr.cycle_epochs": epochs}, repeat, outcome, dict.fromkeys(figures, accuracy), {})
        for epochs, accuracies in schedules.items() for repeat, accuracy in enumerate(accuracies, 1)
    ])  # fmt: skip


def test_an_ensemble_that_gains_in_every_repeat_is_taken():
    frame = choose({2: [accuracy + 0.03 for accuracy in COSINE], 8: COSINE})
    assert sentences(frame, markdown=True) == [
        "Recommended for block cycles: cycles of 2 epochs, 4 snapshots, ensemble 88.0 %, the best. "
        "Against one long cosine: +3.0 points (+3.0 to +3.0)."
    ]
    (choice,) = cycle_recommendations(frame).itertuples()
    assert (choice.schedule, choice.snapshots, choice.best_schedule) == ("2", 4, "2")
    assert (choice.ensemble, choice.gain) == pytest.approx((0.88, 0.03))


def test_of_those_not_told_apart_the_one_with_fewest_snapshots():
    # 4 against 2: differences -0.01, 0.01, -0.01: mean -0.0033, sd 0.011547; t(0.975, 2) = 4.302653, over the root of 3: +- 0.0287
    frame = choose({2: (0.88, 0.86, 0.88), 4: (0.87, 0.87, 0.87), 8: (0.80, 0.80, 0.80)})
    (group,) = groups(frame)
    advice = advise(group)
    assert (advice.chosen.lengths, advice.best.lengths) == ((4, 4), (2, 2, 2, 2))
    assert advice.difference == pytest.approx((-0.003333, -0.032018, 0.025351), abs=1e-5)
    (text,) = sentences(frame, markdown=True)
    assert "cycles of 4 epochs, 2 snapshots, ensemble 87.0 %, not told apart from the best, cycles of 2 epochs, 4 snapshots, 87.3 %" in text


def test_one_that_looks_more_than_a_point_worse_is_not_taken_for_being_noisy():
    (group,) = groups(choose({2: (0.88, 0.88, 0.88), 8: (0.95, 0.70, 0.90)}))
    assert advise(group).chosen.lengths == (2, 2, 2, 2)


def test_the_long_cosine_where_it_is_the_best():
    frame = choose({2: (0.8, 0.8, 0.8), 8: COSINE})
    assert sentences(frame, markdown=True) == ["Recommended for block cycles: one long cosine of 8 epochs, ensemble 85.0 %, the best."]


def test_two_repeats_are_not_enough_data():
    frame = choose({2: (0.9, 0.9), 8: COSINE})
    assert sentences(frame, markdown=True) == [
        "No recommendation for block cycles: not enough data. The best ensemble, cycles of 2 epochs, 4 snapshots, 90.0 %, has 2 repeats; "
        "an interval needs 3."
    ]
    assert cycle_recommendations(frame)["schedule"].tolist() == [""]


def test_a_single_schedule_or_none_that_completed_is_nothing_to_choose_from():
    assert sentences(choose({8: COSINE})) == []
    assert sentences(choose({2: COSINE, 8: COSINE}, outcome="stopped_early")) == []
