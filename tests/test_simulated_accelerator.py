"""Tests the model of an accelerator by its clock: when steps run, and what the loop waits for."""

import time

import pytest

from speech.simulated_accelerator import SimulatedAccelerator
from speech.training_config import Device

STEP_S = 0.1  # long beside the moments for which a busy machine may keep a process waiting


def make(**keys) -> SimulatedAccelerator:
    return SimulatedAccelerator(Device(prefer=["simulated"], **keys))


def test_a_step_uses_the_cpu_then_occupies_the_accelerator() -> None:
    accelerator = make(step_s=STEP_S, host_cpu_s=0.02)
    cpu, wall = time.thread_time(), time.perf_counter()
    accelerator.run_step()
    assert time.thread_time() - cpu >= 0.02
    ((begin, end),) = accelerator.take_busy_intervals()
    assert wall + 0.02 <= begin < end <= time.perf_counter()
    assert end - begin == pytest.approx(STEP_S)


@pytest.mark.parametrize("run_ahead", [0, 1, 2])
def test_the_loop_waits_as_soon_as_more_steps_are_queued_than_it_may_run_ahead(run_ahead) -> None:
    accelerator = make(step_s=STEP_S, run_ahead=run_ahead)
    began = time.perf_counter()
    calls_s = []
    for _ in range(4):
        called = time.perf_counter()
        accelerator.run_step()
        calls_s.append(time.perf_counter() - called)
        assert accelerator.unfinished_steps() <= run_ahead
    assert [seconds > STEP_S / 2 for seconds in calls_s] == [step >= run_ahead for step in range(4)]
    accelerator.synchronise()
    assert time.perf_counter() - began >= 4 * STEP_S
    assert accelerator.unfinished_steps() == 0


def test_queued_steps_follow_each_other_without_a_pause() -> None:
    accelerator = make(step_s=STEP_S, run_ahead=3)
    for _ in range(3):
        accelerator.run_step()
    accelerator.synchronise()
    busy = accelerator.take_busy_intervals()
    assert [begin for begin, _ in busy[1:]] == [end for _, end in busy[:-1]]
    assert accelerator.take_busy_intervals() == []


def test_an_accelerator_with_nothing_queued_is_idle_until_the_next_step() -> None:
    accelerator = make(step_s=STEP_S, run_ahead=3)
    accelerator.run_step()
    time.sleep(3 * STEP_S)
    accelerator.run_step()
    returned = time.perf_counter()
    accelerator.synchronise()
    (first, end), (begin, _) = accelerator.take_busy_intervals()
    assert end - first == pytest.approx(STEP_S)
    assert first + 3 * STEP_S <= begin <= returned
