"""Tests what is read of GPUs, through a stand-in for NVIDIA's library where there is no GPU."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from speech.epoch_figures import epoch_figures
from sweeps.host.disturbance import disturbance
from sweeps.host.gpus import GpuSampler, visible_gpus
from tests.trees import ROOT

STAND_IN = Path(__file__).with_name("nvml_stand_in.c")
MIB = 1 << 20
# Samples the GPUs while a child process lives, and prints what it found as JSON. "own" and "child"
# in the scenario stand for the ids of this process and of the child
SAMPLE = """
import json, os, subprocess, sys, time
from pathlib import Path
from sweeps.host.gpus import GpuSampler, visible_gpus
from sweeps.host.hygiene import wait_until_idle
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
file = Path(os.environ["NVML_STAND_IN"])
takes = []
def write(text):
    file.write_text(text.replace("own", str(os.getpid())).replace("child", str(child.pid)))
scenarios = json.loads(sys.argv[1])
write(scenarios[0])
with GpuSampler(visible_gpus()) as sampler:
    for scenario in scenarios:
        write(scenario)
        sampler.take()  # drops what was sampled before
        time.sleep(0.6)
        takes.append(sampler.take())
idle = wait_until_idle(0)
child.kill()
print(json.dumps({"takes": takes, "idle": idle}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Compiles the stand-in; returns the folder that contains it."""
    if torch.cuda.is_available():
        pytest.skip("this machine has the real library")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("compiling the stand-in needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, STAND_IN], check=True)
    return folder


def sample(library: Path, tmp_path: Path, *scenarios: str, visible: str | None = None) -> dict:
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{library}",
        "NVML_STAND_IN": f"{tmp_path / 'scenario'}",
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    printed = subprocess.run(
        [sys.executable, "-c", SAMPLE, json.dumps(scenarios)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(printed.splitlines()[-1])


def test_several_gpus_are_told_apart_and_combined(library, tmp_path) -> None:
    found = sample(
        library,
        tmp_path,
        f"80 own {300 * MIB} 70\n40 child {100 * MIB} 30 4000001 {50 * MIB} 20\n",
    )
    ((metrics, by_gpu),) = found["takes"]
    assert by_gpu == [
        {
            "index": 0,
            "name": "Stand-in 0",
            "utilisation": pytest.approx(0.8),
            "memory_bytes": 300 * MIB,
            "external_fraction": 0.0,
        },
        {
            "index": 1,
            "name": "Stand-in 1",
            "utilisation": pytest.approx(0.4),
            "memory_bytes": 100 * MIB,
            "external_fraction": pytest.approx(0.2),
        },
    ]
    assert metrics == {
        "gpu/utilisation": pytest.approx(0.6),
        "gpu/memory_bytes": 400 * MIB,
        "gpu/external_fraction": pytest.approx(0.2),
    }
    assert found["idle"]["gpu_processes"] == 3
    assert found["idle"]["gpu_1_process_bytes"] == 150 * MIB


def test_only_the_gpus_that_a_trial_may_use_are_sampled(library, tmp_path) -> None:
    scenario = f"80 own {MIB} 70\n40 child {MIB} 30\n10 4000001 {MIB} 10\n"
    for visible, expected in (("1", [1]), ("GPU-2,0", [0, 2]), ("", [])):
        ((metrics, by_gpu),) = sample(library, tmp_path, scenario, visible=visible)["takes"]
        assert [figures["index"] for figures in by_gpu] == expected
        assert bool(metrics) == bool(expected)


def test_each_take_is_of_the_time_since_the_one_before(library, tmp_path) -> None:
    quiet, busy = f"90 own {MIB} 90\n", f"90 own {2 * MIB} 50 4000001 {MIB} 40\n"
    takes = sample(library, tmp_path, quiet, busy, quiet)["takes"]
    assert [metrics["gpu/external_fraction"] for metrics, _ in takes] == pytest.approx([0, 0.4, 0])
    assert [metrics["gpu/memory_bytes"] for metrics, _ in takes] == [MIB, 2 * MIB, MIB]


@pytest.mark.parametrize(
    ("scenario", "absent"),
    [
        (f"- own {MIB} 70\n", {"gpu/utilisation"}),
        # A driver that numbers processes otherwise: whose use it is can not be told
        (f"70 4000001 {MIB} 70\n", {"gpu/memory_bytes", "gpu/external_fraction"}),
        ("0\n", {"gpu/memory_bytes"}),
    ],
)
def test_what_a_driver_does_not_tell_is_absent(library, tmp_path, scenario, absent) -> None:
    ((metrics, _),) = sample(library, tmp_path, scenario)["takes"]
    names = {"gpu/utilisation", "gpu/memory_bytes", "gpu/external_fraction"}
    assert names - metrics.keys() == absent


def test_others_on_the_gpu_disturb_an_epoch() -> None:
    times = dict.fromkeys(("time/start_s", "time/first_batch_s", "time/data_wait_s"), 0.1)

    def epoch(seconds: float, external: float) -> dict[str, float]:
        return times | {"time/epoch_s": seconds, "gpu/external_fraction": external}

    figures = epoch_figures([epoch(9, 0), epoch(2, 0.02), epoch(3, 0.5)], 1, 2.0, True)
    assert (figures["epoch_s"], figures["disturbed_epochs"]) == (2, 1)
    records = [{"warmup": False, "metrics": epoch(3, share)} for share in (0.3, 0.5)]
    assert "50 %" in (disturbance({}, records) or "")
    assert disturbance({}, [*records, {"warmup": False, "metrics": epoch(3, 0.0)}]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_process_that_computes_on_a_gpu_is_seen() -> None:
    computing = (
        "import torch; held = torch.ones(4096, 4096, device='cuda'); print(flush=True)\n"
        "while True: held @ held; torch.cuda.synchronize()"
    )
    with (
        subprocess.Popen([sys.executable, "-c", computing], stdout=subprocess.PIPE) as own,
        GpuSampler(visible_gpus()[:1]) as sampler,
    ):
        assert own.stdout
        own.stdout.readline()
        sampler.take()
        time.sleep(3)
        metrics, _ = sampler.take()
        own.kill()
    assert metrics["gpu/utilisation"] > 0.5
    assert metrics["gpu/memory_bytes"] >= 64 * MIB
    assert metrics["gpu/external_fraction"] < 0.1
