"""Computes the state of every trial of a plan, with one rule for resume, edit and retry.

A trial is settled, failed or new. Its id and the tracker alone decide. A launch runs all trials
that are not settled. Edited trials, crashed trials and trials that were never reached are therefore
one case. rerun.py selects the trials for `--rerun`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sweeps.config.plan import TrialSpec
from sweeps.host.disturbance import is_timing
from sweeps.tracking.run_queries import disturbed_ids, settled_outcomes
from sweeps.trial_states import SETTLED, StatusGroup, TrialState, status_group

if TYPE_CHECKING:
    from mlflow.entities import Run


def compute_states(runs: "Sequence[Run]", trials: Iterable[TrialSpec]) -> dict[str, str]:
    """Returns, by trial id, the state of every trial that has run.

    The state is the outcome of the latest settled attempt, or otherwise of the latest attempt. It
    can also be RUNNING or NEEDS_RERUN of TrialState. `runs` are the sweep's trials in the tracker,
    newest first.
    """
    settled, disturbed = settled_outcomes(runs), disturbed_ids(runs)
    latest = {run.data.tags["trial_id"]: _outcome(run) for run in reversed(runs)}
    states: dict[str, str] = {}
    for trial in trials:
        if trial.trial_id in disturbed and is_timing(trial.metric.name):
            states[trial.trial_id] = TrialState.NEEDS_RERUN
        elif trial.trial_id in latest:
            states[trial.trial_id] = settled.get(trial.trial_id, latest[trial.trial_id])
    return states


def _outcome(run: "Run") -> str:
    """Returns the outcome of a run, or RUNNING while the run is open.

    A run whose closing was interrupted has an outcome but is still open.
    """
    if run.info.status == "RUNNING":
        return TrialState.RUNNING
    return run.data.tags.get("outcome", TrialState.RUNNING)


def settled_states(states: Mapping[str, str]) -> dict[str, str]:
    """Returns the settled ones of `compute_states`; only --rerun runs such trials again."""
    return {trial_id: state for trial_id, state in states.items() if state in SETTLED}


def format_counts(states: Iterable[str]) -> str:
    """Returns the numbers of trials by status group: '12 settled, 3 failed, 5 new'."""
    counts = Counter(map(status_group, states))
    return ", ".join(f"{counts[group]} {group}" for group in StatusGroup if counts[group])
