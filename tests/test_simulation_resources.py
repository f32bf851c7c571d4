"""Tests epochs on an accelerator that runs ahead, against schedules worked out by hand."""

import itertools
import random
from dataclasses import replace

import pytest

from sweeps.forecast.simulation import simulate
from sweeps.forecast.simulation_types import Epoch


def spans(took):
    return took.start_s, took.first_batch_s, took.data_wait_s, took.step_s, took.other_s


def test_without_workers_the_loop_prepares_while_the_accelerator_works():
    # loop         [0 prepare 2][launch 3] [prepare 5][6] wait to 8   [prepare 10][11] wait to 13
    # accelerator                         [3        8]               [8                13][13  18]
    took = simulate(Epoch(3, 0, 2, cores=2, inline_s=2, step_cpu_s=1, step_wait_s=5, run_ahead=1))
    assert spans(took) == (0, 2, 4, 1 + 3 + 3 + 5, 0)
    assert (took.stalled_steps, took.max_gap_s) == (0, 0)


def test_without_workers_a_step_shorter_than_preparation_costs_only_its_launch():
    # launched at 5, 10 and 15, each step ends 2 later, before the next is launched
    epoch = Epoch(3, 0, 2, cores=2, inline_s=4, step_cpu_s=1, step_wait_s=2, run_ahead=2)
    took = simulate(epoch)
    assert spans(took) == (0, 4, 8, 3 + 2, 0)
    assert (took.stalled_steps, took.max_gap_s) == (2, 3)
    assert simulate(replace(epoch, run_ahead=0)).epoch_s == 3 * (4 + 1 + 2)


def test_a_worker_slower_than_the_step_sets_the_pace_however_far_the_loop_may_run_ahead():
    # batches at 3, 6 and 9; steps [3 5], [6 8], [9 11]
    epoch = Epoch(3, 1, 2, cores=2, prepare_s=3, step_wait_s=2, run_ahead=2)
    took = simulate(epoch)
    assert spans(took) == (0, 3, 6, 2, 0)
    assert (took.stalled_steps, took.max_gap_s) == (2, 1)
    assert simulate(replace(epoch, run_ahead=0)).epoch_s == took.epoch_s


def test_a_loop_that_runs_ahead_asks_for_the_next_batch_earlier():
    # worker       [0   2][2   4][4   6]      a batch is asked for when the one before is taken
    # loop         2      4, waits to 5       6, waits to 8
    # accelerator  [2     5][5       8][8    11]
    took = simulate(Epoch(3, 1, 1, cores=2, prepare_s=2, step_wait_s=3, run_ahead=1))
    assert spans(took) == (0, 2, 2 + 1, 0 + 1 + 2 + 3, 0)


def test_the_queue_fills_up_to_its_limit():
    # four batches at 1; two steps are queued at once, the third waits for the end of the first
    took = simulate(Epoch(4, 4, 1, cores=4, prepare_s=1, step_wait_s=10, run_ahead=2))
    assert spans(took) == (0, 1, 0, 0 + 0 + 10 + 10 + 20, 0)
    assert took.stalled_steps == 0


def test_a_launch_that_overlaps_the_step_delays_nothing_unless_it_is_the_longer_part():
    # launches [1 3], [4 6], [7 9]; steps begin with them: [1 4], [4 7], [7 10]
    epoch = Epoch(
        3, 0, 2, cores=2, inline_s=1, step_cpu_s=2, step_wait_s=3, run_ahead=1, launch_overlaps=True
    )
    assert spans(simulate(epoch)) == (0, 1, 2, 2 + 2 + 2 + 1, 0)
    # of 4, launches end with their steps: [1 5], [6 10], [11 15]
    assert simulate(replace(epoch, step_cpu_s=4)).epoch_s == 15


def test_a_thread_pins_batches_and_frees_their_space():
    # worker [0  2][2  4][4  6]       batch 2 is asked for when 0 is taken, at 3
    # thread      [2 3] [4 5] [6 7]
    # loop           [3 4] [5 6] [7 8]
    took = simulate(Epoch(3, 1, 2, cores=4, prepare_s=2, step_wait_s=1, pin_s=1))
    assert (spans(took), took.peak_batches) == ((0, 3, 2, 3, 0), 1)
    # Behind a slow step, the batches of the whole window are pinned: none is left in /dev/shm
    slow = Epoch(6, 2, 2, cores=4, prepare_s=2, step_wait_s=10, pin_s=0.5)
    assert simulate(slow).peak_batches == 2
    assert simulate(replace(slow, pin_s=None)).peak_batches == 5


def test_a_thread_that_pins_takes_a_core_from_the_workers():
    # batch 0 at 2; thread and worker share the core: pinned at 4, the worker then alone: batch 1 at
    # 5, pinned at 6
    took = simulate(Epoch(2, 1, 2, cores=1, prepare_s=2, step_wait_s=0.5, pin_s=1))
    assert spans(took) == pytest.approx((0, 4, 1.5, 1, 0))


def test_without_workers_the_loop_pins_its_batches():
    assert spans(simulate(Epoch(2, 0, 2, cores=1, inline_s=2, pin_s=1, step_wait_s=1))) == (
        0,
        3,
        3,
        2,
        0,
    )


def inline_recursion_s(epoch):
    """Returns the end of an epoch without workers, by the rules of the queue as a recursion."""
    loop, ends = epoch.ready_s, []
    for batch in range(epoch.batches):
        launched = loop + epoch.inline_s + epoch.read_s + epoch.step_cpu_s
        ends.append(max(launched, ends[-1] if ends else 0) + epoch.step_wait_s)
        awaited = ends[batch - epoch.run_ahead] if batch >= epoch.run_ahead else launched
        loop = max(launched, awaited) + epoch.release_s
    return max(loop, ends[-1])


def test_without_workers_it_is_the_recursion_and_running_further_ahead_never_takes_longer():
    rng = random.Random(1)
    for _ in range(200):
        seconds = {
            name: rng.choice([0, 1, 1]) * rng.uniform(0.001, 0.1)
            for name in ("read_s", "release_s", "step_cpu_s", "ready_s")
        }
        epoch = Epoch(
            rng.randint(1, 20),
            0,
            2,
            cores=2,
            inline_s=rng.uniform(0.001, 0.1),
            step_wait_s=rng.uniform(0.001, 0.1),
            **seconds,
        )
        took_s = [simulate(replace(epoch, run_ahead=ahead)).epoch_s for ahead in range(4)]
        for ahead, seconds_s in enumerate(took_s):
            expected = inline_recursion_s(replace(epoch, run_ahead=ahead))
            assert seconds_s == pytest.approx(expected), epoch
        assert all(more <= less + 1e-9 for less, more in itertools.pairwise(took_s))
        host_s = epoch.inline_s + epoch.read_s + epoch.step_cpu_s + epoch.release_s
        first_s = epoch.inline_s + epoch.read_s + epoch.step_cpu_s
        assert took_s[-1] >= epoch.batches * host_s - 1e-9
        assert took_s[-1] >= first_s + epoch.batches * epoch.step_wait_s - 1e-9


def test_two_ranks_on_twice_the_cores_take_as_long_as_one() -> None:
    rng = random.Random(2)
    for _ in range(100):
        epoch = Epoch(
            rng.randint(1, 16),
            rng.randint(0, 4),
            rng.randint(1, 3),
            cores=rng.randint(1, 3),
            inline_s=rng.uniform(0.001, 0.1),
            prepare_s=rng.uniform(0.001, 0.1),
            step_cpu_s=rng.choice([0, 0.02]),
            step_wait_s=rng.uniform(0, 0.1),
            run_ahead=rng.randint(0, 2),
        )
        two = simulate(replace(epoch, ranks=2, cores=2 * epoch.cores))
        assert spans(two) == pytest.approx(spans(simulate(epoch)), abs=1e-9), epoch


def test_ranks_that_share_a_core_prepare_half_as_fast() -> None:
    # both prepare to 4, and their accelerators run to 5; then once more
    assert spans(simulate(Epoch(2, 0, 2, cores=1, ranks=2, inline_s=2, step_wait_s=1))) == (
        0,
        4,
        4,
        2,
        0,
    )
    # a worker of each: batches at 4 and 8
    took = simulate(Epoch(2, 1, 2, cores=1, ranks=2, prepare_s=2, step_wait_s=1))
    assert spans(took) == pytest.approx((0, 4, 3, 2, 0))
