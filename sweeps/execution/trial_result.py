"""Defines what a launch learns of a trial while it runs and when it has ended."""

from typing import Any, NamedTuple

from sweeps.trial_states import Outcome


class EpochEnd(NamedTuple):
    """Reports that a trial has completed an epoch."""

    epoch: int  # from 0
    replayed: bool  # completed by an interrupted attempt that this one continues


class TrialResult(NamedTuple):
    """Holds the result of an attempt at a trial."""

    outcome: Outcome
    evidence: str  # one line for people
    summary: dict[str, float]
    log: str  # the most informative log among the artifacts of its run
    # continued_epoch: after how many epochs it continued; started_over: why it did not
    origin: dict[str, Any]
    # Why forecasts like that of this trial are corrected; None if the forecast was right
    wrong_forecast: str | None = None
    run_id: str = ""  # empty while the tracker has not opened its run
    waits: bool = False  # whether its records wait for the tracker

    @property
    def is_retryable(self) -> bool:
        """Returns whether the cause lies outside the trial, so that another attempt may succeed."""
        return self.outcome == Outcome.OOM


class LostTrial(NamedTuple):
    """Reports an attempt that Ray could not finish."""

    reason: str
    host: str | None = None  # name of the host that it ran on, where that is known
    full_host: str | None = None  # host_lock.identity() of a host whose disk is full

    @property
    def is_retryable(self) -> bool:
        """Returns True: the cause lies outside the trial."""
        return True
