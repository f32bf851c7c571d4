"""make bench-tracking: what tracking costs a trial.

The same trial runs as the relay runs it (sweeps/execution/trial_runner.py): tracked in a sqlite
database; without, where nothing is written to the outbox and nothing sent; tracked while the
tracker is away; and untracked beside MLflow's log_metric at every step, in the training process, as
people do it. Ways take turns, forth and back. Two loads: `simulated`, where workers are ahead and an
epoch takes its steps' time to the millisecond, so that whatever holds up the trial is seen; and
`busy`, where two workers decode pictures on all cores, and what the relay computes is taken from
them.

`s` is the time from the start of the trial's process tree to its end, `cost` the median ratio to
the trial without tracking of the same round less one, with its 95 % interval. `computed` is the CPU
time that the relay spent on tracking while the tree ran, and `held up` how long its pipe was not
read for it: shares of the trial's time, the most that tracking can cost where nothing is in
parallel. `around` is the time before and after the tree, opening the run and closing it with its
files. Last line: the figures as JSON.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from scipy.stats import binom
from tabulate import tabulate

from speech import corpora
from speech.config import RuntimeSettings, TrialConfig
from speech.loading import prepare_forms
from sweeps.config.config import Metric
from sweeps.config.plan import TrialSpec
from sweeps.execution import trial_runner
from sweeps.execution.launch_context import LaunchContext, TrialPlan
from sweeps.forecast.corrections import Corrections
from sweeps.forecast.shm_fit import shm_requirement
from sweeps.host.hygiene import wait_until_idle
from sweeps.sandbox.isolation import ForkServer
from sweeps.tracking import outbox
from sweeps.tracking.mlflow_runs import RunLogger
from tests.benchmarks.report import at_most, print_report

ROOT = Path(__file__).parent.parent.parent
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
LOADS = {"simulated": {"format": "packed"}, "busy": {"format": "png"}}
EPOCHS, STEP_S = 3, 0.025
AWAY = "http://127.0.0.1:9"  # where nobody listens
WAYS = ("without", "tracked", "tracker away", "log_metric a step")


class Timed(NamedTuple):
    """One trial, in seconds."""

    tree_s: float
    around_s: float
    computed_s: float
    held_up_s: float


class Watch:
    """What the relay does for tracking, timed while the tree runs."""

    def __init__(self) -> None:
        self.tree_s = self.computed_s = self.held_up_s = 0.0
        self.running = False

    @contextmanager
    def watching(self, untracked: bool) -> Iterator[None]:
        put = (
            (lambda *a, **k: None)
            if untracked
            else self._timed(outbox.Outbox.put, time.perf_counter, "held_up_s")
        )
        sent = self._timed(outbox.Outbox.send_next, time.thread_time, "computed_s")
        with (
            mock.patch.object(
                trial_runner._Attempt,
                "_collect_records",
                self._tree(trial_runner._Attempt._collect_records),
            ),
            mock.patch.object(trial_runner, "wait_until_idle", return_value={}),
            mock.patch.object(outbox.Outbox, "put", put),
            mock.patch.object(outbox.Outbox, "send_next", sent),
        ):
            yield

    def _tree(self, listen: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began, self.running = time.perf_counter(), True
            try:
                return listen(*arguments)
            finally:
                self.tree_s, self.running = time.perf_counter() - began, False

        return timed

    def _timed(
        self, call: Callable[..., Any], clock: Callable[[], float], name: str
    ) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began, counts = clock(), self.running
            try:
                return call(*arguments, **named)
            finally:
                if counts:
                    setattr(self, name, getattr(self, name) + clock() - began)

        return timed


def main() -> int:
    parser = argparse.ArgumentParser(description="What tracking costs a trial.")
    parser.add_argument(
        "--rounds",
        type=int,
        default=6,
        help="of tracked and untracked trials; the others run in a third of them",
    )
    rounds = parser.parse_args().rounds
    configs = {load: config_of(loader) for load, loader in LOADS.items()}
    for config in configs.values():
        prepare_forms(config, corpora.prepare_corpus(config.corpus, print), print)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        unsettled = [wait_until_idle().get("unsettled")]
        times = take_turns(configs, rounds, Path(scratch))
        unsettled.append(wait_until_idle().get("unsettled"))
    rows = [
        row(load, way, of_way, times[load, WAYS[0]])
        for load in LOADS
        for way in WAYS
        if (of_way := times.get((load, way)))
    ]
    print(
        tabulate(
            rows,
            headers="keys",
            floatfmt=("", "", ".2f", "+.2f", "+.2f", "+.2f", ".2f", ".3f", ".2f", ".0f"),
        )
    )
    print(f"{EPOCHS} epochs of {1000 * STEP_S:g} ms a step")
    tracked = [row for row in rows if row["way"] == "tracked"]
    bars = [
        at_most(f"CPU of tracking, {row['load']}", 1.0, row["computed %"], "{:.2f} %")
        for row in tracked
    ]
    print_report("tracking", rows, bars, ["mlflow", "torch"], unsettled)
    return 0


def take_turns(
    configs: dict[str, TrialConfig], rounds: int, folder: Path
) -> dict[tuple[str, str], dict[int, Timed]]:
    """By load and way: what each round's trial took."""
    uri = os.environ["BENCH_URI"] = f"sqlite:///{folder}/mlflow.db"
    parent = RunLogger(uri, "speech").start_sweep("bench", "name: bench\n", [], "")
    plain, naive = ForkServer(ROOT), ForkServer(ROOT, "tests.benchmarks.naive_tasks")
    times: dict[tuple[str, str], dict[int, Timed]] = {}
    try:
        for config in configs.values():
            run(plain, config, uri, parent, folder, untracked=True)  # untimed: caches warm up
        for turn in range(rounds):
            ways = WAYS if turn % 3 == 1 or rounds == 1 else WAYS[:2]
            for load, config in configs.items():
                for way in ways if turn % 2 else reversed(ways):
                    untracked, where = way in (WAYS[0], WAYS[3]), AWAY if way == WAYS[2] else uri
                    timed = run(
                        naive if way == WAYS[3] else plain, config, where, parent, folder, untracked
                    )
                    times.setdefault((load, way), {})[turn] = timed
    finally:
        plain.close()
        naive.close()
    return times


def config_of(loader: dict[str, str]) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "corpus": {"name": "synthetic", "words": WORDS},
            "loader": {"batch_size": 32, "num_workers": 2, "shm_size": 1 << 30, **loader},
            "device": {"prefer": ["simulated"], "step_s": STEP_S},
            "sgdr": {"epochs": EPOCHS},
        }
    )


def run(
    template: ForkServer, config: TrialConfig, uri: str, parent: str, folder: Path, untracked: bool
) -> Timed:
    spec = TrialSpec(
        "trial", "bench", 1, 7, config, {}, Metric(name="epoch_s", goal="minimize"), 1, 120.0
    )
    launch = LaunchContext(
        tracking_uri=uri, experiment="speech", parent=parent, started_in=ROOT, folder=folder / "work", private_shm=True,
        planned=frozenset([spec.trial_id]), keep="none", exclusive=True, attempts={}, trial_plans={},
    )  # fmt: skip
    plan = TrialPlan(
        RuntimeSettings(threads=2, cpus=sorted(os.sched_getaffinity(0))),
        shm_requirement(config, 1000, 100, 1 << 30),
    )
    watch = Watch()
    began = time.perf_counter()
    with watch.watching(untracked):
        ended = trial_runner.run_trial(
            template, spec, plan, launch, Corrections(), lambda epoch: None
        )
    took_s = time.perf_counter() - began
    shutil.rmtree(launch.folder)
    if ended.outcome != "completed":
        raise RuntimeError(f"{ended.outcome}: {ended.evidence}")
    return Timed(watch.tree_s, took_s - watch.tree_s, watch.computed_s, watch.held_up_s)


def row(load: str, way: str, of_way: dict[int, Timed], without: dict[int, Timed]) -> dict[str, Any]:
    ratios = sorted(timed.tree_s / without[turn].tree_s - 1 for turn, timed in of_way.items())
    # of the order statistics that bound a median, from either end
    rank = max(int(binom.ppf(0.025, len(ratios), 0.5)), 1)
    middle = {
        name: statistics.median(getattr(timed, name) for timed in of_way.values())
        for name in Timed._fields
    }
    return {
        "load": load,
        "way": way,
        "s": middle["tree_s"],
        "cost %": 100 * statistics.median(ratios),
        "from %": 100 * ratios[rank - 1],
        "to %": 100 * ratios[-rank],
        "computed %": 100 * middle["computed_s"] / middle["tree_s"],
        "held up %": 100 * middle["held_up_s"] / middle["tree_s"],
        "around s": middle["around_s"],
        "trials": len(of_way),
    }


if __name__ == "__main__":
    sys.exit(main())
