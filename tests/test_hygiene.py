"""Tests waiting for an idle node: with real processes named as trials, busy cores, and a GPU."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
import torch

from sweeps.host.gpus import is_visible
from sweeps.host.hygiene import BUSY_LIMIT, PRESSURE_LIMIT, SAMPLE_S, wait_until_idle
from sweeps.sandbox.pid1 import INIT_NAME, TRIAL_NAME

pytestmark = pytest.mark.quiet

# 15: PR_SET_NAME
RENAMED = (
    "import ctypes, time; ctypes.CDLL(None).prctl(15, {name!r}.encode()); print(flush=True);"
    " time.sleep({seconds})"
)
BUSY = "print(flush=True)\nwhile True: pass"
BUSY_AWHILE = (
    "import time; end = time.monotonic() + 1.5; print(flush=True)\nwhile time.monotonic() < end:"
    " pass"
)


@contextlib.contextmanager
def running(code: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """Starts a process, and waits until it has printed its first line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", [INIT_NAME, TRIAL_NAME])
def test_a_process_of_an_earlier_trial_is_found_and_patience_has_an_end(name: str) -> None:
    began = time.monotonic()
    with running(RENAMED.format(name=name, seconds=60)) as process:
        found = wait_until_idle(patience_s=0.5)
        assert f"{name} {process.pid}" in found["trial_process_names"].split(", ")
        assert f"{name} {process.pid}" in found["unsettled"]
        assert found["trial_processes"] >= 1
        assert 0.5 <= found["waited_s"] < 0.5 + 2 * SAMPLE_S
        assert time.monotonic() - began < 5


def test_it_waits_until_the_process_has_gone() -> None:
    with running(RENAMED.format(name=TRIAL_NAME, seconds=1.0)) as process:
        found = wait_until_idle(patience_s=5)
        assert str(process.pid) not in found.get("trial_process_names", "")
        assert process.wait(timeout=5) == 0
        assert found["waited_s"] >= 0.8


def test_a_loader_worker_counts_where_it_was_forked_from_our_template() -> None:
    code = RENAMED.format(name="pt_data_worker", seconds=60)
    with running(code, "-m", "sweeps.sandbox.isolation", "3") as ours, running(code) as somebodys:
        names = wait_until_idle(patience_s=0)["trial_process_names"]
    assert str(ours.pid) in names
    assert str(somebodys.pid) not in names


def test_zombies_and_names_that_are_no_text_disturb_nobody() -> None:
    broken = (
        "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xff) Z (\\xfe'); print(flush=True);"
        " time.sleep(60)"
    )
    with running(RENAMED.format(name=TRIAL_NAME, seconds=60)) as process, running(broken):
        process.kill()
        # it has ended and nobody has reaped it
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert str(process.pid) not in wait_until_idle(patience_s=0).get("trial_process_names", "")


@pytest.fixture
def one_core() -> Iterator[None]:
    """Restricts this process and its children to one core, so that a quota of the container or a
    machine with many cores has little effect."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def test_an_overloaded_core_is_reported_and_waited_for(one_core) -> None:
    with running(BUSY), running(BUSY), running(BUSY):
        crowded = wait_until_idle(patience_s=0)
    assert crowded["cpu_busy_fraction"] > 0.9
    assert "% busy" in crowded["unsettled"]
    if Path("/proc/pressure/cpu").exists():
        assert PRESSURE_LIMIT < crowded["cpu_pressure_fraction"] <= 1.05
        waiting = f" core {100 * crowded['cpu_pressure_fraction']:.0f} %"
        assert waiting in crowded["unsettled"]
    with running(BUSY_AWHILE), running(BUSY_AWHILE):
        after = wait_until_idle(patience_s=6)
    quiet = (
        after["cpu_busy_fraction"] <= BUSY_LIMIT
        and after.get("cpu_pressure_fraction", 0) <= PRESSURE_LIMIT
    )
    assert after["waited_s"] >= (1.2 if quiet else 6), (
        "others may keep the machine busy, but then it was waited for"
    )


def test_one_busy_process_a_core_is_seen_though_no_task_need_wait(one_core) -> None:
    with running(BUSY):
        assert wait_until_idle(patience_s=0)["cpu_busy_fraction"] > 0.9


@pytest.mark.parametrize(
    ("listed", "visible"),
    [
        (None, True),
        ("1", True),
        ("0, 1", True),
        ("GPU-8f3a", True),
        ("", False),
        ("0", False),
        ("11", False),
        ("GPU-11", False),
        ("-1", False),
    ],
)
def test_cuda_visible_devices_names_a_gpu_by_number_or_uuid(
    listed: str | None, visible: bool
) -> None:
    assert is_visible(1, "GPU-8f3a2c11-0000", listed) is visible


def test_without_nvml_nothing_is_said_of_gpus() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert not [name for name in wait_until_idle(patience_s=0) if name.startswith("gpu")]
    else:
        pytest.skip("this machine has NVML")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_memory_that_a_process_holds_is_found() -> None:
    holding = (
        "import torch, time; held = torch.ones(1 << 28, dtype=torch.uint8, device='cuda');"
        " print(flush=True); time.sleep(60)"
    )
    with running(holding):
        found = wait_until_idle(patience_s=0)
    assert found["gpu_processes"] >= 1
    assert sum(value for name, value in found.items() if name.endswith("_process_bytes")) >= 1 << 28
    assert "GPU memory" in found["unsettled"]
