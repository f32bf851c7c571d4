"""Retries of trials: the real rounds, with a Ray that returns planted ends of trials."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from speech.config import TrialConfig
from sweeps.config.config import Metric, SweepConfig
from sweeps.config.plan import TrialSpec
from sweeps.execution import retries
from sweeps.execution.ray_session import RayEnded
from sweeps.execution.trial_result import LostTrial, TrialResult
from sweeps.trial_states import SETTLED, Outcome, TrialState

RAY = "Ray ended"
KILLED = "Ray's raylet was killed."


def spec(key: str) -> TrialSpec:
    config = TrialConfig.model_validate({"corpus": {"name": "synthetic", "words": ["yes", "no"]}})
    return TrialSpec(key, key, 1, 7, config, {}, Metric(name="epoch_s", goal="minimize"), 0, 60.0)


def result_of(end: str) -> TrialResult | LostTrial:
    if end == "lost":
        return LostTrial("The actor died.")
    return TrialResult(Outcome(end), "planted", {}, "stderr.log", {}, run_id="1f")


class Played:
    """A sweep and its Ray. Attempt n at a trial ends as the n-th word of `ends` under its key;
    `started` holds the keys in order."""

    def __init__(
        self, monkeypatch, ends: dict[str, str], disturbed: tuple[str, ...] = (), **keys
    ) -> None:
        self.ends = {key: words.split(", ") for key, words in ends.items()}
        self.config = SweepConfig(name="played", **keys)
        self.plan = SimpleNamespace(trials=[spec(key) for key in ends])
        self.trial_forecasts = SimpleNamespace(
            pending=lambda settled, asked: self.plan.trials, expected_s=lambda trial: None
        )
        self.hosts = SimpleNamespace(open_session=lambda config, due: None, starts_ray=True)
        self.folder = Path("/sweep")
        self.state = SimpleNamespace(states={}, selection=SimpleNamespace(ids=None))
        self.noisy, self.done, self.started, self.said = set(disturbed), {}, [], []
        monkeypatch.setattr(retries.ray_tune, "run", self.play)
        monkeypatch.setattr(retries, "build_launch_context", lambda sweep: None)
        monkeypatch.setattr(
            retries, "flush_and_refresh", lambda sweep, say, patience_s=0.0: self.look()
        )

    @property
    def pending(self) -> list[TrialSpec]:
        return [
            trial
            for trial in self.plan.trials
            if self.state.states.get(trial.trial_id) not in SETTLED
        ]

    @property
    def unsettled(self) -> list[TrialSpec]:
        return [
            trial
            for trial in self.pending
            if self.state.states.get(trial.trial_id) != TrialState.NEEDS_RERUN
        ]

    def play(self, trials, launch, session, listener) -> None:
        for trial in trials:
            self.started.append(trial.trial_id)
            end = self.ends[trial.trial_id].pop(0)
            if end == RAY:
                raise RayEnded(KILLED)
            if end in SETTLED:
                self.done[trial.trial_id] = end
            if self.started.count(trial.trial_id) > 1:
                self.noisy.discard(trial.trial_id)
            if not listener.on_trial_end(trial, result_of(end)):
                return

    def look(self) -> None:
        self.state.states = {
            key: TrialState.NEEDS_RERUN if key in self.noisy else end
            for key, end in self.done.items()
        }


@pytest.mark.parametrize(
    ("ends", "keys", "started", "failed"),
    [
        ({"a": "completed", "b": "shm_exhausted"}, {}, "a b", ""),
        ({"a": "oom, completed", "b": "completed"}, {}, "a b a", ""),
        ({"a": "oom, oom, oom", "b": "completed"}, {}, "a b a", "a"),
        ({"a": "lost, oom, completed"}, {"max_restarts": 2}, "a a a", ""),
        ({"a": "lost"}, {"max_restarts": 0}, "a", "a"),
        (
            {"a": "crashed", "b": "timeout", "c": "data_error", "d": "shm_exhausted"},
            {},
            "a b c d",
            "a b c",
        ),
        ({"a": "completed", "b": "Ray ended, completed", "c": "completed"}, {}, "a b b c", ""),
        ({"a": "oom, completed", "b": "Ray ended, completed"}, {}, "a b a b", ""),
        ({"a": "oom, crashed", "b": "completed"}, {"on_failure": "stop"}, "a b a", "a"),
        ({"a": "crashed", "b": "completed"}, {"on_failure": "stop"}, "a", "a"),
        ({"a": "completed", "b": "oom, completed", "c": "completed"}, {"run_cap": 2}, "a b b", ""),
    ],
    ids=str,
)
def test_the_trials_that_run_and_those_that_fail(
    monkeypatch, ends: dict, keys: dict, started: str, failed: str
) -> None:
    played = Played(monkeypatch, ends, **keys)
    assert [trial.trial_id for trial in retries.run(played, played.said.append)] == failed.split()
    assert played.started == started.split()


def test_trials_that_failed_before_run_last_so_that_a_cap_reaches_the_others(monkeypatch) -> None:
    played = Played(
        monkeypatch, {"a": "timeout", "b": "completed", "c": "interrupted, completed"}, run_cap=2
    )
    played.state.states = {"a": "timeout", "c": "interrupted"}
    retries.run(played, played.said.append)
    assert played.started == ["b", "c"]


@pytest.mark.parametrize(
    ("ends", "keys", "over"),
    [
        ({"a": "completed", "b": "shm_exhausted"}, {}, True),
        ({"a": "crashed", "b": "lost, lost"}, {}, True),  # both have had their turn
        ({"a": "crashed", "b": "completed"}, {"on_failure": "stop"}, False),
        ({"a": "completed", "b": "completed"}, {"run_cap": 1}, False),
    ],
    ids=str,
)
def test_a_launch_is_finished_when_only_trials_that_failed_in_it_remain(
    monkeypatch, ends: dict, keys: dict, over: bool
) -> None:
    played = Played(monkeypatch, ends, **keys)
    retries.run(played, played.said.append)
    assert played.finished == over


def test_a_stop_is_not_undone_by_a_trial_that_was_still_running(monkeypatch) -> None:
    played = Played(
        monkeypatch, {"a": "crashed", "b": "oom, completed", "c": "completed"}, on_failure="stop"
    )

    def side_by_side(trials, launch, session, listener) -> None:
        for trial in trials[:2]:
            played.started.append(trial.trial_id)
            end = played.ends[trial.trial_id].pop(0)
            listener.on_trial_end(trial, result_of(end))

    monkeypatch.setattr(retries.ray_tune, "run", side_by_side)
    retries.run(played, played.said.append)
    assert played.started == ["a", "b"]
    assert not [line for line in played.said if "once more" in line]


def test_a_ray_that_ends_more_often_than_max_restarts_ends_the_launch(monkeypatch) -> None:
    played = Played(monkeypatch, {"a": "completed", "b": "Ray ended, Ray ended"})
    with pytest.raises(RayEnded) as ended:
        retries.run(played, played.said.append)
    assert str(ended.value.__cause__) == KILLED
    assert KILLED in str(ended.value)
    assert "same command" in str(ended.value)
    assert played.started == ["a", "b", "b"]
    assert " 2 of 2 (max_restarts)" in played.said[1]


def test_a_disturbed_trial_runs_once_more_even_when_ray_ends_meanwhile(monkeypatch) -> None:
    played = Played(
        monkeypatch, {"a": "completed, Ray ended, completed", "b": "completed"}, disturbed=("a",)
    )
    assert retries.run(played, played.said.append) == []
    assert played.started == ["a", "b", "a", "a"]


def test_each_failure_is_reported_with_its_cause_its_log_and_its_retry(monkeypatch) -> None:
    played = Played(
        monkeypatch, {"a": "oom, crashed", "b": "lost, completed", "c": "completed"}, run_cap=2
    )
    retries.run(played, played.said.append)
    expected = [
        ("1/3  a · repeat 1  oom: planted",),
        ("stderr.log", "MLflow run 1f", "once more, 1 of 1 (max_restarts)"),
        ("2/3  b · repeat 1  lost: The actor died.",),
        ("/sweep/b", "once more, 1 of 1 (max_restarts)"),
        ("2/3  a · repeat 1  crashed: planted",),
        ("stderr.log", "MLflow run 1f"),
        ("2/3  b · repeat 1",),
        ("run_cap of 2", "1 trial remains"),
    ]
    for line, parts in zip(played.said, expected, strict=True):
        assert [part for part in parts if part not in line] == []
    assert [n for n, line in enumerate(played.said) if "once more" in line] == [1, 3]
