"""Which trials --rerun asks for, and what of it a launch that was cut short has left."""

from types import SimpleNamespace

import pytest

from sweeps.rerun import TAG, Asked, Rerun, UnknownKey, asked_for, counted, find, told, wanted
from sweeps.states import states


def run(key: str, outcome: str, **tags: str) -> SimpleNamespace:
    tags |= {"key": key, "outcome": outcome}
    return SimpleNamespace(info=SimpleNamespace(status="FINISHED"), data=SimpleNamespace(tags=tags))


def trial(key: str) -> SimpleNamespace:
    return SimpleNamespace(key=key, metric=SimpleNamespace(name="epoch_s"))


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
    assert asked_for(rerun, PLANNED, FOUND) == Asked(None if keys is None else frozenset(keys.split()), frozenset(named.split()))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("abx1", "abx1: no trial of this sweep has such a key. Did you mean abc1?"),
        ("ab", "ab: 2 keys begin with it: abc1, abd2. Write more of it."),
        ("", "no trial of this sweep has such a key. --dry-run prints"),
    ],
)
def test_a_key_that_is_not_one_trial_s_is_told_with_what_is_near(word: str, message: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        find(word, PLANNED)
    assert message in str(caught.value)


def test_what_is_asked_for_has_not_run_but_in_the_rerun_s_own_attempts() -> None:
    """Whatever the clocks of machines say: `abd2` began anew on one that is a day behind."""
    now = Rerun.new(["all"])
    runs = [
        run("abc1", "crashed", rerun=now.id), run("fff3", "completed"), run("abd2", "completed"), run("abc1", "completed"),
        run("0004", "completed"), run("abd2", "interrupted", rerun=now.id), run("abd2", "oom", rerun="another"),
    ]  # fmt: skip
    asked = Asked(frozenset({"abc1", "abd2", "fff3"}))
    assert states(counted(runs, asked, now), PLANNED) == {"abc1": "crashed", "abd2": "interrupted", "0004": "completed"}
    assert counted(runs, Asked(), now) == counted(runs, Asked(), None) == runs


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
    begun = Rerun.new(first)
    noted = Rerun.noted({TAG: begun.note()})
    assert noted == begun
    assert (wanted(then, noted) == begun) == same
    assert (wanted(then, None) is None) == (not then)
    assert len(begun.note()) < 500, "a tag of MLflow's has 8,000 characters at most"


def test_none_is_noted_in_a_sweep_that_has_none() -> None:
    assert Rerun.noted({"sweep": "s"}) is None


def test_it_tells_what_it_goes_on_with_and_what_it_drops() -> None:
    begun = Rerun.new(["failed", "abc"])._replace(began="2026-11-24 10:31")
    found = {"abc1": "crashed", "abd2": "interrupted", "0004": "completed"}
    assert told(None, begun, PLANNED, found) == []
    assert told(begun, begun, PLANNED, found) == [
        "goes on with --rerun failed --rerun abc of 2026-11-24 10:31: 2 trials have not run since"
    ]
    assert told(begun, begun, PLANNED[:2], found)[0].endswith("1 trial has not run since")
    for now in (None, Rerun.new(["all"])):
        assert told(begun, now, PLANNED, found) == [
            "drops --rerun failed --rerun abc of 2026-11-24 10:31, which has not run to its end: the same words would go on with it"
        ]
    assert Rerun.new(MANY).words.endswith(f"--rerun {MANY[4]} and 4995 more")
