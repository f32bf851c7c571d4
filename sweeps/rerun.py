"""What --rerun asks for: these trials count as if they had never run, until they have run again.

Earlier attempts stay in the tracker, and tables show the latest that is settled. A rerun is noted with the sweep until it has run to its
end, and its attempts have its id, so one that was cut short, by Ctrl-C, a cap or a kill, is gone on with by the same command. A launch
that asks for anything else drops it.
"""

import difflib
import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sweeps.plan import TrialSpec
from sweeps.states import NEW, RUNNING, kind

if TYPE_CHECKING:
    from mlflow.entities import Run

TAG = "rerun"
CUT_SHORT = ("interrupted", RUNNING)
UNDONE = ("failed", *CUT_SHORT)  # what --rerun failed runs: one that was interrupted may have been at a failed trial
NAMED = 5  # keys, or words, that a line names at most


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


class Rerun(NamedTuple):
    """One that has begun, as the tag of the sweep's run notes it. Each attempt that it makes has its `id` as a tag of the same name."""

    id: str
    asked: str  # a digest of the words, of which there may be thousands
    words: str  # as they are told
    began: str  # for people

    @classmethod
    def new(cls, words: Sequence[str]) -> "Rerun":
        return cls(uuid.uuid4().hex[:12], _digest(words), _shown(words), time.strftime("%Y-%m-%d %H:%M"))

    @classmethod
    def noted(cls, tags: Mapping[str, str]) -> "Rerun | None":
        """`tags`: of the sweep's run."""
        return cls(**json.loads(tags[TAG])) if TAG in tags else None

    def note(self) -> str:
        return json.dumps(self._asdict())


def wanted(words: Sequence[str], before: Rerun | None) -> Rerun | None:
    """What runs now: the one that was cut short `before` where the same is asked for, a new one, or none without words."""
    if before and words and before.asked == _digest(words):
        return before
    return Rerun.new(words) if words else None


def counted(runs: "Iterable[Run]", asked: Asked, now: Rerun | None) -> "list[Run]":
    """`runs` but for those attempts at what is asked for that the rerun has not made."""
    own = now and now.id
    return [run for run in runs if run.data.tags["key"] not in (asked.keys or ()) or run.data.tags.get(TAG) == own]


def told(before: Rerun | None, now: Rerun | None, left: Iterable[TrialSpec], found: Mapping[str, str]) -> list[str]:
    """A line on the one that was cut short `before`, if one was: whether it is what runs `now`. `left`: trials that are to run; `found`:
    states, as it counts them."""
    if before is None:
        return []
    if now != before:
        return [f"drops {before.words} of {before.began}, which has not run to its end: the same words would go on with it"]
    count = sum(kind(found.get(trial.key, NEW)) in (NEW, *CUT_SHORT) for trial in left)
    have = "1 trial has" if count == 1 else f"{count} trials have"
    return [f"goes on with {before.words} of {before.began}: {have} not run since"]


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(set(words))).encode()).hexdigest()[:16]


def _shown(words: Sequence[str]) -> str:
    """'--rerun failed --rerun 5a149c9580ac and 12 more'."""
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return " ".join(f"--rerun {word}" for word in words[:NAMED]) + more
