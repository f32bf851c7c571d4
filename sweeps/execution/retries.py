"""Runs the pending trials of a launch in rounds, and retries some of them.

A round is one pass of Ray over all pending trials. Some trials are pending again after it, as
further attempts under their trial ids:

    trials that ran out of memory, or                at most `max_restarts` times each
        whose Ray process or node was lost
    trials that had not ended when Ray itself ended  Ray restarts at most `max_restarts` times,
                                                     a cluster never
    trials that were disturbed while being timed     once

An overflow of /dev/shm is a result. An unreadable clip, an exception of the training code and a
timeout would occur again. They are therefore failures at once, and the next launch runs these
trials again. Nothing is printed in this module except through `log`, one line at a time.
"""

import contextlib
import textwrap
from collections import Counter

from sweeps.accuracy import accuracy_context
from sweeps.config.plan import TrialSpec
from sweeps.execution import interrupt, progress, ray_tune
from sweeps.execution.progress import View
from sweeps.execution.ray_session import RayEnded
from sweeps.execution.sweep import TRACKER_TIMEOUT_S, Sweep, build_launch_context, flush_and_refresh
from sweeps.execution.trial_result import EpochEnd, LostTrial, TrialResult
from sweeps.forecast.trial_forecasts import format_rough_duration
from sweeps.host.node import Log
from sweeps.names import run_name
from sweeps.tracking import outbox_recovery
from sweeps.tracking.tracker_errors import TrackerUnavailable
from sweeps.trial_states import SETTLED, Outcome, StatusGroup, TrialState, status_group


def run(sweep: Sweep, log: Log) -> list[TrialSpec]:
    """Runs the pending trials, as far as `run_cap` and `time_budget` allow, and returns the trials
    that failed.

    Raises RayEnded when Ray has ended once more than `max_restarts` allows. Raises
    TrackerUnavailable if trials have ended and the tracker does not have their records yet.
    """
    budget_passed = False
    expected_s = {
        trial.trial_id: sweep.trial_forecasts.expected_s(trial) for trial in sweep.plan.trials
    }
    with progress.open_view(sweep.config.name, expected_s, log) as view:
        loop = _RetryLoop(sweep, view)
        try:
            loop.run()
        except KeyboardInterrupt:
            if not interrupt.was_time_budget():
                raise
            budget_passed = True
        finally:
            interrupt.cancel_time_budget()
    unsettled = sweep.unsettled
    failed = [
        trial
        for trial in unsettled
        if trial.trial_id in loop.results and not loop.will_retry(trial.trial_id)
    ]
    sweep.finished = len(failed) == len(unsettled)
    if not sweep.finished:
        log(_remaining_message(sweep, loop, budget_passed, len(unsettled) - len(failed)))
    return failed


class _RetryLoop:
    """Runs the rounds of one launch and stores the result of every trial that ended in them.

    It is the `TrialListener` of each round, and passes what it receives on to the view.
    """

    def __init__(self, sweep: Sweep, view: View) -> None:
        self.sweep, self.view = sweep, view
        self.trials = sorted(sweep.pending, key=self._failed_before)[: sweep.config.run_cap]
        self.results: dict[str, TrialResult | LostTrial] = {}  # of the latest attempt, by trial id
        self.losses: Counter[str] = (
            Counter()
        )  # attempts that were lost or out of memory, by trial id
        self.stopped = False  # set by on_failure: stop
        self._total = len(sweep.trial_forecasts.pending((), sweep.state.selection.ids))
        self._ended_before = self._total - len(sweep.pending)
        self._width = max((len(_trial_name(trial)) for trial in sweep.plan.trials), default=0)

    def run(self) -> None:
        """Runs rounds until no trial is pending."""
        starts, max_starts = (
            1,
            1 + (self.sweep.config.max_restarts if self.sweep.hosts.starts_ray else 0),
        )
        while pending := self._pending_trials():
            try:
                self._run_round(pending)
            except RayEnded as problem:
                if starts == max_starts:
                    raise RayEnded(
                        f"{problem} Settled trials are not run again; the same command runs"
                        " the rest."
                    ) from problem
                starts += 1
                self.log(
                    f"{problem} Ray starts again for the remaining trials, start {starts}"
                    f" of {max_starts} (max_restarts)."
                )

    def _failed_before(self, trial: TrialSpec) -> bool:
        """Returns whether the trial failed in an earlier launch; such trials run last.

        Under a cap, or where a failure stops the launch, they must not prevent the others from ever
        running.
        """
        return (
            status_group(self.sweep.state.states.get(trial.trial_id, TrialState.NEW))
            == StatusGroup.FAILED
        )

    def _pending_trials(self) -> list[TrialSpec]:
        """Returns the trials without a result and those to be retried.

        If there are none, returns the disturbed trials.
        """
        if self.stopped:
            return []
        pending_ids = {trial.trial_id for trial in self.sweep.pending}
        unfinished = [trial for trial in self.trials if trial.trial_id in pending_ids]
        pending = [
            trial
            for trial in unfinished
            if trial.trial_id not in self.results or self.will_retry(trial.trial_id)
        ]
        if pending:
            return pending
        disturbed = [
            trial
            for trial in unfinished
            if self.sweep.state.states.get(trial.trial_id) == TrialState.NEEDS_RERUN
        ]
        if disturbed:
            self.log(f"trials disturbed from outside, which run once more: {len(disturbed)}")
        return disturbed

    def will_retry(self, trial_id: str) -> bool:
        """Returns whether the latest attempt was lost or out of memory and the limit of retries is
        not reached.
        """
        return (
            self.results[trial_id].is_retryable
            and self.losses[trial_id] <= self.sweep.config.max_restarts
        )

    def _run_round(self, pending: list[TrialSpec]) -> None:
        """Runs one round, then sends waiting records and reads the trials' states again."""
        sweep = self.sweep
        self.view.begin(pending)
        try:
            session = sweep.hosts.open_session(sweep.config, pending)
            ray_tune.run(pending, build_launch_context(sweep), session, self)
        except KeyboardInterrupt:
            # The launch stops now; records wait for the next one
            with contextlib.suppress(TrackerUnavailable):
                flush_and_refresh(sweep, self.log)
            raise
        except RayEnded:
            flush_and_refresh(sweep, self.log, TRACKER_TIMEOUT_S)
            raise
        flush_and_refresh(sweep, self.log, TRACKER_TIMEOUT_S)

    def log(self, line: str) -> None:
        """Prints a line that stays."""
        self.view.log(line)

    def on_start(self, spec: TrialSpec) -> None:
        """Shows that a trial has started."""
        self.view.on_start(spec)

    def on_epoch(self, spec: TrialSpec, epoch: EpochEnd) -> None:
        """Shows that a trial has completed an epoch."""
        self.view.on_epoch(spec, epoch)

    def on_trial_end(self, spec: TrialSpec, result: TrialResult | LostTrial) -> bool:
        """Shows how a trial ended; returns whether other trials may start after it."""
        self.results[spec.trial_id] = result
        excluded = (
            isinstance(result, LostTrial)
            and result.full_host is not None
            and self.sweep.hosts.exclude_host(result.full_host)
        )
        self.losses[spec.trial_id] += result.is_retryable and not excluded
        count = f"{self._ended_before + len(self.results):>{len(str(self._total))}}/{self._total}"
        self.view.on_trial_end(
            spec,
            result,
            f"{count}  {_trial_name(spec):<{self._width}}  {_format_result(result)}",
        )
        if isinstance(result, TrialResult) and result.wrong_forecast:
            self.log(f"{'':{len(count)}}  {result.wrong_forecast}")
        if isinstance(result, LostTrial) or result.outcome not in SETTLED:
            self.stopped |= self.sweep.config.on_failure == "stop" and not self.will_retry(
                spec.trial_id
            )
            self.log(
                f"{'':{len(count)}}  {self._log_location(spec, result)}{self._retry_note(spec)}"
            )
        # Pending trials might start on the excluded host; the next round does without it
        return not (self.stopped or excluded)

    def _log_location(self, spec: TrialSpec, result: TrialResult | LostTrial) -> str:
        """Returns a note on where the log of a failed attempt is."""
        if isinstance(result, LostTrial):
            return (
                f"its output is in {self.sweep.folder / spec.trial_id} until its MLflow run has it"
            )
        if not result.run_id:
            return (
                f"{result.log} is in {self.sweep.folder / outbox_recovery.UNSENT} until its"
                " MLflow run can be opened"
            )
        return f"see {result.log} of its MLflow run {result.run_id}"

    def _retry_note(self, spec: TrialSpec) -> str:
        """Returns a note that a trial is retried; an empty text if it is not."""
        if self.stopped or not self.will_retry(spec.trial_id):
            return ""
        result = self.results[spec.trial_id]
        if isinstance(result, LostTrial) and result.full_host and not self.losses[spec.trial_id]:
            return "; runs once more on another machine"
        return (
            f"; runs once more, {self.losses[spec.trial_id]} of {self.sweep.config.max_restarts}"
            " (max_restarts)"
        )


def _trial_name(spec: TrialSpec) -> str:
    """Returns the run name of a trial."""
    return run_name(spec.block, spec.swept, spec.repeat)


def _format_result(result: TrialResult | LostTrial) -> str:
    """Returns how a trial ended as a line."""
    if isinstance(result, LostTrial):
        host = f" on {result.host}" if result.host else ""
        return textwrap.shorten(f"lost{host}: {result.reason}", 110, placeholder=" ...")
    waiting_note = "; its records wait for the tracker" if result.waits else ""
    if result.outcome != Outcome.COMPLETED:
        # The run's tag holds the whole text
        cause = f"{result.outcome}: {result.evidence}"
        return textwrap.shorten(cause, 90, placeholder=" ...") + waiting_note
    return ", ".join(_format_figures(result)) + waiting_note


def _format_figures(result: TrialResult) -> list[str]:
    """Returns the figures of a completed trial, and what is special about the attempt."""
    summary, origin = result.summary, result.origin
    parts = [f"{summary['epoch_s']:6.2f} s an epoch"] if "epoch_s" in summary else []
    if "ensemble_accuracy" in summary:
        last = f", last snapshot {100 * summary['accuracy']:.1f} %" if "accuracy" in summary else ""
        parts.append(
            f"ensemble {100 * summary['ensemble_accuracy']:.1f} %{last}{accuracy_context(summary)}"
        )
    if summary.get("diverged_snapshots"):
        parts.append(result.evidence)
    if "continued_epoch" in origin:
        parts.append(f"continued after epoch {origin['continued_epoch']}")
    if "started_over" in origin:
        parts.append(f"started over: {origin['started_over']}")
    return parts


def _remaining_message(sweep: Sweep, loop: _RetryLoop, budget_passed: bool, remaining: int) -> str:
    """Returns the line on why a launch ends with `remaining` trials that have not failed."""
    config = sweep.config
    if budget_passed:
        reason = f"time_budget of {format_rough_duration(config.time_budget or 0)} has passed"
    elif loop.stopped:
        reason = "on_failure: stop"
    else:
        reason = f"run_cap of {config.run_cap} is reached"
    return (
        f"{reason}: {remaining} {'trial remains' if remaining == 1 else 'trials remain'}; the"
        " same command runs the rest."
    )
