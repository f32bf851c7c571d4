"""A Ray cluster of real raylets on this machine, which ends with whoever started it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from sweeps.sandbox.janitor import find_descendants, scratch_dir

RAY = Path(sys.executable).parent / "ray"


@dataclass
class Raylets:
    """`variables`: the environment of a process that is to find the cluster."""

    address: str
    variables: dict[str, str]
    scratch: Path

    def add(self, *flags: str) -> psutil.Process:
        """Starts another node and returns its raylet."""
        before = set(self._raylets())
        self._start(f"--address={self.address}", *flags)
        (new,) = set(self._raylets()) - before
        return new

    def _raylets(self) -> list[psutil.Process]:
        return [
            process
            for process in find_descendants(str(self.scratch), os.getpid())
            if process.name() == "raylet"
        ]

    def _start(self, *flags: str) -> None:
        command = [RAY, "start", "--disable-usage-stats", "--object-store-memory=80000000", *flags]
        subprocess.run(
            command, env=os.environ | self.variables, check=True, capture_output=True, timeout=300
        )


@contextlib.contextmanager
def cluster(*flags: str, **variables: str) -> Iterator[Raylets]:
    """A head, started with these flags of `ray start`, by a user whose home is empty but for what
    `variables` say."""
    with (
        TemporaryDirectory() as notes,
        scratch_dir(Path(notes, "remains")) as scratch,
        socket.socket() as free,
    ):
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        (scratch / "home").mkdir()
        made = Raylets(
            f"127.0.0.1:{port}",
            {"HOME": str(scratch / "home"), "RAY_ADDRESS": f"127.0.0.1:{port}"} | variables,
            scratch,
        )
        made._start(
            "--head", f"--port={port}", f"--temp-dir={scratch}", "--include-dashboard=false", *flags
        )
        yield made
