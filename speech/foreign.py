"""A DataLoader of another project: found by name, rebuilt with other workers, and measured as this project's own are.

The one idea is that what a loader does is in its attributes. Rebuilt with another number of workers it reads the same data set, in the
same batches, through the same collate_fn, so what a batch costs with one worker at most (speech/calibrate.py) holds for any number.
Nothing is asked of the project but a function without arguments, `module:name`, that returns a DataLoader, a (Dataset, batch size)
pair, or a Dataset.
"""

import difflib
import importlib
import importlib.util
import inspect
import io
import itertools
import multiprocessing
import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from speech import usage
from speech.calibrate import AHEAD, calibrate_loader, calibrate_step
from speech.costs import Calibration, LoaderCosts, StepCosts
from speech.shapes import whole_pages

FEWEST_BATCHES = 6  # of an epoch: with fewer the first and the last are all there is to measure
SAMPLE_BATCHES, SAMPLE_S = 5, 3.0  # batches looked at, in about so many seconds
PASS_S, PASS_BATCHES = 2.5, (8, 48)  # calibrating passes over so many of the epoch's first batches, however long the epoch is
STEP_S, STEPS = 2.0, 5  # a step is timed for at least so long, and so often
HOST_BUSY = 0.5  # cores that a step keeps busy: below, the host waits for an accelerator
BATCH_SIZE = 32
OURS = ("speech", "sweeps", "analysis")  # packages that hide another project's of the same name
LEGAL = "It is to return a torch DataLoader, a (Dataset, batch size) pair, or a Dataset."


class ForeignError(ValueError):
    """What was named can't be advised on. The message says why and how to mend it."""


class NoRoom(RuntimeError):
    """/dev/shm doesn't hold what measuring with a single worker takes."""


class Sample(NamedTuple):
    """The first batches, prepared in this process."""

    batches: list[Any]
    batch_bytes: int  # of /dev/shm, of the largest
    varies: bool  # they are not all of one size
    prepare_s: float  # a batch
    wait_s: float  # of it without a core: on their first reading
    read_bytes: int  # that came from storage, a batch


def advise(arguments: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """Emits what was found of the loader, then what its batches cost here.

    Arguments: `target` and `step` as module:name, `folder` where they are looked for, `batch_size` of a Dataset, `step_s`; all but the
    target and the folder may be None. Raises ForeignError, NoRoom, and whatever the other project's code raises.
    """
    began = time.perf_counter()
    folder = arguments["folder"]
    step = named(arguments["step"], folder) if arguments["step"] else None
    loader = given(arguments["target"], folder, arguments["batch_size"])
    sample = look(loader)
    emit({"kind": "loader"} | _described(loader, sample))
    free = os.statvfs("/dev/shm")
    if free.f_bavail * free.f_frsize < (AHEAD + 1) * sample.batch_bytes:
        raise NoRoom("/dev/shm has no room for one worker")
    at_once = round(PASS_S / max(sample.prepare_s, 1e-6))
    batches = list(itertools.islice(_batches(loader), min(max(at_once, PASS_BATCHES[0]), PASS_BATCHES[1])))

    def make(num_workers: int, prefetch_factor: int | None, persistent: bool) -> DataLoader:
        return rebuilt(loader, num_workers, prefetch_factor, persistent, batches)

    loader = given(arguments["target"], folder, arguments["batch_size"])  # anew: what the first one opened, no worker shares
    costs = calibrate_loader(make, len(os.sched_getaffinity(0)), sample.batch_bytes)
    plain = rebuilt(given(arguments["target"], folder, arguments["batch_size"]), 0, None, False, batches)  # anew, for the same reason
    timed = step_costs(step, sample.batches, costs, plain) if step else StepCosts(wait_s=arguments["step_s"] or 0.0)
    calibration = Calibration(loader=costs, step=timed, took_s=time.perf_counter() - began)
    emit({"kind": "advice", "calibration": calibration.model_dump()})


def named(target: str, folder: str) -> Callable[..., Any]:
    """The callable `module:name`; modules are looked for in `folder` first."""
    module_name, _, name = target.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _imported(module_name, folder)
    found = getattr(module, name, None)
    if found is None:
        raise ForeignError(f"{module.__file__} has no {name}. {_instead(module, name)}")
    if not callable(found):
        raise ForeignError(f"{target} is {_a(found)}. Name a function that makes it.")
    return found


def _imported(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] in OURS:
            raise ForeignError(
                f"there is no module {missing}: this project has a package {missing.split('.')[0]}, which hides another of that name. "
                "Rename yours, or name a module that does without it."
            ) from error
        if name != missing and not name.startswith(f"{missing}."):
            raise  # it is there; what it imports is not
        near = difflib.get_close_matches(missing, [path.stem for path in Path(folder).glob("*.py")], n=1)
        hint = f" Did you mean {near[0]}?" if near else " Start in the folder that `import` would find it from."
        raise ForeignError(f"there is no module {missing}, in {folder} or installed for {sys.executable}.{hint}") from error


def _instead(module: ModuleType, name: str) -> str:
    own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
    near = difflib.get_close_matches(name, own, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"It has {', '.join(own[:8])}." if own else "It defines no function."


def given(target: str, folder: str, batch_size: int | None) -> DataLoader:
    """What the callable returns, as a DataLoader whose epochs can be rebuilt with any number of workers."""
    made = _called(named(target, folder), target)
    own_size = isinstance(made, DataLoader) or (isinstance(made, tuple) and len(made) == 2)
    if own_size and batch_size:
        raise ForeignError(f"{target} returns {_a(made)}, which has a batch size of its own: leave out --batch-size.")
    loader = made if isinstance(made, DataLoader) else _over(made, batch_size or BATCH_SIZE, target)
    if isinstance(loader.dataset, IterableDataset):
        raise ForeignError(
            f"{target} reads an IterableDataset, which shares out its samples among workers by rules of its own: what other numbers "
            "of workers do can't be forecast. Give a data set with __getitem__ and __len__."
        )
    if loader.batch_sampler is None:
        raise ForeignError(f"{target} has batch_size=None. Give its batches by batch_size or a batch_sampler.")
    count = _length(loader, target)
    if count < FEWEST_BATCHES:
        raise ForeignError(f"{target} has {count} batches an epoch, and measuring takes {FEWEST_BATCHES}. Write smaller ones or more data.")
    return loader


def _called(make: Callable[..., Any], target: str) -> Any:
    parameters = inspect.signature(make).parameters.values()
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if needed:
        raise ForeignError(
            f"{target} needs {', '.join(needed)}, and is called with nothing. Name a function that gives them: "
            f"def make_loader(): return {make.__name__}(...)."
        )
    return make()


def _over(made: Any, batch_size: int, target: str) -> DataLoader:
    """A loader over a Dataset or a pair, shuffled as training reads it."""
    if isinstance(made, tuple) and len(made) == 2:
        made, batch_size = made
        if type(batch_size) is not int or batch_size < 1:
            raise ForeignError(f"{target} returns a pair whose second is {_a(batch_size)}. {LEGAL}")
    if isinstance(made, IterableDataset):
        return DataLoader(made, batch_size)  # refused with its reason
    if type(made).__module__ == "builtins" or not hasattr(made, "__getitem__") or not hasattr(made, "__len__"):
        raise ForeignError(f"{target} returns {_a(made)}. {LEGAL}")
    return DataLoader(made, batch_size, shuffle=True)


def _a(value: Any) -> str:
    """A value's kind, in words."""
    if value is None:
        return "nothing"
    values = f" of {len(value)} values" if isinstance(value, list | tuple | dict | set) else ""
    return f"{'an' if type(value).__name__[0].lower() in 'aeiou' else 'a'} {type(value).__name__}{values}"


def _length(loader: DataLoader, target: str) -> int:
    try:
        return len(loader)
    except TypeError as error:
        raise ForeignError(f"{target} doesn't know how many batches an epoch has ({error}): give its sampler a __len__.") from error


def rebuilt(
    loader: DataLoader, num_workers: int, prefetch_factor: int | None, persistent: bool, batches: list[Any] | None = None
) -> DataLoader:
    """The same data in the same batches, by so many workers. `batches`: only these, as lists of indices.

    A subclass of DataLoader comes back as a plain one: what it does to batches in the training process is not the workers' cost.
    """
    if batches is not None:
        which: dict[str, Any] = {"batch_sampler": batches}
    elif loader.batch_size is None:
        which = {"batch_sampler": loader.batch_sampler}
    else:
        which = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    workers = {
        "num_workers": num_workers,
        "prefetch_factor": prefetch_factor,
        "persistent_workers": persistent,
        "multiprocessing_context": loader.multiprocessing_context,
        "timeout": loader.timeout,
        "in_order": loader.in_order,
    }
    kept = ("collate_fn", "pin_memory", "worker_init_fn", "generator")
    return DataLoader(loader.dataset, **which, **{name: getattr(loader, name) for name in kept}, **(workers if num_workers else {}))


def _batches(loader: DataLoader) -> Iterator[Any]:
    return iter(loader.batch_sampler)  # type: ignore[arg-type]  # `given` has seen that there is one


def look(loader: DataLoader) -> Sample:
    """A few batches of the epoch's beginning; the first is not timed, as it opens files and imports what is needed."""
    batches = iter(rebuilt(loader, 0, None, False))
    kept = [next(batches)]
    began, (cpu_s, read_bytes) = time.perf_counter(), usage.own()
    while len(kept) < SAMPLE_BATCHES and time.perf_counter() - began < SAMPLE_S:
        kept.append(next(batches))
    wall_s, (cpu_now_s, read_now_bytes), count = time.perf_counter() - began, usage.own(), len(kept) - 1
    sizes = [shared_bytes(batch) for batch in kept]
    wait_s = max(wall_s - (cpu_now_s - cpu_s), 0.0)
    return Sample(kept, max(sizes), len(set(sizes)) > 1, wall_s / count, wait_s / count, (read_now_bytes - read_bytes) // count)


class _Tensors(pickle.Pickler):
    """Sends nothing, and meets every tensor of what it is given, however deep it lies."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.storages: dict[int, int] = {}  # address -> bytes: views of one storage travel with all of it, once

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return NotImplemented
        if value.is_cpu:
            storage = value.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return str, ()


def shared_bytes(value: Any) -> int:
    """Bytes of /dev/shm that `value` takes on its way between processes: the storage of each of its tensors, in whole pages."""
    tensors = _Tensors()
    try:
        tensors.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ForeignError(f"{_a(value)} of this loader can't be sent from one process to another, so no worker can: {error}") from error
    return sum(map(whole_pages, tensors.storages.values()))


def _described(loader: DataLoader, sample: Sample) -> dict[str, Any]:
    context = loader.multiprocessing_context or multiprocessing
    method = context.get_start_method()
    return {
        "dataset": type(loader.dataset).__name__,
        "clips": len(loader.dataset),  # type: ignore[arg-type]
        "batches": len(loader),
        "batch_bytes": sample.batch_bytes,
        "varies": sample.varies,
        "sent_bytes": 0 if method == "fork" else shared_bytes(loader.dataset),
        "num_workers": loader.num_workers,
        "prefetch_factor": loader.prefetch_factor or 2,
        "persistent": loader.persistent_workers,
        "first_wait_s": sample.wait_s,
        "first_read_bytes": sample.read_bytes,
    }


def step_costs(step: Callable[[Any], Any], batches: list[Any], costs: LoaderCosts, plain: DataLoader) -> StepCosts:
    """Of step(batch), timed on real batches: on the host's cores where it computes there, else as a wait for the accelerator."""
    turns = itertools.cycle(batches)

    def once() -> None:
        step(next(turns))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    once()  # allocates, compiles, picks its kernels
    took: list[float] = []
    cpu_began = time.process_time()
    until = time.perf_counter() + STEP_S
    while time.perf_counter() < until or len(took) < STEPS:
        began = time.perf_counter()
        once()
        took.append(time.perf_counter() - began)
    step_s, cpu_s = statistics.median(took), (time.process_time() - cpu_began) / len(took)
    if cpu_s / step_s >= HOST_BUSY and not torch.cuda.is_initialized():  # a host that waits for a GPU may spin
        return calibrate_step(once, max(1, round(cpu_s / step_s)), costs, plain)
    fifth = len(took) // 5
    means = [statistics.mean(took[first : first + fifth]) for first in range(0, 5 * fifth, fifth)]
    return StepCosts(cpu_s=cpu_s, wait_s=max(step_s - cpu_s, 0.0), spread=(max(means) - min(means)) / 2 / step_s)
