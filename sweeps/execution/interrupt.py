"""Defines what ends a launch before its trials have ended: Ctrl-C, SIGTERM, a terminal that closes,
or the time budget.

Each of them raises KeyboardInterrupt in the main thread, wherever it is. From then on all of them
are ignored. The cleanup that follows takes a few seconds, and a second impatient Ctrl-C would leave
it incomplete. The launch stops at once and does not wait for trials. At the end of each cycle a
trial stores all that is needed to continue it (speech/continuation.py).
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

# SIGHUP comes from a terminal that closes, SIGALRM from the time budget
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class BudgetPassed(KeyboardInterrupt):
    """The `time_budget` has passed."""


# While Ray waits, it replaces the exception of a signal handler by a plain KeyboardInterrupt. This
# variable therefore stores whether the time budget has passed
_budget_passed = False


@contextlib.contextmanager
def handle_interrupts(budget_s: float | None) -> Iterator[None]:
    """Raises KeyboardInterrupt in the block at the first signal, and BudgetPassed after `budget_s`
    seconds.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell makes background jobs ignore SIGINT, and they continue to
    handled = [number for number in SIGNALS if before[number] != signal.SIG_IGN]

    def raise_interrupt(number: int, frame: FrameType | None) -> None:
        global _budget_passed
        _budget_passed = number == signal.SIGALRM
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        raise BudgetPassed if number == signal.SIGALRM else KeyboardInterrupt

    for number in handled:
        signal.signal(number, raise_interrupt)
    signal.setitimer(signal.ITIMER_REAL, budget_s or 0)
    try:
        yield
    finally:
        cancel_time_budget()
        for number in handled:
            signal.signal(number, before[number])


def was_time_budget() -> bool:
    """Returns whether the time budget caused the last KeyboardInterrupt."""
    return _budget_passed


def cancel_time_budget() -> None:
    """Cancels the timer of the time budget.

    No trial runs any more. The remaining work takes seconds, and no time budget should cut it
    short.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
