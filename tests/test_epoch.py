"""A timed pass whose every span is planted: what is put in is what the figures say, and nothing is
left over."""

import math
import os
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from speech import usage
from speech.dataset import BatchRequest
from speech.epoch import _mean_loss, run_epoch
from speech.fetches import Collate, FetchLog, worker_values
from speech.timing import Gauge

pytestmark = pytest.mark.quiet

START_S, FILL_S, WAIT_S, STEP_S, OTHER_S, STEPS = 0.15, 0.3, 0.05, 0.1, 0.02, 4
BURN_S = 0.3  # CPU seconds of a worker before its first batch
SLACK_S = 0.03  # sleeping and being woken up, on a machine that does other things too


class Batch(list):
    """A batch that takes OTHER_S to be let go of."""

    def __del__(self) -> None:
        time.sleep(OTHER_S)


class Planted:
    """A loader that takes START_S to make its iterator, FILL_S for the first batch and WAIT_S for
    each later one."""

    num_workers = 1

    def __len__(self) -> int:
        return STEPS

    def __iter__(self):
        time.sleep(START_S)
        return self._batches()

    def _batches(self):
        for step in range(STEPS):
            time.sleep(WAIT_S if step else FILL_S)
            yield Batch([torch.zeros(8, 1), torch.zeros(8)])


@pytest.fixture(scope="module")
def epoch(tmp_path_factory):
    def work(batch, epoch, step):
        time.sleep(STEP_S)
        return

    log = FetchLog(tmp_path_factory.mktemp("epoch") / "log")
    log.allocate(STEPS)
    return run_epoch(Planted(), work, 0, None, Gauge(), log)


def test_each_span_holds_what_was_planted_in_it_and_they_partition_the_epoch(epoch) -> None:
    metrics, _, _ = epoch
    planted = {
        "start": START_S,
        "first_batch": FILL_S,
        "data_wait": 3 * WAIT_S,
        "step": STEPS * STEP_S,
        "other": STEPS * OTHER_S,
    }
    for span, seconds in planted.items():
        assert seconds <= metrics[f"time/{span}_s"] < seconds + STEPS * SLACK_S, span
    assert sum(metrics[f"time/{span}_s"] for span in planted) == pytest.approx(
        metrics["time/epoch_s"], abs=1e-9
    )
    assert metrics["rate/clips_per_s"] == pytest.approx(8 * STEPS / metrics["time/epoch_s"])


def test_the_accelerator_is_idle_between_steps_and_each_such_gap_is_a_stall(epoch) -> None:
    metrics, raw, _ = epoch
    assert metrics["stall/steps"] == STEPS - 1
    assert WAIT_S + OTHER_S <= metrics["stall/max_gap_s"] < WAIT_S + OTHER_S + SLACK_S
    assert metrics["accelerator/busy_fraction"] == pytest.approx(
        metrics["time/step_s"] / metrics["time/epoch_s"]
    )
    assert raw["busy"]["begin_s"][0] == pytest.approx(START_S + FILL_S, abs=2 * SLACK_S)


def test_raw_steps_add_up_to_the_spans(epoch) -> None:
    metrics, raw, _ = epoch
    steps = raw["steps"]
    assert steps["request_s"][0] == pytest.approx(metrics["time/start_s"], abs=1e-6)
    assert steps["data_wait_s"][0] == pytest.approx(metrics["time/first_batch_s"], abs=1e-6)
    assert sum(steps["data_wait_s"][1:]) == pytest.approx(metrics["time/data_wait_s"], abs=1e-5)
    assert sum(steps["other_s"]) == pytest.approx(metrics["time/other_s"], abs=1e-5)
    assert steps["request_s"][2] - steps["request_s"][1] == pytest.approx(
        WAIT_S + STEP_S + OTHER_S, abs=SLACK_S
    )


def test_the_moment_at_which_the_clock_started_is_told(epoch) -> None:
    _, _, began = epoch
    assert time.perf_counter() - began > START_S + FILL_S + 3 * WAIT_S


def test_no_work_of_the_process_is_nobodys(epoch) -> None:
    """It slept all along."""
    assert 0 <= epoch[0]["cpu/main_s"] < 0.2
    assert "cpu/worker_s" not in epoch[0]


def test_the_log_of_a_loader_that_keeps_none_is_empty(epoch, tmp_path: Path) -> None:
    assert epoch[1]["fetches"]["step"] == []
    assert "loader/prefetch_hit_rate" not in epoch[0]


class Noted(Dataset):
    """Items whose batches are noted in a log, as those of speech.dataset are."""

    def __init__(self, log: FetchLog):
        self.log = log

    def __getitems__(self, request: BatchRequest) -> list[tuple[torch.Tensor, int]]:
        self.log.begin(request.step)
        return [(torch.zeros(1), 0) for _ in request.clips]


def burn(worker: int) -> None:
    until = time.process_time() + BURN_S
    while time.process_time() < until:
        pass


@pytest.mark.skipif(
    not usage.CHILDREN_ARE_LISTED, reason="this kernel doesn't list a process's children"
)
def test_workers_that_finish_no_batch_are_counted_with_the_others(tmp_path: Path) -> None:
    """Four workers compute before their first batch, and there are two batches. The oracle is the
    kernel's count of ended children."""
    log = FetchLog(tmp_path / "log")
    log.allocate(2)
    batches = [BatchRequest(0, step, [step]) for step in range(2)]
    loader = DataLoader(
        Noted(log),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=4,
        worker_init_fn=burn,
        collate_fn=Collate(log),
        multiprocessing_context="fork",
    )

    def work(batch, epoch, step):
        time.sleep(3 * BURN_S)  # till all workers have started, on two cores
        return

    before = os.times()
    metrics, raw, _ = run_epoch(loader, work, 0, None, Gauge(), log)
    after = os.times()  # its workers have ended
    ended_s = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    told_s = sum(worker_values(raw["fetches"], "cpu_s"))
    assert 2 * BURN_S <= told_s < 3 * BURN_S, "two of them have told"
    assert 4 * BURN_S <= metrics["cpu/worker_s"] <= ended_s + 2 * usage.TICK_S


@pytest.mark.parametrize(
    ("losses", "skipping", "mean", "first"),
    [
        ([1.0, 2.0, 3.0], False, 2.0, None),
        ([1.0, math.nan, 3.0], False, math.nan, 1),
        # a loss scaler left this step out: float16 is at home in this
        ([1.0, math.inf, 3.0], True, 2.0, 1),
        ([math.nan, math.nan], True, math.nan, 0),
    ],
)
def test_the_mean_loss_and_the_first_step_that_has_none(
    losses, skipping: bool, mean: float, first
) -> None:
    assert _mean_loss(torch.tensor(losses), skipping) == (pytest.approx(mean, nan_ok=True), first)
