"""Finds the programs outside this launch that used the cores most between two moments.

The process tree of a calibration sees only its own processes, and knows how much of the cores
others used. This module, which runs in the launch, adds which programs these were.
"""

import contextlib
import time

import psutil

SHOWN = 2  # programs that a message names
MIN_CORES = 0.05  # a program that used less is not named


class ProgramWatch:
    """Remembers the CPU time of all processes of the machine when it is created."""

    def __init__(self) -> None:
        """Reads the CPU times."""
        self._began, self._cpu_s = time.monotonic(), _read_cpu_times()

    def describe(self) -> str:
        """Returns the programs that have used most of the cores since, or '' if none is visible.

        A container does not see the processes outside it.
        """
        seconds = max(time.monotonic() - self._began, 1e-3)
        own = _own_tree()
        cores = {
            process: (cpu_s - self._cpu_s.get(process, 0.0)) / seconds
            for process, cpu_s in _read_cpu_times().items()
            if process.pid not in own
        }
        busiest = sorted(cores, key=cores.__getitem__, reverse=True)[:SHOWN]
        return " and ".join(
            f"{_name(process)} (process {process.pid}, {cores[process]:.1f} cores)"
            for process in busiest
            if cores[process] >= MIN_CORES
        )


def _read_cpu_times() -> dict[psutil.Process, float]:
    """Returns the CPU seconds of every process that may be read, with its ended children."""
    times: dict[psutil.Process, float] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            times[process] = sum(process.cpu_times()[:4])
    return times


def _own_tree() -> set[int]:
    """Returns the ids of this process and of all its descendants."""
    launch = psutil.Process()
    return {launch.pid, *(child.pid for child in launch.children(recursive=True))}


def _name(process: psutil.Process) -> str:
    """Returns a program's name."""
    with contextlib.suppress(psutil.Error):
        return process.name()
    return "a program that has ended"
