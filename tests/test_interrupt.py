"""Interrupted launches: in a real terminal, by a signal, by their budget, and twenty times by
SIGKILL."""

import fcntl
import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from pathlib import Path

import pytest

from analysis.runs import sweep_runs
from sweeps.execution.interrupt import BudgetPassed, cancel_time_budget, handle_interrupts
from sweeps.tracking.database import resolve_uri
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.rerun import TAG
from sweeps.trial_states import SETTLED
from tests.sampling import sample
from tests.test_janitor import alive, marked, short_folder  # noqa: F401
from tests.trees import ROOT, can_isolate, descendants, wait_until

SWEEP = """
name: killed
calibrate: false
order: listed
warmup_epochs: 0
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
blocks:
  learning:
    metric: {{name: ensemble_accuracy, goal: maximize}}
    exclude: [{{device.ranks: 2, sgdr.cycle_epochs: 2}}]
    parameters:
      device: {{prefer: [cpu], ranks: {{values: [1, 2]}}}}
      loader: {{batch_size: 6}}
      sgdr: {{epochs: 4, cycle_epochs: {{values: [1, 2]}}, lr: 0.02}}
  simulated:
    metric: {{name: shm_peak_bytes, goal: minimize}}      # no time, so that nothing is disturbed and runs once more
    exclude: [{{device.ranks: 2, loader.num_workers: 0}}]
    parameters:
      loader: {{format: png, batch_size: 4, num_workers: {{values: [0, 2]}}, shm_size: {{values: [4M, 64M]}}}}
      device: {{prefer: [simulated], step_s: 0.2, ranks: {{values: [1, 2]}}}}
      sgdr: {{epochs: 2}}
"""


def launch(folder: Path, temporary: Path, *flags: str, **options) -> subprocess.Popen:
    # a test runner in the background may have it ignored
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    own = (
        f"sys.path.insert(0, {str(ROOT)!r}); import launch; sys.exit(launch.main(['sweep.yaml',"
        " *sys.argv[1:]]))"
    )
    code = f"import signal, sys; {heed}; {own}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags], cwd=folder, env=os.environ | {"TMPDIR": str(temporary)}, text=True,
        start_new_session=True, **options,
    )  # fmt: skip


def ran(folder: Path, temporary: Path, *flags: str) -> str:
    """Returns what a launch prints; it must end with status 0."""
    out, _ = (done := launch(folder, temporary, *flags)).communicate(timeout=300)
    assert done.returncode == 0, out
    return out


def runs_in(folder: Path) -> list:
    """Returns all runs of the experiment: the sweep's own and every attempt."""
    client = connect(resolve_uri(f"sqlite:///{folder}/mlflow.db"))
    experiment = client.get_experiment_by_name("speech")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def trials_of(runs: list) -> list:
    return [run for run in runs if run.data.tags["kind"] == "trial"]


def test_the_first_signal_raises_and_further_ones_are_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), handle_interrupts(None):  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_budget_passes_once_and_not_after_it_is_cancelled() -> None:
    with pytest.raises(BudgetPassed), handle_interrupts(0.05):
        time.sleep(10)
    with handle_interrupts(0.2):
        cancel_time_budget()
        time.sleep(0.3)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
@pytest.mark.parametrize("way", ["ctrl-c", "sigterm"])
def test_one_ctrl_c_in_a_terminal_stops_at_once_and_no_child_sees_it(
    tones, tmp_path, short_folder, way: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        SWEEP.format(tones=tones).replace("epochs: 4", "epochs: 40")
    )
    ours, theirs = pty.openpty()
    running = launch(
        tmp_path,
        short_folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    assert wait_until(
        lambda: any((tmp_path / ".sweeps/killed/learned").glob("*/progress.json")), seconds=300
    )
    assert os.tcgetpgrp(ours) == running.pid, "it has the terminal"
    children = [process for process in descendants(running.pid) if process.is_running()]
    names = {process.name() for process in children}
    assert {"raylet", "gcs_server", "sweep-init", "sweep-trial"} <= names
    assert not [process for process in children if sees_ctrl_c(process.pid, running.pid)]
    if way == "ctrl-c":
        os.write(ours, b"\x03")
    else:
        running.terminate()
    said = b""
    while chunk := read(ours):
        said += chunk
    assert running.wait(timeout=60) == 130, said
    assert b"Interrupted." in said
    assert b"Traceback" not in said
    assert wait_until(
        lambda: not alive(children) and not marked(short_folder) and not os.listdir(short_folder),
        seconds=10,
    )
    attempts = trials_of(runs_in(tmp_path))
    assert "RUNNING" not in {run.info.status for run in attempts}
    assert "interrupted" in {run.data.tags["outcome"] for run in attempts}


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody has its other end open any more
        return b""


def sees_ctrl_c(pid: int, foreground: int) -> bool:
    """Returns whether a process is in the foreground group, which receives the terminal's signals,
    and neither blocks nor ignores SIGINT."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        group = os.getpgid(pid)
    except OSError:
        return False  # it has ended
    held = [int(mask, 16) for mask in re.findall(r"^Sig(?:Blk|Ign):\s*(\w+)", status, re.MULTILINE)]
    return group == foreground and not any(mask >> (signal.SIGINT - 1) & 1 for mask in held)


SLOW_AND_FAST = """
name: limits
calibrate: false
order: listed
warmup_epochs: 0
metric: {{name: shm_peak_bytes, goal: minimize}}
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  loader: {{batch_size: 4}}
  device: {{prefer: [simulated], step_s: {{values: [{steps}]}}}}
  sgdr: {{epochs: 1}}
"""


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_cap_and_a_budget_report_the_remaining_trials(tones, tmp_path, short_folder) -> None:
    (tmp_path / "sweep.yaml").write_text(SLOW_AND_FAST.format(tones=tones, steps="0.01, 60.0"))
    began = time.monotonic()
    out = ran(tmp_path, short_folder, "--set", "run_cap=1")
    assert re.search(r"^run_cap of 1 .*: 1 trial\b", out, re.MULTILINE)
    enough_s = 3 * (time.monotonic() - began)
    out = ran(tmp_path, short_folder, "--set", f"time_budget={enough_s:.0f}s")
    assert re.search(r"^time_budget of .*: 1 trial\b", out, re.MULTILINE)
    assert [run.data.tags["outcome"] for run in trials_of(runs_in(tmp_path))] == [
        "interrupted",
        "completed",
    ]
    out = ran(tmp_path, short_folder, "--set", "time_budget=0.5s")
    assert re.search(r"^time_budget ", out, re.MULTILINE)
    assert len(trials_of(runs_in(tmp_path))) == 2, "no further trial has started"


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_an_interrupted_rerun_is_continued_by_the_same_command(
    tones, tmp_path, short_folder
) -> None:
    (tmp_path / "sweep.yaml").write_text(SLOW_AND_FAST.format(tones=tones, steps="0.01, 0.02"))
    ran(tmp_path, short_folder)
    out = ran(tmp_path, short_folder, "--rerun", "all", "--set", "run_cap=1")
    assert "2 settled; 2 to run" in out
    assert re.search(r"^run_cap of 1 .*: 1 trial\b", out, re.MULTILINE)
    out = ran(tmp_path, short_folder, "--rerun", "all")
    assert "2 settled; 1 to run" in out
    assert re.search(r"^continues --rerun all .*: 1 ", out, re.MULTILINE)
    runs = runs_in(tmp_path)
    assert sorted(Counter(run.data.tags["trial_id"] for run in trials_of(runs)).values()) == [2, 2]
    (parent,) = [run for run in runs if run.data.tags["kind"] == "sweep"]
    assert TAG not in parent.data.tags, "it is complete: the same command begins another rerun"


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_no_trial_starts_after_a_failure_with_on_failure_stop(
    tones, tmp_path, short_folder
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        SLOW_AND_FAST.format(tones=tones, steps="60.0, 0.01, 0.02")
    )
    flags = ["--set", "trial_timeout=3s", "--set", "on_failure=stop"]
    out, _ = (done := launch(tmp_path, short_folder, *flags)).communicate(timeout=300)
    assert done.returncode == 1, out
    (run,) = trials_of(runs_in(tmp_path))
    assert run.data.tags["outcome"] == "timeout"
    assert re.search(rf"\brecords\.jsonl\b.* {run.info.run_id}\b", out)
    assert re.search(r"^on_failure: stop: 2 trials\b", out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_launch_killed_at_twenty_random_moments_loses_nothing_and_settles_nothing_twice(
    tones, tmp_path, short_folder
) -> None:
    """Runs as many sweeps as twenty kills need. Each is launched, killed at a random moment within
    the time of an undisturbed launch, and launched again at once, until it ends before its kill."""
    text = SWEEP.format(tones=tones)
    (reference := tmp_path / "undisturbed").mkdir()
    (reference / "sweep.yaml").write_text(text)
    began = time.monotonic()
    ran(reference, short_folder)
    seconds = time.monotonic() - began
    draws, kills, sweeps, wanted = random.Random(20), 0, 0, len(sample(range(20)))
    while kills < wanted:
        (folder := tmp_path / f"sweep-{sweeps}").mkdir()
        (folder / "sweep.yaml").write_text(text)
        sweeps += 1
        while True:
            running = launch(folder, short_folder)
            try:
                out, _ = running.communicate(
                    timeout=draws.uniform(0, seconds) if kills < wanted else 300
                )
            except subprocess.TimeoutExpired:
                running.kill()
                running.communicate()
                kills += 1
                continue
            assert running.returncode == 0, out
            break
        assert_whole(folder, reference)
        assert wait_until(
            lambda: not marked(short_folder) and not os.listdir(short_folder), seconds=20
        ), os.listdir(short_folder)


def assert_whole(folder: Path, reference: Path) -> None:
    attempts = runs_in(folder)
    assert "RUNNING" not in {run.info.status for run in attempts}
    settled = Counter(
        run.data.tags["trial_id"]
        for run in trials_of(attempts)
        if run.data.tags["outcome"] in SETTLED
    )
    assert len(settled) == 9
    assert set(settled.values()) == {1}
    assert {run.data.tags["outcome"] for run in trials_of(attempts)} <= {*SETTLED, "interrupted"}
    compared = [
        "trial_id",
        "block",
        "outcome",
        "settled",
        "planned",
        "accuracy",
        "best_snapshot_accuracy",
        "ensemble_accuracy",
    ]
    tables = [
        sweep_runs("killed", f"sqlite:///{place}/mlflow.db").trials.sort_values(
            "trial_id", ignore_index=True
        )
        for place in (folder, reference)
    ]
    assert tables[0][compared].equals(tables[1][compared])
    assert sorted(path.name for path in (folder / ".sweeps" / "killed").iterdir()) == [
        "preflight.log"
    ]
