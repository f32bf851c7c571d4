"""Loaders of other projects: found by name, rebuilt with other numbers of workers, and rejected
where they are unsuitable."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from speech.calibration import loader_source
from speech.calibration.loader_source import (
    ForeignError,
    load_callable,
    load_loader,
    rebuild_loader,
    shared_bytes,
)
from tests.measured_loaders import PAGE, planted_module


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """A folder with the module `planted`, which each test imports anew."""
    with planted_module(tmp_path) as planted:
        yield planted


@pytest.mark.parametrize(
    ("target", "batch_size", "size", "batches"),
    [
        ("planted:make_loader", None, 4, 16),
        ("planted:make_pair", None, 8, 8),
        ("planted:numbers", None, 32, 2),
        ("planted:Numbers", 4, 4, 16),
    ],
)
def test_a_loader_a_pair_and_a_data_set_become_a_loader(
    folder, target, batch_size, size, batches, monkeypatch
) -> None:
    monkeypatch.setattr(loader_source, "MIN_EPOCH_BATCHES", 2)
    loader = load_loader(target, folder, batch_size)
    assert loader.batch_size == size
    assert len(loader) == batches
    assert len(next(iter(loader))["label"]) == size


@pytest.mark.parametrize(
    ("target", "batch_size", "data"),
    [
        ("plantde:make_loader", None, ["module plantde,", "mean planted?"]),
        ("nowhere.loaders:make", None, ["module nowhere,", "{folder}", "`import`"]),
        ("speech.data:make", None, ["module speech.data,", "{folder}", "`import`"]),
        ("planted:make_laoder", None, ["planted.py", "no make_laoder.", "mean make_loader?"]),
        ("planted:zzz", None, ["no zzz.", "Numbers, numbers, make_loader, make_pair"]),
        ("planted:size", None, ["planted:size", "an int."]),
        ("planted:make_list", None, ["list of 3 values.", "DataLoader", "(Dataset, batch size)"]),
        ("planted:make_nothing", None, ["nothing.", "DataLoader", "(Dataset, batch size)"]),
        ("planted:make_few", None, [" 2 batches", f" {loader_source.MIN_EPOCH_BATCHES}."]),
        ("planted:make_split", None, ["needs split, root,", "return make_split("]),
        ("planted:make_loader", 8, ["own batch size", "--batch-size"]),
    ],
)
def test_an_unsuitable_target_is_rejected_with_its_cause_and_a_remedy(
    folder, target, batch_size, data
) -> None:
    with pytest.raises(ForeignError) as problem:
        load_loader(target, folder, batch_size)
    message = str(problem.value)
    assert [part for part in data if part.format(folder=folder) not in message] == []


def test_a_module_whose_own_import_fails_raises_that_error(folder) -> None:
    Path(folder, "needy.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError) as problem:
        load_callable("needy:make", folder)
    assert problem.value.name == "no_such_package"


def test_an_iterable_data_set_is_rejected(folder) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(100))

    sys.modules["planted"] = type(sys)("planted")
    sys.modules["planted"].make = lambda: DataLoader(Stream(), batch_size=4)  # type: ignore[attr-defined]
    with pytest.raises(ForeignError, match="IterableDataset"):
        load_loader("planted:make", folder, None)


def doubled(samples):
    return 2 * torch.stack([sample[0] for sample in samples])


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_size": 4, "drop_last": True},
        {"batch_sampler": [[9, 1], [3, 0, 2]]},
        {"batch_size": 4, "timeout": 9},
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rebuilt_loader_gives_the_same_batches(keys, workers) -> None:
    loader = DataLoader(
        TensorDataset(torch.arange(10.0)),
        collate_fn=doubled,
        **({"num_workers": 1} if "timeout" in keys else {}),
        **keys,
    )
    again = rebuild_loader(loader, workers, 3 if workers else None, bool(workers))
    assert (again.num_workers, again.prefetch_factor, again.persistent_workers) == (
        (2, 3, True) if workers else (0, None, False)
    )
    for batch, expected in zip(again, loader, strict=True):
        assert torch.equal(batch, expected)


def test_a_batch_takes_the_storages_of_its_tensors_in_whole_pages_each_once() -> None:
    whole = torch.zeros(2048)  # two pages
    batch = {
        "input": [whole[:10], whole[20:]],
        "more": (torch.zeros(1), {"label": torch.zeros(1025)}),
        "names": ["a"],
    }
    assert shared_bytes(batch) == (2 + 1 + 2) * PAGE
    assert shared_bytes([3, "text"]) == 0


def test_a_value_that_no_worker_can_send_is_rejected() -> None:
    with pytest.raises(ForeignError, match="dict of 1"):
        shared_bytes({"augment": lambda wave: wave})
