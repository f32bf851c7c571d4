"""What a launch shows while it runs: in a terminal one live table, anywhere else a line for each trial that ends.

The one idea is that both are told the same, by the same calls. The table has the swept values of the trials that ended last, with their
figures, and of those that run, each with a bar; it never grows beyond the terminal. What must not be lost, a failure with its cause, is
printed above it and stays. Nothing is drawn more than once a second: a view that computes would disturb what it shows.

How long is left is the forecast, corrected by what was measured: trials that took 1.2 times what was expected of them make 1.2 of the
rest, and a trial that has ended epochs goes on as they went. A trial without a forecast is expected to take as long as its block's.
"""

import contextlib
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sweeps.names import run_name, short_names, written
from sweeps.outlook import roughly
from sweeps.plan import TrialSpec
from sweeps.preflight import Say
from sweeps.states import kind

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

Told = Mapping[str, Any]  # what is told of a trial: of its start `started`, of an epoch `epoch`, of its end `outcome` or `lost`

REFRESH_HZ = 1.0
BAR = 14  # characters
FIGURE = 25  # characters that a figure, or a bar with its numbers, needs
GAP = 3  # characters between columns
MARGIN = 8  # lines of the terminal that the table's rows can't have: its head, what stands around it, and the prompt


class View(Protocol):
    """Whoever runs trials tells it what happens."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def begin(self, due: Sequence[TrialSpec]) -> None:
        """These are to run now."""

    def hear(self, spec: TrialSpec, told: Told) -> None:
        """A trial has started, or ended an epoch."""

    def ended(self, spec: TrialSpec, result: Told, line: str) -> None:
        """A trial has ended; `line` says how."""


@contextlib.contextmanager
def shown(name: str, expected_s: Mapping[str, float | None], say: Say) -> Iterator[View]:
    """The view of a sweep. `expected_s`: by the trial's key, what its forecast makes of all its epochs."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield Lines(say)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.__stdout__, highlight=False)
    view = LiveTable(name, Remaining(expected_s), console)
    with Live(get_renderable=view.render, console=console, refresh_per_second=REFRESH_HZ, redirect_stdout=False, redirect_stderr=False):
        yield view


@dataclass(frozen=True)
class Lines:
    """A line for each trial that ends."""

    say: Say

    def begin(self, due: Sequence[TrialSpec]) -> None:
        pass

    def hear(self, spec: TrialSpec, told: Told) -> None:
        pass

    def ended(self, spec: TrialSpec, result: Told, line: str) -> None:
        self.say(line)


@dataclass
class Running:
    """A trial under way. Moments are time.monotonic()'s."""

    spec: TrialSpec
    began: float
    epochs: int = 0  # ended
    skipped: int = 0  # of them, by an interrupted attempt
    latest: float = 0.0  # when the last of them ended

    def left_s(self, foreseen_s: float | None, now: float) -> float | None:
        """Of its epochs, as those that have ended went, before that as foreseen."""
        if done := self.epochs - self.skipped:
            each_s = (self.latest - self.began) / done
            return max(0.0, each_s * (self.spec.config.sgdr.epochs - self.epochs) - (now - self.latest))
        return None if foreseen_s is None else max(0.0, foreseen_s - (now - self.began))


@dataclass
class Remaining:
    """How long trials take, as foreseen and as measured."""

    expected_s: Mapping[str, float | None]
    took_s: dict[str, tuple[str, float]] = field(default_factory=dict)  # by key: block, and seconds from start to end; completed ones

    @property
    def factor(self) -> float:
        """By which trials that were forecast took longer; 1 before the first."""
        took = list(self.took_s.items())  # at once, since another thread adds to it
        known = [(took_s, expected_s) for key, (_, took_s) in took if (expected_s := self.expected_s.get(key))]
        return sum(took_s for took_s, _ in known) / sum(expected_s for _, expected_s in known) if known else 1.0

    def left_s(self, waiting: Sequence[TrialSpec], running: Sequence[Running], now: float) -> tuple[float, int]:
        """Of all together, as many at once as run now; and how many trials nothing is known of."""
        factor, by_block = self.factor, defaultdict[str, list[float]](list)
        for block, took_s in list(self.took_s.values()):
            by_block[block].append(took_s)
        alike_s = {block: statistics.median(took) for block, took in by_block.items()}

        def whole_s(spec: TrialSpec) -> float | None:
            """None where neither a forecast nor a trial of its block tells."""
            expected_s = self.expected_s.get(spec.key)
            return alike_s.get(spec.block) if expected_s is None else factor * expected_s

        each = [whole_s(spec) for spec in waiting] + [trial.left_s(whole_s(trial.spec), now) for trial in running]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) / max(1, len(running)), len(each) - len(known)


@dataclass
class LiveTable:
    """`render` draws it, from another thread than the one that tells it what happens."""

    name: str
    remaining: Remaining
    console: "Console"
    clock: Callable[[], float] = time.monotonic
    due: list[TrialSpec] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)  # by key
    results: dict[str, tuple[TrialSpec, Told]] = field(default_factory=dict)  # by key, in the order in which they ended

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def begin(self, due: Sequence[TrialSpec]) -> None:
        self.due, self.running = list(due), {}
        for trial in due:
            self.results.pop(trial.key, None)

    def hear(self, spec: TrialSpec, told: Told) -> None:
        now = self.clock()
        if "epoch" in told and (trial := self.running.get(spec.key)):
            trial.epochs, trial.latest = told["epoch"] + 1, now
            if told.get("again"):
                trial.skipped, trial.began = trial.epochs, now
        elif "started" in told:
            self.running[spec.key] = Running(spec, now)

    def ended(self, spec: TrialSpec, result: Told, line: str) -> None:
        trial = self.running.pop(spec.key, None)
        if trial and result.get("outcome") == "completed":
            whole = trial.epochs / max(1, trial.epochs - trial.skipped)  # as if it had trained all of them
            self.remaining.took_s[spec.key] = (spec.block, (self.clock() - trial.began) * max(1.0, whole))
        self.results[spec.key] = (spec, result)
        if _state(result) == "failed":
            self.console.print(line, style="red", markup=False, soft_wrap=True)

    def render(self) -> "RenderableType":
        from rich.console import Group

        running, results = list(self.running.values()), list(self.results.values())
        rows = max(3, self.console.height - MARGIN - len(running))
        shown = [(spec, _figure(result)) for spec, result in results[-rows:]]
        shown += [(trial.spec, _bar(trial, self.clock())) for trial in running[: max(1, self.console.height - MARGIN)]]
        return Group("", self._heading(running, len(results)), *([self._table(shown)] if shown else []))

    def _heading(self, running: list[Running], ended: int) -> "Text":
        """'first-look  12 of 33  ━━━━━───────  about 8 min left, 1.08 times the forecast'."""
        from rich.text import Text

        under_way = {trial.spec.key for trial in running}
        waiting = [spec for spec in self.due if spec.key not in under_way and spec.key not in self.results]
        left_s, unknown = self.remaining.left_s(waiting, running, self.clock())
        total = ended + len(running) + len(waiting)
        said = [f"about {roughly(left_s)} left"] if left_s else []
        said += [f"{unknown} uncalibrated"] if unknown else []
        if (factor := self.remaining.factor) != 1:
            said.append(f"{factor:.2f} times the forecast")
        text = Text.assemble((self.name, "bold"), f"  {ended} of {total}  ", *_strokes(ended, total), "  " + ", ".join(said))
        text.truncate(self.console.width, overflow="ellipsis")
        return text

    def _table(self, shown: "list[tuple[TrialSpec, Text]]") -> "Table":
        """One column for each swept value; where the terminal is too narrow for them, one for all, cut."""
        from rich import box
        from rich.table import Table

        specs, room = [spec for spec, _ in shown], self.console.width - FIGURE - GAP
        names = short_names(dict.fromkeys(path for spec in specs for path in spec.swept))
        headers = ["block", *(name.replace("_", "_\n") for name in names.values()), "repeat"]
        swept = [[written(path, spec.swept[path]) if path in spec.swept else "" for path in names] for spec in specs]
        rows = [[spec.block, *values, str(spec.repeat)] for spec, values in zip(specs, swept, strict=True)]
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(headers, *rows, strict=True)]
        if sum(widths) + GAP * (len(widths) - 1) > room:
            headers, rows = ["trial"], [[_cut(run_name(spec.block, spec.swept, spec.repeat), room)] for spec in specs]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
        for header in headers:
            table.add_column(header, justify="left" if header in ("block", "trial") else "right", vertical="bottom", no_wrap=True)
        table.add_column("", no_wrap=True, overflow="ellipsis", min_width=FIGURE)
        for row, (_, figure) in zip(rows, shown, strict=True):
            table.add_row(*row, figure)
        return table


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _state(result: Told) -> str:
    return "failed" if "lost" in result else kind(result["outcome"])


def _figure(result: Told) -> "Text":
    """What came of a trial, in few words."""
    from rich.text import Text

    if "lost" in result:
        return Text("lost", "red")
    summary, outcome = result["summary"], result["outcome"]
    if outcome != "completed":
        return Text(outcome, "red" if kind(outcome) == "failed" else "yellow")
    figures = [f"{summary['epoch_s']:.2f} s an epoch"] if "epoch_s" in summary else []
    figures += [f"{100 * summary['ensemble_accuracy']:.1f} %"] if "ensemble_accuracy" in summary else []
    return Text(", ".join(figures) or outcome)


def _bar(trial: Running, now: float) -> "Text":
    from rich.text import Text

    epochs, seconds = trial.spec.config.sgdr.epochs, int(now - trial.began)
    return Text.assemble(*_strokes(trial.epochs, epochs), f" {trial.epochs}/{epochs} {seconds // 60}:{seconds % 60:02}")


def _strokes(done: int, total: int) -> list[tuple[str, str]]:
    full = BAR * done // total if total else 0
    return [("━" * full, "green"), ("─" * (BAR - full), "dim")]
