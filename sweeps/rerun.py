"""What --rerun asks for: these trials count as if they had never run, until they have run again.

Earlier attempts stay in the tracker, and tables show the latest that is settled. When a rerun began is noted with the sweep until each
trial that it asks for has ended anew, so one that was cut short, by Ctrl-C, a cap or a kill, is gone on with by the same command. A
launch that asks for anything else drops the note.
"""

import difflib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sweeps.plan import TrialSpec
from sweeps.states import NEW, RUNNING, kind

if TYPE_CHECKING:
    from mlflow.entities import Run

TAG = "rerun"  # of the sweep's run, while one is unfinished
CUT_SHORT = ("interrupted", RUNNING)
UNDONE = ("failed", *CUT_SHORT)  # what --rerun failed runs: one that was interrupted may have been at a failed trial
NAMED = 5  # keys that an ambiguous one names


class UnknownKey(ValueError):
    """A key that no trial of the plan has, or that several begin with; the text says which are near."""


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


def begun(tags: Mapping[str, str], rerun: Sequence[str]) -> int | None:
    """When the same was asked for and cut short, in ms since 1970, by the `tags` of the sweep's run; None where it was not."""
    noted = json.loads(tags.get(TAG, "{}"))
    return noted["since"] if rerun and noted.get("asked") == sorted(set(rerun)) else None


def note(rerun: Sequence[str], since: int) -> str:
    """What `begun` reads."""
    return json.dumps({"asked": sorted(set(rerun)), "since": since})


def forgotten(runs: "Iterable[Run]", asked: Asked, since: int) -> frozenset[str]:
    """Ids of those attempts at what is asked for that began no later than `since`."""
    return frozenset(run.info.run_id for run in runs if run.data.tags["key"] in (asked.keys or ()) and run.info.start_time <= since)


def without(runs: "Iterable[Run]", forgotten: Collection[str]) -> "list[Run]":
    """`runs` but for those whose id is `forgotten`."""
    return [run for run in runs if run.info.run_id not in forgotten]


def is_over(left: Iterable[TrialSpec], found: Mapping[str, str]) -> bool:
    """Whether each trial that was asked for has ended anew, the failed among them. `left`: those not settled; `found`: states."""
    return all(kind(found.get(trial.key, NEW)) not in (NEW, *CUT_SHORT) for trial in left)


def goes_on(rerun: Sequence[str], asked: Asked, since: int, found: Mapping[str, str]) -> str:
    """'goes on with --rerun all of 2026-11-24 10:31, which was cut short: 12 of its 40 trials have run since'."""
    keys = asked.keys or frozenset()
    done = sum(kind(found.get(key, NEW)) not in (NEW, *CUT_SHORT) for key in keys)
    words = " ".join(f"--rerun {word}" for word in rerun)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(since / 1000))
    have = "has" if done == 1 else "have"
    return f"goes on with {words} of {when}, which was cut short: {done} of {len(keys)} trials {have} run since"
