"""Ends the output of every benchmark: its bars, the machine, and all figures as one JSON object."""

import datetime
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, NamedTuple

from tabulate import tabulate

from speech.cpu import cpu_model


class Bar(NamedTuple):
    """Holds a bar, what was measured, and whether the bar was met."""

    name: str
    wanted: str
    got: str
    met: bool


def at_most(name: str, limit: float, measured: float, form: str = "{:g}") -> Bar:
    """Returns the bar that a figure is at most `limit`; NaN misses it. `form` formats both."""
    return Bar(name, f"at most {form.format(limit)}", form.format(measured), measured <= limit)


def at_least(name: str, limit: float, measured: float, form: str = "{:g}") -> Bar:
    """Returns the bar that a figure is at least `limit`; NaN misses it. `form` formats both."""
    return Bar(name, f"at least {form.format(limit)}", form.format(measured), measured >= limit)


def print_report(
    benchmark: str,
    figures: Any,
    bars: Iterable[Bar],
    packages: Iterable[str] = (),
    disturbances: Iterable[str | None] = (),
    **more: Any,
) -> None:
    """Prints the bars and the machine for people, then everything as one JSON object on one line.

    `disturbances` are texts on what else the machine did; None is ignored. `packages` names those
    whose versions matter.
    """
    bars = [bar._replace(met=bool(bar.met)) for bar in bars]  # JSON has no numpy.bool
    rows = [(bar.name, bar.wanted, bar.got, "met" if bar.met else "MISSED") for bar in bars]
    print("\n" + tabulate(rows, ["bar", "wanted", "got", ""], disable_numparse=True))
    noticed = [text for text in disturbances if text]
    machine = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "date": f"{datetime.date.today()}",
    }
    print(f"\n{machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    print("\n".join(f"disturbed: {text}" for text in noticed) or "nothing else was seen at work")
    document = {
        "benchmark": benchmark,
        "figures": figures,
        "disturbances": noticed,
        "machine": machine,
        "versions": {name: version(name) for name in packages},
        "bars": [bar._asdict() for bar in bars],
    }
    print(json.dumps(document | more))
