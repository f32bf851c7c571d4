"""Plain processes over real data sets whose cost is known: one that sleeps, one that raises, one
that is killed."""

import multiprocessing
import os
import random
import signal
import time

import numpy
import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from speech.calibration.batch_workers import (
    MIN_BATCHES,
    BatchWorkers,
    Killed,
    WorkerFailed,
    measure_pace,
    run_in_worker,
)

pytestmark = pytest.mark.quiet

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
    pace = measure_pace(loader(), count, window_s=0.3)
    assert pace.wall_s == pytest.approx(2 * SLEEP_S, rel=0.5)
    assert pace.cpu_s < SLEEP_S / 2
    assert time.perf_counter() - began > max(0.3, MIN_BATCHES * 2 * SLEEP_S)


class Curious(Dataset):
    """A sample says who has read it, and what it would have drawn."""

    def __init__(self) -> None:
        self.opened = None

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple:
        who = get_worker_info()
        drawn = (
            random.random(),
            float(numpy.random.rand()),
            torch.rand(()).item(),
            torch.initial_seed(),
        )
        return (
            who.id,
            who.num_workers,
            who.seed,
            who.dataset.opened,
            torch.get_num_threads(),
            drawn,
            multiprocessing.current_process().daemon,
        )


def open_it(worker: int) -> None:
    get_worker_info().dataset.opened = f"by {worker}"


def curious() -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    return DataLoader(
        Curious(),
        batch_size=1,
        collate_fn=list,
        worker_init_fn=open_it,
        generator=generator,
        num_workers=1,
    )


def test_a_process_is_to_the_data_set_what_a_worker_of_torch_is() -> None:
    def answer(prepare) -> list:
        kept: list = []
        prepare(lambda batch: kept.append(batch) or True)
        return kept

    assert run_in_worker(curious(), [[0], [3], [1]], answer) == list(DataLoader(
        Curious(), batch_sampler=[[0], [3], [1]], collate_fn=list, worker_init_fn=open_it, num_workers=1,
        generator=torch.Generator().manual_seed(7),
    ))  # fmt: skip


def test_processes_side_by_side_are_workers_of_one_loader(tmp_path) -> None:
    class Telling(Curious):
        def __getitem__(self, index: int) -> int:
            who = get_worker_info()
            (
                tmp_path / f"{who.id} of {who.num_workers}, {who.seed - who.id}, {self.opened}"
            ).touch()
            return index

    loader = DataLoader(Telling(), batch_size=2, worker_init_fn=open_it)
    with BatchWorkers(loader, 3):
        names = {path.name for path in tmp_path.iterdir()}
    (base,) = {name.split(", ")[1] for name in names}
    assert names == {f"{own} of 3, {base}, by {own}" for own in range(3)}


def test_one_that_ends_itself_says_with_which_status() -> None:
    with pytest.raises(Killed, match="status 3"):
        measure_pace(loader(lambda: os._exit(3)), 1, window_s=0.3)
    with pytest.raises(WorkerFailed, match="planted") as failed:
        run_in_worker(loader(raise_it), [[1], [5]], lambda prepare: prepare(lambda batch: True))
    assert failed.value.record["type"] == "KeyError"
    assert "in raise_it" in failed.value.record["traceback"]


@pytest.mark.parametrize(
    ("fault", "error", "text"), [(raise_it, KeyError, "planted"), (die, RuntimeError, "was killed")]
)
def test_what_goes_wrong_in_one_is_raised_and_none_is_left(fault, error, text: str) -> None:
    before = psutil.Process().children()
    with pytest.raises(error, match=text):
        measure_pace(loader(fault), 4, window_s=0.3)
    assert psutil.Process().children() == before


def test_none_is_left_when_the_context_ends_early() -> None:
    before = psutil.Process().children()
    with BatchWorkers(loader(), 2):
        assert len(psutil.Process().children()) == len(before) + 2
    assert psutil.Process().children() == before
