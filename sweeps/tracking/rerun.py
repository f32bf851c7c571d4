"""Selects the trials that --rerun names, and continues an interrupted rerun.

Selected trials count as not run until this rerun has run them. Earlier attempts stay in the
tracker, and tables show the latest settled one. A rerun is recorded with the sweep until it is
complete, and its attempts have its id as a tag. The same command therefore continues a rerun that
was interrupted by Ctrl-C, a cap or a kill. A launch with any other selection drops the rerun.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from speech.spelling import did_you_mean
from sweeps.config.plan import TrialSpec
from sweeps.trial_states import StatusGroup, TrialState, status_group
from sweeps.user_error import UserError

if TYPE_CHECKING:
    from mlflow.entities import Run

TAG = "rerun"
INTERRUPTED = (StatusGroup.INTERRUPTED, StatusGroup.RUNNING)
# Selected by --rerun failed; an interrupted attempt may have been the second at a failed trial
UNFINISHED = (StatusGroup.FAILED, *INTERRUPTED)
MAX_NAMED = 5  # ids or words in one line


class UnknownTrial(UserError):
    """Reports an unknown or ambiguous trial id; the message names similar ids."""


class RerunSelection(NamedTuple):
    """Holds the trials that --rerun selects, by trial id."""

    ids: frozenset[str] | None = None  # None: all trials that are not settled
    # Selected by trial id, so they run even if `method: forecast` would not measure them
    named: frozenset[str] = frozenset()


def select_trials(
    rerun: Sequence[str], trials: Sequence[TrialSpec], states: Mapping[str, str]
) -> RerunSelection:
    """Returns the union of the trials that the words of --rerun select.

    A word is 'failed', 'all', a trial id or the beginning of one. `states` holds the trials'
    states. Raises UnknownTrial.
    """
    if not rerun:
        return RerunSelection()
    named = frozenset(
        find_trial(word, trials).trial_id for word in rerun if word not in ("all", "failed")
    )
    failed = {
        trial.trial_id
        for trial in trials
        if "failed" in rerun
        and status_group(states.get(trial.trial_id, TrialState.NEW)) in UNFINISHED
    }
    return RerunSelection(
        named | failed | {trial.trial_id for trial in trials if "all" in rerun}, named
    )


def find_trial(word: str, trials: Sequence[TrialSpec], flag: str = "--rerun") -> TrialSpec:
    """Returns the trial whose id begins with `word`, the value of `flag`.

    Raises UnknownTrial unless exactly one does.
    """
    matches = [trial for trial in trials if trial.trial_id.startswith(word)] if word else []
    if len(matches) == 1:
        return matches[0]
    ids = [trial.trial_id for trial in matches]
    if matches:
        more = " ..." if len(ids) > MAX_NAMED else ""
        raise UnknownTrial(
            f"{flag} {word}: {len(ids)} trial ids begin with this:"
            f" {', '.join(ids[:MAX_NAMED])}{more}. Write more characters."
        )
    hint = did_you_mean(word, [trial.trial_id for trial in trials])
    raise UnknownTrial(
        f"{flag} {word}: no trial id of this sweep begins with this.{hint} --dry-run prints the id"
        " of every trial."
    )


class Rerun(NamedTuple):
    """Identifies a rerun that has begun, as recorded in the TAG of the sweep's run.

    Every attempt of the rerun has the rerun's `id` in a tag of the same name, TAG.
    """

    id: str
    digest: str  # of the words, of which there may be thousands
    words: str  # as messages show them
    began: str  # local time, for messages

    @classmethod
    def create(cls, words: Sequence[str]) -> "Rerun":
        """Creates a rerun with a new id, which begins now."""
        return cls(
            uuid.uuid4().hex[:12],
            _digest(words),
            _format_words(words),
            time.strftime("%Y-%m-%d %H:%M"),
        )

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Rerun | None":
        """Returns the rerun that the tags of the sweep's run record, or None."""
        return cls(**json.loads(tags[TAG])) if TAG in tags else None

    def to_json(self) -> str:
        """Returns the value of the tag that records this rerun."""
        return json.dumps(self._asdict())


def choose_rerun(words: Sequence[str], interrupted: Rerun | None) -> Rerun | None:
    """Returns the rerun of this launch, or None without `words`.

    The `interrupted` rerun continues if its words are the same. Otherwise a new rerun begins.
    """
    if interrupted and words and interrupted.digest == _digest(words):
        return interrupted
    return Rerun.create(words) if words else None


def counted_runs(
    runs: "Iterable[Run]", selection: RerunSelection, rerun: Rerun | None
) -> "list[Run]":
    """Returns the runs that count.

    Runs of selected trials count only if `rerun` has started them.
    """
    rerun_id = rerun and rerun.id
    return [
        run
        for run in runs
        if run.data.tags["trial_id"] not in (selection.ids or ())
        or run.data.tags.get(TAG) == rerun_id
    ]


def rerun_messages(
    interrupted: Rerun | None,
    current: Rerun | None,
    pending: Iterable[TrialSpec],
    states: Mapping[str, str],
) -> list[str]:
    """Returns a line on whether this launch drops or continues an `interrupted` rerun.

    `current` is the rerun of this launch, and `pending` are the trials to run. `states` holds the
    trials' states, computed from the runs that count. Returns no line without an interrupted rerun.
    """
    if interrupted is None:
        return []
    if current != interrupted:
        return [
            f"drops the unfinished {interrupted.words} of {interrupted.began}; the same options"
            " would continue it"
        ]
    count = sum(
        status_group(states.get(trial.trial_id, TrialState.NEW)) in (StatusGroup.NEW, *INTERRUPTED)
        for trial in pending
    )
    have = "1 trial has" if count == 1 else f"{count} trials have"
    return [f"continues {interrupted.words} of {interrupted.began}: {have} not run since"]


def _digest(words: Sequence[str]) -> str:
    """Returns a digest of the words, regardless of their order."""
    return hashlib.sha256(json.dumps(sorted(set(words))).encode()).hexdigest()[:16]


def _format_words(words: Sequence[str]) -> str:
    """Returns the words as options: '--rerun failed --rerun 5a149c9580ac and 12 more'."""
    more = f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
    return " ".join(f"--rerun {word}" for word in words[:MAX_NAMED]) + more
