"""SGDR: cosine annealing with warm restarts, as pure functions of the iteration.

Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (arXiv 1608.03983), equation 5, with T_cur and
T_i counted in iterations. Cycle borders are integers, so a snapshot falls exactly on the last iteration of its cycle, whatever the
cycle's factor; a cycle's last iteration trains at T_cur = T_i - 1, one step above the minimum, and the next one restarts.
"""

import math
from collections.abc import Sequence


def learning_rate(step: int, cycle_steps: Sequence[int], lr: float, lr_min: float) -> float:
    """eta_t of equation 5 for iteration `step` (from 0). `cycle_steps`: length of every cycle in iterations."""
    for length in cycle_steps:
        if step < length:
            return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * step / length))
        step -= length
    raise ValueError(f"step lies {step} iterations past the last cycle of a schedule of {sum(cycle_steps)}")


def cycle_ended(step: int, cycle_steps: Sequence[int]) -> int | None:
    """The number (from 0) of the cycle whose last iteration is `step`, else None."""
    end = 0
    for cycle, length in enumerate(cycle_steps):
        end += length
        if step == end - 1:
            return cycle
    return None
