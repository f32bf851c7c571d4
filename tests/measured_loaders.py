"""Loaders of other projects for the tests of the advice: one with measured costs of round numbers,
and a module that can be imported."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speech.calibration.costs import Calibration, LoaderCosts, StepCosts
from speech.calibration.worker_memory import WorkerMemory
from sweeps.commands.advise.loader_forecast import MeasuredLoader

PAGE, MIB = 4096, 1 << 20
COSTS = LoaderCosts(
    cores=2, batch_size=32, batch_bytes=MIB, inline_s=0.1, prepare_s=0.1, receive_s=[(1, 0.001)], deliver_s=[(1, 0.0)],
    wake_s=[(1, 0.0)], release_s=0.001, fork_s=0.01, ready_s=0.01, shared=[(1, 1.0), (2, 1.0)], spread=0.01,
)  # fmt: skip
LOADER = MeasuredLoader(
    dataset="Words", clips=1280, batches=40, batch_bytes=MIB, varies=False, held_bytes=0, sent_bytes=0, num_workers=4, prefetch_factor=2,
    persistent=True, first_wait_s=0.0, first_read_bytes=0,
)  # fmt: skip
MEMORY = WorkerMemory(
    own_bytes=10 * MIB,
    copied=[(640, 50 * MIB)],
    most_copied_bytes=100 * MIB,
    samples=1280,
    read_samples=640,
    main_bytes=500 * MIB,
)
MODULE = """
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

class Numbers(Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): return {"input": torch.full((8, 8), float(index)), "label": index}

size = 3
numbers = Numbers

def make_loader(): return DataLoader(Numbers(), batch_size=4, num_workers=3, prefetch_factor=5, persistent_workers=True)
def make_pair(): return Numbers(), 8
def make_list(): return [1, 2, 3]
def make_nothing(): pass
def make_few(): return Numbers(), 32
def make_split(split, root): return Numbers()
def make_broken(): return open("/no/such/file")
def step(batch): return batch["input"].sum()
"""


def calibration(step_s: float, **costs) -> Calibration:
    """Returns COSTS with some of them changed, and a step that occupies the accelerator."""
    return Calibration(
        loader=COSTS.model_copy(update=costs), step=StepCosts(wait_s=step_s), took_s=20
    )


@contextmanager
def planted_module(folder: Path) -> Iterator[str]:
    """Writes MODULE to `folder` as `planted`, which is imported anew in the context."""
    search_path = [*sys.path]
    sys.modules.pop("planted", None)
    (folder / "planted.py").write_text(MODULE)
    yield str(folder)
    sys.modules.pop("planted", None)
    sys.path[:] = search_path
