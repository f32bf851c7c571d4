"""Implements SGDR, cosine annealing with warm restarts, as pure functions of the iteration.

The source is Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017
(arXiv 1608.03983), equation 5, with T_cur and T_i counted in iterations. Cycle borders are integers
and a snapshot therefore coincides with the last iteration of its cycle, for any cycle factor. That
iteration trains at T_cur = T_i - 1, one step above the minimum; the next one restarts.
"""

import math
from collections.abc import Sequence


def learning_rate(step: int, cycle_steps: Sequence[int], lr: float, lr_min: float) -> float:
    """Returns eta_t of equation 5 for iteration `step`, counted from 0.

    `cycle_steps` holds the length of every cycle in iterations. Raises ValueError if `step` lies
    beyond the last cycle.
    """
    for length in cycle_steps:
        if step < length:
            return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * step / length))
        step -= length
    raise ValueError(
        f"step lies {step} iterations past the last cycle of a schedule of {sum(cycle_steps)}"
    )


def cycle_ending_at(step: int, cycle_steps: Sequence[int]) -> int | None:
    """Returns the number (from 0) of the cycle whose last iteration is `step`, or None."""
    end = 0
    for cycle, length in enumerate(cycle_steps):
        end += length
        if step == end - 1:
            return cycle
    return None
