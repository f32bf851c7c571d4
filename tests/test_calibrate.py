"""What a calibration says of a data set, a worker's start and a step whose costs are planted: CPU
that is burnt, reads that are slept."""

import hashlib
import os
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from speech.calibration import batch_workers, calibrate, undisturbed_rounds
from speech.calibration.agreement import find_disagreement
from speech.calibration.calibrate import calibrate_loader
from speech.calibration.costs import LoaderCosts, StepCosts
from speech.calibration.step_interplay import add_interplay
from speech.calibration.step_timings import calibrate_step
from tests.busy import busy_processes

pytestmark = pytest.mark.quiet

CORES = len(os.sched_getaffinity(0))
COMPUTED_S, READ_S = 0.005, 0.004  # a sample
SAMPLES = 4  # a batch
START_S, STEP_S = 0.06, 0.02
BLOCK = bytes(1 << 16)


def burn(cpu_s: float) -> None:
    """Without the interpreter's lock, which the threads that send a worker's batches want too."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        hashlib.sha256(BLOCK)


class Planted(Dataset):
    def __init__(self, read_s: float):
        self.read_s = read_s

    def __len__(self) -> int:
        return 16 * SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        burn(COMPUTED_S)
        time.sleep(self.read_s)
        return torch.zeros(1)


def start(worker: int) -> None:
    burn(START_S)


def make(read_s: float):
    def loader(
        num_workers: int, prefetch_factor: int | None, persistent_workers: bool
    ) -> DataLoader:
        keys = {"prefetch_factor": prefetch_factor, "persistent_workers": persistent_workers}
        return DataLoader(
            Planted(read_s),
            SAMPLES,
            num_workers=num_workers,
            worker_init_fn=start,
            **keys if num_workers else {},
        )

    return loader


@pytest.fixture(scope="module")
def short():
    """Windows that see a dozen of these batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_workers, "WINDOW_S", 0.3)
        patch.setattr(calibrate, "ROUNDS", 1)
        yield


@pytest.fixture(scope="module", params=[0.0, READ_S], ids=["computes", "computes and reads"])
def found(short, request) -> tuple[LoaderCosts, float]:
    return calibrate_loader(make(request.param), CORES, batch_bytes=4096), request.param


def test_preparing_and_reading_are_told_apart(found) -> None:
    costs, read_s = found
    assert costs.prepare_s == pytest.approx(SAMPLES * COMPUTED_S, rel=0.4)
    assert costs.inline_s == pytest.approx(SAMPLES * COMPUTED_S, rel=0.4)
    assert costs.read_s == pytest.approx(SAMPLES * read_s, rel=0.4)
    assert 0 <= costs.sending < 0.4


def test_a_workers_start_is_its_own_seconds_and_no_batchs(found) -> None:
    costs, _ = found
    assert START_S < costs.ready_s < 4 * START_S
    assert 0 < costs.fork_s < START_S


def test_processes_that_share_the_cores_evenly_slow_nothing_more(found) -> None:
    costs, read_s = found
    assert dict(costs.shared)[1] == pytest.approx(1)
    assert all(0.7 < slower < 1.7 for _, slower in costs.shared)
    assert all(0.99 < slower < 1.7 for _, slower in costs.read_slower)
    assert bool(costs.read_slower) is bool(read_s)


def test_a_batch_that_lies_ready_is_taken_at_once(found) -> None:
    costs, _ = found
    assert 0 < dict(costs.receive_s)[0] < SAMPLES * COMPUTED_S / 4
    assert 0 < costs.release_s < SAMPLES * COMPUTED_S / 4
    assert all(
        seconds >= 0
        for table in (costs.receive_s, costs.deliver_s, costs.wake_s)
        for _, seconds in table
    )


def test_a_step_is_its_cpu_seconds_and_shares_the_cores_evenly(found) -> None:
    costs, read_s = found
    if read_s:
        pytest.skip("planted once is enough")
    step = calibrate_step(lambda: burn(STEP_S), 1, costs, make(0.0)(0, None, False))
    assert step.cpu_s == pytest.approx(STEP_S, rel=0.3)
    assert [count for count, _ in step.beside] == sorted({1, CORES})
    assert all(
        0.5 < slower < 1.7 for table in (step.beside, step.prepare_beside) for _, slower in table
    )


def test_what_a_step_and_preparation_do_to_each_other_is_small_without_caches(found) -> None:
    """A step that burns one core's CPU time leaves the worker the other one."""
    costs, read_s = found
    if read_s or CORES < 2:
        pytest.skip("planted once is enough, and needs a core for each")
    plain = StepCosts(cpu_s=2 * STEP_S, threads=1)
    step = add_interplay(plain, costs, lambda: burn(2 * STEP_S), make(0.0), lambda: None)
    assert step.inline_s == pytest.approx(SAMPLES * COMPUTED_S, rel=0.4)
    assert step.worker_cpu_s == pytest.approx(SAMPLES * COMPUTED_S, rel=0.4)
    assert step.resume_s < 0.3 * STEP_S


@pytest.mark.slow
def test_a_busy_process_during_the_first_value_of_each_figure_changes_no_cost(
    short, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeps all cores busy with processes of others while each figure is measured for the first
    time. These values are dropped, and measured again."""
    kept = undisturbed_rounds.attempt_measurement
    seen: list[bool] = []
    figures: set[str] = set()

    def attempt(measure):
        figure = f"{measure.func.__qualname__} {measure.args[:-1]}"  # the last one is all values
        if figure in figures:
            return kept(measure)
        figures.add(figure)
        with busy_processes(CORES):
            found = kept(measure)
        seen.append(undisturbed_rounds.is_disturbed(found))
        return found

    monkeypatch.setattr(undisturbed_rounds, "attempt_measurement", attempt)
    costs = calibrate_loader(make(0.0), CORES, batch_bytes=4096)
    assert len(seen) > 8
    assert all(seen)
    assert costs.prepare_s == pytest.approx(SAMPLES * COMPUTED_S, rel=0.4)
    assert costs.inline_s == pytest.approx(SAMPLES * COMPUTED_S, rel=0.4)
    assert dict(costs.receive_s)[0] < SAMPLES * COMPUTED_S / 4
    assert all(0.7 < slower < 1.7 for _, slower in costs.shared)
    assert find_disagreement(costs) is None


def test_a_loader_that_says_no_indices_is_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(9))

    with pytest.raises(ValueError, match="map-style dataset"):
        calibrate_loader(lambda *_: DataLoader(Stream()), CORES, 4096)
