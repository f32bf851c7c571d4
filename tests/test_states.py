"""Tests how the states of trials follow from their runs."""

from types import SimpleNamespace

from sweeps.tracking.states import compute_states, format_counts, settled_states


def run(
    key: str, outcome: str | None, *, status: str = "FINISHED", disturbed: bool = False
) -> SimpleNamespace:
    tags = (
        {"trial_id": key}
        | ({"outcome": outcome} if outcome else {})
        | ({"disturbed": "by another"} if disturbed else {})
    )
    return SimpleNamespace(info=SimpleNamespace(status=status), data=SimpleNamespace(tags=tags))


def trial(key: str, metric: str = "epoch_s") -> SimpleNamespace:
    return SimpleNamespace(trial_id=key, metric=SimpleNamespace(name=metric))


def test_a_settled_attempt_takes_precedence_and_otherwise_the_latest_counts() -> None:
    newest_first = [
        run("settled", "crashed"), run("settled", "shm_exhausted"), run("settled", "completed"),
        run("failed", "oom"), run("failed", "timeout"),
        run("under way", None, status="RUNNING"), run("under way", "crashed"),
        run("half closed", "completed", status="RUNNING"),
        run("of an earlier plan", "completed"),
    ]  # fmt: skip
    planned = [trial(key) for key in ("settled", "failed", "under way", "half closed", "never")]
    found = compute_states(newest_first, planned)
    assert found == {
        "settled": "shm_exhausted",
        "failed": "oom",
        "under way": "running",
        "half closed": "running",
    }
    assert settled_states(found) == {"settled": "shm_exhausted"}


def test_a_disturbed_trial_runs_once_more_if_its_metric_is_a_time() -> None:
    once = [run("time", "completed", disturbed=True), run("accuracy", "completed", disturbed=True)]
    planned = [trial("time"), trial("accuracy", "accuracy")]
    assert compute_states(once, planned) == {"time": "disturbed", "accuracy": "completed"}
    assert compute_states([run("time", "crashed"), *once], planned)["time"] == "completed", (
        "it has had its second run"
    )


def test_states_are_counted_by_group_in_a_fixed_order() -> None:
    counts = format_counts(
        ["new", "completed", "oom", "shm_exhausted", "crashed", "interrupted", "timeout"]
    )
    assert counts.split(", ") == ["2 settled", "3 failed", "1 interrupted", "1 new"]
