"""make bench-overhead: what a trial costs beside its training, three ways.

The same 20 trials, which do nothing but need torch, run one after another on one Ray: as a plain
Ray Tune trainable that imports torch, as the same with reuse_actors, and isolated as
sweeps/execution/ray_session.py does it, each in a process tree with a /dev/shm of 64 MiB. The figure
is the wall time of a whole tuner.fit() over its trials, so the start of an actor is paid by the
trials that share it; beside it stands what one more trial costs, from the end of one to the end of
the next. The ways take turns, forth and back, so that a drift of the machine hits all alike. Last
line: the figures as one JSON object.
"""

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from sweeps import environment
from sweeps.execution.ray_session import OBJECT_STORE_BYTES
from sweeps.execution.ray_variables import OWN_RAY
from sweeps.host.hygiene import wait_until_idle
from sweeps.sandbox.isolation import ForkServer, Task
from tests.benchmarks.report import at_most, print_report

ROOT = Path(__file__).parent.parent.parent
TRIALS, ROUNDS = 20, 2
SHM_BYTES = 64 << 20

_template: ForkServer | None = None  # of this Ray actor's process


def plain(config: dict[str, Any]) -> None:
    import torch
    from ray import tune

    tune.report({"threads": torch.get_num_threads()})


def isolated(config: dict[str, Any]) -> None:
    """As the runner's trainable, without a tracker: the actor keeps the process that trees are
    forked from."""
    from ray import tune

    global _template
    _template = _template or ForkServer(ROOT)
    with tempfile.NamedTemporaryFile() as log:
        *records, ending = _template.run(Task("list_gpus", {}, shm_bytes=SHM_BYTES), Path(log.name))
    if ending["status"] != 0 or ending["shm_limit_bytes"] != SHM_BYTES:
        raise RuntimeError(f"not isolated: {[*records, ending]}")
    tune.report({"shm_limit_bytes": ending["shm_limit_bytes"]})


class Way(NamedTuple):
    name: str
    trainable: Callable[[dict[str, Any]], None]
    reuse_actors: bool


WAYS = (
    Way("plain Ray Tune, imports torch", plain, reuse_actors=False),
    Way("the same with reuse_actors", plain, reuse_actors=True),
    Way("isolated", isolated, reuse_actors=True),
)


class Fit(NamedTuple):
    """One tuner.fit(). All in seconds."""

    trial_s: float  # of the whole, by trial
    next_trial_s: float  # median from the end of a trial to the end of the next
    unsettled: str | None  # what else the machine did just before


def main() -> int:
    start_ray()
    for way in WAYS:
        fit(way, 2)  # untimed: caches warm up
    fits: dict[str, list[Fit]] = {way.name: [] for way in WAYS}
    for turn in range(ROUNDS):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            fits[way.name].append(fit(way, TRIALS))
    plain_s = statistics.median(one.trial_s for one in fits[WAYS[0].name])
    rows = [_row(name, of_way, plain_s) for name, of_way in fits.items()]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    print(f"{TRIALS} trials a fit, {ROUNDS} fits each")
    isolated_s = rows[-1]["s a trial"]
    print_report(
        "overhead",
        rows,
        [at_most("isolated, over plain Ray Tune", 1.0, isolated_s / plain_s, "{:.2f}")],
        ["ray", "torch"],
        [
            one.unsettled and f"before a fit of {name}: {one.unsettled}"
            for name, of_way in fits.items()
            for one in of_way
        ],
    )
    return 0


def start_ray() -> None:
    """As sweeps/execution/ray_session.py starts it."""
    environment.apply(*OWN_RAY)
    os.environ |= environment.with_project()
    import ray

    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)), num_gpus=0, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.CRITICAL, log_to_driver=False,
    )  # fmt: skip
    logging.getLogger("ray").setLevel(logging.CRITICAL)


def fit(way: Way, trials: int) -> Fit:
    """Runs `trials` trials one at a time: each takes all CPUs."""
    from ray import tune

    ends: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, *arguments: Any, **info: Any) -> None:
            ends.append(time.perf_counter())

    unsettled = wait_until_idle().get("unsettled")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                way.trainable, tune.PlacementGroupFactory([{"CPU": len(os.sched_getaffinity(0))}])
            ),
            param_space={"index": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=way.reuse_actors),
            run_config=tune.RunConfig(
                storage_path=scratch, name="tune", verbose=0, callbacks=[Clock()]
            ),
        )
        began = time.perf_counter()
        results = tuner.fit()
        took_s = time.perf_counter() - began
    if results.errors:
        raise RuntimeError(f"{way.name}: {results.errors[0]}")
    return Fit(took_s / trials, statistics.median(b - a for a, b in pairwise(ends)), unsettled)


def _row(name: str, fits: list[Fit], plain_s: float) -> dict[str, str | float | int]:
    trial_s = [one.trial_s for one in fits]
    return {
        "a trial that does nothing": name,
        "s a trial": statistics.median(trial_s),
        "fastest": min(trial_s),
        "slowest": max(trial_s),
        "of plain": statistics.median(trial_s) / plain_s,
        "s the next trial": statistics.median(one.next_trial_s for one in fits),
        "trials": TRIALS * len(fits),
    }


if __name__ == "__main__":
    sys.exit(main())
