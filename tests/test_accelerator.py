import math
import re
import time

import pytest
import torch

from speech.accelerator import DeviceError, choose_device, find_fastest_settings
from speech.learner import Learner
from speech.shapes import picture_shape
from speech.training_config import Device
from tests.busy import CORES, busy_processes

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")


@without_gpu
def test_cuda_without_a_gpu_is_an_error_never_a_cpu_run() -> None:
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        choose_device(Device.model_validate("cuda"))


@without_gpu
def test_the_first_device_there_is() -> None:
    assert choose_device(Device.model_validate("auto")) == "cpu"
    assert choose_device(Device(prefer=["cuda", "simulated"], step_s=0.1)) == "simulated"


def test_a_precision_that_was_asked_for_is_kept(tone_trial) -> None:
    config = tone_trial(precision="float32")
    pinned, line = find_fastest_settings(config, picture_shape(config), threads=1)
    assert pinned.precision == "float32"
    assert pinned.threads == 1
    assert line.startswith("float32")


@pytest.mark.quiet
def test_beside_busy_processes_the_first_precision_is_chosen_and_the_line_tells(tone_trial) -> None:
    config = tone_trial()
    with busy_processes(CORES):
        pinned, line = find_fastest_settings(config, picture_shape(config), threads=1)
    assert (pinned.precision, pinned.channels_last) == ("float32", False)
    assert "times as fast" not in line
    assert re.search(r"\d+ % of the cores", line)


def test_a_precision_that_gives_no_numbers_is_never_pinned(tone_trial, monkeypatch) -> None:
    """Planted: bfloat16 takes no time and learns NaN."""
    learn = Learner.learn

    def planted(learner, batch, lr, mixup):
        if learner.dtype == torch.bfloat16:
            return torch.tensor(math.nan)
        time.sleep(0.01)
        return learn(learner, batch, lr, mixup)

    monkeypatch.setattr(Learner, "learn", planted)
    config = tone_trial()
    assert find_fastest_settings(config, picture_shape(config), threads=1)[0].precision == "float32"
    with pytest.raises(DeviceError, match="precision: bfloat16"):
        find_fastest_settings(tone_trial(precision="bfloat16"), picture_shape(config), threads=1)
