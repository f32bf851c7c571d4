"""make bench-threads: does the training process prepare a batch faster with one thread or with all?

Batches of 32 clips of sweep.yaml's corpus, as png and as wav, are prepared without workers, with one
thread and with a thread a core. The two take turns, so that a drift of the machine hits both. It is
measured on the machine as it is, and beside one process that keeps a core busy. Last line: the
figures as one JSON object.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader

from speech import corpora
from speech.config import TrialConfig
from speech.loading import make_loader, prepare_forms
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load_text
from sweeps.host.hygiene import wait_until_idle
from tests.benchmarks.report import at_most, print_report

ROOT = Path(__file__).parent.parent.parent
FORMATS = ("png", "wav")
ROUNDS, BATCHES, STEP_S = 7, 25, 0.005
WANTED_QUIET, WANTED_BUSY = 1.1, 1.0  # seconds of one thread over those of all, at most


def main() -> int:
    unsettled = wait_until_idle().get("unsettled")
    loaders = {form: loader_without_workers(form) for form in FORMATS}
    rows = []
    for situation in ("as it is", "beside a busy process"):
        with busy_process() if situation != "as it is" else contextlib.nullcontext():
            rows += [row(form, situation, loader) for form, loader in loaders.items()]
    bars = [
        at_most(
            f"one thread over all, {one['format']}, {one['machine']}",
            WANTED_QUIET if one["machine"] == "as it is" else WANTED_BUSY,
            one["one over all"],
            "{:.2f}",
        )
        for one in rows
    ]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    print(f"Milliseconds a batch, medians of {ROUNDS} rounds")
    print_report("threads", rows, bars, ["torch"], [unsettled])
    return 0


def loader_without_workers(form: str) -> DataLoader:
    """Returns the loader of the training split of a block of sweep.yaml, with 0 workers."""
    prepared: dict[str, corpora.PreparedCorpus] = {}

    def prepare(corpus: Any) -> str:
        prepared[corpus.selection_key()] = corpora.prepare_corpus(corpus)
        return prepared[corpus.selection_key()].fingerprint

    sweep = load_text((ROOT / "sweep.yaml").read_text(), "sweep.yaml", [])
    config: TrialConfig = next(
        trial.config for trial in plan(sweep, prepare).trials if trial.config.loader.format == form
    )
    alone = config.loader.model_copy(update={"num_workers": 0})
    config = config.model_copy(update={"loader": alone})
    corpus = prepared[config.corpus.selection_key()]
    prepare_forms(config, corpus, print)
    return make_loader(config, corpus, "training", 0)[0]


def row(form: str, situation: str, loader: DataLoader) -> dict[str, Any]:
    """Returns the medians over the rounds of one and of all threads."""
    cores = len(os.sched_getaffinity(0))
    seconds: dict[int, list[float]] = {1: [], cores: []}
    for number in range(1 + ROUNDS):
        for threads, of_threads in seconds.items():
            mean_s = time_batches(loader, threads)
            if number:  # the first round allocates memory
                of_threads.append(mean_s)
    one_ms, all_ms = (1000 * statistics.median(seconds[threads]) for threads in (1, cores))
    return {
        "format": form,
        "machine": situation,
        "one thread ms": one_ms,
        "all threads ms": all_ms,
        "one over all": one_ms / all_ms,
        "fastest round of all ms": 1000 * min(seconds[cores]),
        "slowest round of all ms": 1000 * max(seconds[cores]),
    }


def time_batches(loader: DataLoader, threads: int) -> float:
    """Returns the mean seconds of a batch that this process prepares with `threads` threads."""
    batches, seconds = iter(loader), []
    torch.set_num_threads(threads)
    for _ in range(min(BATCHES, len(loader))):
        began = time.perf_counter()
        batch = next(batches)
        seconds.append(time.perf_counter() - began)
        del batch
        time.sleep(STEP_S)
    return statistics.mean(seconds)


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
