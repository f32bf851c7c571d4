"""Tests trials on several ranks, in real process trees."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from speech.config import Trial
from speech.rank_records import combine_ranks
from speech.ranks import Member
from speech.simulated_accelerator import SimulatedAccelerator
from speech.training_config import Device
from sweeps.sandbox.isolation import ForkServer, Task
from sweeps.sandbox.outcome import TrainingEnd, classify
from sweeps.trial_states import Outcome
from tests.trees import ROOT, can_isolate, trees, wait_until

pytestmark = pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")


@pytest.fixture(scope="module")
def template():
    made = ForkServer(ROOT)
    yield made
    made.close()


def simulated(**keys) -> dict:
    return {"prefer": ["simulated"], "step_s": 0.02, "ranks": 2} | keys


def task_of(config, folder: Path, shm_bytes: int | None = None) -> Task:
    trial = Trial(config=config, seed=1, warmup_epochs=0, folder=str(folder))
    return Task("train", trial.model_dump(), shm_bytes=shm_bytes)


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record for record in records if record["kind"] == kind]


@pytest.mark.parametrize("run_ahead", [0, 2])
def test_the_accelerators_of_two_ranks_run_every_step_together(
    template, tone_trial, tmp_path, run_ahead: int
) -> None:
    config = tone_trial(
        device=simulated(run_ahead=run_ahead),
        loader={"batch_size": 2, "num_workers": 1},
        sgdr={"epochs": 2},
    )
    records = list(template.run(task_of(config, tmp_path), tmp_path / "log"))
    assert records[-1]["status"] == 0, (tmp_path / "log").read_text()
    epochs = of_kind(records, "epoch")
    assert len(epochs) == 2
    for epoch in epochs:
        (other,) = epoch["ranks"]
        assert other["rank"] == 1
        for edge in ("begin_s", "end_s"):
            own = epoch["busy"][edge]
            theirs = [other["began_s"] + moment for moment in other["busy"][edge]]
            assert own == pytest.approx(theirs, abs=1e-4)
        steps = of_kind(records, "setup")[0]["steps_per_epoch"]
        assert len(epoch["busy"]["begin_s"]) == len(other["busy"]["begin_s"]) == steps == 3
        assert epoch["metrics"]["time/epoch_s"] >= steps * 0.02
        assert len(other["fetches"]["step"]) == steps
    assert of_kind(records, "snapshot") == []


def test_ranks_learn_together_and_rank_0_alone_validates(template, tone_trial, tmp_path) -> None:
    config = tone_trial(
        device={"prefer": ["cpu"], "ranks": 2},
        loader={"batch_size": 2},
        sgdr={"epochs": 4, "cycle_epochs": 2, "lr": 0.02},
    )
    records = list(template.run(task_of(config, tmp_path), tmp_path / "log"))
    assert records[-1]["status"] == 0, (tmp_path / "log").read_text()
    losses = [epoch["metrics"]["loss/training"] for epoch in of_kind(records, "epoch")]
    assert losses[-1] < losses[0]
    assert len(of_kind(records, "snapshot")) == 2
    assert of_kind(records, "end")[0]["summary"]["ensemble_accuracy"] >= 0.5
    assert sorted(file.name for file in tmp_path.glob("snapshot-*.pt")) == [
        "snapshot-0.pt",
        "snapshot-1.pt",
    ]


def ranks_of(template: ForkServer) -> list[psutil.Process]:
    """Returns the processes of a trial without loader workers, by the order of their start."""
    named = [process for process in trees(template) if process.name() == "sweep-trial"]
    return sorted(named, key=lambda process: process.pid)


@pytest.mark.parametrize("killed_rank", [0, 1])
def test_a_killed_rank_ends_the_trial_at_once(
    template, tone_trial, tmp_path, killed_rank: int
) -> None:
    config = tone_trial(device=simulated(step_s=0.5), sgdr={"epochs": 50}, loader={"batch_size": 2})
    killed_at = []

    def kill() -> None:
        wait_until(lambda: len(ranks_of(template)) == 2)
        time.sleep(1)
        os.kill(ranks_of(template)[killed_rank].pid, signal.SIGKILL)
        killed_at.append(time.monotonic())

    thread = threading.Thread(target=kill)
    thread.start()
    records = list(template.run(task_of(config, tmp_path), tmp_path / "log"))
    thread.join()
    assert time.monotonic() - killed_at[0] < 8
    error = next(iter(of_kind(records, "error")), None)
    ended = classify(error, records[-1], None, "")
    assert ended.outcome == Outcome.CRASHED
    assert ("rank 1" if killed_rank else "signal 9") in ended.evidence


def test_an_overflow_in_a_rank_is_an_overflow_of_the_trial(template, tone_trial, tmp_path) -> None:
    """A batch of two pictures takes 1.15 MiB: the first of each rank fit, and no more."""
    config = tone_trial(
        device=simulated(step_s=0.2),
        loader={"format": "png", "batch_size": 2, "num_workers": 1, "prefetch_factor": 4},
        sgdr={"epochs": 3},
    )
    *_, prepared = template.run(
        Task("prepare", config.model_dump(), private=False), tmp_path / "prepare"
    )
    assert prepared["status"] == 0
    log = tmp_path / "log"
    records = list(template.run(task_of(config, tmp_path, shm_bytes=3 << 20), log))
    error = next(iter(of_kind(records, "error")), None)
    ended = classify(error, records[-1], None, log.read_text())
    assert ended.outcome == Outcome.SHM_EXHAUSTED, (ended, records[-1])


def test_a_bad_clip_in_another_rank_is_named(template, tone_trial, tmp_path, tones) -> None:
    """The corpus is copied, and all its training clips are cut off: whichever rank reads first."""
    corpus = tmp_path / "corpus"
    shutil.copytree(tones, corpus)
    config = tone_trial(
        corpus={"name": "folder", "path": str(corpus), "words": ["low", "high"]},
        device=simulated(),
        loader={"batch_size": 2},
    )
    list(template.run(Task("prepare", config.model_dump(), private=False), tmp_path / "prepare"))
    for file in corpus.rglob("*.wav"):
        file.write_bytes(file.read_bytes()[:60])
    records = list(template.run(task_of(config, tmp_path), tmp_path / "log"))
    error = of_kind(records, "error")[0]
    ended = classify(error, records[-1], None, "")
    assert ended.outcome == Outcome.DATA_ERROR
    assert ".wav" in ended.evidence


def test_gradients_of_two_ranks_are_those_of_one_process_with_both_batches(tone_trial) -> None:
    config = json.dumps(tone_trial().model_dump(mode="json"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.rank_gradients", config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tensors"] > 100
    assert found["largest"] < 1e-5


def test_times_are_those_of_the_slowest_rank_and_work_is_the_sum() -> None:
    def result(epoch_s: float, main_s: float, worker_s: float, began: float):
        metrics = {
            "time/epoch_s": epoch_s,
            "time/first_batch_s": 0.1,
            "time/data_wait_s": epoch_s / 2,
            "rate/clips_per_s": 100 / epoch_s,
            "cpu/main_s": main_s,
            "cpu/worker_s": worker_s,
            "cpu/batch_s": 0.1 / epoch_s,
            "cpu/external_fraction": 0.01 * epoch_s,
            "loss/training": epoch_s,
            "io/read_bytes": 10.0,
        }
        return metrics, {"steps": {}, "busy": {}, "fetches": {}}, began

    # Rank 0's descendants are its workers, and rank 1 with its own
    metrics, raw, began = combine_ranks(
        [result(2.0, 0.5, 3.0 + 0.7 + 1.0, 10.0), result(2.5, 0.7, 1.0, 10.25)]
    )
    assert metrics["time/epoch_s"] == 2.5
    assert metrics["rate/clips_per_s"] == pytest.approx(200 / 2.5)
    assert metrics["cpu/main_s"] == pytest.approx(1.2)
    assert metrics["cpu/worker_s"] == pytest.approx(4.0)
    assert metrics["cpu/external_fraction"] == pytest.approx(0.02)
    assert metrics["loss/training"] == pytest.approx(2.25)
    assert metrics["io/read_bytes"] == 20.0
    assert metrics["cpu/batch_s"] == pytest.approx(0.1 / 2.0), "of the rank that prepares slowly"
    assert (began, raw["ranks"][0]["rank"], raw["ranks"][0]["began_s"]) == (10.0, 1, 0.25)


def planted_epochs(waits_s: list[float], not_finite: list[int | None]) -> list:
    """Returns the results of as many ranks, which end the epoch within a millisecond."""
    return [
        (
            {
                "time/epoch_s": 2.0 + 0.001 * (rank == 0),
                "time/first_batch_s": 0.0,
                "time/data_wait_s": wait_s,
                "time/step_s": 2.0 - wait_s,
                "rate/clips_per_s": 50.0,
                "cpu/external_fraction": 0.5 * rank,
            },
            {"steps": {}} | ({} if first is None else {"first_not_finite": first}),
            10.0,
        )
        for rank, (wait_s, first) in enumerate(zip(waits_s, not_finite, strict=True))
    ]


def test_the_times_are_those_of_the_rank_that_held_the_others_up() -> None:
    metrics, raw, _ = combine_ranks(planted_epochs([0.05, 1.5, 0.1], [None] * 3))
    assert (metrics["time/data_wait_s"], metrics["time/step_s"]) == (1.5, 0.5)
    assert metrics["cpu/external_fraction"] == 0, "rank 0 alone sees which processes are others"
    assert not [other for other in raw["ranks"] if "cpu/external_fraction" in other["metrics"]]


@pytest.mark.parametrize(
    ("not_finite", "first", "rank"),
    [
        # A bad clip in rank 1: averaged gradients make the next step of the others not finite
        ([2, 1, 2], 1, 1),
        ([1, 2, 2], 1, None),
        ([3, 3, 3], 3, None),
        ([None, None, 4], 4, 2),
        ([None] * 3, None, None),
    ],
)
def test_the_first_loss_that_is_not_finite_is_that_of_its_rank(not_finite, first, rank) -> None:
    _, raw, _ = combine_ranks(planted_epochs([0.1] * 3, not_finite))
    assert (raw.get("first_not_finite"), raw.get("not_finite_rank")) == (first, rank)


def test_ranks_that_run_far_ahead_do_not_wait_for_each_other_for_ever() -> None:
    """Queues more steps than the buffer between two processes holds messages."""
    ends = multiprocessing.Pipe()
    device = Device(prefer=["simulated"], step_s=0.0001, run_ahead=1024, ranks=2)

    def run(rank: int) -> None:
        member = Member(rank, 2, [ends[rank]], Path())
        accelerator = SimulatedAccelerator(device, member)
        for _ in range(1000):
            accelerator.run_step()
        accelerator.synchronise()
        assert len(accelerator.take_busy_intervals()) == 1000

    other = multiprocessing.get_context("fork").Process(target=run, args=(1,))
    other.start()
    own = multiprocessing.get_context("fork").Process(target=run, args=(0,))
    own.start()
    for process in (own, other):
        process.join(20)
        code = process.exitcode
        process.kill()
        assert code == 0


def test_a_rank_that_overflowed_by_a_bus_error_is_recognised() -> None:
    error = {
        "kind": "error",
        "type": "RankEnded",
        "message": "rank 1 was killed by signal: Bus error",
        "traceback": "",
    }
    ending = {
        "status": 1,
        "shm_limit_bytes": 1 << 20,
        "shm_peak_bytes": 1 << 20,
        "shm_unrelated_bytes": 0,
        "batch_bytes": 1 << 18,
        "oom_kills": 0,
    }
    assert classify(error, ending, None, "").outcome == Outcome.SHM_EXHAUSTED
    roomy = ending | {"shm_peak_bytes": 0}
    crashed = classify(error, roomy, None, "", sure_to_fit=True)
    assert (crashed.outcome, "rank 1" in crashed.evidence) == (Outcome.CRASHED, True)
    assert classify(error, ending | {"status": 0}, TrainingEnd(), "").outcome == Outcome.COMPLETED
