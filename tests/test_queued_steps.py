"""Tests the timing of queued steps with an accelerator whose times are known, since it models
them."""

import pytest
import torch

from speech.calibration.queued_steps import CudaSteps, measure_pinning, measure_queued_step
from speech.simulated_accelerator import SimulatedAccelerator
from speech.training_config import Device

pytestmark = pytest.mark.quiet


@pytest.mark.parametrize(
    ("host_cpu_s", "step_s", "run_ahead"),
    [(0.004, 0.012, 3), (0.004, 0.012, 0), (0.001, 0.006, 1)],
)
def test_launch_step_and_depth_are_those_of_the_accelerator(host_cpu_s, step_s, run_ahead) -> None:
    device = Device(prefer=["simulated"], host_cpu_s=host_cpu_s, step_s=step_s, run_ahead=run_ahead)
    measured = measure_queued_step(SimulatedAccelerator(device))
    assert measured.run_ahead == run_ahead
    assert measured.cpu_s == pytest.approx(host_cpu_s, rel=0.25)
    assert measured.wait_s == pytest.approx(step_s, rel=0.1)
    assert not measured.launch_overlaps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_the_launch_of_a_long_step_is_shorter_than_the_step() -> None:
    weights = torch.randn(4096, 4096, device="cuda")

    def step() -> None:
        for _ in range(20):
            torch.mm(weights, weights)

    measured = measure_queued_step(CudaSteps(step))
    assert measured.run_ahead >= 1
    assert measured.cpu_s < measured.wait_s / 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_cuda_a_step_that_reads_its_result_is_waited_for() -> None:
    weights = torch.randn(4096, 4096, device="cuda")
    measured = measure_queued_step(CudaSteps(lambda: torch.mm(weights, weights).sum().item()))
    assert measured.run_ahead == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_larger_batch_takes_longer_to_pin() -> None:
    small, large = (measure_pinning([torch.zeros(clips, 1 << 18)]) for clips in (4, 64))
    assert 0 < small < large
