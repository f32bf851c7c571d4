"""--debug KEY: one trial in this process, its records in short, its exit code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from sweeps.commands.debug import debug, format_record
from sweeps.config.sweep_file import load
from sweeps.forecast.trial_forecasts import prepare_forecasts

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
    parameters: {{loader: {{num_workers: 1}}, device: {{prefer: [simulated], step_s: 0.01}}}}
  cycles:
    metric: {{name: ensemble_accuracy, goal: maximize}}
    parameters: {{device: cpu, precision: float32, sgdr: {{epochs: 1}}}}
"""


@pytest.fixture
def keys(tones, tmp_path, monkeypatch) -> dict[str, str]:
    """Of the file's trials, by block."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones))
    return {
        trial.block: trial.trial_id
        for trial in prepare_forecasts(load(tmp_path / "sweep.yaml"), print).plan.trials
    }


@pytest.mark.slow
def test_a_trial_runs_in_this_process_and_says_what_it_records(keys, tmp_path) -> None:
    said: list[str] = []
    debug(load(tmp_path / "sweep.yaml"), keys["cycles"][:9], said.append)
    assert f"cycles · repeat 1, id {keys['cycles']}, in process {os.getpid()}" in said
    told = [
        line.split(":")[0]
        for line in said[said.index(next(line for line in said if line.startswith("setup"))) :]
    ]
    assert told == ["setup", "epoch 0 (warm-up)", "snapshot of cycle 0", "end"]
    assert re.search(r"loss/training \d.*accuracy/validation \d", "\n".join(said))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"], "no tracker, no folder"


def test_it_exits_with_0_and_needs_no_ray_and_no_mlflow(keys, tmp_path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launch; code ="
        f" launch.main(['sweep.yaml', '--debug', {keys['workers']!r}]);sys.exit(code or '"
        " '.join({'ray', 'mlflow'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 loader workers" in done.stdout


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
        (["--debug", "zzz"], 2, "--debug zzz"),
        (["--debug", ""], 2, "--debug :"),
        (["--debug", "a", "--set", "parameters.corpus.words=[low, hihg]"], 3, "Did you mean high"),
    ],
)
def test_what_can_not_run_is_told_as_by_a_launch(
    keys, capsys, flags: list[str], code: int, message: str
) -> None:
    assert launch.main(["sweep.yaml", *flags]) == code
    assert message in capsys.readouterr().err


def test_what_a_variable_says_otherwise_is_told_here_too(
    keys, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("sweeps.commands.debug.debug", lambda *_: None)
    launch.main(["sweep.yaml", "--debug", "0000"])
    assert any(
        line.startswith("OMP_NUM_THREADS=7 is overruled")
        for line in capsys.readouterr().out.splitlines()
    )


def test_other_records_are_not_printed() -> None:
    assert format_record({"kind": "born", "pid": 1}) == []
