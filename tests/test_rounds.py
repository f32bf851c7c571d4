"""What runs once more, and what does not: a Ray that plays planted ends of trials, under the real rounds."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from speech.config import TrialConfig
from sweeps import rounds
from sweeps.config import Metric, SweepConfig
from sweeps.plan import TrialSpec
from sweeps.runner import RayEnded
from sweeps.states import DISTURBED
from sweeps.tracking import SETTLED

RAY = "Ray ended"


def spec(key: str) -> TrialSpec:
    config = TrialConfig.model_validate({"corpus": {"name": "synthetic", "words": ["yes", "no"]}})
    return TrialSpec(key, key, 1, 7, config, {}, Metric(name="epoch_s", goal="minimize"), 0, 60.0)


class Played:
    """A sweep and its Ray: attempt n at a trial ends as the n-th word of `ends` under its key says. `started`: keys in order."""

    def __init__(self, monkeypatch, ends: dict[str, str], disturbed: tuple[str, ...] = (), **keys) -> None:
        self.ends = {key: words.split(", ") for key, words in ends.items()}
        self.config = SweepConfig(name="played", **keys)
        self.plan = SimpleNamespace(trials=[spec(key) for key in ends])
        self.outlook = SimpleNamespace(left=lambda settled, asked: self.plan.trials, expected_s=lambda trial: None)
        self.machines = SimpleNamespace(running=lambda config, due: None, starts_ray=True)
        self.asked, self.folder = SimpleNamespace(keys=None), Path("/sweep")
        self.noisy, self.done, self.states, self.started, self.said = set(disturbed), {}, {}, [], []
        monkeypatch.setattr(rounds.runner, "run", self.play)
        monkeypatch.setattr(rounds, "launch_of", lambda sweep: None)
        monkeypatch.setattr(rounds, "settle_up", lambda sweep, say, patience_s=0.0: self.look())

    @property
    def left(self) -> list[TrialSpec]:
        return [trial for trial in self.plan.trials if self.states.get(trial.key) not in SETTLED]

    @property
    def unsettled(self) -> list[TrialSpec]:
        return [trial for trial in self.left if self.states.get(trial.key) != DISTURBED]

    def play(self, trials, launch, session, done, hear, say) -> None:
        for trial in trials:
            self.started.append(trial.key)
            end = self.ends[trial.key].pop(0)
            if end == RAY:
                raise RayEnded("Ray's raylet was killed under way.")
            result = {"outcome": end, "evidence": "planted", "summary": {}, "run_id": "1f", "log": "stderr.log", "origin": {}}
            if end in SETTLED:
                self.done[trial.key] = end
            if self.started.count(trial.key) > 1:
                self.noisy.discard(trial.key)
            if not done(trial, {"lost": "The actor died."} if end == "lost" else result):
                return

    def look(self) -> None:
        self.states = {key: DISTURBED if key in self.noisy else end for key, end in self.done.items()}


@pytest.mark.parametrize(
    ("ends", "keys", "started", "failed"),
    [
        ({"a": "completed", "b": "shm_exhausted"}, {}, "a b", ""),
        ({"a": "oom, completed", "b": "completed"}, {}, "a b a", ""),
        ({"a": "oom, oom, oom", "b": "completed"}, {}, "a b a", "a"),
        ({"a": "lost, oom, completed"}, {"max_restarts": 2}, "a a a", ""),
        ({"a": "lost"}, {"max_restarts": 0}, "a", "a"),
        ({"a": "crashed", "b": "timeout", "c": "data_error", "d": "shm_exhausted"}, {}, "a b c d", "a b c"),
        ({"a": "completed", "b": "Ray ended, completed", "c": "completed"}, {}, "a b b c", ""),
        ({"a": "oom, completed", "b": "Ray ended, completed"}, {}, "a b a b", ""),
        ({"a": "oom, crashed", "b": "completed"}, {"on_failure": "stop"}, "a b a", "a"),
        ({"a": "crashed", "b": "completed"}, {"on_failure": "stop"}, "a", "a"),
        ({"a": "completed", "b": "oom, completed", "c": "completed"}, {"run_cap": 2}, "a b b", ""),
    ],
    ids=str,
)
def test_what_runs_and_what_fails(monkeypatch, ends: dict, keys: dict, started: str, failed: str) -> None:
    played = Played(monkeypatch, ends, **keys)
    assert [trial.key for trial in rounds.run(played, played.said.append)] == failed.split()
    assert played.started == started.split()


def test_what_failed_before_runs_last_so_a_cap_gets_to_the_others(monkeypatch) -> None:
    played = Played(monkeypatch, {"a": "timeout", "b": "completed", "c": "interrupted, completed"}, run_cap=2)
    played.states = {"a": "timeout", "c": "interrupted"}
    rounds.run(played, played.said.append)
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
def test_a_launch_is_over_when_nothing_is_left_but_what_has_failed_in_it(monkeypatch, ends: dict, keys: dict, over: bool) -> None:
    played = Played(monkeypatch, ends, **keys)
    rounds.run(played, played.said.append)
    assert played.over == over


def test_a_stop_is_not_undone_by_one_that_was_left_to_end(monkeypatch) -> None:
    played = Played(monkeypatch, {"a": "crashed", "b": "oom, completed", "c": "completed"}, on_failure="stop")

    def side_by_side(trials, launch, session, done, hear, say) -> None:
        for trial in trials[:2]:
            played.started.append(trial.key)
            end = played.ends[trial.key].pop(0)
            done(trial, {"outcome": end, "evidence": "planted", "summary": {}, "run_id": "1f", "log": "stderr.log", "origin": {}})

    monkeypatch.setattr(rounds.runner, "run", side_by_side)
    rounds.run(played, played.said.append)
    assert played.started == ["a", "b"]
    assert not [line for line in played.said if "runs once more" in line]


def test_a_ray_that_ends_once_too_often_ends_the_launch(monkeypatch) -> None:
    played = Played(monkeypatch, {"a": "completed", "b": "Ray ended, Ray ended"})
    with pytest.raises(RayEnded, match=r"raylet was killed under way\. What has ended is settled; the same command runs the rest"):
        rounds.run(played, played.said.append)
    assert played.started == ["a", "b", "b"]
    assert "time 2 of 2 (max_restarts)" in played.said[1]


def test_a_disturbed_trial_runs_once_more_even_when_ray_ends_meanwhile(monkeypatch) -> None:
    played = Played(monkeypatch, {"a": "completed, Ray ended, completed", "b": "completed"}, disturbed=("a",))
    assert rounds.run(played, played.said.append) == []
    assert played.started == ["a", "b", "a", "a"]


def test_each_failure_says_its_cause_its_log_and_what_follows(monkeypatch) -> None:
    played = Played(monkeypatch, {"a": "oom, crashed", "b": "lost, completed", "c": "completed"}, run_cap=2)
    rounds.run(played, played.said.append)
    assert [line.strip() for line in played.said] == [
        "1/3  a · repeat 1  oom: planted",
        "see stderr.log of its MLflow run 1f; runs once more, 1 of 1 (max_restarts)",
        "2/3  b · repeat 1  lost: The actor died.",
        "what it wrote lies in /sweep/b until it is filed with its MLflow run; runs once more, 1 of 1 (max_restarts)",
        "2/3  a · repeat 1  crashed: planted",
        "see stderr.log of its MLflow run 1f",
        "2/3  b · repeat 1",
        "run_cap of 2 is reached: 1 trial is left, which the same command runs.",
    ]
