"""Each rule of what bounds an epoch and what would help, on a row of table 2 whose answer is plain."""

import math

import pandas as pd
import pytest

from analysis.bottleneck import bound, shares, words
from analysis.recommendation import recommendations, sentences
from analysis.runs import sweep_runs

TRIAL = pd.Series({"loader.form": "png", "loader.persistent_workers": True, "loader.pin_memory": True})


def row(**figures):
    """Two workers on two cores; all seconds of an epoch of 2 s."""
    spans = {"start_s": 0.0, "fill_s": 0.1, "wait_s": 0.1, "step_s": 0.5, "other_s": 0.1}
    plain = {"num_workers": 2, "device": "paced", "epoch_s": 2.0, "cores": 0.4, "machine_cores": 2.0, "preparing": 0.1, "main_cpu_s": 0.2}
    (found,) = pd.DataFrame([spans | plain | {"read_bytes": 0.0} | figures]).itertuples()
    return found


PLANTED = {
    "accelerator": (
        row(step_s=1.8),
        "the accelerator. Steps of the accelerator take 1.80 of 2.00 s, and the loop waits 0.20 of 2.00 s for batches. "
        "Next: a faster step. All else together is 10 % of the epoch.",
    ),
    "preparation": (
        row(cores=1.9, preparing=0.8, wait_s=0.9),
        "CPU preparation. 1.90 of 2 cores are at work, and the loop waits 1.00 of 2.00 s for batches. Next: the form packed or device, "
        "or wav, which take less CPU than png. At most 75 % can be spared: steps alone take 0.50 s.",
    ),
    "reads": (
        row(cores=0.4, wait_s=1.3, read_bytes=10.0 * 2**20),
        "reads. The loop waits 1.40 of 2.00 s for batches while 0.40 of 2 cores are at work, 10.0 MiB an epoch come from storage. "
        "Next: faster storage, or a warm page cache. At most 75 % can be spared: steps alone take 0.50 s.",
    ),
    "starting": (
        row(start_s=0.3, fill_s=0.9),
        "start-up and fill. Starting workers takes 0.30 s and the first batch 0.90 s of 2.00 s. Next: smaller batches, which fill sooner: "
        "filling is 45 % of the epoch.",
    ),
    "several": (
        row(step_s=0.9, cores=0.8, preparing=0.4),
        "none by itself. At work for so much of an epoch: the accelerator 45 %, CPU preparation 40 %, start-up and fill 5 %.",
    ),
}


@pytest.mark.parametrize("by", PLANTED)
def test_what_was_at_work_longest_bounds_the_epoch_and_is_quoted(by):
    figures, said = PLANTED[by]
    found = bound(figures, TRIAL)
    assert found.by == by
    assert words(found, "2 workers") == f"What bounds an epoch with 2 workers: {said}"


def test_a_single_worker_at_work_all_the_time_is_preparation_though_a_core_is_free():
    assert bound(row(num_workers=1, cores=1.0, preparing=0.9, wait_s=1.2), TRIAL).by == "preparation"


@pytest.mark.parametrize(("main_cpu_s", "device", "by"), [(1.4, "paced", "preparation"), (0.3, "paced", "reads"), (0.7, "cpu", "reads")])
def test_without_workers_cpu_time_tells_preparation_from_reads(main_cpu_s, device, by):
    figures = row(num_workers=0, preparing=math.nan, wait_s=1.3, main_cpu_s=main_cpu_s, device=device)
    assert set(shares(figures)) == {"accelerator", by}
    assert bound(figures, TRIAL).share == pytest.approx(0.7)


def test_steps_on_the_host_are_called_so_and_its_threads_are_no_preparation():
    found = bound(row(device="cpu", step_s=1.7, cores=1.95), TRIAL)
    assert (found.by, found.because[:39]) == ("accelerator", "Steps on the host's cores take 1.70 of ")


@pytest.mark.parametrize(("start_s", "said"), [(0.12, True), (0.08, False)])
def test_workers_that_start_anew_are_told_where_it_shows(start_s, said):
    persistence = "persistent_workers, as starting them anew takes 0.12 s of every epoch"
    trial = pd.Series(dict(TRIAL) | {"loader.persistent_workers": False})
    assert (persistence in bound(row(start_s=start_s, step_s=1.5), trial).next) is said
    assert persistence not in bound(row(start_s=start_s, step_s=1.5), TRIAL).next


def test_copies_that_are_not_pinned_are_told_on_a_gpu_only():
    trial = pd.Series(dict(TRIAL) | {"loader.pin_memory": False})
    pinning = "pin_memory, as copies that wait for the host are part of the 1.80 s of steps"
    assert pinning in bound(row(step_s=1.8, device="cuda"), trial).next
    assert pinning not in bound(row(step_s=1.8), trial).next


@pytest.mark.parametrize("missing", ["preparing", "step_s", "machine_cores", "fill_s"])
def test_a_rule_that_lacks_a_figure_says_nothing(missing):
    assert bound(row(**{missing: math.nan}), TRIAL) is None


def test_it_is_said_of_the_recommended_cell_with_table_2s_own_figures(first_look):
    frame = sweep_runs("first-look", first_look.uri)
    assert sentences(frame, markdown=True)[1] == (
        "What bounds an epoch with 2 workers: CPU preparation. 1.88 of 2 cores are at work, and the loop waits 0.49 of 1.54 s for batches. "
        "Next: the form packed or device, which take less CPU than wav. At most 36 % can be spared: steps alone take 0.99 s."
    )
    (choice,) = recommendations(frame).itertuples()
    assert (choice.block, choice.num_workers, choice.shm_size, choice.bound) == ("workers", 2, "1G", "preparation")
    assert (choice.epoch_s, choice.bound_share) == pytest.approx((1.54, 2.9 / 1.54 / 2))


def test_a_worker_fewer_than_cores_is_quoted_by_itself():
    found = bound(row(num_workers=1, cores=1.0, preparing=0.9, wait_s=1.2), TRIAL)
    assert found.because == "Each worker computes for 90 % of an epoch, and the loop waits 1.30 of 2.00 s for batches"
