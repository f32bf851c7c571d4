"""make bench-dry-run: seconds of `launch.py --dry-run` of a sweep of 1,000 trials, the
interpreter's start and MLflow's import included.

Four ways, by turns: without a tracker; with one that holds an attempt at each of the trials; the
same as one JSON document; and beside them what can't be saved, an interpreter that imports MLflow
and connects to that tracker. Every trial is forecast, from planted calibrations, 250 different
epochs. The aim is at most 5 s. Last line: the figures as one JSON object.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from speech.calibration.costs import StepCosts
from speech.config import RuntimeSettings
from sweeps.config.sweep_file import load
from sweeps.execution.trial_runner import ENDING_TAGS, SETUP_TAGS
from sweeps.forecast import calibration
from sweeps.forecast.trial_forecasts import TrialForecasts, prepare_forecasts
from sweeps.host.hygiene import wait_until_idle
from sweeps.host.node import Node, default_runtime
from sweeps.metrics import SUMMARY
from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from sweeps.tracking.provenance import software
from tests.benchmarks.report import at_most, print_report
from tests.planted_calibrations import planted
from tests.tones import write_tones

ROOT = Path(__file__).parent.parent.parent
ROUNDS, AIM_S = 5, 5.0
SWEEP = """
name: thousand
repeats: 4
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader:
    format: wav
    num_workers: {{values: [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]}}
    prefetch_factor: {{values: [1, 2, 3, 4, 8]}}
    batch_size: {{values: [8, 16, 24, 32, 40]}}
  device: {{prefer: [simulated], step_s: 0.025}}
  sgdr: {{epochs: 2}}
"""


def main() -> int:
    unsettled = wait_until_idle().get("unsettled")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = scratch
        trials = prepare(folder)
        (folder / "empty").mkdir()
        (folder / "empty" / "sweep.yaml").write_text((folder / "sweep.yaml").read_text())
        dry_run = [sys.executable, str(ROOT / "launch.py"), "sweep.yaml", "--dry-run"]
        connecting = (
            "from sweeps.tracking.mlflow_client import connect;"
            f" connect('sqlite:///{folder}/mlflow.db')"
        )
        ways = {
            "without a tracker": (dry_run, folder / "empty"),
            f"with a tracker, {trials:,} earlier runs": (dry_run, folder),
            "the same, --json": ([*dry_run, "--json"], folder),
            "MLflow's import and a connection alone": ([sys.executable, "-c", connecting], folder),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 + ROUNDS):
            for name, (command, where) in ways.items():
                took[name].append(seconds(command, where))
    rows = [
        {
            "dry run": name,
            "s": statistics.median(of_way[1:]),
            "fastest": min(of_way[1:]),
            "slowest": max(of_way[1:]),
            "first": of_way[0],
        }
        for name, of_way in took.items()
    ]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    print(f"{trials:,} trials, {ROUNDS} rounds after a first")
    bars = [at_most(row["dry run"], AIM_S, row["s"], "{:.2f} s") for row in rows[:-1]]
    print_report("dry_run", rows, bars, ["mlflow"], [unsettled], trials=trials)
    return 0


def prepare(folder: Path) -> int:
    """Corpus, file, calibrations, and a tracker with an attempt at each trial; returns how many."""
    (folder / "sweep.yaml").write_text(SWEEP.format(tones=write_tones(folder / "tones", clips=720)))
    config = load(folder / "sweep.yaml")
    made = prepare_forecasts(config, print)
    node = Node((), tuple(sorted(os.sched_getaffinity(0))))
    pinned: dict[str, RuntimeSettings] = {
        trial.trial_id: default_runtime(node, config) for trial in made.plan.trials
    }
    for name in {each.name for each in made.required_calibrations(pinned, node).values()}:
        calibration.save_calibration(name, planted(StepCosts(wait_s=0.025), spread=0.1))
    # thousands of commits to a drive take minutes
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-") as fast:
        plant(RunLogger(f"sqlite:///{fast}/mlflow.db", "speech"), made)
        shutil.copy(Path(fast, "mlflow.db"), folder)
    return len(made.plan.trials)


def plant(tracking: RunLogger, made: TrialForecasts) -> None:
    """A run of each trial, with as many parameters, figures and tags as a real one has."""
    parent = tracking.start_sweep("thousand", "", made.rows(), "")
    tags = (
        dict.fromkeys((*SETUP_TAGS, *ENDING_TAGS), "x")
        | software()
        | {"node_before": {"cpu_busy_fraction": 0.1}}
    )
    for number, trial in enumerate(made.plan.trials):
        run = tracking.start_trial(
            parent, TrialDescription(trial_id=trial.trial_id, block=trial.block, repeat=trial.repeat, seed=trial.seed, swept=trial.swept,
                                     config=trial.config.model_dump(mode="json"), tags=tags),
        )  # fmt: skip
        outcome = ("completed", "shm_exhausted", "crashed")[number % 3]
        tracking.finish_trial(run, outcome, "planted", dict.fromkeys(SUMMARY, 1.0))


def seconds(command: list[str], folder: Path) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
