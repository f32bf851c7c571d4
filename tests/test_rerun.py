"""Which trials --rerun asks for, and what of it a launch that was cut short has left."""

from types import SimpleNamespace

import pytest

from sweeps.rerun import TAG, Asked, UnknownKey, asked_for, begun, find, forgotten, goes_on, is_over, note, without
from sweeps.states import states


def run(key: str, outcome: str, began: int, *, status: str = "FINISHED") -> SimpleNamespace:
    info = SimpleNamespace(status=status, run_id=f"{key} {began}", start_time=began)
    return SimpleNamespace(info=info, data=SimpleNamespace(tags={"key": key, "outcome": outcome}))


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


def test_what_is_asked_for_has_not_run_but_for_what_ran_since_it_was_asked_for() -> None:
    newest_first = [
        run("abd2", "interrupted", 30), run("abc1", "crashed", 25),
        run("fff3", "completed", 20), run("abd2", "completed", 12), run("abc1", "completed", 11), run("0004", "completed", 10),
    ]  # fmt: skip
    asked = Asked(frozenset({"abc1", "abd2", "fff3"}))
    assert forgotten(newest_first, asked, 20) == {"fff3 20", "abd2 12", "abc1 11"}
    assert states(without(newest_first, forgotten(newest_first, asked, 20)), PLANNED) == {
        "abc1": "crashed", "abd2": "interrupted", "0004": "completed",
    }  # fmt: skip
    assert forgotten(newest_first, Asked(), 20) == frozenset()


@pytest.mark.parametrize(("rerun", "since"), [(["all"], 7), (["all", "all"], 7), ([], None), (["failed"], None), (["all", "abc1"], None)])
def test_a_rerun_goes_on_with_the_one_of_the_same_words(rerun: list[str], since: int | None) -> None:
    assert begun({TAG: note(["all"], 7)}, rerun) == since
    assert begun({}, rerun) is None


def test_a_rerun_is_over_when_each_trial_has_ended_anew_the_failed_among_them() -> None:
    assert is_over([trial("a"), trial("b")], {"a": "crashed", "b": "disturbed"})
    for state in ("new", "running", "interrupted"):
        assert not is_over([trial("a"), trial("b")], {"a": "crashed", "b": state})
    assert not is_over([trial("never")], {})
    assert is_over([], {})


def test_it_tells_with_what_it_goes_on() -> None:
    found = {"a": "completed", "b": "crashed", "c": "interrupted", "other": "completed"}
    assert goes_on(["all"], Asked(frozenset("abcd")), 0, found).endswith("00, which was cut short: 2 of 4 trials have run since")
    assert goes_on(["a", "b"], Asked(frozenset("ac")), 0, found).startswith("goes on with --rerun a --rerun b of 19")
