"""make bench-instrumentation: what measuring an epoch costs.

The same epochs run measured, as every trial's are (speech/epoch.py with its log of fetches), and
bare, as a plain loop over a DataLoader whose workers note nothing. Both take turns, in an order
drawn anew, on one loader with persistent workers, whose log is switched on and off: two loaders
that do the same differ by a percent, by how their memory came to lie. The accelerator hardly waits,
so that whatever measuring costs the loader or the loop is seen. A row makes new loaders until its
interval is narrow. `epoch` is by how much the time that measuring gives for an epoch, time/epoch_s,
is above that of a bare one; `wall` also counts the looks just before and after and the making of
the records, which stand outside the epoch's clock; `null` is bare epochs against the bare ones of
the same turn, which shows what the method itself is worth: medians over all turns with their 95 %
intervals, which epochs that met a virtual core at another speed move little. `calls` is the time of
all that measuring does for an epoch, done without a loader and without waiting for one. Last line:
the figures as JSON.
"""

import mmap
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from scipy.stats import binom
from tabulate import tabulate
from torch.utils.data import DataLoader

from speech import corpora
from speech.config import TrialConfig
from speech.epoch import run_epoch
from speech.fetches import FetchLog
from speech.loading import make_loader, prepare_forms
from speech.simulated_accelerator import SimulatedAccelerator
from speech.timing import Gauge
from sweeps.host.hygiene import wait_until_idle
from tests.benchmarks.report import at_most, print_report

# of a row, each with a new loader: between the two, until the interval is narrow
ROUNDS, MOST_ROUNDS = 6, 18
NARROW = 1.2  # percent, from end to end
ROUND_S = 8.0  # spent on its turns; short epochs make more of them
CALLS = 50  # epochs in which nothing but measuring is done
# format, workers, clips, run_ahead: epochs of a third of a second
WAYS = (
    ("png", 0, 360, 0),
    ("png", 2, 360, 0),
    ("packed", 0, 1800, 0),
    ("packed", 2, 1800, 0),
    ("packed", 0, 1800, 2),
    ("packed", 2, 1800, 2),
)
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]


def main() -> int:
    torch.set_num_threads(1)
    unsettled = [wait_until_idle().get("unsettled")]
    rows = [_row(*way) for way in WAYS]
    unsettled.append(wait_until_idle().get("unsettled"))
    formats = ("", ".0f", ".0f", ".3f", *["+.2f"] * 9, ".2f", ".0f")
    print(tabulate(rows, headers="keys", floatfmt=formats))
    bars = [
        at_most(
            f"{row['format']}, {row['workers']} workers, run_ahead {row['run ahead']}",
            1.0,
            float(row["epoch %"]),
            "{:+.2f} %",
        )
        for row in rows
    ]
    print_report("instrumentation", rows, bars, ["torch"], unsettled)
    return 0


def _row(form: str, workers: int, clips: int, run_ahead: int) -> dict[str, str | float | int]:
    config = TrialConfig.model_validate(
        {
            "corpus": {"name": "synthetic", "words": WORDS, "clips": clips},
            "loader": {"format": form, "num_workers": workers, "batch_size": 32},
            "device": {"prefer": ["simulated"], "step_s": 0.0005, "run_ahead": run_ahead},
        }
    )
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, print)
    turns: list[tuple[float, float, float, float]] = []
    for number in range(1, MOST_ROUNDS + 1):
        turns += _round(config, corpus)
        epoch_s, wall_s, bare_s, again_s = zip(*turns, strict=True)
        both_s = [statistics.mean(pair) for pair in zip(bare_s, again_s, strict=True)]
        cost = _percent(epoch_s, both_s)
        if number >= ROUNDS and cost["to"] - cost["from"] <= NARROW:
            break
    bare = statistics.median(both_s)
    calls = 100 * _calls_s(len(corpus.split("training")) // 32) / bare
    return {
        "format": form,
        "workers": workers,
        "run ahead": run_ahead,
        "bare s": bare,
        **{f"epoch {name}": value for name, value in cost.items()},
        **{f"wall {name}": value for name, value in _percent(wall_s, both_s).items()},
        **{f"null {name}": value for name, value in _percent(again_s, bare_s).items()},
        "calls %": calls,
        "turns": len(turns),
    }


def _percent(these: Sequence[float], those: Sequence[float]) -> dict[str, float]:
    """By how much these took longer, pair by pair: the median and its 95 % interval, from order
    statistics."""
    ratios = sorted(this / that for this, that in zip(these, those, strict=True))
    rank = max(int(binom.ppf(0.025, len(ratios), 0.5)), 1)
    found = {"%": statistics.median(ratios), "from": ratios[rank - 1], "to": ratios[-rank]}
    return {name: 100 * (ratio - 1) for name, ratio in found.items()}


def _round(
    config: TrialConfig, corpus: corpora.PreparedCorpus
) -> list[tuple[float, float, float, float]]:
    """Seconds of a measured epoch by its own clock and in all, of a bare one and of another, in an
    order drawn anew; on one new loader."""
    with tempfile.TemporaryDirectory() as scratch:
        log = _SwitchedLog(Path(scratch, "log"))
        loader, _ = make_loader(config, corpus, "training", 0, log=log)
        ways = (_measured(config, loader, log), bare := _bare(config, loader, log), bare)
        for _ in range(2):  # untimed: workers start, caches warm
            untimed_s = sum(way()[0] for way in ways)
        turns = []
        for _ in range(max(round(ROUND_S / untimed_s), 2)):
            took = {way: ways[way]() for way in random.sample(range(3), 3)}
            turns.append((*took[0], took[1][0], took[2][0]))
    return turns


class _SwitchedLog(FetchLog):
    """A log that workers keep or leave alone, as the training process says: the switch is memory
    that they share with it."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.switch = mmap.mmap(-1, 1)  # workers are forked

    def begin(self, step: int) -> None:
        if self.switch[0]:
            super().begin(step)

    def end(self) -> None:
        if self.switch[0]:
            super().end()


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
        log.allocate(steps)
        took = []
        for _ in range(CALLS):
            began = time.perf_counter()
            run_epoch(_Ready(steps, log), lambda batch, epoch, step: None, 0, None, Gauge(), log)  # type: ignore[arg-type]
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def _measured(
    config: TrialConfig, loader: DataLoader, log: _SwitchedLog
) -> Callable[[], tuple[float, float]]:
    def epoch() -> tuple[float, float]:
        log.switch[0] = 1
        accelerator = SimulatedAccelerator(config.device)
        began = time.perf_counter()
        metrics, *_ = run_epoch(
            loader,
            lambda batch, epoch, step: accelerator.run_step(),
            0,
            accelerator,
            Gauge(),
            log,
        )
        return metrics["time/epoch_s"], time.perf_counter() - began

    return epoch


def _bare(config: TrialConfig, loader: DataLoader, log: _SwitchedLog) -> Callable[[], tuple[float]]:
    def epoch() -> tuple[float]:
        log.switch[0] = 0
        accelerator = SimulatedAccelerator(config.device)
        began = time.perf_counter()
        for batch in loader:
            accelerator.run_step()
            del batch
        accelerator.synchronise()
        return (time.perf_counter() - began,)

    return epoch


if __name__ == "__main__":
    sys.exit(main())
