"""--debug KEY: one trial in this process, its records in short, its exit code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from sweeps.config import load
from sweeps.debug import debug, lines_of
from sweeps.outlook import outlook

ROOT = Path(__file__).parent.parent
SWEEP = """
name: planted
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{batch_size: 4}}
  sgdr: {{epochs: 2}}
blocks:
  workers:
    parameters: {{loader: {{num_workers: 1}}, device: {{first_of: [paced], step_s: 0.01}}}}
  cycles:
    metric: {{name: ensemble_accuracy, goal: maximize}}
    parameters: {{device: cpu, precision: float32, sgdr: {{epochs: 1}}}}
"""


@pytest.fixture
def keys(tones, tmp_path, monkeypatch) -> dict[str, str]:
    """Of the file's trials, by block."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones))
    return {trial.block: trial.key for trial in outlook(load(tmp_path / "sweep.yaml"), print).plan.trials}


def test_a_trial_runs_in_this_process_and_says_what_it_records(keys, tmp_path) -> None:
    said: list[str] = []
    debug(load(tmp_path / "sweep.yaml"), keys["cycles"][:9], said.append)
    assert said[0] == f"cycles · repeat 1, key {keys['cycles']}, in process {os.getpid()}"
    told = [line.split(":")[0] for line in said[said.index(next(line for line in said if line.startswith("setup"))) :]]
    assert told == ["setup", "epoch 0 (warm-up)", "snapshot of cycle 0", "end"]
    assert re.search(r"loss/training \d.*accuracy/validation \d", "\n".join(said))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"], "no tracker, no folder"


def test_it_exits_with_0_and_needs_no_ray_and_no_mlflow(keys, tmp_path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launch; code = launch.main(['sweep.yaml', '--debug', {keys['workers']!r}]);"
        "sys.exit(code or ' '.join({'ray', 'mlflow'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "its 1 loader workers are processes of their own" in done.stdout


def test_what_a_trial_raises_is_left_to_the_debugger(keys, tmp_path, monkeypatch) -> None:
    from speech import train

    def broken(*arguments: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(train, "run_epoch", broken)
    with pytest.raises(KeyError, match="planted"):
        launch.main(["sweep.yaml", "--debug", keys["workers"]])


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--debug", "zzz"], 2, "--debug zzz: no trial of this sweep has such a key."),
        (["--debug", ""], 2, "--debug : no trial of this sweep has such a key."),
        (["--debug", "a", "--set", "parameters.corpus.words=[low, hihg]"], 3, "Did you mean high"),
    ],
)
def test_what_can_not_run_is_told_as_by_a_launch(keys, capsys, flags: list[str], code: int, message: str) -> None:
    assert launch.main(["sweep.yaml", *flags]) == code
    assert message in capsys.readouterr().err


def test_other_records_are_not_printed() -> None:
    assert lines_of({"kind": "born", "pid": 1}) == []
