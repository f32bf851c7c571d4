"""What a launch runs, in rounds, and what of it runs once more.

A round is one pass of Ray over all trials that are due. Some are due again after it, as further attempts under their keys:

    what was out of memory, or whose Ray process or node was lost     at most `max_restarts` times each
    what had not ended when Ray itself ended                          Ray is started at most `max_restarts` times more; a cluster is not
    what something outside disturbed while its time was taken         once

An overflow of /dev/shm is a result. An unreadable clip, an exception of the training code and a trial that took too long would come again,
so these are failures at once, which the next launch tries anew. Nothing is printed here but through `say`, a line at a time.
"""

import contextlib
import textwrap
from collections import Counter
from typing import Any

from sweeps import interrupt, progress, runner, unsent
from sweeps.away import TrackerAway
from sweeps.names import run_name
from sweeps.outlook import roughly
from sweeps.plan import TrialSpec
from sweeps.preflight import Say
from sweeps.progress import View
from sweeps.runner import RayEnded
from sweeps.states import DISTURBED, NEW, kind
from sweeps.sweep import AWAY_S, Sweep, launch_of, settle_up
from sweeps.tracking import SETTLED

Result = dict[str, Any]  # what sweeps/runner.py tells of a trial that has ended


def run(sweep: Sweep, say: Say) -> list[TrialSpec]:
    """Runs what is left of the sweep, as far as `run_cap` and `time_budget` allow; returns the trials that failed.

    Raises RayEnded when Ray has ended once more than `max_restarts` allows, and TrackerAway where trials have ended and the tracker
    does not know it yet.
    """
    passed = False
    expected_s = {trial.key: sweep.outlook.expected_s(trial) for trial in sweep.plan.trials}
    with progress.shown(sweep.config.name, expected_s, say) as view:
        rounds = _Rounds(sweep, view)
        try:
            rounds.run()
        except KeyboardInterrupt:
            if not interrupt.by_budget():
                raise
            passed = True
        finally:
            interrupt.over()
    left = sweep.unsettled
    failed = [trial for trial in left if trial.key in rounds.results and not rounds.comes_again(trial.key)]
    sweep.over = len(failed) == len(left)
    if not sweep.over:
        say(_left(sweep, rounds, passed, len(left) - len(failed)))
    return failed


class _Rounds:
    """The rounds of one launch, and how every trial that ended in them did."""

    def __init__(self, sweep: Sweep, view: View) -> None:
        self.sweep, self.view = sweep, view
        self.trials = sorted(sweep.left, key=self._failed_before)[: sweep.config.run_cap]
        self.results: dict[str, Result] = {}  # by key: of the latest attempt
        self.losses: Counter[str] = Counter()  # by key: attempts that were lost or out of memory
        self.stopped = False  # by on_failure
        self._total = len(sweep.outlook.left((), sweep.asked.keys))
        self._before = self._total - len(sweep.left)
        self._width = max((len(_name(trial)) for trial in sweep.plan.trials), default=0)

    def run(self) -> None:
        """Until nothing is due any more."""
        starts, most = 1, 1 + (self.sweep.config.max_restarts if self.sweep.machines.starts_ray else 0)
        while due := self._due():
            try:
                self._round(due)
            except RayEnded as problem:
                if starts == most:
                    raise RayEnded(f"{problem} What has ended is settled; the same command runs the rest.") from problem
                starts += 1
                self.view.say(f"{problem} What has ended is settled. Ray is started for the rest, time {starts} of {most} (max_restarts).")

    def _failed_before(self, trial: TrialSpec) -> bool:
        """Such trials run last: under a cap, or where a failure stops the launch, none may keep the others from running for ever."""
        return kind(self.sweep.states.get(trial.key, NEW)) == "failed"

    def _due(self) -> list[TrialSpec]:
        """What has no result yet, or is to be tried again; then what was disturbed."""
        if self.stopped:
            return []
        left = {trial.key for trial in self.sweep.left}
        mine = [trial for trial in self.trials if trial.key in left]
        due = [trial for trial in mine if trial.key not in self.results or self.comes_again(trial.key)]
        if due:
            return due
        again = [trial for trial in mine if self.sweep.states.get(trial.key) == DISTURBED]
        if again:
            self.view.say(f"{len(again)} disturbed from outside: once more")
        return again

    def comes_again(self, key: str) -> bool:
        """Whether the trial's latest attempt was lost or out of memory, and not once too often."""
        return _lost(self.results[key]) and self.losses[key] <= self.sweep.config.max_restarts

    def _round(self, due: list[TrialSpec]) -> None:
        sweep = self.sweep
        self.view.begin(due)
        try:
            session = sweep.machines.running(sweep.config, due)
            runner.run(due, launch_of(sweep), session, self._ended, self.view.hear, self.view.say)
        except KeyboardInterrupt:
            with contextlib.suppress(TrackerAway):  # it is to stop now; records wait for the next launch
                settle_up(sweep, self.view.say)
            raise
        except RayEnded:
            settle_up(sweep, self.view.say, AWAY_S)
            raise
        settle_up(sweep, self.view.say, AWAY_S)

    def _ended(self, spec: TrialSpec, result: Result) -> bool:
        """Says how a trial ended; returns whether others may start after it."""
        self.results[spec.key] = result
        self.losses[spec.key] += _lost(result)
        waits = "; its records wait for the tracker" if result.get("waits") else ""
        count = f"{self._before + len(self.results):>{len(str(self._total))}}/{self._total}"
        self.view.ended(spec, result, f"{count}  {_name(spec):<{self._width}}  {_told(result)}{waits}")
        if result.get("outcome") not in SETTLED:
            self.stopped |= self.sweep.config.on_failure == "stop" and not self.comes_again(spec.key)
            self.view.say(f"{'':{len(count)}}  {self._log(spec, result)}{self._what_follows(spec)}")
        return not self.stopped

    def _log(self, spec: TrialSpec, result: Result) -> str:
        if "lost" in result:
            return f"what it wrote lies in {self.sweep.folder / spec.key} until it is filed with its MLflow run"
        if not result["run_id"]:
            return f"{result['log']} lies in {self.sweep.folder / unsent.UNSENT} until its MLflow run can be opened"
        return f"see {result['log']} of its MLflow run {result['run_id']}"

    def _what_follows(self, spec: TrialSpec) -> str:
        if self.stopped or not self.comes_again(spec.key):
            return ""
        return f"; runs once more, {self.losses[spec.key]} of {self.sweep.config.max_restarts} (max_restarts)"


def _lost(result: Result) -> bool:
    """Whether the cause lies outside of the trial, so that another attempt may well succeed."""
    return "lost" in result or result["outcome"] == "oom"


def _name(spec: TrialSpec) -> str:
    return run_name(spec.block, spec.swept, spec.repeat)


def _told(result: Result) -> str:
    if "lost" in result:
        return textwrap.shorten(f"lost: {result['lost']}", 90, placeholder=" ...")
    summary, outcome, origin = result["summary"], result["outcome"], result["origin"]
    if outcome != "completed":
        return textwrap.shorten(f"{outcome}: {result['evidence']}", 90, placeholder=" ...")  # the run's tag has all of it
    parts = [f"{summary['epoch_s']:6.2f} s an epoch"] if "epoch_s" in summary else []
    if "ensemble_accuracy" in summary:
        parts.append(f"ensemble {100 * summary['ensemble_accuracy']:.1f} %, last snapshot {100 * summary['accuracy']:.1f} %")
    if "continued_epoch" in origin:
        parts.append(f"continued after epoch {origin['continued_epoch']}")
    if "started_over" in origin:
        parts.append(f"started over: {origin['started_over']}")
    return ", ".join(parts)


def _left(sweep: Sweep, rounds: _Rounds, passed: bool, left: int) -> str:
    """Why a launch ends with trials left that have not failed, and how many."""
    config = sweep.config
    if passed:
        why = f"time_budget of {roughly(config.time_budget or 0)} has passed"
    elif rounds.stopped:
        why = "on_failure: stop"
    else:
        why = f"run_cap of {config.run_cap} is reached"
    return f"{why}: {left} {'trial is' if left == 1 else 'trials are'} left, which the same command runs."
