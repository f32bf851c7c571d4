"""Tests each rule on what bounds an epoch, with rows of table 2 that have one right answer."""

import math

import pandas as pd
import pytest

from analysis.bottleneck import NAMES, describe_bound, find_bound, shares
from analysis.recommendation import recommendations, sentences
from analysis.runs import sweep_runs
from tests.conftest import make_trial_id

TRIAL = pd.Series(
    {"loader.format": "png", "loader.persistent_workers": True, "loader.pin_memory": True}
)


def row(**figures):
    """Returns a row of table 2: two workers on two cores, and an epoch of 2 s."""
    spans = {
        "start_s": 0.0,
        "first_batch_s": 0.1,
        "data_wait_s": 0.1,
        "step_s": 0.5,
        "other_s": 0.1,
    }
    plain = {"num_workers": 2, "device": "simulated", "epoch_s": 2.0, "cores": 0.4, "machine_cores": 2.0, "preparing": 0.1, "main_cpu_s": 0.2,
             "prefetch_hit_rate": 0.1, "busy_fraction": figures.get("step_s", 0.5) / 2.0}  # fmt: skip
    (found,) = pd.DataFrame([spans | plain | {"read_bytes": 0.0} | figures]).itertuples()
    return found


PLANTED = {
    "accelerator": (
        row(step_s=1.8),
        ("1.80 of 2.00 s", "0.20 of 2.00 s", "faster step", "10 %"),
    ),
    "preparation": (
        row(cores=1.9, preparing=0.8, data_wait_s=0.9),
        (
            "1.90 of 2 cores",
            "1.00 of 2.00 s",
            "packed",
            "on_device",
            "wav",
            "75 %",
            "0.50 s",
        ),
    ),
    "reads": (
        row(cores=0.4, data_wait_s=1.3, read_bytes=10.0 * 2**20),
        ("1.40 of 2.00 s", "0.40 of 2 cores", "10.0 MiB", "faster storage", "75 %", "0.50 s"),
    ),
    "unknown": (
        row(cores=0.4, data_wait_s=1.3),
        ("1.40 of 2.00 s", "0.40 of 2 cores", "something else"),
    ),
    "starting": (
        row(start_s=0.3, first_batch_s=0.9),
        ("0.30 s", "0.90 s of 2.00 s", "smaller batches", "45 %"),
    ),
    "several": (
        row(step_s=0.9, cores=0.8, preparing=0.4),
        (
            f"{NAMES['accelerator']} 45 %",
            f"{NAMES['preparation']} 40 %",
            f"{NAMES['starting']} 5 %",
        ),
    ),
}


@pytest.mark.parametrize("by", PLANTED)
def test_the_cause_with_the_largest_share_bounds_the_epoch_and_its_figures_are_stated(by):
    figures, facts = PLANTED[by]
    found = find_bound(figures, TRIAL)
    assert found.by == by
    text = describe_bound(found, "2 workers")
    subject, _, answer = text.partition(": ")
    assert subject.endswith("2 workers")
    assert answer.startswith(f"{NAMES[by]}. " if by in NAMES else "no single cause")
    places = [text.find(fact) for fact in facts]
    assert -1 not in places, facts
    assert places == sorted(places)


def test_a_single_worker_at_work_all_the_time_is_preparation_though_a_core_is_free():
    assert (
        find_bound(row(num_workers=1, cores=1.0, preparing=0.9, data_wait_s=1.2), TRIAL).by
        == "preparation"
    )


def test_workers_that_keep_up_bound_nothing_however_busy_their_cores():
    figures = {"step_s": 1.5, "cores": 1.9, "preparing": 0.9}
    assert find_bound(row(**figures, prefetch_hit_rate=0.97), TRIAL).by == "accelerator"
    assert find_bound(row(**figures, prefetch_hit_rate=0.1), TRIAL).by == "preparation"


@pytest.mark.parametrize(
    ("device", "main_cpu_s", "read_bytes", "by"),
    [
        ("simulated", 1.4, 5e8, "preparation"),
        ("simulated", 0.3, 5e8, "reads"),
        ("simulated", 0.3, 0.0, "unknown"),
        # steps of 0.5 s take one to two cores, half to one second of it
        ("cpu", 1.0 + 1.0, 0.0, "preparation"),
        ("cpu", 1.0 + 0.3, 5e8, "unknown"),  # 0.3 s or 0.8 s of 1.4 s were computed
        ("cpu", 1.0 + 0.3, 0.0, "preparation"),
        ("cpu", 1.0, 5e8, "reads"),
        ("cuda", 0.5 + 1.0, 5e8, "preparation"),
        ("cuda", 0.5 + 0.3, 5e8, "reads"),
    ],
)
def test_without_workers_cpu_time_besides_the_steps_tells_preparation_from_reads(
    device, main_cpu_s, read_bytes, by
):
    figures = row(
        num_workers=0,
        preparing=math.nan,
        data_wait_s=1.3,
        main_cpu_s=main_cpu_s,
        device=device,
        read_bytes=read_bytes,
    )
    trial = pd.Series(dict(TRIAL) | {"threads": "2"})
    assert set(shares(figures, trial)) == {"accelerator", by}
    assert find_bound(figures, trial).share == pytest.approx(0.7)


def test_what_a_simulated_step_burns_is_no_preparation():
    trial = pd.Series(dict(TRIAL) | {"device.host_cpu_s": 0.03, "device.step_s": 0.01})
    figures = {
        "num_workers": 0,
        "preparing": math.nan,
        "data_wait_s": 0.6,
        "step_s": 1.2,  # 30 steps
        "busy_fraction": 0.3 / 2.0,
        "read_bytes": 5e8,
    }
    assert set(shares(row(**figures, main_cpu_s=0.9 + 0.1), trial)) == {"accelerator", "reads"}
    assert set(shares(row(**figures, main_cpu_s=0.9 + 0.6), trial)) == {
        "accelerator",
        "preparation",
    }


def test_reads_that_wait_on_purpose_are_reads_though_nothing_came_from_storage():
    trial = pd.Series(dict(TRIAL) | {"corpus.read_latency_s": 0.02})
    assert find_bound(row(cores=0.4, data_wait_s=1.3), trial).by == "reads"


def test_steps_on_the_host_are_named_and_its_threads_are_no_preparation():
    found = find_bound(row(device="cpu", step_s=1.7, cores=1.95), TRIAL)
    assert found.by == "accelerator"
    assert "1.70 of 2.00 s" in found.because
    assert "host's cores" in found.because


@pytest.mark.parametrize(("start_s", "said"), [(0.12, True), (0.08, False)])
def test_persistent_workers_are_advised_if_starting_new_ones_takes_long(start_s, said):
    trial = pd.Series(dict(TRIAL) | {"loader.persistent_workers": False})
    figures = row(start_s=start_s, step_s=1.5)
    advice = find_bound(figures, trial).next
    assert ("persistent_workers" in advice and "0.12 s" in advice) is said
    assert "persistent_workers" not in find_bound(figures, TRIAL).next


def test_an_accelerator_that_works_while_the_loop_goes_on_bounds_the_epoch():
    """The loop is in its steps for 0.1 s only, and waits while the accelerator works."""
    found = find_bound(row(step_s=0.1, busy_fraction=0.9), TRIAL)
    assert found.by == "accelerator"
    assert found.share == pytest.approx(0.9)
    assert "1.80 of 2.00 s" in found.because


def test_pinned_memory_is_advised_on_a_gpu_only():
    trial = pd.Series(dict(TRIAL) | {"loader.pin_memory": False})
    advice = find_bound(row(step_s=1.8, device="cuda"), trial).next
    assert "pin_memory" in advice
    assert "1.80 s" in advice
    assert "pin_memory" not in find_bound(row(step_s=1.8), trial).next


@pytest.mark.parametrize(
    "missing",
    [
        "preparing",
        "step_s",
        "busy_fraction",
        "machine_cores",
        "first_batch_s",
        "main_cpu_s",
        "cores",
        "prefetch_hit_rate",
    ],
)
def test_a_rule_that_lacks_a_figure_says_nothing(missing):
    assert find_bound(row(**{missing: math.nan}), TRIAL) is None


def test_the_bound_of_the_recommended_cell_has_the_figures_of_table_2(first_look):
    runs = sweep_runs("first-look", first_look.uri)
    text = sentences(runs, markdown=True)[1]
    subject, _, answer = text.partition(": ")
    assert "2 workers" in subject
    assert subject.endswith("shm 1G")
    assert answer.startswith(NAMES["preparation"])
    facts = ("1.88 of 2 cores", "0.49 of 1.54 s", "packed", "on_device", "36 %", "0.99 s")
    assert [fact for fact in facts if fact not in text] == []
    (choice,) = recommendations(runs).itertuples()
    assert (choice.block, choice.num_workers, choice.shm_size, choice.bound) == (
        "workers",
        2,
        "1G",
        "preparation",
    )
    assert (choice.epoch_s, choice.bound_share) == pytest.approx((1.54, 2.9 / 1.54 / 2))


def test_with_fewer_workers_than_cores_the_share_of_a_worker_is_stated():
    found = find_bound(row(num_workers=1, cores=1.0, preparing=0.9, data_wait_s=1.2), TRIAL)
    assert "90 %" in found.because
    assert "cores" not in found.because
    assert "1.30 of 2.00 s" in found.because


def test_the_bound_is_that_of_the_recommended_cell_and_not_of_another_shm_size(tracking, plant):
    steady = {
        "step_s": 1.0,
        "busy_fraction": 0.3,
        "other_s": 0.0,
        "start_s": 0.0,
        "first_batch_s": 0.1,
        "main_cpu_s": 1.0,
        "worker_cpu_s": 0.5,
        "prefetch_hit_rate": 0.9,
    }
    cells = [
        {"loader.num_workers": workers, "loader.shm_size": size << 20}
        for workers in (0, 2)
        for size in (64, 1024)
    ]
    plan = [
        {"trial_id": make_trial_id("workers", cell, repeat)}
        for cell in cells
        for repeat in (1, 2, 3)
    ]
    parent = tracking.start_sweep("first-look", "", plan, "")
    for size, data_wait_s in ((64, 0.1), (1024, 3.0)):
        for repeat in (1, 2, 3):
            figures = steady | {"data_wait_s": data_wait_s, "epoch_s": 1.1 + data_wait_s}
            plant(
                parent,
                {"loader.num_workers": 2, "loader.shm_size": size << 20},
                repeat,
                tags={"cores": 2},
                **figures,
            )
            plant(
                parent,
                {"loader.num_workers": 0, "loader.shm_size": size << 20},
                repeat,
                tags={"cores": 2},
                epoch_s=9.0,
            )
    said = sentences(sweep_runs("first-look", tracking.uri), markdown=True)[1]
    subject, _, answer = said.partition(": ")
    assert "2 workers" in subject
    assert subject.endswith("shm 64M")
    assert answer.startswith(NAMES["accelerator"])
    assert "1.00 of 1.20 s" in said
