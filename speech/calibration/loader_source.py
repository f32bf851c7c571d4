"""Loads another project's loader by name, and rebuilds it with other numbers of workers.

The process is set up like that project's own run. The project must provide only a function without
arguments, `module:name`, that returns a DataLoader, a (Dataset, batch size) pair, or a Dataset.
"""

import importlib
import importlib.machinery
import inspect
import io
import multiprocessing
import multiprocessing.util
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from speech.shapes import whole_pages
from speech.spelling import did_you_mean

MIN_EPOCH_BATCHES = 6  # an epoch; with fewer only the first and the last could be measured
BATCH_SIZE = 32
OWN_PACKAGES = ("speech", "sweeps", "analysis")  # this project's packages
ROOT = str(Path(__file__).resolve().parent.parent.parent)
EXPECTED = "It must return a torch DataLoader, a (Dataset, batch size) pair, or a Dataset."


class ForeignError(ValueError):
    """Reports that the named object is unsuitable; the message states the reason and the remedy."""


def enter_run(
    target: str, folder: str, arguments: list[str], environment: dict[str, str | None]
) -> None:
    """Sets this process up as if the project's module were started in `folder` with `arguments`.

    Modules are imported from `folder` first. This project's packages are imported only if no others
    have the same names. `environment` holds the values of variables before this project set them;
    None means that a variable was not set.
    """
    multiprocessing.util.get_temp_dir()  # loaders' sockets stay in a folder that is cleaned later
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None
    os.chdir(folder)
    added = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [
        folder,
        *(entry for entry in sys.path if entry not in (folder, ROOT) or entry in added),
        ROOT,
    ]
    for name in OWN_PACKAGES:
        if importlib.machinery.PathFinder.find_spec(
            name, [entry for entry in sys.path if entry != ROOT]
        ):
            for ours in [
                module_name for module_name in sys.modules if module_name.partition(".")[0] == name
            ]:
                del sys.modules[ours]  # allows theirs to be imported; ours continues to work
    script = Path(folder, *target.partition(":")[0].split(".")).with_suffix(".py")
    sys.argv[:] = [str(script) if script.is_file() else target.partition(":")[0], *arguments]
    main = ModuleType("__main__")
    # Without a module's origin, spawn's new interpreters search no main module
    main.__spec__ = importlib.machinery.ModuleSpec("__main__", None)
    main.__file__ = sys.argv[0]
    sys.modules["__main__"] = main
    module = _import_module(target.partition(":")[0], folder)
    # Allows objects to be unpickled that were pickled when the module was the main one
    vars(main).update(
        {name: value for name, value in vars(module).items() if not name.startswith("__")}
    )


def load_callable(target: str, folder: str) -> Callable[..., Any]:
    """Imports and returns the callable `module:name`; `folder` is searched first.

    Raises ForeignError if the module or the name does not exist, or if it is not callable.
    """
    module_name, _, name = target.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import_module(module_name, folder)
    function = getattr(module, name, None)
    if function is None:
        raise ForeignError(f"{module.__file__} has no {name}.{_suggest_name(module, name)}")
    if not callable(function):
        raise ForeignError(f"{target} is {_type_name(function)}. Name a function that returns it.")
    return function


def _import_module(name: str, folder: str) -> ModuleType:
    """Imports a module; raises ForeignError with a suggestion if it does not exist."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise  # the module exists, but one that it imports does not
        hint = (
            did_you_mean(missing, [path.stem for path in Path(folder).glob("*.py")])
            or " Run the command in the folder from which `import` works."
        )
        raise ForeignError(
            f"there is no module {missing}, in {folder} or installed for {sys.executable}.{hint}"
        ) from error


def _suggest_name(module: ModuleType, name: str) -> str:
    """Returns a sentence with the callable that `name` may mean, or with those of the module.

    The text begins with a space, to follow a sentence.
    """
    callables = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    listed = f"It has {', '.join(callables[:8])}." if callables else "It defines no function."
    return did_you_mean(name, callables) or f" {listed}"


def load_loader(target: str, folder: str, batch_size: int | None) -> DataLoader:
    """Calls the function; returns its result as a DataLoader that `rebuild_loader` accepts.

    Raises ForeignError if the result is unsuitable.
    """
    result = _call(load_callable(target, folder), target)
    has_batch_size = isinstance(result, DataLoader) or (
        isinstance(result, tuple) and len(result) == 2
    )
    if has_batch_size and batch_size:
        raise ForeignError(
            f"{target} returns {_type_name(result)}, which sets its own batch size: omit"
            " --batch-size."
        )
    loader = (
        result
        if isinstance(result, DataLoader)
        else _build_loader(result, batch_size or BATCH_SIZE, target)
    )
    if isinstance(loader.dataset, IterableDataset):
        raise ForeignError(
            f"{target} reads an IterableDataset, which divides its samples among workers by its"
            " own rules: other numbers of workers can't be forecast. Use a data set with"
            " __getitem__ and __len__."
        )
    count = _count_batches(loader, target)
    if count < MIN_EPOCH_BATCHES:
        raise ForeignError(
            f"{target} has {count} batches an epoch, and measuring needs {MIN_EPOCH_BATCHES}. Use"
            " smaller batches or more data."
        )
    return loader


def _call(make: Callable[..., Any], target: str) -> Any:
    """Calls `make` without arguments; raises ForeignError if it needs any."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:  # some callables written in C have no signature
        parameters = []
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ForeignError(
            f"{target} needs {', '.join(required)}, but is called without arguments. Name a"
            f" function that passes them: def make_loader(): return {make.__name__}(...)."
        )
    return make()


def _build_loader(dataset: Any, batch_size: int, target: str) -> DataLoader:
    """Returns a shuffled loader over a Dataset or a (Dataset, batch size) pair.

    Raises ForeignError for any other value.
    """
    if isinstance(dataset, tuple) and len(dataset) == 2:
        dataset, batch_size = dataset
        if type(batch_size) is not int or batch_size < 1:
            raise ForeignError(
                f"{target} returns a pair whose second element is {_type_name(batch_size)}."
                f" {EXPECTED}"
            )
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size)  # the caller rejects it, and states the reason
    if (
        type(dataset).__module__ == "builtins"
        or not hasattr(dataset, "__getitem__")
        or not hasattr(dataset, "__len__")
    ):
        raise ForeignError(f"{target} returns {_type_name(dataset)}. {EXPECTED}")
    return DataLoader(dataset, batch_size, shuffle=True)


def _type_name(value: Any) -> str:
    """Returns a value's type in words."""
    if value is None:
        return "nothing"
    values = f" of {len(value)} values" if isinstance(value, list | tuple | dict | set) else ""
    return (
        f"{'an' if type(value).__name__[0].lower() in 'aeiou' else 'a'}"
        f" {type(value).__name__}{values}"
    )


def _count_batches(loader: DataLoader, target: str) -> int:
    """Returns the number of batches an epoch; raises ForeignError if it is unknown."""
    try:
        return len(loader)
    except TypeError as error:
        raise ForeignError(
            f"{target} doesn't state how many batches an epoch has ({error}): define"
            " __len__ in its sampler."
        ) from error


class _TensorVisitor(pickle.Pickler):
    """Visits every tensor of an object at any depth, and discards the pickled data."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        # Address -> bytes; views of a storage send all of it, once
        self.storages: dict[int, int] = {}

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return NotImplemented
        if value.is_cpu:
            storage = value.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return str, ()


def shared_bytes(value: Any) -> int:
    """Returns the bytes of /dev/shm that are needed to send `value` to another process.

    They are the storages of all its tensors, in whole pages. Raises ForeignError if `value` can't
    be pickled.
    """
    visitor = _TensorVisitor()
    try:
        visitor.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ForeignError(
            f"{_type_name(value)} of this loader can't be sent to a worker process: {error}"
        ) from error
    return sum(map(whole_pages, visitor.storages.values()))


def rebuild_loader(
    loader: DataLoader,
    num_workers: int,
    prefetch_factor: int | None,
    persistent: bool,
    batches: list[Any] | None = None,
) -> DataLoader:
    """Returns a loader over the same data in the same batches, with `num_workers` workers.

    `batches` restricts it to these lists of indices. The loader has no timeout, since a batch may
    take longer beside other processes than in training. A subclass of DataLoader is replaced by
    DataLoader itself, since its processing in the training process is not a cost of the workers.
    """
    batching: dict[str, Any]
    if loader.batch_sampler is None:
        batching = {"batch_size": None, "sampler": loader.sampler if batches is None else batches}
    elif batches is not None:
        batching = {"batch_sampler": batches}
    elif loader.batch_size is None:
        batching = {"batch_sampler": loader.batch_sampler}
    else:
        batching = {
            "batch_size": loader.batch_size,
            "sampler": loader.sampler,
            "drop_last": loader.drop_last,
        }
    workers = {
        "num_workers": num_workers,
        "prefetch_factor": prefetch_factor,
        "persistent_workers": persistent,
        "multiprocessing_context": loader.multiprocessing_context,
        "in_order": loader.in_order,
    }
    copied_attributes = ("collate_fn", "pin_memory", "worker_init_fn", "generator")
    return DataLoader(
        loader.dataset,
        **batching,
        **{name: getattr(loader, name) for name in copied_attributes},
        **(workers if num_workers else {}),
    )


def start_method(loader: DataLoader) -> str:
    """Returns the start method of a loader's workers: fork, spawn or forkserver."""
    context = loader.multiprocessing_context or multiprocessing
    return context.get_start_method()
