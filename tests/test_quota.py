"""Effects of a CPU quota on threads, plans, names, provenance and tables; and a launch and a
forecast in a real control group."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.comparable_groups import comparable
from analysis.runs import sweep_runs
from analysis.text_tables import throttling_lines
from speech.config import RuntimeSettings
from speech.cpu import lent_cores
from sweeps.config.sweep_file import load
from sweeps.execution import room
from sweeps.execution.room import check_process_limits, count_files, count_tasks
from sweeps.forecast import calibration
from sweeps.host.node import Node, PreflightError, default_runtime
from sweeps.sandbox.cgroup import ProcessRoom
from sweeps.tracking.provenance import current_environment, differences
from tests.test_provenance import PLANNED, run
from tests.trees import ROOT, can_isolate, wait_until

FREE, TIGHT = Node((), (0, 1), "EPYC"), Node((), (0, 1), "EPYC", quota=1.0)
SWEEP = """
name: quota
calibrate: false
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{batch_size: 4, num_workers: 2}}
  device: {{prefer: [simulated], step_s: 0.01}}
  sgdr: {{epochs: 2}}
resources: {{shm: {shm}}}
"""


@pytest.mark.parametrize(
    ("quota", "cpus", "cores", "threads"),
    [
        (None, "auto", 4, 4),
        (1.5, "auto", 1.5, 1),
        (0.5, "auto", 0.5, 1),
        (2.5, 2, 2, 2),
        (1.0, 2, 1, 1),
    ],
)
def test_threads_follow_the_quota_and_all_cores_stay_usable(
    tmp_path: Path, quota, cpus, cores: float, threads: int
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "name: x\nparameters: {corpus: {name: synthetic, words: [a, b]}}\nresources: {cpus:"
        f" {cpus}}}\n"
    )
    node = Node((), (4, 5, 6, 7), quota=quota)
    pinned = default_runtime(node, load(tmp_path / "sweep.yaml"))
    assert pinned.threads == threads
    assert pinned.cpus == [4, 5, 6, 7][: len(pinned.cpus or [])]
    assert node.cores_of(pinned.cpus) == cores
    assert (len(pinned.cpus or []) == 4) is (cpus == "auto"), (
        "a quota does not restrict a training to fewer cores"
    )


def test_a_changed_quota_counts_as_another_machine_for_calibrations(tone_trial) -> None:
    config = tone_trial(device={"prefer": ["simulated"], "step_s": 0.01})
    names = {
        node.quota: calibration.calibration_name(
            config, RuntimeSettings(threads=1, cpus=[0, 1]), "f00d", node
        )
        for node in (FREE, TIGHT)
    }
    assert len(set(names.values())) == 2
    assert len({node.hardware for node in (FREE, TIGHT, Node((), (0, 1), "EPYC", quota=1.5))}) == 3
    loose = Node((), (0, 1), "EPYC", quota=8.0)
    assert loose.hardware == FREE.hardware, "a quota above the number of cores grants all of them"
    assert (
        calibration.calibration_name(config, RuntimeSettings(threads=1, cpus=[0, 1]), "f00d", loose)
        == names[None]
    )


def test_a_changed_quota_is_reported_for_settled_trials(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "name: x\nparameters: {corpus: {name: synthetic, words: [yes, no]}}\n"
    )
    now = current_environment(load(tmp_path / "sweep.yaml"), [TIGHT])
    assert (now["cores"], now["CPU quota"]) == (("1",), ("1",))
    only = {name: now[name] for name in ("cores", "CPU quota")}
    warnings = differences([run("a", cores="2", cpu_quota="none")], PLANNED, only, {})
    assert [
        re.search(r"(\d+) of (\d+) .* with (.+) (\S+); .* (\S+)$", line).groups()
        for line in warnings
    ] == [("1", "1", "cores", "2", "1"), ("1", "1", "CPU quota", "none", "1")]
    assert differences([run("a", cores="1", cpu_quota="1")], PLANNED, only, {}) == []


def test_no_table_pools_trials_with_and_without_a_quota(tracking, plant) -> None:
    parent = tracking.start_sweep("q", "", [], "")
    for key, quota in (("a", "none"), ("b", "1")):
        plant(
            parent, {"loader.num_workers": 2}, trial_id=key, tags={"cores": "1", "cpu_quota": quota}
        )
    tracking.start_sweep("q", "", [{"trial_id": key} for key in "ab"], "")
    groups = list(
        comparable(
            sweep_runs(
                "q", tracking.uri, tracking.client.get_experiment(tracking.experiment_id).name
            ),
            ("loader.num_workers",),
        )
    )
    assert sorted(group.trials["trial_id"].tolist() for group in groups) == [["a"], ["b"]]
    assert len({group.surroundings for group in groups}) == 2


def test_a_table_names_the_cells_whose_trials_a_quota_throttled() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"loader.num_workers": [0, 0, 2, 2], "throttled_fraction": [0.01, 0.03, 0.7, 0.9]}
    )
    (line,) = throttling_lines(frame, markdown=True)
    assert "2% at 0" in line
    assert "80% at 2" in line
    assert throttling_lines(frame.assign(throttled_fraction=float("nan")), markdown=True) == []
    assert throttling_lines(frame.assign(throttled_fraction=0.01), markdown=True) == []


def test_trials_side_by_side_take_processes_each(tone_trial, monkeypatch) -> None:
    monkeypatch.setattr(room, "process_room", lambda: ProcessRoom(400, 4000, "a limit"))
    trials = [tone_trial(loader={"num_workers": 4})]
    lines: list[str] = []
    check_process_limits(trials, 2, True, lines.append, parallel_trials=1)
    assert lines == []
    check_process_limits(trials, 2, True, lines.append, parallel_trials=16)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("left", "raises", "told"), [(100, True, 0), (200, False, 1), (2000, False, 0)]
)
def test_the_processes_of_a_trial_are_compared_with_the_limit(
    tone_trial, monkeypatch, left: int, raises: bool, told: int
) -> None:
    monkeypatch.setattr(room, "process_room", lambda: ProcessRoom(left, 4000, "a limit"))
    trials, lines = [tone_trial(loader={"num_workers": workers}) for workers in (0, 4)], []
    if raises:
        with pytest.raises(PreflightError, match="a limit"):
            check_process_limits(trials, 2, True, lines.append)
    else:
        check_process_limits(trials, 2, True, lines.append)
    assert len(lines) == told


def test_more_workers_prefetch_and_persistence_take_more(tone_trial) -> None:
    def trial(**keys):
        return tone_trial(loader=keys, device={"prefer": ["cpu"]})

    assert count_tasks(trial(num_workers=8), 1) - count_tasks(trial(num_workers=4), 1) >= 4 * 2
    assert count_tasks(trial(num_workers=4, persistent_workers=True), 1) > count_tasks(
        trial(num_workers=4, persistent_workers=False), 1
    )
    assert count_files(trial(num_workers=8), 17) - count_files(trial(num_workers=8), 1) == 32
    assert count_files(trial(num_workers=0), 1) < count_files(trial(num_workers=1), 1)


def make_group(quota_us: int) -> list[Path]:
    """Returns new control groups with this many microseconds in each 100,000: one for version 2, or
    one for each controller. Skips the test if none can be created."""
    name = f"sweep-test-{time.time_ns()}"
    top = Path("/sys/fs/cgroup")
    made: list[Path] = []
    try:
        if (top / "cpu").is_dir():
            for controller in dict.fromkeys(
                os.path.realpath(top / each) for each in ("cpu", "cpuacct")
            ):
                made.append(Path(controller, name))
                made[-1].mkdir()
            (made[0] / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            made = [top / name]
            made[0].mkdir()
            (made[0] / "cpu.max").write_text(f"{quota_us} 100000")
    except OSError as error:
        remove_group(made)
        pytest.skip(f"no control group with a CPU quota can be made here: {error}")
    return made


def remove_group(groups: list[Path]) -> None:
    for folder in (each for each in groups if each.is_dir()):
        assert wait_until(lambda folder=folder: not _there(folder), seconds=30), "a process stayed"
        folder.rmdir()


def _there(folder: Path) -> str:
    file = folder / "cgroup.procs"
    return file.read_text() if file.exists() else ""


@pytest.fixture
def one_core() -> Iterator[list[Path]]:
    """A quota of one core on a machine of two or more."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core is all there is")
    groups = make_group(100_000)
    yield groups
    remove_group(groups)


@pytest.fixture
def any_group() -> Iterator[list[Path]]:
    """A quota of four cores, which a test may lower."""
    groups = make_group(400_000)
    yield groups
    remove_group(groups)


def run_in(groups: list[Path], *command: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    enter = " && ".join(f"echo $$ > {group}/cgroup.procs" for group in groups)
    whole = ["sh", "-c", f'{enter} && exec "$@"', "sh", *command]
    return subprocess.run(
        whole, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


HELD_BACK = """
import json, subprocess, sys, time
from pathlib import Path
from speech.cpu import cpu_quota, usable_cores
from speech.usage import read_counters, usage_metrics
file = next(file for name in ("cpu.cfs_quota_us", "cpu.max") if (file := Path(sys.argv[1], name)).exists())
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
file.write_text("5000")  # busy processes use up so little on a busy machine too
time.sleep(0.5)
before = read_counters(); time.sleep(2.0); own = usage_metrics(before, read_counters(), None)
told = cpu_quota().cores, usable_cores()
file.write_text("400000")
for process in busy: process.kill(); process.wait()
before = read_counters(); time.sleep(0.5); idle = usage_metrics(before, read_counters(), None)
print(json.dumps([*told, own, idle]))
"""


def test_a_real_quota_is_found_and_its_throttling_is_measured(any_group) -> None:
    done = run_in(any_group, sys.executable, "-c", HELD_BACK, str(any_group[0]))
    assert done.returncode == 0, done.stderr
    quota, cores, busy, idle = json.loads(done.stdout)
    assert (quota, cores) == (pytest.approx(0.05), 0.05)
    assert busy["cpu/throttled_fraction"] > 0.5
    assert busy["cpu/throttled_s"] > 0.5
    assert idle["cpu/throttled_fraction"] < 0.1


CHOSEN = """
import json, time, hashlib, sys
import torch
from torch.utils.data import DataLoader, Dataset
from speech.calibration import batch_workers, calibrate
from speech.calibration.costs import Calibration, StepCosts
from speech.cpu import usable_cores
from sweeps.commands.advise.forecast_text import format_forecasts
from sweeps.commands.advise.loader_forecast import MeasuredLoader, forecast_rows, recommended_row
batch_workers.WINDOW_S, calibrate.ROUNDS = 0.4, 2
class Work(Dataset):
    def __len__(self): return 64
    def __getitem__(self, index):
        until = time.thread_time() + 0.01
        while time.thread_time() < until: hashlib.sha256(bytes(4096))
        return torch.zeros(1)
def make(workers, prefetch, persistent):
    keys = {"prefetch_factor": prefetch, "persistent_workers": persistent}
    return DataLoader(Work(), 4, num_workers=workers, **keys if workers else {})
costs = calibrate.calibrate_loader(make, usable_cores(), 4096)
loader = MeasuredLoader("Work", 6400, 1600, 4096, False, 0, 0, 2, 2, True, 0.0, 0)
made = Calibration(loader=costs, step=StepCosts(wait_s=0.0), took_s=1.0)
found = forecast_rows(loader, made, 1 << 30)
epochs = {row.workers: row.forecast.epoch_s for row in found}
print(json.dumps([costs.cores, recommended_row(found).workers, epochs, format_forecasts(loader, made, 1 << 30)]))
"""


@pytest.mark.slow
def test_advice_under_a_quota_is_for_the_granted_cores(one_core) -> None:
    done = run_in(one_core, sys.executable, "-c", CHOSEN)
    assert done.returncode == 0, done.stderr
    cores, workers, epochs, text = json.loads(done.stdout)
    assert cores == 1
    assert workers == 0, text
    assert float(epochs["2"]) > 0.95 * float(epochs["0"]), "two workers share the time of one core"
    assert "2 workers on" not in text
    free = subprocess.run(
        [sys.executable, "-c", CHOSEN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    cores, workers, epochs, text = json.loads(free.stdout)
    assert cores == lent_cores(len(os.sched_getaffinity(0)), None)
    assert workers >= 2, text


@pytest.mark.slow
def test_a_launch_under_a_quota_of_one_core_uses_it_everywhere(
    one_core, tones: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        SWEEP.format(tones=tones, shm="private" if can_isolate() else "host")
    )
    planned = run_in(
        one_core,
        sys.executable,
        str(ROOT / "launch.py"),
        "sweep.yaml",
        "--dry-run",
        "--json",
        folder=tmp_path,
    )
    assert [trial["resources"]["cpus"] for trial in json.loads(planned.stdout)["trials"]] == [1]
    done = run_in(one_core, sys.executable, str(ROOT / "launch.py"), "sweep.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^CPU quota: .*\b1 of \d+", done.stdout, re.MULTILINE)
    runs = sweep_runs("quota", f"sqlite:///{tmp_path}/mlflow.db")
    (trial,) = runs.trials.itertuples()
    assert (trial.cores, trial.cpu_quota, trial.threads) == ("1", "1", "1")
    assert trial.throttled_s >= 0
    (group,) = comparable(runs, ("loader.num_workers",))
    assert [part for part in group.surroundings.split(" · ") if re.match(r"1 core .*quota", part)]
    refused = run_in(
        one_core,
        sys.executable,
        str(ROOT / "launch.py"),
        "sweep.yaml",
        "--set",
        "resources.cpus=2",
        folder=tmp_path,
    )
    assert refused.returncode == 3
    assert re.search(r"^resources: \D*2 cores \D*0 GPUs\D* 1 ", refused.stderr, re.MULTILINE)
