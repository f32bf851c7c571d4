"""make bench-launch: how long a user waits around one trial of 1.5 s, and where the seconds go.

Five commands run in turn, on files that are in the page cache: a launch with one trial, the same
with nothing left to run, a dry run and the tables of the default sweep, and a bare script that does
the same as the launch with Ray Tune and MLflow: one trial that imports torch, sleeps 1.5 s and logs
a metric. The phases of a launch end with a line that it prints, or with what its trial's run says.
Last line: the figures as one JSON object.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from sweeps.host.hygiene import wait_until_idle
from sweeps.tracking.mlflow_client import connect
from tests.benchmarks.report import at_most, print_report
from tests.tones import write_tones

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 3
SWEEP = """
name: one
calibrate: false
warmup_epochs: 0
metric: {{name: shm_peak_bytes, goal: minimize}}    # no time, so that nothing runs once more
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{format: wav, batch_size: 4, num_workers: 1, shm_size: 16M}}
  device: {{prefer: [simulated], step_s: {step_s}}}
  sgdr: {{epochs: 1}}
"""
STEP_S, STEPS = 0.5, 3
BARE = """
import time
import mlflow
import ray
from ray import tune

def train(config):
    import torch
    time.sleep(1.5)
    mlflow.set_tracking_uri(config["uri"])
    mlflow.set_experiment("bare")
    with mlflow.start_run():
        mlflow.log_metric("threads", torch.get_num_threads())
    tune.report({"done": 1})

ray.init(include_dashboard=False, log_to_driver=False)
import os
uri = "sqlite:///" + os.path.abspath("mlflow.db")
tuner = tune.Tuner(train, param_space={"uri": uri}, run_config=tune.RunConfig(storage_path=os.path.abspath("tune"), verbose=0))
tuner.fit()
mlflow.set_tracking_uri(uri)
print(mlflow.search_runs(experiment_names=["bare"]))
"""  # fmt: skip
AIMS_S = {"one trial of 1.5 s": 12.0, "nothing to run": 4.0, "--dry-run of the default sweep": 1.5, "its tables": 2.5}  # fmt: skip


def main() -> int:
    unsettled = wait_until_idle().get("unsettled")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        tones = write_tones(Path(scratch, "tones"), clips=24)
        text = SWEEP.format(tones=tones, step_s=STEP_S)
        took: dict[str, list[float]] = {}
        phases: list[dict[str, float]] = []
        for turn in range(1 + ROUNDS):
            folder = Path(scratch, f"turn-{turn}")
            folder.mkdir()
            (folder / "sweep.yaml").write_text(text)
            shutil.copy(ROOT / "sweep.yaml", folder / "default.yaml")
            launch = [sys.executable, str(ROOT / "launch.py")]
            seconds, found = time_launch([*launch, "sweep.yaml"], folder)
            phases.append(found)
            commands = {
                "nothing to run": [*launch, "sweep.yaml"],
                "--dry-run of the default sweep": [*launch, "default.yaml", "--dry-run"],
                "its tables": [sys.executable, "-m", "analysis", "one"],
                "bare Ray Tune + MLflow": [sys.executable, "-c", BARE],
            }
            took.setdefault("one trial of 1.5 s", []).append(seconds)
            for name, command in commands.items():
                took.setdefault(name, []).append(run(command, folder))
    rows = [
        {
            "command": name,
            "s": statistics.median(of_command[1:]),
            "fastest": min(of_command[1:]),
            "slowest": max(of_command[1:]),
            "first": of_command[0],
            "bar": AIMS_S.get(name, ""),
        }
        for name, of_command in took.items()
    ]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    medians = {name: statistics.median(found[name] for found in phases[1:]) for name in phases[0]}
    print("\nWhere the seconds of a launch with one trial go\n")
    print(tabulate(medians.items(), ["until", "s"], floatfmt=".2f"))
    bars = [
        at_most(row["command"], AIMS_S[row["command"]], row["s"], "{:.2f} s")
        for row in rows
        if row["command"] in AIMS_S
    ]
    print_report(
        "launch",
        {"commands": rows, "phases": medians},
        bars,
        ["ray", "torch", "mlflow"],
        [unsettled],
    )
    return 0


def time_launch(command: Sequence[str], folder: Path) -> tuple[float, dict[str, float]]:
    """Returns the seconds of a launch with one trial, and those of each of its phases."""
    began, clock = time.time(), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    heard_s: list[float] = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:  # fmt: skip
        assert running.stdout
        lines = []
        for line in running.stdout:
            heard_s.append(time.perf_counter() - clock)
            lines.append(line)
    ended_s = time.perf_counter() - clock
    if running.returncode:
        raise RuntimeError("".join(lines))
    client = connect(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("speech")
    assert experiment
    (trial,) = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    started_s, finished_s = (
        moment / 1000 - began for moment in (trial.info.start_time, trial.info.end_time)
    )
    marks = {
        "the heading": next(
            at for at, line in zip(heard_s, lines, strict=True) if line.startswith("one: ")
        ),
        "the trial's start": started_s,
        "the trial's end": finished_s,
        "the last line of the tables": heard_s[-1],
        "the command's end": ended_s,
    }
    before = [0.0, *marks.values()]
    return ended_s, {
        name: at - earlier for (name, at), earlier in zip(marks.items(), before, strict=False)
    }


def run(command: Sequence[str], folder: Path) -> float:
    """Returns the seconds of a command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
