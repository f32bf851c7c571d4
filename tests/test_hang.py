"""How long a loader may be silent, where its reads are known to wait."""

import pytest

from speech.config import Trial
from speech.shapes import batch_bytes
from speech.shm_usage import PAGE_BYTES
from sweeps.sandbox.hang import simulated_wait_s
from sweeps.sandbox.isolation import ForkServer, Task
from tests.trees import ROOT, can_isolate, finish

QUEUE_PAGES = 11  # of /dev/shm, for the semaphores of a loader with one worker


@pytest.fixture(scope="module")
def impatient():
    made = ForkServer(ROOT, tasks="tests.impatient")
    yield made
    made.close()


@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
@pytest.mark.parametrize(
    ("reads_are_known_to_wait", "outcome"), [(True, "completed"), (False, "shm_exhausted")]
)
def test_a_loader_that_sleeps_in_its_reads_is_waited_for_as_long_as_they_may_take(
    impatient, tone_trial, tmp_path, reads_are_known_to_wait: bool, outcome: str
) -> None:
    """Four reads of 0.25 s a batch, watched with 0.2 s of patience, on a /dev/shm with room for a
    batch and a half: all that is needed."""
    config = tone_trial(
        corpus={"read_latency_s": 0.25},
        features={"n_mels": 64, "hop_ms": 10.0},
        loader={"num_workers": 1},
        # long enough for init to see the batch in /dev/shm
        device={"prefer": ["simulated"], "step_s": 0.1},
    )
    trial = Trial(config=config, seed=1, warmup_epochs=0, folder=str(tmp_path))
    shm_bytes = QUEUE_PAGES * PAGE_BYTES + batch_bytes(config, 4) * 3 // 2
    wait_s = simulated_wait_s(config) if reads_are_known_to_wait else 0.0
    *_, found = finish(
        impatient,
        Task("train", trial.model_dump(), shm_bytes=shm_bytes, simulated_wait_s=wait_s),
        tmp_path,
        timeout_s=60,
    )
    assert found.outcome == outcome, found


@pytest.mark.parametrize(
    ("augment", "seconds"), [({}, 2.0), ({"noise": 0.1}, 4.0), ({"speed": 0.1}, 2.0)]
)
def test_a_batch_waits_for_a_read_a_clip_and_for_one_of_noise_where_it_is_mixed_in(
    tone_trial, augment: dict, seconds: float
) -> None:
    config = tone_trial(
        corpus={"read_latency_s": 0.02}, loader={"batch_size": 100}, augment=augment
    )
    assert simulated_wait_s(config) == pytest.approx(seconds)
    assert simulated_wait_s(tone_trial(augment=augment)) == 0
