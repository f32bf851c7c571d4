"""make bench-advise: what advise forecasts for two loaders that this project did not write,
beside what their epochs then take.

Each loader of tests/benchmarks/foreign_loaders.py is first advised on, as `python launch.py
advise` does it. Then its epochs run for real: a plain loop over a DataLoader that sleeps for the
step's seconds, in a process of its own for each number of workers, one pass to warm up and three
that count. The numbers of workers are taken in a shuffled order. Last line: the figures as one JSON
object.
"""

import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

from sweeps.commands.advise.advise import AdviceRequest, measure_loader
from sweeps.commands.advise.costs_text import format_costs
from sweeps.commands.advise.forecast_text import format_forecasts
from sweeps.commands.advise.loader_forecast import (
    Row,
    forecast_rows,
    free_shm_bytes,
    recommended_row,
)
from sweeps.host.hygiene import wait_until_idle
from sweeps.sandbox.cgroup import memory_available
from tests.benchmarks.report import at_most, print_report

ROOT = Path(__file__).parent.parent.parent
# seconds a step
LOADERS = {
    "tests.benchmarks.foreign_loaders:pictures": 0.05,
    "tests.benchmarks.foreign_loaders:spectrograms": 0.02,
}
WORKERS, EPOCHS = (0, 1, 2, 4, 8), 3


def main() -> int:
    rows, disturbances, regrets = [], [], {}
    for target, step_s in LOADERS.items():
        loader, calibration = measure_loader(AdviceRequest(target, str(ROOT), step_s=step_s), print)
        room = free_shm_bytes(), memory_available()
        found = forecast_rows(loader, calibration, *room)
        print(f"\n{format_costs(loader, calibration, True)}\n")
        print(f"{format_forecasts(loader, calibration, *room)}\n")
        measured = {}
        for workers in random.Random(0).sample(WORKERS, len(WORKERS)):
            if unsettled := wait_until_idle().get("unsettled"):
                disturbances.append(f"{target}, {workers} workers: {unsettled}")
            measured[workers] = _measured_apart(target, workers, step_s)
        rows += [
            _row(target, row, measured[row.workers]) for row in found if row.workers in measured
        ]
        best_s = min(statistics.median(seconds) for seconds in measured.values())
        recommended = recommended_row(found)
        pick = recommended.workers if recommended else None
        regrets[target] = (
            statistics.median(measured[pick]) / best_s - 1 if pick in measured else None
        )
    errors = [abs(row["error %"]) for row in rows]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    print(
        f"median error {statistics.median(errors):.1f} %, largest {max(errors):.1f} %; {EPOCHS}"
        " epochs each, medians"
    )
    for target, regret in regrets.items():
        said = (
            "was not measured"
            if regret is None
            else f"{100 * regret:.1f} % slower than the fastest measured"
        )
        print(f"{target}: the recommended number of workers {said}")
    bars = [
        at_most(
            f"regret, {target.partition(':')[2]}",
            0.05,
            math.nan if regret is None else regret,
            "{:.1%}",
        )
        for target, regret in regrets.items()
    ]
    packages = ["torch", "torchvision", "torchaudio"]
    print_report("advise", rows, bars, packages, disturbances, regrets=regrets)
    return 0


def _measured_apart(target: str, workers: int, step_s: float) -> list[float]:
    command = [sys.executable, "-m", "tests.benchmarks.advise", target, str(workers), str(step_s)]
    return json.loads(
        subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.splitlines()[-1]
    )


def epochs(target: str, workers: int, step_s: float) -> list[float]:
    """Seconds of each epoch that counts, from asking for its iterator to the end of its last step."""
    from speech.calibration.loader_source import load_loader, rebuild_loader

    own = load_loader(target, str(ROOT), None)
    loader = rebuild_loader(
        own,
        workers,
        (own.prefetch_factor or 2) if workers else None,
        own.persistent_workers and workers > 0,
    )
    took = []
    for _ in range(1 + EPOCHS):
        began = time.perf_counter()
        for batch in loader:
            time.sleep(step_s)
            del batch
        took.append(time.perf_counter() - began)
    return took[1:]


def _row(target: str, row: Row, seconds: list[float]) -> dict[str, str | int | float]:
    took_s = statistics.median(seconds)
    return {
        "loader": target.partition(":")[2],
        "workers": row.workers,
        "forecast s": row.forecast.epoch_s,
        "low": row.forecast.low_s,
        "high": row.forecast.high_s,
        "measured s": took_s,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "error %": 100 * (row.forecast.epoch_s / took_s - 1),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(epochs(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
    else:
        sys.exit(main())
