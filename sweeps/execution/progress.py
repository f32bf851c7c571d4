"""Shows the progress of a launch: one live table in a terminal, elsewhere a line for each trial
that ends.

Both views receive the same events by the same calls. The table shows the swept values and the
results of the trials that ended last. It shows each running trial with a bar. It never grows beyond
the terminal. A failure and its cause must not be lost, so they are printed above the table and
stay. The table is drawn at most once a second: a view that computes would disturb the timings it
shows.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sweeps.accuracy import accuracy_context
from sweeps.config.plan import TrialSpec
from sweeps.execution.remaining_time import RemainingTime, RunningTrial
from sweeps.execution.trial_result import EpochEnd, LostTrial, TrialResult
from sweeps.forecast.trial_forecasts import format_rough_duration
from sweeps.host.node import Log
from sweeps.names import format_parameter, run_name, short_names
from sweeps.trial_states import Outcome, StatusGroup, status_group

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

REFRESH_HZ = 1.0
BAR_WIDTH = 14  # characters
FIGURE_WIDTH = 25  # characters of a result, or of a bar with its numbers
COLUMN_GAP = 3  # characters between columns
MIN_WIDTH, MIN_HEIGHT = 40, 6  # columns and lines of a terminal that the table needs
RESERVED_LINES = 8  # of the terminal, for the table's head, the lines around it and the prompt


class View(Protocol):
    """Receives the events of a launch from the code that runs its trials."""

    def log(self, line: str) -> None:
        """Prints a line that stays."""

    def begin(self, pending: Sequence[TrialSpec]) -> None:
        """Begins a round of these trials."""

    def on_start(self, spec: TrialSpec) -> None:
        """Records that a trial has started."""

    def on_epoch(self, spec: TrialSpec, epoch: EpochEnd) -> None:
        """Records that a trial has completed an epoch."""

    def on_trial_end(self, spec: TrialSpec, result: TrialResult | LostTrial, line: str) -> None:
        """Records that a trial has ended; `line` describes how."""


@contextlib.contextmanager
def open_view(name: str, expected_s: Mapping[str, float | None], log: Log) -> Iterator[View]:
    """Yields the view of a sweep.

    `expected_s` holds the forecast duration of all epochs of a trial, by trial id.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield Lines(log)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.__stdout__, highlight=False)
    if console.width < MIN_WIDTH or console.height < MIN_HEIGHT:
        yield Lines(log)
        return
    view = LiveTable(name, RemainingTime(expected_s), console)
    with Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=REFRESH_HZ,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield view


@dataclass(frozen=True)
class Lines:
    """Prints a line for each trial that ends."""

    log: Log

    def begin(self, pending: Sequence[TrialSpec]) -> None:
        pass

    def on_start(self, spec: TrialSpec) -> None:
        pass

    def on_epoch(self, spec: TrialSpec, epoch: EpochEnd) -> None:
        pass

    def on_trial_end(self, spec: TrialSpec, result: TrialResult | LostTrial, line: str) -> None:
        self.log(line)


@dataclass
class LiveTable:
    """Draws the table. `render` runs in another thread than the methods that receive events."""

    name: str
    remaining: RemainingTime
    console: "Console"
    clock: Callable[[], float] = time.monotonic
    pending: list[TrialSpec] = field(default_factory=list)
    running: dict[str, RunningTrial] = field(default_factory=dict)  # by trial id
    # By trial id, in the order in which the trials ended
    results: dict[str, tuple[TrialSpec, TrialResult | LostTrial]] = field(default_factory=dict)

    def log(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def begin(self, pending: Sequence[TrialSpec]) -> None:
        self.pending, self.running = list(pending), {}
        for trial in pending:
            self.results.pop(trial.trial_id, None)

    def on_start(self, spec: TrialSpec) -> None:
        self.running[spec.trial_id] = RunningTrial(spec, self.clock())

    def on_epoch(self, spec: TrialSpec, epoch: EpochEnd) -> None:
        if trial := self.running.get(spec.trial_id):
            trial.epochs, trial.latest = epoch.epoch + 1, self.clock()
            if epoch.replayed:
                trial.skipped, trial.began = trial.epochs, trial.latest

    def on_trial_end(self, spec: TrialSpec, result: TrialResult | LostTrial, line: str) -> None:
        trial = self.running.pop(spec.trial_id, None)
        if trial and isinstance(result, TrialResult) and result.outcome == Outcome.COMPLETED:
            # Scaled to all epochs, since the attempt skips those of an interrupted one
            scale = trial.epochs / max(1, trial.epochs - trial.skipped)
            self.remaining.took_s[spec.trial_id] = (
                spec,
                (self.clock() - trial.began) * max(1.0, scale),
            )
        self.results[spec.trial_id] = (spec, result)
        if _has_failed(result):
            self.console.print(line, style="red", markup=False, soft_wrap=True)

    def render(self) -> "RenderableType":
        """Returns the heading and the table; rich calls this once a second."""
        from rich.console import Group

        running, results = list(self.running.values()), list(self.results.values())
        max_rows = max(3, self.console.height - RESERVED_LINES - len(running))
        rows = [(spec, _format_figure(result)) for spec, result in results[-max_rows:]]
        rows += [
            (trial.spec, _format_bar(trial, self.clock()))
            for trial in running[: max(1, self.console.height - RESERVED_LINES)]
        ]
        return Group(
            "", self._heading(running, len(results)), *([self._table(rows)] if rows else [])
        )

    def _heading(self, running: list[RunningTrial], ended: int) -> "Text":
        """Returns the heading, truncated to the width of the terminal.

        For example 'first-look  12 of 33  ━━━━━───────  about 8 min left, 1.08 times the forecast'.
        """
        from rich.text import Text

        running_ids = {trial.spec.trial_id for trial in running}
        waiting = [
            spec
            for spec in self.pending
            if spec.trial_id not in running_ids and spec.trial_id not in self.results
        ]
        remaining_s, unknown = self.remaining.remaining_s(waiting, running, self.clock())
        total = ended + len(running) + len(waiting)
        notes = [f"about {format_rough_duration(remaining_s)} left"] if remaining_s else []
        notes += [f"{unknown} uncalibrated"] if unknown else []
        if (factor := self.remaining.factor) != 1:
            notes.append(f"{factor:.2f} times the forecast")
        text = Text.assemble(
            (self.name, "bold"),
            f"  {ended} of {total}  ",
            *_strokes(ended, total),
            "  " + ", ".join(notes),
        )
        text.truncate(self.console.width, overflow="ellipsis")
        return text

    def _table(self, entries: "list[tuple[TrialSpec, Text]]") -> "Table":
        """Returns a table with a column for each swept value, or with one truncated column if the
        terminal is too narrow.
        """
        from rich import box
        from rich.table import Table

        specs, available = (
            [spec for spec, _ in entries],
            self.console.width - FIGURE_WIDTH - COLUMN_GAP,
        )
        names = short_names(dict.fromkeys(path for spec in specs for path in spec.swept))
        headers = ["block", *(name.replace("_", "_\n") for name in names.values()), "repeat"]
        swept = [
            [
                format_parameter(path, spec.swept[path]) if path in spec.swept else ""
                for path in names
            ]
            for spec in specs
        ]
        rows = [
            [spec.block, *values, str(spec.repeat)]
            for spec, values in zip(specs, swept, strict=True)
        ]
        widths = [
            max(len(line) for cell in column for line in cell.split("\n"))
            for column in zip(headers, *rows, strict=True)
        ]
        if sum(widths) + COLUMN_GAP * (len(widths) - 1) > available:
            headers, rows = (
                ["trial"],
                [
                    [_truncate(run_name(spec.block, spec.swept, spec.repeat), available)]
                    for spec in specs
                ],
            )
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
        for header in headers:
            table.add_column(
                header,
                justify="left" if header in ("block", "trial") else "right",
                vertical="bottom",
                no_wrap=True,
            )
        table.add_column("", no_wrap=True, overflow="ellipsis", min_width=FIGURE_WIDTH)
        for row, (_, figure) in zip(rows, entries, strict=True):
            table.add_row(*row, figure)
        return table


def _truncate(text: str, width: int) -> str:
    """Returns the text in at most `width` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _has_failed(result: TrialResult | LostTrial) -> bool:
    """Returns whether a trial has failed; a lost trial has."""
    return isinstance(result, LostTrial) or status_group(result.outcome) == StatusGroup.FAILED


def _format_figure(result: TrialResult | LostTrial) -> "Text":
    """Returns the result of a trial in few words."""
    from rich.text import Text

    if isinstance(result, LostTrial):
        return Text("lost", "red")
    summary, outcome = result.summary, result.outcome
    if outcome != Outcome.COMPLETED:
        return Text(outcome, "red" if _has_failed(result) else "yellow")
    figures = [f"{summary['epoch_s']:.2f} s an epoch"] if "epoch_s" in summary else []
    figures += (
        [f"{100 * summary['ensemble_accuracy']:.1f} %{accuracy_context(summary)}"]
        if "ensemble_accuracy" in summary
        else []
    )
    figures += ["diverged in part"] if summary.get("diverged_snapshots") else []
    return Text(", ".join(figures) or outcome)


def _format_bar(trial: RunningTrial, now: float) -> "Text":
    """Returns the bar of a running trial, its epochs and its time so far."""
    from rich.text import Text

    epochs, seconds = trial.spec.config.sgdr.epochs, int(now - trial.began)
    return Text.assemble(
        *_strokes(trial.epochs, epochs),
        f" {trial.epochs}/{epochs} {seconds // 60}:{seconds % 60:02}",
    )


def _strokes(done: int, total: int) -> list[tuple[str, str]]:
    """Returns the strokes of a bar with their colours."""
    filled = BAR_WIDTH * done // total if total else 0
    return [("━" * filled, "green"), ("─" * (BAR_WIDTH - filled), "dim")]
