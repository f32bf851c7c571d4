"""Which trials --rerun asks for, and what of it a launch that was cut short has left."""

from types import SimpleNamespace

import pytest

from sweeps.tracking.rerun import (
    TAG,
    Rerun,
    RerunSelection,
    UnknownTrial,
    choose_rerun,
    counted_runs,
    find_trial,
    rerun_messages,
    select_trials,
)
from sweeps.tracking.states import compute_states


def run(key: str, outcome: str, **tags: str) -> SimpleNamespace:
    tags |= {"trial_id": key, "outcome": outcome}
    return SimpleNamespace(info=SimpleNamespace(status="FINISHED"), data=SimpleNamespace(tags=tags))


def trial(key: str) -> SimpleNamespace:
    return SimpleNamespace(trial_id=key, metric=SimpleNamespace(name="epoch_s"))


PLANNED = [trial(key) for key in ("abc1", "abd2", "fff3", "0004")]
FOUND = {"abc1": "completed", "abd2": "oom", "fff3": "interrupted"}


@pytest.mark.parametrize(
    ("rerun", "keys", "named"),
    [
        ([], None, ""),
        (["failed"], "abd2 fff3", ""),
        (["all"], "abc1 abd2 fff3 0004", ""),
        (["f"], "fff3", "fff3"),
        (["abc", "failed"], "abc1 abd2 fff3", "abc1"),
        (["all", "0004"], "abc1 abd2 fff3 0004", "0004"),
    ],
)
def test_what_rerun_asks_for(rerun: list[str], keys: str | None, named: str) -> None:
    assert select_trials(rerun, PLANNED, FOUND) == RerunSelection(
        None if keys is None else frozenset(keys.split()), frozenset(named.split())
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("abx1", "Did you mean abc1?"),
        ("ab", ": abc1, abd2."),
        ("", "--dry-run"),
    ],
)
def test_a_key_that_is_not_one_trial_s_is_told_with_what_is_near(word: str, message: str) -> None:
    with pytest.raises(UnknownTrial) as caught:
        find_trial(word, PLANNED)
    assert message in str(caught.value)


def test_what_is_asked_for_has_not_run_but_in_the_rerun_s_own_attempts() -> None:
    """Whatever the clocks of machines say: `abd2` began anew on one that is a day behind."""
    now = Rerun.create(["all"])
    runs = [
        run("abc1", "crashed", rerun=now.id), run("fff3", "completed"), run("abd2", "completed"), run("abc1", "completed"),
        run("0004", "completed"), run("abd2", "interrupted", rerun=now.id), run("abd2", "oom", rerun="another"),
    ]  # fmt: skip
    asked = RerunSelection(frozenset({"abc1", "abd2", "fff3"}))
    assert compute_states(counted_runs(runs, asked, now), PLANNED) == {
        "abc1": "crashed",
        "abd2": "interrupted",
        "0004": "completed",
    }
    assert (
        counted_runs(runs, RerunSelection(), now)
        == counted_runs(runs, RerunSelection(), None)
        == runs
    )


MANY = [f"{number:012x}" for number in range(5000)]


@pytest.mark.parametrize(
    ("first", "then", "same"),
    [
        (["all"], ["all"], True),
        (["failed", "abc1"], ["abc1", "failed", "abc1"], True),
        (MANY, MANY[::-1], True),
        (["all"], [], False),
        (["all"], ["failed"], False),
        (MANY, MANY[1:], False),
    ],
)
def test_a_rerun_is_known_again_by_its_words(first: list[str], then: list[str], same: bool) -> None:
    begun = Rerun.create(first)
    noted = Rerun.from_tags({TAG: begun.to_json()})
    assert noted == begun
    assert (choose_rerun(then, noted) == begun) == same
    assert (choose_rerun(then, None) is None) == (not then)
    assert len(begun.to_json()) < 500, "a tag of MLflow's has 8,000 characters at most"


def test_none_is_noted_in_a_sweep_that_has_none() -> None:
    assert Rerun.from_tags({"sweep": "s"}) is None


def test_it_tells_what_it_goes_on_with_and_what_it_drops() -> None:
    begun = Rerun.create(["failed", "abc"])._replace(began="2026-11-24 10:31")
    found = {"abc1": "crashed", "abd2": "interrupted", "0004": "completed"}
    assert rerun_messages(None, begun, PLANNED, found) == []
    named = "--rerun failed --rerun abc of 2026-11-24 10:31"
    (line,) = rerun_messages(begun, begun, PLANNED, found)
    assert line.startswith(f"continues {named}: 2 trials")
    (line,) = rerun_messages(begun, begun, PLANNED[:2], found)
    assert line.startswith(f"continues {named}: 1 trial ")
    for now in (None, Rerun.create(["all"])):
        (line,) = rerun_messages(begun, now, PLANNED, found)
        assert line.startswith(f"drops the unfinished {named}")
    assert Rerun.create(MANY).words.endswith(f"--rerun {MANY[4]} and 4995 more")
