"""Measures figures in interleaved rounds, and keeps only values that nothing else disturbed.

While a value is measured, the kernel counts for how long the cores were busy. The part that this
process and its descendants did not use belongs to other programs, to the kernel or to a neighbour
on the same host. If it exceeds the limit that also decides whether a trial was disturbed
(speech/usage.py), the value is dropped, and the figure is measured again in a later round. A figure
that could not be measured is never estimated: MachineBusy is raised instead.

Figures are measured in turn because the speed of a virtual core may change by half for some
seconds, as its host's neighbours come and go. The median over the rounds is then closer to the
usual speed than the mean of consecutive measurements (Abedi and Brecht, ICPE 2017).
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from speech import usage
from speech.cpu import usable_cores

# By default the machine counts as busy after this time of disturbed attempts without an undisturbed
# one between them, and after three times this time in all
LONGEST_DISTURBED_S = 60.0
MIN_ATTEMPTS = 3  # with fewer disturbed attempts the machine does not count as busy

Values = dict[Hashable, list[Any]]  # undisturbed values by figure, one a round
# Measures a figure once; receives the values of all figures so far
Measure = Callable[[Values], Any]


class MachineBusy(RuntimeError):
    """Reports that other programs used the cores whenever a figure was measured."""


class Attempt(NamedTuple):
    """Holds one measured value, and the fraction of the cores that others used meanwhile."""

    value: Any
    external_fraction: float
    took_s: float


def measure_rounds(
    figures: Mapping[Hashable, Measure],
    rounds: int,
    enough_s: float = math.inf,
    known: Values | None = None,
    patience_s: float = LONGEST_DISTURBED_S,
) -> Values:
    """Measures every figure `rounds` times, in turn, and returns the undisturbed values.

    `known` holds values from before. After `enough_s` undisturbed seconds one value of a figure
    suffices. Raises MachineBusy after `patience_s` of disturbed attempts in a row.
    """
    values: Values = {figure: list((known or {}).get(figure, [])) for figure in figures}
    quiet_s, disturbed, in_a_row = 0.0, list[Attempt](), list[Attempt]()
    wanted = rounds
    while any(len(measured) < wanted for measured in values.values()):
        for figure, measure in figures.items():
            if len(values[figure]) >= wanted:
                continue
            attempt = attempt_measurement(functools.partial(measure, values))
            if is_disturbed(attempt):
                disturbed.append(attempt)
                in_a_row.append(attempt)
            else:
                values[figure].append(attempt.value)
                quiet_s += attempt.took_s
                in_a_row.clear()
            if _took_s(in_a_row) > patience_s and len(in_a_row) >= MIN_ATTEMPTS:
                raise MachineBusy(_describe(in_a_row))
            if _took_s(disturbed) > 3 * patience_s and len(disturbed) >= MIN_ATTEMPTS:
                raise MachineBusy(_describe(disturbed))
        if quiet_s > enough_s:
            wanted = 1
    return values


def _took_s(attempts: list[Attempt]) -> float:
    """Returns the seconds of all attempts."""
    return sum(attempt.took_s for attempt in attempts)


def attempt_measurement(measure: Callable[[], Any]) -> Attempt:
    """Measures once, and how much of the cores other programs used meanwhile."""
    before, ended_s = usage.read_counters(), usage.read_ended_children_cpu_s()
    value = measure()
    after, reported_s = usage.read_counters(), usage.read_ended_children_cpu_s() - ended_s
    fraction = usage.external_fraction(before, after, reported_s)
    return Attempt(value, fraction, after.clock_s - before.clock_s)


def is_disturbed(attempt: Attempt) -> bool:
    """Returns whether other programs used more than a trial's limit."""
    return attempt.external_fraction > usage.external_limit(usable_cores())


def _describe(disturbed: list[Attempt]) -> str:
    """Returns what kept the figures from being measured."""
    seconds = _took_s(disturbed)
    used = sum(one.external_fraction * one.took_s for one in disturbed) / seconds
    return (
        f"other programs used {100 * used:.0f} % of the cores while it was measured"
        f" ({len(disturbed)} attempts in {seconds:.0f} s)"
    )
