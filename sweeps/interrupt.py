"""What ends a launch before its trials have ended: Ctrl-C, SIGTERM, or its time budget.

Each raises KeyboardInterrupt in the main thread, wherever that is, and from then on all three are ignored: what follows is cleaning up,
which takes a few seconds, and a second Ctrl-C out of impatience would leave it half done. Nothing is asked to end well, since a trial
keeps at each cycle end what it takes to go on (speech/continuation.py); so stopping is at once.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # the last one is the time budget's


class BudgetPassed(KeyboardInterrupt):
    """`time_budget` has passed."""


_passed = False  # whether it was the budget: Ray makes a plain KeyboardInterrupt of what a signal's handler raises while it waits


@contextlib.contextmanager
def interruptible(budget_s: float | None) -> Iterator[None]:
    """The first of the three that comes meanwhile raises KeyboardInterrupt here, and BudgetPassed after `budget_s` seconds."""
    before = {number: signal.getsignal(number) for number in ENDS}
    heeded = [number for number in ENDS if before[number] != signal.SIG_IGN]  # a shell has background jobs ignore SIGINT

    def end(number: int, frame: FrameType | None) -> None:
        global _passed
        _passed = number == signal.SIGALRM
        for each in ENDS:
            signal.signal(each, signal.SIG_IGN)
        raise BudgetPassed if number == signal.SIGALRM else KeyboardInterrupt

    for number in heeded:
        signal.signal(number, end)
    signal.setitimer(signal.ITIMER_REAL, budget_s or 0)
    try:
        yield
    finally:
        over()
        for number in heeded:
            signal.signal(number, before[number])


def by_budget() -> bool:
    """Whether the KeyboardInterrupt that was raised last is the time budget's."""
    return _passed


def over() -> None:
    """No trial runs any more: what is left to do takes seconds, which no time budget is to cut."""
    signal.setitimer(signal.ITIMER_REAL, 0)
