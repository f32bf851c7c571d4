"""make bench-instrumentation: what measuring an epoch costs.

The same epochs run measured, as every trial's are (speech/epoch.py with its log of fetches), and bare, as a plain loop over a DataLoader
whose workers note nothing. Both take turns, forth and back, on loaders of their own with persistent workers; the accelerator hardly
waits, so that whatever measuring costs the loader or the loop is seen. Below: the paired ratio measured / bare of the epoch seconds with
its 95 % interval. Last line: the figures as one JSON object.
"""

import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from analysis.statistics import mean_interval
from speech import accelerator, corpora
from speech.config import TrialConfig
from speech.cpu import cpu_model
from speech.epoch import run_epoch
from speech.fetches import FetchLog
from speech.loading import make_loader, prepare_forms
from speech.timing import Gauge
from sweeps.hygiene import settle

PAIRS = 20
WAYS = (("png", 0), ("png", 2), ("packed", 0), ("packed", 2))  # form, workers
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]


def main() -> int:
    torch.set_num_threads(1)
    unsettled = [settle().get("unsettled")]
    rows = [_row(form, workers) for form, workers in WAYS]
    unsettled.append(settle().get("unsettled"))
    machine = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(), "date": f"{datetime.date.today()}"}
    print(tabulate(rows, headers="keys", floatfmt=(".0f", ".0f", ".3f", ".3f", "+.2f", "+.2f", "+.2f", ".0f")))
    print(f"{PAIRS} pairs of epochs each, {machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    disturbances = [text for text in unsettled if text]
    print(f"not quiet: {'; '.join(disturbances)}" if disturbances else "the machine was quiet before and after")
    print(json.dumps({"benchmark": "instrumentation", "figures": rows, "disturbances": disturbances, "machine": machine}))
    return 0


def _row(form: str, workers: int) -> dict[str, str | float | int]:
    config = TrialConfig.model_validate(
        {
            "corpus": {"name": "synthetic", "words": WORDS, "clips": 1800},
            "loader": {"form": form, "num_workers": workers, "batch_size": 32},
            "device": {"first_of": ["paced"], "step_s": 0.0005},
        }
    )
    corpus = corpora.prepare(config.corpus)
    prepare_forms(config, corpus, print)
    with tempfile.TemporaryDirectory() as scratch:
        ways = (_measured(config, corpus, FetchLog(Path(scratch, "log"))), _bare(config, corpus))
        seconds: list[tuple[float, float]] = []
        for turn in range(-2, PAIRS):  # two untimed: workers start, caches warm
            took = {way: ways[way]() for way in ((0, 1) if turn % 2 else (1, 0))}
            if turn >= 0:
                seconds.append((took[0], took[1]))
    change = mean_interval([float(np.log(measured / bare)) for measured, bare in seconds])
    assert change is not None
    percent = [100 * float(np.expm1(end)) for end in change]
    measured_s, bare_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    values = (form, workers, measured_s, bare_s, *percent, PAIRS)
    return dict(zip(("form", "workers", "measured s", "bare s", "cost %", "from %", "to %", "pairs"), values, strict=True))


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
