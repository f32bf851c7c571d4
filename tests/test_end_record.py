"""Tests which epochs the summary of a trial counts, with planted epochs."""

import pytest

from speech.account import Account
from speech.config import Trial
from speech.continuation import Progress
from speech.end_record import end_record


def summary_of(tone_trial, account: Account, epochs: list[dict[str, float]]) -> dict[str, float]:
    """Returns the summary of a trial with these warm epochs, after one of warm-up."""
    progress = Progress()
    for metrics in [{"time/epoch_s": 99.0}, *epochs]:
        spans = {f"time/{name}_s": 0.0 for name in ("first_batch", "data_wait")}
        progress.add_record({"kind": "epoch", "metrics": spans | metrics})
    trial = Trial(config=tone_trial(), seed=0, warmup_epochs=1, folder="")
    return end_record(trial, progress, None, False, account)["summary"]


@pytest.fixture
def account(tone_trial) -> Account:
    from speech import corpora

    return corpora.prepare_corpus(tone_trial().corpus).account


def epoch(seconds: float, outside: float, memory: float = 0.0) -> dict[str, float]:
    return {
        "time/epoch_s": seconds,
        "cpu/external_fraction": outside,
        "pressure/memory_fraction": memory,
        "cpu/batch_s": seconds / 10,
    }


def test_disturbed_epochs_do_not_count_however_long_they_took(tone_trial, account) -> None:
    found = summary_of(
        tone_trial,
        account,
        [
            epoch(2.0, 0.02),
            epoch(3.0, 0.4),
            epoch(1.0, 0.4),
            epoch(2.4, 0.03),
            epoch(5.0, 0.0, 0.3),
        ],
    )
    assert found["epoch_s"] == pytest.approx(2.2)
    assert found["disturbed_epochs"] == 3
    assert found["external_cpu_fraction"] < 0.1
    assert (found["batch_cpu_min_s"], found["batch_cpu_max_s"]) == pytest.approx((0.2, 0.24))
    assert found["train_s"] == pytest.approx(99.0 + 13.4)


def test_where_every_epoch_was_disturbed_all_count(tone_trial, account) -> None:
    found = summary_of(tone_trial, account, [epoch(2.0, 0.5), epoch(4.0, 0.5), epoch(9.0, 0.5)])
    assert found["epoch_s"] == 4.0
    assert found["disturbed_epochs"] == 3
    assert found["external_cpu_fraction"] == pytest.approx(0.5)
