"""make bench-analysis: what a frame of a thousand trials costs, from a database file and from a
server on loopback.

A thousand trials of 30 summary metrics, all parameters and tags of a real one and three epochs are
written through the real tracker, which takes a minute or two. Then `runs.sweep_runs`, a row a trial,
is made several times, beside the ways that MLflow's documentation leads to: get_run
for each run, and a metric's history for each run, which is also what `series.epoch_rows` costs. The
naive ways are timed on a tenth of the runs, and stand for all. Imports are not counted. Last line:
the figures as one JSON object.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tabulate import tabulate

from analysis.runs import sweep_runs
from analysis.series import epoch_rows
from speech.config import TrialConfig
from speech.cpu import cpu_model
from sweeps.metrics import SUMMARY
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from tests.benchmarks.report import at_most, print_report

TRIALS, METRICS, EPOCHS, ROUNDS, AIM_S = 1000, 30, 3, 5, 3.0
PART = 10  # the naive ways are timed on every tenth run
NAME, SERIES = "thousand", "time/epoch_s"
OURS = "sweep_runs: a row a trial"
TAGS = {"device": "simulated", "device_name": "simulated accelerator: 25 ms a step", "cpu_name": cpu_model(), "cores": 2, "threads": 2, "precision": "float32",
        "node": "planted", "forecast_fit": "fits", "warmup_epochs": 1, "versions": {"torch": "2.14.1"}, "batch_bytes": 1 << 20}  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        file = f"sqlite:///{scratch}/mlflow.db"
        began = time.perf_counter()
        plant(RunLogger(file, "speech"))
        print(
            f"{TRIALS:,} trials of {METRICS} metrics planted in {time.perf_counter() - began:.0f} s"
        )
        found = {"sqlite": costs(file)}
        with served(file) as uri:
            found["server"] = costs(uri)
    rows = [
        [
            way,
            *(
                text
                for place in found.values()
                for text in (f"{place[way]:.2f}", f"{place[way] / place[OURS]:.1f}")
            ),
        ]
        for way in found["sqlite"]
    ]
    headers = [
        "way, all trials",
        *(header for place in found for header in (f"{place}, s", "times ours")),
    ]
    print(
        tabulate(rows, headers, "simple", disable_numparse=True, colalign=["left", *["right"] * 4])
    )
    bars = [
        at_most(f"{OURS}, {name}", AIM_S, place[OURS], "{:.2f} s") for name, place in found.items()
    ]
    print_report("frames", found, bars, ["mlflow", "pandas"])
    return 0


def plant(tracking: RunLogger) -> None:
    names = list(SUMMARY)[:METRICS]
    parent = tracking.start_sweep(
        NAME, "", [{"trial_id": str(number)} for number in range(TRIALS)], ""
    )
    for number in range(TRIALS):
        swept = {"loader.num_workers": number % 16}
        config = TrialConfig.model_validate(
            {"corpus": {"words": ["yes", "no"]}, "loader": {"num_workers": number % 16}}
        )
        run = tracking.start_trial(parent, TrialDescription(trial_id=str(number), block="workers", repeat=number // 16 + 1, seed=42, swept=swept,
                                                            config=config.model_dump(mode="json"), tags=TAGS))  # fmt: skip
        for epoch in range(EPOCHS):
            tracking.log_epoch(run, epoch, {SERIES: 1.0 + epoch + number / 1000})
        tracking.finish_trial(
            run, "completed", "planted", {name: float(at + number) for at, name in enumerate(names)}
        )


def costs(uri: str) -> dict[str, float]:
    """Seconds of each way, for all trials."""
    client, runs = connect(uri), sweep_runs(NAME, uri)
    assert (len(runs.trials), runs.trials["epoch_s"].sum()) == (TRIALS, sum(range(TRIALS)))
    some = runs.with_trials(runs.trials.iloc[::PART])
    return {
        OURS: timed(lambda: sweep_runs(NAME, uri), ROUNDS),
        "get_run for each": (
            PART * timed(lambda: [client.get_run(run_id) for run_id in some.trials["run_id"]])
        ),
        "a metric's history for each": (
            PART
            * timed(
                lambda: [
                    client.get_metric_history(run_id, SERIES) for run_id in some.trials["run_id"]
                ]
            )
        ),
        "epoch_rows of one series": PART * timed(lambda: epoch_rows(some, [SERIES])),
    }


def timed(do: Callable[[], object], rounds: int = 1) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@contextlib.contextmanager
def served(file: str) -> Iterator[str]:
    """An MLflow server of that database on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", file]
    command = [sys.executable, "-m", "mlflow", "server", *where]
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    folder = Path(file.removeprefix("sqlite:///")).parent
    with subprocess.Popen(
        command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    ) as server:
        try:
            uri = f"http://127.0.0.1:{port}"
            for _ in range(240):
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"{uri}/health", timeout=1),
                ):
                    break
                time.sleep(0.5)
            yield uri
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
