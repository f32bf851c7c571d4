"""The wheel: built from the tree, installed, and run from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from analysis.runs import sweep_runs
from tests.trees import ROOT, can_isolate

SWEEP = """
name: installed
calibrate: false
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{batch_size: 4, num_workers: 0}}
  device: {{prefer: [simulated], step_s: 0.01}}
  sgdr: {{epochs: 2}}
resources: {{shm: {shm}}}
"""


@pytest.mark.slow
@pytest.mark.beside
def test_a_wheel_runs_from_an_empty_folder(tones: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tree, wheels, installed, empty = (
        tmp_path / name for name in ("tree", "wheels", "installed", "empty")
    )
    for name in ("analysis", "speech", "sweeps"):  # a copy, as building leaves files in the tree
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    empty.mkdir()
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", wheels, tree],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("setuptools, which builds the wheel, is neither here nor to be had")
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"launch.py", "sweeps/examples/shm.yaml", "speech/train.py"} <= names
    assert not [name for name in names if name.startswith("tests/")]
    assert "Requires-Dist: ray" in metadata
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)

    (empty / "tiny.yaml").write_text(
        SWEEP.format(tones=tones, shm="private" if can_isolate() else "host")
    )
    variables = os.environ | {"PYTHONPATH": str(installed)}

    def run(*flags: str) -> str:
        command = [sys.executable, installed / "bin" / "speech-sweeps", *flags]
        done = subprocess.run(
            command, cwd=empty, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "--dry-run" in run("--help")
    assert "1 to run" in run("tiny.yaml", "--dry-run")
    run("tiny.yaml")
    (trial,) = sweep_runs("installed", f"sqlite:///{empty}/mlflow.db").trials.itertuples()
    assert trial.outcome == "completed"
