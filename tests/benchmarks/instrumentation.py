"""make bench-instrumentation: what measuring an epoch costs.

The same epochs run measured, as every trial's are (speech/epoch.py with its log of fetches), and bare, as a plain loop over a DataLoader
whose workers note nothing. Both take turns, forth and back, on loaders of their own with persistent workers; the accelerator hardly
waits, so that whatever measuring costs the loader or the loop is seen. Two loaders that do the same differ by half a percent, by how
their memory came to lie, so each row makes new ones ROUNDS times. `cost` is the ratio measured / bare of the epoch seconds less one: the
median over all pairs with its 95 % interval, which pairs whose epochs met a virtual core at different speeds move little. `calls` is the
time of all that measuring does in an epoch, done without a loader and without waiting for one: what the cost is at most where nothing is
in parallel. Last line: the figures as JSON.
"""

import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from scipy.stats import binom
from tabulate import tabulate

from speech import accelerator, corpora
from speech.config import TrialConfig
from speech.cpu import cpu_model
from speech.epoch import run_epoch
from speech.fetches import FetchLog
from speech.loading import make_loader, prepare_forms
from speech.timing import Gauge
from sweeps.hygiene import settle

ROUNDS = 8  # of a row, each with new loaders
ROUND_S = 9.0  # spent on its pairs; short epochs make more of them
CALLS = 50  # epochs in which nothing but measuring is done
WAYS = (("png", 0, 360), ("png", 2, 360), ("packed", 0, 1800), ("packed", 2, 1800))  # form, workers, clips: epochs of a third of a second
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]


def main() -> int:
    torch.set_num_threads(1)
    unsettled = [settle().get("unsettled")]
    rows = [_row(*way) for way in WAYS]
    unsettled.append(settle().get("unsettled"))
    machine = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(), "date": f"{datetime.date.today()}"}
    print(tabulate(rows, headers="keys", floatfmt=(".0f", ".0f", ".3f", ".3f", "+.2f", "+.2f", "+.2f", ".2f", ".0f")))
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    disturbances = [text for text in unsettled if text]
    print(f"not quiet: {'; '.join(disturbances)}" if disturbances else "the machine was quiet before and after")
    print(json.dumps({"benchmark": "instrumentation", "figures": rows, "disturbances": disturbances, "machine": machine}))
    return 0


def _row(form: str, workers: int, clips: int) -> dict[str, str | float | int]:
    config = TrialConfig.model_validate(
        {
            "corpus": {"name": "synthetic", "words": WORDS, "clips": clips},
            "loader": {"form": form, "num_workers": workers, "batch_size": 32},
            "device": {"first_of": ["paced"], "step_s": 0.0005},
        }
    )
    corpus = corpora.prepare(config.corpus)
    prepare_forms(config, corpus, print)
    seconds = [pair for _ in range(ROUNDS) for pair in _round(config, corpus)]
    ratios = sorted(measured / bare for measured, bare in seconds)
    rank = max(int(binom.ppf(0.025, len(ratios), 0.5)), 1)  # of the order statistics that bound a median, from either end
    percent = [100 * (ratio - 1) for ratio in (statistics.median(ratios), ratios[rank - 1], ratios[-rank])]
    measured_s, bare_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    values = (form, workers, measured_s, bare_s, *percent, 100 * _calls_s(len(corpus.split("training")) // 32) / bare_s, len(seconds))
    return dict(zip(("form", "workers", "measured s", "bare s", "cost %", "from %", "to %", "calls %", "pairs"), values, strict=True))


def _round(config: TrialConfig, corpus: corpora.PreparedCorpus) -> list[tuple[float, float]]:
    """Seconds of epochs, measured and bare in turn, on two new loaders."""
    with tempfile.TemporaryDirectory() as scratch:
        ways = (_measured(config, corpus, FetchLog(Path(scratch, "log"))), _bare(config, corpus))
        for _ in range(2):  # untimed: workers start, caches warm
            untimed_s = sum(way() for way in ways)
        pairs: list[tuple[float, float]] = []
        for turn in range(max(round(ROUND_S / untimed_s), 2)):
            took = {way: ways[way]() for way in ((0, 1) if turn % 2 else (1, 0))}
            pairs.append((took[0], took[1]))
    return pairs


class _Ready:
    """A loader whose batches are there at once, and noted."""

    num_workers = 0

    def __init__(self, steps: int, log: FetchLog):
        self.steps, self.log = steps, log

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[list[int]]]:
        for step in range(self.steps):
            self.log.begin(step)
            self.log.end()
            yield [[], []]


def _calls_s(steps: int) -> float:
    """Seconds of an epoch in which nothing but measuring is done; the median of many."""
    with tempfile.TemporaryDirectory() as scratch:
        log = FetchLog(Path(scratch, "log"))
        log.make_room(steps)
        took = []
        for _ in range(CALLS):
            began = time.perf_counter()
            run_epoch(_Ready(steps, log), lambda batch, epoch, step: (None, None), 0, None, Gauge(), log)  # type: ignore[arg-type]
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def _measured(config: TrialConfig, corpus: corpora.PreparedCorpus, log: FetchLog) -> Callable[[], float]:
    loader, _ = make_loader(config, corpus, "training", 0, log=log)

    def epoch() -> float:
        began = time.perf_counter()
        run_epoch(loader, lambda batch, epoch, step: (None, accelerator.work_paced(config.device)), 0, None, Gauge(), log)
        return time.perf_counter() - began

    return epoch


def _bare(config: TrialConfig, corpus: corpora.PreparedCorpus) -> Callable[[], float]:
    loader, _ = make_loader(config, corpus, "training", 0)

    def epoch() -> float:
        began = time.perf_counter()
        for batch in loader:
            accelerator.work_paced(config.device)
            del batch
        return time.perf_counter() - began

    return epoch


if __name__ == "__main__":
    sys.exit(main())
