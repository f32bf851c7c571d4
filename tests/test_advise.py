"""The command `advise`: it measures the loader of another project and prints the advice, waits for
the trial that holds the machine, and explains why a loader could not be measured."""

import fcntl
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from speech import usage
from speech.calibration import step_timings
from speech.calibration.costs import Calibration, StepCosts
from speech.calibration.step_timings import measure_step
from sweeps.commands.advise import advise
from sweeps.commands.advise.advise import AdviceRequest, measure_loader, print_advice
from sweeps.commands.advise.failures import AdviceError, shm_shortage_message, strip_own_frames
from sweeps.commands.advise.figures import WIDTH
from sweeps.commands.advise.forecast_text import format_forecasts
from sweeps.commands.advise.loader_forecast import MeasuredLoader, forecast_rows, recommended_row
from sweeps.host import host_lock
from sweeps.host.node import PreflightError
from tests.busy import busy_processes
from tests.measured_loaders import COSTS, LOADER, MIB, PAGE, calibration, planted_module
from tests.test_external_loader import advised_apart
from tests.trees import wait_until

ROOT = Path(__file__).parent.parent
RECOMMENDED = re.compile(r"\bnum_workers=\d")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """A folder with the module `planted`, which each test imports anew."""
    with planted_module(tmp_path) as planted:
        yield planted


def test_a_sleeping_step_costs_the_accelerator_and_a_computing_one_the_host(
    monkeypatch,
) -> None:
    monkeypatch.setattr(step_timings, "STEP_S", 0.2)
    monkeypatch.setattr(usage, "EXTERNAL_LIMIT", math.inf)  # whatever else runs here
    monkeypatch.setattr(
        step_timings,
        "calibrate_step",
        lambda once, threads, costs, plain: StepCosts(cpu_s=1.0, threads=threads),
    )
    plain = DataLoader(TensorDataset(torch.arange(10.0)))
    waits = measure_step(lambda batch: time.sleep(0.02), [1], COSTS, plain)
    assert waits.wait_s == pytest.approx(0.02, rel=0.3)
    assert waits.cpu_s < 0.005

    def spin(batch: object) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    assert measure_step(spin, [1], COSTS, plain).threads == 1


def test_a_dev_shm_without_room_for_one_worker_is_reported_with_the_size_for_each_number() -> None:
    text = shm_shortage_message(LOADER, 2 * MIB)
    assert "2.0 MiB free" in text
    sizes = re.findall(r"(\d+) from (\d+M)", text)
    assert sizes[:3] == [("1", "4M"), ("2", "6M"), ("4", "10M")]


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("loaders.py:make", "loaders:make"),
        ("a/b.py", "a.b:make_loader"),
        ("make", "make:make_loader"),
    ],
)
def test_a_malformed_target_is_rejected_before_anything_starts(target, meant) -> None:
    with pytest.raises(AdviceError, match=rf" {re.escape(meant)}\.$"):
        measure_loader(AdviceRequest(target, "."), print)


def test_a_traceback_begins_with_the_frames_of_the_project_that_is_measured() -> None:
    ours, importing = (
        f'  File "{ROOT}/speech/tasks.py", line 1, in advise\n    x\n',
        '  File "<frozen importlib._bootstrap>", line 1\n',
    )
    yours = '  File "/home/you/loaders.py", line 3, in make\n    open(3)\n'
    begin, end = "Traceback (most recent call last):\n", "ValueError: 3"
    text = f"{begin}{ours}{importing}{yours}{end}\n"
    assert strip_own_frames(text) == f"{begin}{yours}{end}"
    alone = f"{begin}{text.splitlines(keepends=True)[1]}{end}"
    assert strip_own_frames(alone) == alone, "a frame remains where all frames are ours"


def test_a_loader_is_measured_and_described(folder) -> None:
    found, advice = (
        record
        for record in advised_apart([(Path(folder), "planted:make_loader")])[0]
        if record["kind"] != "at"
    )
    loader = MeasuredLoader(**{name: value for name, value in found.items() if name != "kind"})
    assert (loader.dataset, loader.clips, loader.batches) == ("Numbers", 64, 16)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent) == (3, 5, True)
    assert loader.batch_bytes == 2 * PAGE
    made = Calibration.model_validate(advice["calibration"])
    assert (made.loader.batch_size, made.loader.batch_bytes) == (4, 2 * PAGE)
    best = recommended_row(forecast_rows(loader, made, 1 << 30))
    assert f"num_workers={best.workers}, " in format_forecasts(loader, made, 1 << 30)


HANGING = """
import time
def make_loader():
    print("about to wait")
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_loader_that_hangs_is_ended_and_its_line_is_reported(tmp_path, monkeypatch) -> None:
    (tmp_path / "hangs.py").write_text(HANGING)
    monkeypatch.setattr(advise, "PATIENCE_S", 25.0)
    with pytest.raises(AdviceError) as given_up:
        measure_loader(AdviceRequest("hangs:make_loader", str(tmp_path)), print)
    text = str(given_up.value)
    assert "calling hangs:make_loader" in text
    assert f'"{tmp_path}/hangs.py", line 5,' in text
    assert str(ROOT / "speech") not in text


@pytest.mark.slow
def test_missing_arguments_of_a_module_are_reported(tmp_path, monkeypatch) -> None:
    code = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--data',"
        " required=True)\nparser.parse_args()\n"
    )
    (tmp_path / "needy.py").write_text(code)
    with pytest.raises(AdviceError) as needs:
        measure_loader(AdviceRequest("needy:make_loader", str(tmp_path)), print)
    assert "after --" in str(needs.value)
    assert re.search(r"needy\.py: error: .*--data", str(needs.value))
    with pytest.raises(AdviceError, match="no make_loader"):
        measure_loader(
            AdviceRequest("needy:make_loader", str(tmp_path), arguments=["--data", "x"]), print
        )


HOLD = """
import sys
from pathlib import Path
from sweeps.host import host_lock
host_lock.LOCK, host_lock.GATE = map(Path, sys.argv[1:])
with host_lock.acquire(True, "sweep planted (process 4711)", print):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """A process that holds this machine, as a trial that runs alone does, until its stdin closes."""
    monkeypatch.setattr(host_lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(host_lock, "GATE", tmp_path / "gate")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, host_lock.LOCK, host_lock.GATE],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_measuring_waits_for_the_trial_that_holds_the_machine_and_then_holds_it(
    trial, tmp_path, monkeypatch
) -> None:
    began: list[str] = []
    lines: list[str] = []

    def measure(request: AdviceRequest, log: object) -> tuple[MeasuredLoader, Calibration]:
        with host_lock._open_lock_file(host_lock.LOCK) as lock:
            assert not host_lock._try_lock(lock, fcntl.LOCK_SH), "a trial could start beside it"
        began.append(request.target)
        return LOADER, calibration(0.025)

    monkeypatch.setattr(advise, "measure_loader", measure)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(print_advice, AdviceRequest("planted:make", str(tmp_path)), lines.append)
        assert wait_until(lambda: len(lines) == 1)
        assert "sweep planted (process 4711)" in lines[0]
        time.sleep(0.3)
        assert not began
        trial.stdin.close()
        done.result(30)
    assert began == ["planted:make"]
    assert RECOMMENDED.search(lines[-1])
    with host_lock._open_lock_file(host_lock.LOCK) as lock:
        assert host_lock._try_lock(lock, fcntl.LOCK_EX), "the advice is given, so trials may run"


@pytest.mark.slow
def test_advice_is_measured_and_given_after_the_trial_that_holds_the_machine(
    trial, folder, monkeypatch
) -> None:
    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(print_advice, AdviceRequest("planted:make_loader", folder), lines.append)
        assert wait_until(lambda: len(lines) == 1)
        trial.stdin.close()
        done.result(120)
    assert "sweep planted (process 4711)" in lines[0]
    assert any(re.match(r"planted:make_loader: Numbers .*\b64\b", line) for line in lines[1:])
    assert RECOMMENDED.search(lines[-1])


def launched(folder: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,  # it waits while a launch holds this machine
        check=False,
    )


def test_a_failing_loader_is_shown_by_its_own_traceback(folder) -> None:
    done = launched(folder, "advise", "planted:make_broken")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "FileNotFoundError" in done.stderr
    assert 'planted.py", line' in done.stderr
    assert "speech/" not in done.stderr


@pytest.mark.slow
def test_a_busy_machine_gives_no_advice_and_the_message_names_the_program(folder) -> None:
    with busy_processes(seconds=300.0) as pids:
        done = launched(folder, "advise", "planted:make_loader")
    assert done.returncode == PreflightError.exit_code
    assert any(f"process {pid}" in done.stderr for pid in pids)
    assert "Recommended" not in done.stdout


@pytest.mark.slow
def test_advice_from_the_command_line(folder) -> None:
    done = launched(folder, "advise", "planted:make_loader", "--step", "planted:step")
    assert done.returncode == 0, done.stdout + done.stderr
    (introduction,) = re.findall(r"^planted:make_loader: Numbers .*$", done.stdout, re.MULTILINE)
    assert re.findall(r"\d[\d.]*", introduction) == ["64", "16", "0.0"]
    assert re.search(r"^Recommended: num_workers=\d", done.stdout, re.MULTILINE)
    assert re.search(r"^Next bottleneck: ", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
