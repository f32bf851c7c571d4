import time

import pytest
import torch

from speech.accelerator import DeviceError, choose, fastest, work_paced
from speech.config import Device
from speech.shapes import picture_shape

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")


@without_gpu
def test_cuda_without_a_gpu_is_an_error_never_a_cpu_run() -> None:
    with pytest.raises(DeviceError, match="finds no CUDA GPU"):
        choose(Device.model_validate("cuda"))


@without_gpu
def test_the_first_device_there_is() -> None:
    assert choose(Device.model_validate("auto")) == "cpu"
    assert choose(Device(first_of=["cuda", "paced"], step_s=0.1)) == "paced"


def test_the_paced_device_burns_then_waits() -> None:
    cpu, wall = time.thread_time(), time.perf_counter()
    began, ended = work_paced(Device(first_of=["paced"], step_s=0.05, host_s=0.02))
    assert time.thread_time() - cpu >= 0.02
    assert 0.05 <= ended - began < 0.1
    assert time.perf_counter() - wall >= 0.07


def test_a_precision_that_was_asked_for_is_kept(tone_trial) -> None:
    config = tone_trial(precision="float32")
    pinned, line = fastest(config, picture_shape(config), threads=1)
    assert pinned.precision == "float32"
    assert pinned.threads == 1
    assert line.startswith("float32")
