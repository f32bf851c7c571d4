"""Writes files and folders so that they appear complete under their name, or not at all."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which gets that name when the block has written it.

    It replaces an older file. If the block raises an exception, the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids do not suffice: processes in two containers may share the id and the folder
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which gets the name `path` at the end.

    It replaces an older file only once its own content is on the disk.
    """
    with replace_file(path) as partial, name_file_in_errors(path), partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def save_atomically(tensors: dict[str, Any], path: Path) -> None:
    """Saves tensors so that a complete file appears or none, even if the machine stops."""
    import torch

    with open_atomically(path) as file:
        torch.save(tensors, file)


@contextlib.contextmanager
def write_once(target: Path) -> Iterator[Path | None]:
    """Yields a temporary path for `target`, a file or a folder, while other processes wait.

    Yields None if `target` exists already. The temporary path gets the name `target` when the block
    ends without an error. The remains of a killed process are removed by the next one: their name
    is always the same, and no process holds their lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, or its process dies
        if target.exists():
            yield None
            return
        partial = target.with_name(f"{target.name}.partial")
        _remove(partial)
        try:
            yield partial
            partial.rename(target)
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Adds the file's name to write errors in this block.

    The kernel's "No space left on device" names no file, and torch's error has less information.
    Raises OSError.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OSError(f"{path} can't be written: {error}") from error
