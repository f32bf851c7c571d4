"""Decides which trials of a sweep are settled, selected and changed, from its records.

A launch and a dry run call the same pure function, `determine_state`. A dry run therefore reports
what a launch would do.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from sweeps.config.plan import TrialSpec
from sweeps.tracking import rerun
from sweeps.tracking.provenance import differences
from sweeps.tracking.rerun import Rerun, RerunSelection, select_trials
from sweeps.tracking.states import compute_states, settled_states
from sweeps.trial_states import StatusGroup, status_group

if TYPE_CHECKING:
    from mlflow.entities import Run


class SweepRecords(NamedTuple):
    """Holds what is recorded of a sweep; empty for a new sweep."""

    runs: "Sequence[Run]" = ()  # every attempt, newest first
    interrupted_rerun: Rerun | None = None


class Environment(NamedTuple):
    """Holds the environment that a launch would give to trials; see provenance.differences."""

    values: Mapping[str, Sequence[str]]
    devices: Mapping[str, Collection[str]]  # by trial id


@dataclass(frozen=True)
class SweepState:
    """Holds the state of every trial of a sweep, and what a launch selects."""

    trials: Sequence[TrialSpec]
    initial_states: Mapping[str, str]  # by trial id, before --rerun is applied; see states.py
    states: Mapping[str, str]  # by trial id; trials selected by --rerun count as not run
    selection: RerunSelection = field(default_factory=RerunSelection)
    rerun: Rerun | None = None  # of this launch, begun by it or by an earlier one
    interrupted_rerun: Rerun | None = None  # of an earlier launch
    # Differences between the environment now and that of settled trials, a line for each
    environment_changes: Sequence[str] = ()

    @property
    def settled(self) -> Mapping[str, str]:
        """The states of the settled trials, by trial id; a launch does not run these."""
        return settled_states(self.states)

    @property
    def always_measured(self) -> set[str]:
        """The ids of trials that `method: forecast` never skips.

        These were measured before, or are named by --rerun. A disturbed trial that runs once more
        was chosen by an earlier launch.
        """
        return {
            trial_id
            for trial_id, state in self.initial_states.items()
            if status_group(state) in (StatusGroup.SETTLED, StatusGroup.NEEDS_RERUN)
        } | self.selection.named

    def with_runs(self, runs: "Sequence[Run]") -> "SweepState":
        """Returns this state after further attempts; `runs` are all attempts, newest first."""
        counted = rerun.counted_runs(runs, self.selection, self.rerun)
        return replace(self, states=compute_states(counted, self.trials))

    def rerun_messages(self, pending: Sequence[TrialSpec]) -> list[str]:
        """Returns a line on what becomes of an interrupted rerun; no line without one."""
        return rerun.rerun_messages(self.interrupted_rerun, self.rerun, pending, self.states)


def determine_state(
    records: SweepRecords,
    trials: Sequence[TrialSpec],
    rerun_words: Sequence[str],
    environment: Environment,
) -> SweepState:
    """Returns the state of a sweep with these `trials`.

    `rerun_words` are the values of --rerun. Trials that they select count as not run, except for
    attempts made by this rerun. Raises UnknownTrial.
    """
    initial_states = compute_states(records.runs, trials)
    state = SweepState(
        trials,
        initial_states,
        initial_states,
        select_trials(rerun_words, trials, initial_states),
        rerun.choose_rerun(rerun_words, records.interrupted_rerun),
        records.interrupted_rerun,
        differences(records.runs, trials, environment.values, environment.devices),
    )
    return state.with_runs(records.runs)
