"""Tests what workers record of their batches, with every start method, and prefetch_hit_rate of
planted times."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from speech import corpora, usage
from speech.fetches import COLUMNS, MAIN, Collate, FetchLog, prefetch_hit_rate, worker_values
from speech.loading import make_loader
from tests.trees import ROOT, can_isolate

BURNT_S = 0.1


def fetches_of(config, log: FetchLog, epochs: int = 2) -> list[dict]:
    loader, order = make_loader(
        config, corpora.prepare_corpus(config.corpus), "training", 1, log=log
    )
    found = []
    for order.epoch in range(epochs):
        began = time.perf_counter()
        for _ in loader:
            pass
        found.append(log.take(began) | {"epoch_s": time.perf_counter() - began})
    return found


@pytest.mark.parametrize(
    "keys", [{"start_method": "fork"}, {"start_method": "spawn"}, {"persistent_workers": False}]
)
def test_every_batch_of_every_epoch_is_recorded_once_by_the_worker_that_made_it(
    tone_trial, tmp_path, keys: dict
) -> None:
    for fetches in fetches_of(
        tone_trial(loader={"num_workers": 2} | keys), FetchLog(tmp_path / "log")
    ):
        assert sorted(fetches["step"]) == [0, 1, 2]
        assert dict(zip(fetches["step"], fetches["worker"], strict=True)) == {
            0: 0,
            1: 1,
            2: 0,
        }, "in turn"
        assert all(
            0 < begin < end < fetches["epoch_s"]
            for begin, end in zip(fetches["begin_s"], fetches["end_s"], strict=True)
        )
        assert all(0 < cpu < 60 for cpu in fetches["cpu_s"])
        assert all(read >= 0 for read in fetches["read_bytes"])


class Burning(Dataset):
    """Takes BURNT_S of CPU time for each batch, however long the machine needs for it."""

    def __init__(self, log: FetchLog):
        self.log = log

    def __getitems__(self, step: list[int]) -> list[int]:
        self.log.begin(step[0])
        until = time.process_time() + BURNT_S
        while time.process_time() < until:
            pass
        return step


def test_a_workers_cpu_seconds_are_those_that_its_batches_burn_and_within_what_the_kernel_counts(
    tmp_path: Path,
) -> None:
    log = FetchLog(tmp_path / "log")
    log.allocate(3)
    before = os.times()
    assert (
        len(
            list(
                DataLoader(
                    Burning(log),
                    batch_sampler=[[0], [1], [2]],
                    num_workers=1,
                    collate_fn=Collate(log),
                )
            )
        )
        == 3
    )
    after = os.times()
    told = log.take(0.0)["cpu_s"]
    assert all(cpu_s >= BURNT_S for cpu_s in told)
    counted = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert sum(told) <= counted + 2 * usage.TICK_S, "os.times counts in ticks"


def test_without_workers_the_training_process_records_batches(tone_trial, tmp_path) -> None:
    fetches = fetches_of(tone_trial(), FetchLog(tmp_path / "log"), epochs=1)[0]
    assert fetches["worker"] == [MAIN] * 3
    assert worker_values(fetches, "cpu_s") == []
    took = zip(fetches["begin_s"], fetches["end_s"], fetches["cpu_s"], strict=True)
    assert all(0 < cpu_s <= end_s - begin_s + usage.TICK_S for begin_s, end_s, cpu_s in took)
    assert prefetch_hit_rate(fetches, [9.0] * 3) is None


def test_a_batch_that_was_not_made_is_no_row(tmp_path: Path) -> None:
    log = FetchLog(tmp_path / "log")
    log.allocate(3)
    assert log.take(0.0) == {name: [] for name in COLUMNS}
    log.begin(1)
    log.end()
    assert log.take(0.0)["step"] == [1]
    assert log.take(0.0)["step"] == [], "each is told once"


@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_disk_without_room_for_the_log_is_an_error_that_says_so() -> None:
    code = (
        "from pathlib import Path; from sweeps.sandbox.private_shm import enter_namespaces;"
        " enter_namespaces(1 << 16)\nfrom speech.fetches import FetchLog;"
        " FetchLog(Path('/dev/shm/log')).allocate(10_000)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"OSError: [Errno {errno.ENOSPC}]")


def test_prefetch_hit_rate_is_the_share_of_batches_that_were_there_when_asked_for() -> None:
    fetches = {"step": [1, 0, 2, 3], "worker": [1, 0, 0, 1], "end_s": [0.4, 0.5, 1.0, 3.0]}
    # step 0 was waited for, 1 and 2 were there, 3 was not
    assert prefetch_hit_rate(fetches, [0.1, 0.6, 1.0, 2.9]) == 0.5
