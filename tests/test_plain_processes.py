"""Plain processes over real data sets whose cost is known: one that sleeps, one that raises, one that is killed."""

import os
import signal
import time

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from speech.plain_processes import FEWEST, Preparing, pace_of, prepare

SLEEP_S = 0.02


class Sleeping(Dataset):
    """A sample takes SLEEP_S and no CPU; `fault` happens at the index 5."""

    def __init__(self, fault=lambda: None):
        self.fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5:
            self.fault()
        time.sleep(SLEEP_S)
        return index


def raise_it() -> None:
    raise KeyError("planted")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def loader(fault=lambda: None) -> DataLoader:
    return DataLoader(Sleeping(fault), batch_size=2)


@pytest.mark.parametrize("count", [1, 3])
def test_a_pace_is_the_seconds_that_each_takes_for_a_batch(count: int) -> None:
    began = time.perf_counter()
    pace = pace_of(loader(), count, window_s=0.3)
    assert pace.wall_s == pytest.approx(2 * SLEEP_S, rel=0.5)
    assert pace.cpu_s < SLEEP_S / 2
    assert time.perf_counter() - began > max(0.3, FEWEST * 2 * SLEEP_S)


def test_a_batch_is_made_as_a_worker_makes_it() -> None:
    assert [prepare(loader(), batch).tolist() for batch in loader().batch_sampler] == [batch.tolist() for batch in loader()]


@pytest.mark.parametrize(("fault", "error", "text"), [(raise_it, KeyError, "planted"), (die, RuntimeError, "was killed")])
def test_what_goes_wrong_in_one_is_raised_and_none_is_left(fault, error, text: str) -> None:
    before = psutil.Process().children()
    with pytest.raises(error, match=text):
        pace_of(loader(fault), 4, window_s=0.3)
    assert psutil.Process().children() == before


def test_none_is_left_when_the_context_ends_early() -> None:
    before = psutil.Process().children()
    with Preparing(loader(), 2):
        assert len(psutil.Process().children()) == len(before) + 2
    assert psutil.Process().children() == before
