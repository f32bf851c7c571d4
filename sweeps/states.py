"""Where each trial of a plan stands: one rule for resume, edit and retry.

A trial is settled, failed or new, told by its key from the tracker alone. A launch runs all that is not settled, so what was edited, what
crashed and what was never reached are one case. What `--rerun` asks for stands in rerun.py.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sweeps.disturbance import is_timing
from sweeps.plan import TrialSpec
from sweeps.tracking import SETTLED, disturbed_of, settled_of

if TYPE_CHECKING:
    from mlflow.entities import Run

NEW = "new"
RUNNING = "running"
DISTURBED = "disturbed"  # settled, and to run once more: something outside disturbed it
NOT_MEASURED = "not measured"  # left to its forecast
WORDS = ("settled", DISTURBED, "failed", "interrupted", RUNNING, NEW, NOT_MEASURED)  # of `kind`, in the order in which they are told


def states(runs: "Sequence[Run]", trials: Iterable[TrialSpec]) -> dict[str, str]:
    """Of each trial that has run, by key: the outcome of its latest settled attempt, otherwise of its latest; or RUNNING, or DISTURBED.

    `runs`: the trials of the sweep in the tracker, newest first.
    """
    known, due = settled_of(runs), disturbed_of(runs)
    latest = {run.data.tags["key"]: _outcome(run) for run in reversed(runs)}
    found = {}
    for trial in trials:
        if trial.key in due and is_timing(trial.metric.name):
            found[trial.key] = DISTURBED
        elif trial.key in latest:
            found[trial.key] = known.get(trial.key, latest[trial.key])
    return found


def _outcome(run: "Run") -> str:
    """A run that was cut short while it closed has an outcome and is open all the same."""
    return RUNNING if run.info.status == "RUNNING" else run.data.tags.get("outcome", RUNNING)


def settled_for_good(found: Mapping[str, str]) -> dict[str, str]:
    """Of `states`, those that no launch runs again unless it is told to."""
    return {key: state for key, state in found.items() if state in SETTLED}


def kind(state: str) -> str:
    """One of WORDS: 'settled' for completed, 'failed' for oom."""
    if state in SETTLED:
        return "settled"
    return state if state in WORDS else "failed"


def counted(found: Iterable[str]) -> str:
    """'12 settled, 3 failed, 5 new': trials by kind."""
    counts = Counter(map(kind, found))
    return ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
