"""Where each trial of a plan stands, and which of them a launch runs: one rule for resume, edit and retry.

A trial is settled, failed or new, told by its key from the tracker alone. A launch runs all that is not settled, so what was edited, what
crashed and what was never reached are one case. `--rerun` asks for other trials than those: what it asks for counts as if it had never
run, until it has run again. Earlier attempts stay in the tracker, and tables show the latest that is settled.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

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
UNDONE = ("failed", "interrupted", RUNNING)  # what --rerun failed runs: one that was interrupted may have been at a failed trial
NAMED = 5  # keys that an ambiguous one names


class UnknownKey(ValueError):
    """A key that no trial of the plan has, or that several begin with; the text says which are near."""


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


class Asked(NamedTuple):
    """What --rerun asks for, by key."""

    keys: frozenset[str] | None = None  # None: all that is not settled
    named: frozenset[str] = frozenset()  # by their own keys: they run also where method: forecast would not measure them


def asked_for(rerun: Sequence[str], trials: Sequence[TrialSpec], found: Mapping[str, str]) -> Asked:
    """`rerun`: failed, all, and keys or the beginnings of keys; together they ask for all that one of them does. Raises UnknownKey."""
    if not rerun:
        return Asked()
    named = frozenset(find(word, trials).key for word in rerun if word not in ("all", "failed"))
    failed = {trial.key for trial in trials if "failed" in rerun and kind(found.get(trial.key, NEW)) in UNDONE}
    return Asked(named | failed | {trial.key for trial in trials if "all" in rerun}, named)


def find(word: str, trials: Sequence[TrialSpec]) -> TrialSpec:
    """The trial whose key begins with `word`. Raises UnknownKey."""
    there = [trial for trial in trials if trial.key.startswith(word)] if word else []
    if len(there) == 1:
        return there[0]
    keys = [trial.key for trial in there]
    if there:
        more = " ..." if len(keys) > NAMED else ""
        raise UnknownKey(f"{word}: {len(keys)} keys begin with it: {', '.join(keys[:NAMED])}{more}. Write more of it.")
    near = difflib.get_close_matches(word, [trial.key for trial in trials], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UnknownKey(f"{word}: no trial of this sweep has such a key.{hint} --dry-run prints the key of every trial.")


def without(runs: "Sequence[Run]", forgotten: Collection[str]) -> "list[Run]":
    """`runs` but for those whose id is `forgotten`: attempts that a launch with --rerun doesn't count."""
    return [run for run in runs if run.info.run_id not in forgotten]
