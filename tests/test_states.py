"""Where trials stand, told from their runs, and which of them --rerun asks for."""

from types import SimpleNamespace

import pytest

from sweeps.states import Asked, UnknownKey, asked_for, counted, find, kind, settled_for_good, states, without


def run(key: str, outcome: str | None, *, status: str = "FINISHED", disturbed: bool = False, run_id: str = "") -> SimpleNamespace:
    tags = {"key": key} | ({"outcome": outcome} if outcome else {}) | ({"disturbed": "by another"} if disturbed else {})
    return SimpleNamespace(info=SimpleNamespace(status=status, run_id=run_id or key), data=SimpleNamespace(tags=tags))


def trial(key: str, metric: str = "epoch_s") -> SimpleNamespace:
    return SimpleNamespace(key=key, metric=SimpleNamespace(name=metric))


def test_a_settled_attempt_counts_before_a_later_one_that_is_not_and_else_the_latest() -> None:
    newest_first = [
        run("settled", "crashed"), run("settled", "shm_exhausted"), run("settled", "completed"),
        run("failed", "oom"), run("failed", "timeout"),
        run("under way", None, status="RUNNING"), run("under way", "crashed"),
        run("cut short while closing", "completed", status="RUNNING"),
        run("of an earlier plan", "completed"),
    ]  # fmt: skip
    planned = [trial(key) for key in ("settled", "failed", "under way", "cut short while closing", "never")]
    found = states(newest_first, planned)
    assert found == {"settled": "shm_exhausted", "failed": "oom", "under way": "running", "cut short while closing": "running"}
    assert settled_for_good(found) == {"settled": "shm_exhausted"}


def test_a_disturbed_trial_is_due_once_more_where_its_time_is_what_counts() -> None:
    once = [run("time", "completed", disturbed=True), run("accuracy", "completed", disturbed=True)]
    planned = [trial("time"), trial("accuracy", "accuracy")]
    assert states(once, planned) == {"time": "disturbed", "accuracy": "completed"}
    assert states([run("time", "crashed"), *once], planned)["time"] == "completed", "it has had its second run"


def test_states_are_counted_by_kind_in_one_order() -> None:
    assert counted(["new", "completed", "oom", "stopped_early", "crashed", "interrupted", "timeout"]) == (
        "2 settled, 3 failed, 1 interrupted, 1 new"
    )
    assert [kind(state) for state in ("disturbed", "running", "not measured", "data_error")] == [
        "disturbed", "running", "not measured", "failed",
    ]  # fmt: skip


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


def test_what_is_asked_for_again_has_not_run() -> None:
    newest_first = [run("abc1", "completed", run_id="2"), run("abc1", "oom", run_id="1"), run("abd2", "oom", run_id="0")]
    assert states(without(newest_first, {"1", "2"}), PLANNED) == {"abd2": "oom"}
