"""Finds the runs of a sweep in the tracker, and reads from them which trials are settled.

A sweep is a parent run and a trial is a child of it. A further attempt at the same trial is another
child with the same trial id.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from speech.spelling import did_you_mean
from sweeps.output import mask_passwords
from sweeps.tracking import artifacts
from sweeps.tracking.database import database_file, resolve_uri
from sweeps.tracking.mlflow_client import connect, search_all
from sweeps.trial_states import SETTLED, Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"


def find_sweep(name: str, uri: str, experiment: str) -> "tuple[MlflowClient, Run]":
    """Returns a client of the tracker and the sweep's parent run.

    Raises LookupError, with a list of the existing ones, if the database, the experiment or the
    sweep does not exist. It never creates a database.
    """
    uri = resolve_uri(uri)
    file = database_file(uri)
    if file and not file.exists():  # MLflow would create an empty database
        raise LookupError(
            f"no tracking database at {file}. Run a sweep first, or name another database with"
            " --uri."
        )
    client = connect(uri, read_only=True)
    uri = mask_passwords(uri)
    entity = client.get_experiment_by_name(experiment)
    if entity is None:
        experiment_names = [known.name for known in client.search_experiments()]
        raise LookupError(
            f"no experiment {experiment!r} at {uri}. Existing: {', '.join(experiment_names)}."
        )
    sweeps = sweeps_by_name(client, entity.experiment_id)
    if name in sweeps:
        return client, sweeps[name]
    existing = f"Existing: {', '.join(sweeps)}." if sweeps else "The experiment has no sweep yet."
    hint = did_you_mean(name, list(sweeps))
    raise LookupError(f"no sweep {name!r} in experiment {experiment!r} at {uri}. {existing}{hint}")


def sweeps_by_name(client: "MlflowClient", experiment_id: str) -> "dict[str, Run]":
    """Returns the parent runs of all sweeps of an experiment, by the sweep's name, newest first."""
    sweeps: dict[str, Run] = {}
    for run in search_all(client, experiment_id, "tags.kind = 'sweep'"):
        sweeps.setdefault(run.data.tags["sweep"], run)
    return sweeps


def plan_rows(client: "MlflowClient", parent: "Run") -> list[dict[str, Any]]:
    """Returns the latest plan of a sweep, one row a trial, as `RunLogger.log_plan` received it."""
    return json.loads(artifacts.read_text(client, parent.info.run_id, "plan.json"))


class UnreadableRecords(LookupError):
    """Reports a sweep that another version of this project has recorded."""


def trial_runs(client: "MlflowClient", parent: "Run") -> "list[Run]":
    """Returns the runs of all attempts at the trials of a sweep, newest first.

    Raises UnreadableRecords if one of them has no trial id.
    """
    query = f"tags.kind = 'trial' and tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
    runs = search_all(client, parent.info.experiment_id, query)
    if any("trial_id" not in run.data.tags for run in runs):
        raise UnreadableRecords(
            f"sweep {parent.data.tags.get('sweep')} was recorded by another version of this"
            " project, which identifies trials in another way. Read it with that version, or give"
            " the sweep another name."
        )
    return runs


def settled_outcomes(runs: "Iterable[Run]") -> dict[str, str]:
    """Returns, by trial id, the outcome of the latest settled run; `runs` are newest first."""
    settled: dict[str, str] = {}
    for run in runs:
        outcome = run.data.tags.get("outcome")
        if outcome in SETTLED and run.info.status != "RUNNING":
            settled.setdefault(run.data.tags["trial_id"], outcome)
    return settled


def disturbed_ids(runs: "Iterable[Run]") -> set[str]:
    """Returns the ids of trials that were disturbed from outside and have not been run again.

    A second run that failed counts as a run. `runs` are trials, newest first.
    """
    latest: dict[str, Mapping[str, str]] = {}  # trial_id -> tags
    settled: Counter[str] = Counter()
    for run in runs:
        tags = run.data.tags
        if run.info.status != "RUNNING" and tags.get("outcome") != Outcome.INTERRUPTED:
            latest.setdefault(tags["trial_id"], tags)
            settled[tags["trial_id"]] += tags.get("outcome") in SETTLED
    return {
        trial_id
        for trial_id, tags in latest.items()
        if "disturbed" in tags and tags.get("outcome") in SETTLED and settled[trial_id] == 1
    }


def runs_of_attempt(
    client: "MlflowClient", experiment_id: str, attempt_id: str | None
) -> "list[Run]":
    """Returns the runs of an attempt, newest first; none if `attempt_id` is None."""
    if attempt_id is None:
        return []
    return search_all(client, experiment_id, f"tags.attempt_id = '{attempt_id}'")


def is_abandoned(client: "MlflowClient", run_id: str) -> bool:
    """Returns whether the launch lost contact with this attempt and abandoned it.

    The launch then has closed the attempt's run, or has started another attempt in its place.
    """
    run = client.get_run(run_id)
    if run.info.status == "KILLED":
        return True
    tags, query = run.data.tags, "tags.`{}` = '{}' and tags.trial_id = '{}'"
    others = search_all(
        client,
        run.info.experiment_id,
        query.format(PARENT_TAG, tags.get(PARENT_TAG), tags.get("trial_id")),
    )
    return any(
        other.info.start_time > run.info.start_time
        and int(other.data.tags.get("attempt", 0)) >= int(tags.get("attempt", 1))
        for other in others
    )
