"""Tests what a trial needs of /dev/shm, with sizes worked out by hand and with the peak of real
trials whose training loop is slower than their loader."""

import re

import pytest

from speech.byte_sizes import parse_size
from speech.config import Trial
from speech.shm_usage import PAGE_BYTES
from sweeps.forecast.shm_fit import ShmRequirement, count_verdicts, shm_requirement
from sweeps.metrics import SUMMARY
from sweeps.sandbox.isolation import ForkServer, Task
from tests.trees import ROOT, can_isolate, finish

isolated = pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
SIMULATED = {"prefer": ["simulated"], "step_s": 0.12}
BATCH = 64 * 3 * 224 * 224 * 4 + PAGE_BYTES  # pictures, and a page of labels


def article(tone_trial, device=None, **loader):
    """Returns a trial with the article's batches: 64 pictures of 3 x 224 x 224."""
    return tone_trial(
        loader={"format": "png", "batch_size": 64} | loader, device=device or SIMULATED
    )


@pytest.mark.parametrize(
    ("workers", "size", "verdict"),
    [
        (0, "64K", "fits"),
        (1, "36M", "overflows"),  # a batch is 36.8 MiB
        (1, "64M", "depends"),
        (1, "111M", "fits"),  # 3 batches, 110.3 MiB
        (2, "256M", "fits"),
        (4, "256M", "depends"),
        (8, "1G", "fits"),  # 17 batches, 624.9 MiB
    ],
)
def test_verdicts_of_the_articles_batches(
    tone_trial, workers: int, size: str, verdict: str
) -> None:
    assert (
        shm_requirement(
            article(tone_trial, num_workers=workers), 1440, 180, parse_size(size)
        ).verdict
        == verdict
    )


def test_floor_typical_and_bound_count_whole_batches_and_semaphores(tone_trial) -> None:
    found = shm_requirement(article(tone_trial, num_workers=4), 1440, 180, limit_bytes=1 << 30)
    assert found == ShmRequirement(
        BATCH,
        BATCH + 20 * PAGE_BYTES,
        4 * BATCH + 20 * PAGE_BYTES,
        9 * BATCH + 20 * PAGE_BYTES,
        1 << 30,
    )


@pytest.mark.parametrize(("steps", "batches"), [(20, 9), (9, 9), (8, 8), (1, 1)])
def test_no_epoch_has_more_batches_than_it_has(tone_trial, steps: int, batches: int) -> None:
    assert (
        shm_requirement(article(tone_trial, num_workers=4), 64 * steps + 63, 0, 0).max_bytes
        == batches * BATCH + 20 * PAGE_BYTES
    )


def test_validation_reads_the_incomplete_batch_that_training_leaves_out(tone_trial) -> None:
    config = article(tone_trial, num_workers=1, device="cpu")
    simulated = shm_requirement(article(tone_trial, num_workers=1), 64 + 10, 64 + 10, 0)
    rest = 10 * 3 * 224 * 224 * 4 + PAGE_BYTES
    assert simulated.max_bytes == BATCH + 11 * PAGE_BYTES
    assert (
        shm_requirement(config, 64 + 10, 64 + 10, 0).max_bytes == BATCH + rest + 2 * 11 * PAGE_BYTES
    ), "and the training workers' queues stay"


def test_an_open_device_is_given_the_widest_range(tone_trial) -> None:
    learns, simulated, either = (
        shm_requirement(
            article(tone_trial, num_workers=2, device={"prefer": names, "step_s": 0.1}),
            640,
            640,
            0,
        )
        for names in (["cpu"], ["simulated"], ["cuda", "simulated"])
    )
    assert (either.min_bytes, either.max_bytes) == (simulated.min_bytes, learns.max_bytes)
    assert simulated.max_bytes < learns.max_bytes


def test_metrics_have_their_names_and_are_0_without_workers(tone_trial) -> None:
    found = shm_requirement(article(tone_trial), 640, 0, 5).metrics()
    assert found == {
        "forecast_shm_min_bytes": 0,
        "forecast_shm_expected_bytes": 0,
        "forecast_shm_max_bytes": 0,
    }
    assert found.keys() < SUMMARY.keys()


def test_verdicts_are_counted() -> None:
    fits, depends, overflows = (ShmRequirement(1, 2, 3, 4, limit) for limit in (4, 3, 1))
    for verdicts, counted in (
        ([fits, depends, fits, overflows], ["2 fit", "1 overflows", "1 depends"]),
        ([depends, depends], ["2 depend"]),
    ):
        assert re.findall(r"\d \w+", count_verdicts(verdicts)) == counted


@pytest.fixture(scope="module")
def template():
    made = ForkServer(ROOT)
    yield made
    made.close()


def run(template, config, folder, shm_bytes: int):
    """Runs a trial and returns its exit record, its outcome and its forecast."""
    *_, ending = template.run(Task("prepare", config.model_dump(), private=False), folder / "log")
    assert ending["status"] == 0, (folder / "log").read_text()
    trial = Trial(config=config, seed=1, warmup_epochs=0, folder=str(folder))
    records, outcome = finish(
        template, Task("train", trial.model_dump(), shm_bytes=shm_bytes), folder
    )
    setup = next(record for record in records if record["kind"] == "setup")
    return (
        records[-1],
        outcome,
        shm_requirement(config, setup["training_clips"], setup["validation_clips"], shm_bytes),
    )


@isolated
@pytest.mark.parametrize(
    ("workers", "prefetch", "loader"),  # the planted corpus has 12 training clips
    [
        (1, 1, {"batch_size": 2}),
        (1, 3, {"batch_size": 2}),
        (2, 2, {"batch_size": 2}),
        (1, 2, {"batch_size": 4}),  # 3 batches, all of them in /dev/shm at once
        (2, 4, {"batch_size": 4}),  # 3 batches where 9 may be on their way
        (1, 2, {"batch_size": 12}),  # a single batch
        (2, 1, {"batch_size": 2, "format": "wav"}),
        # the dataset's tensors travel through /dev/shm too
        (2, 1, {"batch_size": 2, "format": "wav", "start_method": "forkserver"}),
    ],
)
def test_where_the_loop_is_slow_the_peak_is_the_bound_to_the_page(
    template, tone_trial, tmp_path, workers, prefetch, loader
) -> None:
    keys = {"format": "png", "num_workers": workers, "prefetch_factor": prefetch} | loader
    ending, outcome, foreseen = run(
        template, tone_trial(loader=keys, device=SIMULATED), tmp_path, 64 << 20
    )
    assert (outcome.outcome, foreseen.verdict) == ("completed", "fits")
    assert ending["shm_peak_bytes"] == foreseen.max_bytes


@isolated
def test_a_trial_that_learns_peaks_where_it_validates(template, tone_trial, tmp_path) -> None:
    """Expects two batches, as in training, and the queues of two loaders, since the persistent
    training workers keep theirs."""
    keys = {"num_workers": 1, "prefetch_factor": 1, "batch_size": 3}
    config = tone_trial(loader=keys, features={"n_mels": 64, "hop_ms": 10.0}, sgdr={"epochs": 2})
    ending, _, foreseen = run(template, config, tmp_path, 64 << 20)
    batch = (-(-3 * 64 * 101 * 4 // PAGE_BYTES) + 1) * PAGE_BYTES
    assert ending["shm_peak_bytes"] == foreseen.max_bytes == 2 * batch + 2 * 11 * PAGE_BYTES


@isolated
def test_workers_that_do_not_persist_may_leave_two_pages_each(
    template, tone_trial, tmp_path
) -> None:
    keys = {"num_workers": 2, "prefetch_factor": 1, "batch_size": 3, "persistent_workers": False}
    config = tone_trial(loader=keys, device=SIMULATED, sgdr={"epochs": 3})
    ending, _, foreseen = run(template, config, tmp_path, 64 << 20)
    assert foreseen.max_bytes - 2 * 2 * PAGE_BYTES <= ending["shm_peak_bytes"] <= foreseen.max_bytes


@isolated
@pytest.mark.parametrize(
    ("batch_size", "short", "verdict", "outcome"),
    [
        # an epoch of one batch leaves nothing to rates: the floor is the bound
        (12, 0, "fits", "completed"),
        (12, 1, "overflows", "shm_exhausted"),
        (2, 0, "fits", "completed"),
    ],
)
def test_the_limit_decides_to_the_page(
    template, tone_trial, tmp_path, batch_size: int, short: int, verdict: str, outcome: str
) -> None:
    keys = {"format": "png", "num_workers": 1, "prefetch_factor": 1, "batch_size": batch_size}
    config = tone_trial(loader=keys, device=SIMULATED | {"step_s": 0.01})
    limit = shm_requirement(config, 12, 6, 0).max_bytes - short * PAGE_BYTES
    _, ended, foreseen = run(template, config, tmp_path, limit)
    assert (foreseen.verdict, ended.outcome) == (verdict, outcome)


@isolated
@pytest.mark.parametrize("persistent", [True, False])
def test_the_loaders_of_all_ranks_share_the_limit(
    template, tone_trial, tmp_path, persistent: bool
) -> None:
    """Expects the whole windows of two loaders, two of whose six batches are in the loops' hands."""
    keys = {"format": "png", "num_workers": 1, "prefetch_factor": 2, "batch_size": 2}
    keys |= {"persistent_workers": persistent}
    config = tone_trial(loader=keys, device=SIMULATED | {"ranks": 2}, sgdr={"epochs": 2})
    ending, outcome, foreseen = run(template, config, tmp_path, 64 << 20)
    batch = 2 * 3 * 224 * 224 * 4 + PAGE_BYTES
    lingering = 0 if persistent else 2 * 2 * PAGE_BYTES
    assert outcome.outcome == "completed"
    assert foreseen.max_bytes == 2 * (3 * batch + 11 * PAGE_BYTES) + lingering
    assert foreseen.max_bytes - lingering <= ending["shm_peak_bytes"] <= foreseen.max_bytes
