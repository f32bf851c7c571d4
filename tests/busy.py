"""Processes that keep cores busy, as programs of others on the machine do."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

CORES = len(os.sched_getaffinity(0))


@contextlib.contextmanager
def busy_processes(count: int = CORES, seconds: float = 60.0) -> Iterator[list[int]]:
    """Keeps `count` cores busy with processes that are no descendants of this one.

    Yields their process ids.
    """
    program = f"import time; until = time.time() + {seconds}\nwhile time.time() < until: pass"
    # A shell that ends at once leaves its processes to init, as programs of others are
    shell = (
        f"for n in $(seq {count}); do {sys.executable} -c '{program}' >/dev/null & echo $!; done"
    )
    started = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True, check=True)
    pids = [int(pid) for pid in started.stdout.split()]
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


@contextlib.contextmanager
def bursts(seed: int, shortest_s: float = 2.0, longest_s: float = 20.0) -> Iterator[int]:
    """Keeps one core busy in bursts with pauses between them, both of a random length.

    The same seed gives the same lengths. Yields the process id.
    """
    program = (
        f"import random, time; draw = random.Random({seed})\n"
        "while True:\n"
        f" until = time.time() + draw.uniform({shortest_s}, {longest_s})\n"
        " while time.time() < until: pass\n"
        f" time.sleep(draw.uniform({shortest_s}, {longest_s}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
