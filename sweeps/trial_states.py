"""Defines the outcomes, states and verdicts of trials: the words that are stored and printed."""

from enum import StrEnum


class Outcome(StrEnum):
    """Lists how an attempt at a trial may end, as in the tag `outcome` of its run."""

    COMPLETED = "completed"
    """The schedule ran to its end, although single cycles may have diverged."""

    SHM_EXHAUSTED = "shm_exhausted"
    """The batches did not fit into /dev/shm; this is a result, a cell of the table."""

    DIVERGED = "diverged"
    """Training diverged before its first snapshot, so the trial has no ensemble."""

    OOM = "oom"
    """The memory of the machine, of its container or of the GPU was exhausted."""

    TIMEOUT = "timeout"
    """The trial took longer than `trial_timeout` and was killed."""

    DATA_ERROR = "data_error"
    """A clip or a corpus could not be read."""

    CRASHED = "crashed"
    """The trial failed for a cause that no other outcome names, such as an exception."""

    INTERRUPTED = "interrupted"
    """The launch, or the Ray process that relayed the trial, ended or gave up before the trial."""


# Another attempt would have the same outcome, so only --rerun makes one
SETTLED = (Outcome.COMPLETED, Outcome.SHM_EXHAUSTED, Outcome.DIVERGED)


class TrialState(StrEnum):
    """The states of a trial that are no outcome; in all other states it has an Outcome."""

    NEW = "new"
    """No attempt at the trial was made."""

    RUNNING = "running"
    """The run of the latest attempt is open: the attempt runs, or its launch was killed."""

    NEEDS_RERUN = "disturbed"
    """The trial is settled, but runs once more because something outside disturbed its times."""

    NOT_MEASURED = "not measured"
    """The trial is only forecast, because it does not matter for the recommendation."""


class StatusGroup(StrEnum):
    """The groups by which messages count trials, in the order in which they list them."""

    SETTLED = "settled"
    """The outcome is one of SETTLED."""

    NEEDS_RERUN = TrialState.NEEDS_RERUN
    """The trial is settled, but runs once more because something outside disturbed its times."""

    FAILED = "failed"
    """The outcome is neither settled nor an interruption; the next launch runs the trial again."""

    INTERRUPTED = Outcome.INTERRUPTED
    """The latest attempt was interrupted; the next launch runs the trial again."""

    RUNNING = TrialState.RUNNING
    """The run of the latest attempt is open."""

    NEW = TrialState.NEW
    """No attempt at the trial was made."""

    NOT_MEASURED = TrialState.NOT_MEASURED
    """The trial is only forecast."""


class ShmVerdict(StrEnum):
    """The answers to whether the batches of a trial will fit into its /dev/shm."""

    FITS = "fits"
    """The batches fit, whatever the rates of the workers and of the training loop."""

    OVERFLOWS = "overflows"
    """The /dev/shm has no room for even one batch."""

    DEPENDS = "depends"
    """The batches fit only if the training loop keeps up with the workers."""


def status_group(state: str) -> StatusGroup:
    """Returns the group of a state: SETTLED for 'completed', FAILED for 'oom'.

    A state is a TrialState or an outcome. An outcome that is unknown belongs to FAILED.
    """
    if state in SETTLED:
        return StatusGroup.SETTLED
    try:
        return StatusGroup(state)
    except ValueError:
        return StatusGroup.FAILED
