"""A project under odd names, launched from a pipe, copied and launched again: the copy is one of
its own."""

import shutil
import subprocess
import sys

import pytest

from analysis.runs import sweep_runs, sweep_yaml
from tests.test_database import ODD, fingerprint
from tests.trees import ROOT, can_isolate

SWEEP = """name: s
calibrate: false
warmup_epochs: 0
tracking: {{experiment: "a/../b 'c' 100%"}}
parameters:
  corpus: {{name: folder, path: "{tones}", words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  device: {{prefer: [simulated], step_s: 0.01}}
  loader: {{batch_size: 4}}
"""


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_copy_of_a_project_is_launched_without_a_touch_of_the_original(tmp_path, tones):
    place = {"experiment": "a/../b 'c' 100%"}
    project = tmp_path / ODD / "p"
    project.mkdir(parents=True)
    text = SWEEP.format(tones=tones)

    def launch(folder, *flags):
        command = [
            sys.executable,
            ROOT / "launch.py",
            "/dev/stdin",
            "--set",
            "parameters.sgdr.epochs=1",
            *flags,
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    launch(project)
    assert {each.name for each in project.parent.iterdir()} == {"p"}
    assert (
        sweep_yaml("s", f"sqlite:///{project}/mlflow.db", **place)
        == f"{text}# --set parameters.sgdr.epochs=1\n"
    )
    before = fingerprint(project)
    copy = project.with_name("c")
    shutil.copytree(project, copy)
    launch(copy, "--set", "repeats=2")
    assert fingerprint(project) == before
    assert len(sweep_runs("s", f"sqlite:///{copy}/mlflow.db", **place).trials) == 2
    assert len(sweep_runs("s", f"sqlite:///{project}/mlflow.db", **place).trials) == 1
    assert len(list((copy / "mlartifacts").rglob("records.jsonl"))) >= 2
