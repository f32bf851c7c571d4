"""Tests prices of epochs and trials, with planted times."""

import re
from dataclasses import replace

import pytest

from analysis import cycle_recommendation, recommendation
from analysis.prices import price_text, prices, tables
from analysis.runs import sweep_runs
from tests.conftest import make_trial_id


@pytest.fixture
def runs(tracking, plant):
    """Two points of three trials: epochs of 36 and 18 s, trials of 4 epochs each; one overflowed."""
    epochs_s = {0: 36.0, 2: 18.0, 8: None}
    trials = [
        ({"loader.num_workers": workers}, repeat) for workers in epochs_s for repeat in (1, 2, 3)
    ]
    plan = [{"trial_id": make_trial_id("workers", *trial)} for trial in trials]
    parent = tracking.start_sweep("priced", "", plan, "")
    for swept, repeat in trials:
        if epoch_s := epochs_s[swept["loader.num_workers"]]:
            plant(parent, swept, repeat, epoch_s=epoch_s, train_s=4 * epoch_s)
        else:
            plant(parent, swept, repeat, "shm_exhausted")

    def read(price: float | str):
        tracking.set_tags(parent, {"price_per_hour": price})
        return sweep_runs("priced", tracking.uri)

    return read


def test_an_epoch_and_a_trial_cost_their_time(runs) -> None:
    rows = prices(runs(2.0)).set_index("varied")
    assert rows["epoch_price"].to_dict() == pytest.approx(
        {"num_workers=0": 0.02, "num_workers=2": 0.01}
    )
    assert rows["trial_price"].to_dict() == pytest.approx(
        {"num_workers=0": 0.08, "num_workers=2": 0.04}
    )
    assert rows["n"].tolist() == [3, 3], "what overflowed has no time, and no price"
    (text,) = tables(runs(2.0))
    assert re.findall(r"num_workers=2 +3 +0\.0100 +0\.0400", text)


def test_the_recommendation_is_also_in_money(runs) -> None:
    (text, *_) = recommendation.sentences(runs(2.0))
    assert "At 2 an hour an epoch costs 0.0100 and a trial costs 0.0400." in " ".join(text.split())


def test_the_latest_price_counts_and_none_shows_nothing(runs) -> None:
    assert runs("").price_per_hour is None
    assert (prices(runs("")).empty, tables(runs(""))) == (True, [])
    assert "an hour" not in " ".join(recommendation.sentences(runs("")))
    assert prices(runs(4.0))["epoch_price"].max() == pytest.approx(0.04)
    assert prices(runs(0.0))["epoch_price"].tolist() == [0, 0]


def test_the_recommended_cycles_have_a_price(first_look) -> None:
    runs = sweep_runs("first-look", first_look.uri)
    (plain,) = cycle_recommendation.sentences(runs)
    priced = cycle_recommendation.sentences(replace(runs, price_per_hour=3600.0))
    assert "an hour" not in plain
    assert "At 3,600 an hour" in " ".join(priced[0].split())


@pytest.mark.parametrize(
    ("price", "text"),
    [(0.0, "0"), (0.00012345, "0.000123"), (0.5, "0.500"), (12.345, "12.3"), (1234.5, "1,234")],
)
def test_a_price_has_three_digits(price: float, text: str) -> None:
    assert price_text(price) == text
