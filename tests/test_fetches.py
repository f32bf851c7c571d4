"""What workers tell of their batches, by loaders of every start method, and occupancy from planted times."""

import os
import time
from pathlib import Path

import pytest

from speech import corpora
from speech.fetches import COLUMNS, MAIN, FetchLog, occupancy, of_workers
from speech.loading import make_loader


def fetches_of(config, log: FetchLog, epochs: int = 2) -> list[dict]:
    loader, order = make_loader(config, corpora.prepare(config.corpus), "training", 1, log=log)
    found = []
    for order.epoch in range(epochs):
        began = time.perf_counter()
        for _ in loader:
            pass
        found.append(log.take(began) | {"epoch_s": time.perf_counter() - began})
    return found


@pytest.mark.parametrize("keys", [{"start_method": "fork"}, {"start_method": "spawn"}, {"persistent_workers": False}])
def test_every_batch_of_every_epoch_is_told_once_by_the_worker_that_made_it(tone_trial, tmp_path, keys: dict) -> None:
    for fetches in fetches_of(tone_trial(loader={"num_workers": 2} | keys), FetchLog(tmp_path / "log")):
        assert sorted(fetches["step"]) == [0, 1, 2]
        assert dict(zip(fetches["step"], fetches["worker"], strict=True)) == {0: 0, 1: 1, 2: 0}, "in turn"
        assert all(0 < begin < end < fetches["epoch_s"] for begin, end in zip(fetches["begin_s"], fetches["end_s"], strict=True))
        assert all(0 < cpu < 60 for cpu in fetches["cpu_s"])
        assert all(read >= 0 for read in fetches["read_bytes"])
        assert all(used >= 0 for used in fetches["shm_bytes"])


def test_a_workers_cpu_seconds_are_those_that_the_kernel_counts(tone_trial, tmp_path) -> None:
    config = tone_trial(loader={"num_workers": 1, "persistent_workers": False, "batch_size": 2}, augment={"speed": 0.2})
    before = os.times()
    fetches = fetches_of(config, FetchLog(tmp_path / "log"), epochs=1)[0]
    after = os.times()
    counted = after.children_user + after.children_system - before.children_user - before.children_system
    assert sum(of_workers(fetches, "cpu_s")) == pytest.approx(counted, abs=0.03 + 0.2 * counted)


def test_without_workers_the_training_process_tells(tone_trial, tmp_path) -> None:
    fetches = fetches_of(tone_trial(), FetchLog(tmp_path / "log"), epochs=1)[0]
    assert fetches["worker"] == [MAIN] * 3
    assert of_workers(fetches, "cpu_s") == []
    assert occupancy(fetches, [9.0] * 3) is None


def test_no_batch_is_no_line(tmp_path: Path) -> None:
    assert FetchLog(tmp_path / "log").take(0.0) == {name: [] for name in COLUMNS}


def test_occupancy_is_the_share_of_batches_that_were_there_when_asked_for() -> None:
    fetches = {"step": [1, 0, 2, 3], "worker": [1, 0, 0, 1], "end_s": [0.4, 0.5, 1.0, 3.0]}
    assert occupancy(fetches, [0.1, 0.6, 1.0, 2.9]) == 0.5  # step 0 was waited for, 1 and 2 were there, 3 was not
