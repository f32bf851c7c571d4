import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from speech.sgdr import cycle_ending_at, learning_rate
from speech.training_config import Sgdr


@pytest.mark.parametrize(
    ("first", "factor", "cycles"), [(7, 1, 4), (5, 2, 4), (3, 3, 4), (1, 1, 3)]
)
def test_learning_rate_is_torchs_at_every_iteration(first: int, factor: int, cycles: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    oracle = CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=factor, eta_min=0.001)
    lengths = [first * factor**cycle for cycle in range(cycles)]
    for step in range(sum(lengths)):
        assert learning_rate(step, lengths, 0.1, 0.001) == pytest.approx(
            oracle.get_last_lr()[0], rel=1e-9
        )
        optimizer.step()
        oracle.step()


def test_each_cycle_starts_at_the_highest_rate_and_ends_one_step_above_the_lowest() -> None:
    lengths = [8, 14, 24]
    starts = [0, 8, 22]
    assert [learning_rate(step, lengths, 0.1, 0.0) for step in starts] == [0.1] * 3
    ends = [learning_rate(step, lengths, 0.1, 0.0) for step in (7, 21, 45)]
    assert ends == sorted(ends, reverse=True), "the longer the cycle, the lower its last rate"
    assert max(ends) < 0.004


def test_a_cycle_ends_on_its_last_iteration_only() -> None:
    ended = {step: cycle_ending_at(step, [3, 2, 4]) for step in range(9)}
    assert {step: cycle for step, cycle in ended.items() if cycle is not None} == {2: 0, 4: 1, 8: 2}


def test_a_step_past_the_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\b1 iterations .* 5$"):
        learning_rate(6, [3, 2], 0.1, 0.0)


@pytest.mark.parametrize(
    ("keys", "lengths"),
    [
        ({"epochs": 8}, [8]),
        ({"epochs": 8, "cycle_epochs": 2}, [2, 2, 2, 2]),
        ({"epochs": 15, "cycle_epochs": 1, "cycle_factor": 2}, [1, 2, 4, 8]),
        ({"epochs": 46, "cycle_epochs": [8, 14, 24]}, [8, 14, 24]),
    ],
)
def test_cycles_fill_the_budget(keys: dict, lengths: list[int]) -> None:
    assert Sgdr(**keys).cycles() == lengths


def test_cycles_that_do_not_fill_the_budget_are_refused_with_both_nearest_budgets() -> None:
    with pytest.raises(ValueError, match=r"\[4, 4, 4\].* 10 .*epochs: 8 or 12\b"):
        Sgdr(epochs=10, cycle_epochs=4)
