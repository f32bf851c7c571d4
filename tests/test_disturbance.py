"""Tests what counts as a disturbance, and a real launch beside a busy process: the trial is flagged
and run once more, and both runs are kept."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.runs import sweep_runs
from speech.usage import EXTERNAL_LIMIT
from sweeps.host.disturbance import disturbance, is_timing
from sweeps.metrics import SUMMARY
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.states import compute_states
from sweeps.trial_states import TrialState
from tests.trees import ROOT, can_isolate

SWEEP = """
name: disturbed
calibrate: false
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{batch_size: 4, num_workers: 0}}
  device: {{prefer: [simulated], step_s: 0.4}}
  sgdr: {{epochs: 2}}
resources: {{shm: {shm}}}
"""


def percents(cause: str) -> list[str]:
    return re.findall(r"\d+ %", cause)


def epoch(warmup: bool = False, **metrics: float) -> dict:
    return {
        "warmup": warmup,
        "metrics": {name.replace("__", "/"): value for name, value in metrics.items()},
    }


def test_only_the_use_by_other_processes_counts_and_never_the_duration() -> None:
    assert (
        disturbance(
            {"external_cpu_fraction": 0.02, "epoch_s": 1000.0}, [epoch(time__epoch_s=1000.0)]
        )
        is None
    )
    cause = disturbance({"external_cpu_fraction": EXTERNAL_LIMIT + 0.2, "epoch_s": 0.1}, [])
    assert cause is not None
    assert percents(cause) == ["30 %"]
    assert "cores" in cause


def test_throttling_by_its_own_quota_is_no_disturbance() -> None:
    held = {"throttled_s": 3.0, "throttled_fraction": 0.9, "external_cpu_fraction": 0.02}
    assert disturbance(held, [epoch(cpu__throttled_s=3.0)], 1.0) is None
    cause = disturbance(held | {"external_cpu_fraction": 0.3}, [], 1.0)
    assert cause is not None
    assert percents(cause) == ["30 %"]
    assert "quota" in cause


def test_the_launchs_own_processes_take_a_larger_share_of_a_smaller_quota() -> None:
    assert disturbance({"external_cpu_fraction": 0.15}, [], 0.5) is None
    assert disturbance({"external_cpu_fraction": 0.25}, [], 0.5)
    assert disturbance({"external_cpu_fraction": 0.15}, [], 64), "but no smaller one of more cores"


def test_memory_pressure_counts_in_timed_epochs_alone() -> None:
    pressed = {"pressure__memory_fraction": 0.3}
    assert (
        disturbance({}, [epoch(warmup=True, **pressed), epoch(pressure__memory_fraction=0.01)])
        is None
    )
    assert disturbance({}, [epoch(), epoch(**pressed)]) is None, "one epoch counts"
    cause = disturbance({}, [epoch(**pressed), epoch(**pressed)])
    assert cause is not None
    assert percents(cause) == ["30 %"]
    assert "memory" in cause


def test_a_disturbance_distorts_times_and_rates_and_no_accuracies() -> None:
    timing = {name for name in SUMMARY if is_timing(name)}
    assert {"epoch_s", "first_batch_s", "clips_per_s", "wait_fraction"} <= timing
    assert not {"accuracy", "ensemble_accuracy", "shm_peak_bytes", "test_clips"} & timing


def test_a_disturbed_trial_runs_again_once_whatever_the_second_run_finds(
    tracking: RunLogger, plant
) -> None:
    parent = tracking.start_sweep("s", "", [], "")
    plant(parent, {"loader.num_workers": 0}, trial_id="quiet")
    plant(parent, {"loader.num_workers": 1}, trial_id="once", tags={"disturbed": "a neighbour"})
    for _ in range(2):
        plant(
            parent, {"loader.num_workers": 2}, trial_id="twice", tags={"disturbed": "a neighbour"}
        )
    plant(parent, {"loader.num_workers": 4}, trial_id="stopped", tags={"disturbed": "a neighbour"})
    plant(parent, {"loader.num_workers": 4}, trial_id="stopped", outcome="interrupted")
    planned = [
        SimpleNamespace(trial_id=key, metric=SimpleNamespace(name="epoch_s"))
        for key in ("quiet", "once", "twice", "stopped")
    ]
    assert compute_states(tracking.trials(parent), planned) == {
        "quiet": "completed", "once": TrialState.NEEDS_RERUN, "twice": "completed", "stopped": TrialState.NEEDS_RERUN,
    }  # fmt: skip


@pytest.mark.slow
def test_a_trial_beside_a_busy_process_runs_once_more_and_both_are_kept(
    tones: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        SWEEP.format(tones=tones, shm="private" if can_isolate() else "host")
    )

    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        command = [sys.executable, ROOT / "launch.py", "sweep.yaml"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
        )
        busy.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run once more: 1\n" in done.stdout
    assert done.stdout.count("1/1") == 2
    (trial,) = sweep_runs("disturbed", f"sqlite:///{tmp_path}/mlflow.db").trials.itertuples()
    assert (trial.attempts, trial.outcome) == (2, "completed")
    assert percents(trial.disturbed)
    planned = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "1 settled; 0 to run" in planned, "it is not run a third time"
