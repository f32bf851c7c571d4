"""A worker's memory: planted curves, and what is foretold of real data sets beside what their
workers then have."""

import json
import subprocess
import sys

import numpy
import pytest
from torch.utils.data import DataLoader, Dataset

from speech.calibration.batch_sample import sample_batches
from speech.calibration.batch_workers import index_batches
from speech.calibration.worker_memory import (
    Growth,
    WorkerMemory,
    extrapolate,
    list_batches,
    measure_memory,
    read_pages,
)
from sweeps.forecast.memory_fit import memory_requirement
from tests.trees import ROOT

MIB = 1 << 20


def test_pages_that_are_copied_in_order_are_extrapolated_along_the_line() -> None:
    """100 MiB of data in 1000 samples, of which 250 are read in order: a worker of two ends at half
    of them."""
    growth = Growth(
        [10, 50, 150, 250], [2 * MIB] * 4, [MIB, 5 * MIB, 15 * MIB, 25 * MIB], 400 * MIB
    )
    memory = extrapolate(growth, growth, 1000, 500 * MIB)
    assert memory.most_copied_bytes == pytest.approx(100 * MIB, rel=0.01)
    assert memory.worker_bytes(500) == pytest.approx(52 * MIB, rel=0.05)
    assert (
        memory.worker_bytes(5000) == memory.worker_bytes(1000) == pytest.approx(103 * MIB, rel=0.03)
    )


def test_pages_that_many_samples_share_are_copied_by_the_first_of_them() -> None:
    """8 samples a page: the share s of samples copies 1 - (1 - s)^8 of 100 MiB."""

    def copied(samples: int) -> int:
        return round(100 * MIB * (1 - (1 - samples / 1000) ** 8))

    seen = [0, 20, 60, 100]
    in_order = Growth([0, 100], [0, 0], [0, 10 * MIB], 400 * MIB)
    memory = extrapolate(
        Growth(seen, [0] * 4, [copied(each) for each in seen], 400 * MIB), in_order, 1000, 0
    )
    for read in (100, 200, 250, 500, 1000):
        assert memory.copied_bytes(read) == pytest.approx(copied(read), rel=0.01)


def test_what_a_data_set_does_not_hold_is_not_copied() -> None:
    """A worker copies the interpreter's own pages at first; few samples say nothing of those to
    come."""
    growth = Growth([8, 40, 48], [20 * MIB] * 3, [3 * MIB, 6 * MIB, 7 * MIB], 8 * MIB)
    assert extrapolate(growth, None, 100_000, 0).worker_bytes(100_000) == 27 * MIB


@pytest.mark.parametrize(
    ("own", "steady"),
    [
        ([9, 1, 2, 3, 4, 5], True),
        ([9, 1, 2, 2, 2, 2], False),
        ([9, 8, 2, 3, 4, 5], False),
        ([0, 4, 9, 1, 9, 9], False),
    ],
)
def test_only_what_grows_all_the_time_goes_on_growing(own: list[int], steady: bool) -> None:
    seen = [10, 50, 150, 250, 350, 450]
    memory = extrapolate(Growth(seen, [each * MIB for each in own], [0] * 6, 0), None, 10_000, 0)
    assert (memory.growth_bytes > 0) is steady
    if steady:
        assert memory.worker_bytes(10_000) == pytest.approx(100.5 * MIB, rel=0.01)


def test_workers_the_training_process_and_dev_shm_share_the_memory() -> None:
    memory = WorkerMemory(
        own_bytes=10,
        copied=[(50, 40), (100, 60)],
        most_copied_bytes=60,
        samples=100,
        read_samples=100,
        main_bytes=1000,
    )
    need = memory_requirement(memory, 2, False, 7, 1107 + 40)
    assert (need.workers_bytes, need.total_bytes, need.fits) == (100, 1107, True)
    assert memory_requirement(memory, 2, True, 7, 1146).total_bytes == 1147, (
        "workers that persist end up having read all"
    )
    assert not memory_requirement(memory, 2, True, 7, 1146).fits
    assert memory_requirement(memory, 0, False, 0, 1000).fits


class Dicts(Dataset):
    def __init__(self, count: int) -> None:
        self.items = [
            {"a": float(index), "b": index + 1_000_000, "name": f"sample {index}"}
            for index in range(count)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return {"x": 2 * self.items[index]["a"], "y": self.items[index]["b"]}


class Numbers(Dataset):
    def __init__(self, count: int) -> None:
        self.values = numpy.ones((count, 1000), dtype="float32")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> numpy.ndarray:
        return self.values[index, :2]


class Keeping(Numbers):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.kept: dict = {}

    def __getitem__(self, index: int) -> numpy.ndarray:
        self.kept[index] = bytes(20_000)
        return super().__getitem__(index)


def run_in_new_process(call: str) -> list[int]:
    """What earlier tests have freed here is free to be taken once more, and would hide growth."""
    code = (
        f"import json; from tests import test_worker_memory as here; print(json.dumps(here.{call}))"
    )
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120
        ).stdout
    )


def foretold(loader: DataLoader, before) -> WorkerMemory:
    made = read_pages()
    batches, _ = list_batches(iter(index_batches(loader)))
    sample = sample_batches(loader, batches)
    return measure_memory(
        loader, sample.growth, batches, made.anonymous, made.anonymous - before.anonymous
    )


def measured(loader: DataLoader) -> int:
    """Bytes of all workers, when they have read an epoch but for what they have under way."""
    batches = iter(loader)
    for _ in range(len(loader) - 2 * loader.num_workers):
        next(batches)
    return sum(read_pages(worker.pid).private for worker in batches._workers)


def foretell_and_measure(shuffle: bool) -> list[int]:
    before = read_pages()
    loader = DataLoader(Dicts(300_000), batch_size=128, shuffle=shuffle, num_workers=4)
    return [
        memory_requirement(foretold(loader, before), 4, False, 0, 1 << 40).workers_bytes,
        measured(loader),
    ]


@pytest.mark.parametrize("shuffle", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_workers_of_many_small_objects_take_what_was_foretold(shuffle: bool) -> None:
    need, found = run_in_new_process(f"foretell_and_measure({shuffle})")
    assert found > 60 * MIB, "copies are what this is about"
    assert need == pytest.approx(found, rel=0.35)


def foretell_numbers() -> list[int]:
    before = read_pages()
    memory = foretold(
        DataLoader(Numbers(30_000), batch_size=64, shuffle=True, num_workers=2), before
    )
    return [memory.main_bytes, memory_requirement(memory, 2, True, 0, 1 << 40).workers_bytes]


def test_workers_of_an_array_copy_none_of_it() -> None:
    main_bytes, workers_bytes = run_in_new_process("foretell_numbers()")
    assert main_bytes > 110 * MIB
    assert workers_bytes < 40 * MIB


def foretell_keeping() -> list[int]:
    before = read_pages()
    memory = foretold(DataLoader(Keeping(20_000), batch_size=16, shuffle=True), before)
    return [memory_requirement(memory, 2, True, 0, 1 << 40).workers_bytes]


def test_a_cache_in_each_worker_is_counted_for_all_samples() -> None:
    assert run_in_new_process("foretell_keeping()")[0] == pytest.approx(
        2 * 20_000 * 20_000, rel=0.3
    )
