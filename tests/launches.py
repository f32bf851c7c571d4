"""A tiny sweep as a user launches it: two questions on the planted tones, run once for all tests
that look at what it leaves."""

import subprocess
import sys
from pathlib import Path

from tests.trees import ROOT

SWEEP = """
name: planted
calibrate: false
seed: 7
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  sgdr: {{epochs: 2}}
blocks:
  workers:
    repeats: {repeats}
    parameters:
      loader:
        format: png
        batch_size: 4               # 2.3 MiB a batch
        num_workers: {{values: [0, 2]}}
        shm_size: {{values: [4M, 64M]}}
      device: {{prefer: [simulated], step_s: 0.05}}
  cycles:
    metric: {{name: ensemble_accuracy, goal: maximize}}
    parameters:
      device: cpu
      loader: {{batch_size: 4}}
      sgdr: {{cycle_epochs: {{values: [1, 2]}}}}
"""


def launch(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", "sweep.yaml", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
