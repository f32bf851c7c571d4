"""Connects to the tracker, and searches it.

It creates the client and the experiment, and returns all runs that match a query. run_queries.py
holds the queries.
"""

import contextlib
import functools
import gc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sweeps import environment
from sweeps.environment_variables import MLFLOW_SETTINGS
from sweeps.output import mask_passwords
from sweeps.tracking import artifacts, notes
from sweeps.tracking.database import TrackerUnusable

# Re-exported, for modules that access the tracker by this module alone
from sweeps.tracking.database import database_file as database_file
from sweeps.tracking.database import mlflow_uri as mlflow_uri
from sweeps.tracking.database import resolve_uri as resolve_uri
from sweeps.tracking.database_schema import check_usable
from sweeps.tracking.tracker_errors import TrackerUnavailable as TrackerUnavailable
from sweeps.tracking.tracker_errors import translate_tracker_errors as translate_tracker_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE_RUNS = 1000  # runs a request
FIRST_PAGE_RUNS = 50  # runs of the first request to a server
PARALLEL_REQUESTS = 4  # to a server, the number of processes that MLflow starts


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Pauses garbage collection.

    MLflow creates a hundred objects for every run. Inspecting them repeatedly would take longer
    than all other work.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@pause_garbage_collection()
def connect(uri: str, read_only: bool = False) -> "MlflowClient":
    """Returns a client of the tracker at a resolved URI.

    MLflow's telemetry and its messages on stderr are switched off. A `read_only` client can't
    write. Raises TrackerUnusable if this MLflow can't use the database or would have to migrate it,
    and with `read_only` also if the database is empty.
    """
    environment.apply(*MLFLOW_SETTINGS)
    # On import and on the first query MLflow's dependencies emit deprecation warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        if not uri.startswith("http") and not check_usable(uri):
            if read_only:
                raise TrackerUnusable(
                    f"the database {mask_passwords(uri)} is empty. Run a sweep first, or name"
                    " another database with --uri."
                )
            _initialize(uri)
        client = MlflowClient(mlflow_uri(uri, read_only))
        client.search_experiments(max_results=1)
    return client


def _initialize(uri: str) -> None:
    """Creates MLflow's tables in a database file.

    The folder of MLflow's default experiment is passed explicitly, because MLflow would insert the
    current folder's path into SQL without quoting it.
    """
    if file := database_file(uri):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(
            mlflow_uri(uri), artifacts.format_location(file.resolve().parent / "mlruns")
        )


def get_or_create_experiment(client: "MlflowClient", name: str, location: str | None) -> str:
    """Returns an experiment's id, and creates the experiment if it does not exist.

    `location` is the URI of a new experiment's artifacts. Raises ValueError if the experiment
    was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, artifact_location=location, tags=notes.EXPERIMENT_TAGS)
        except MlflowException as error:
            # Another process created it meanwhile
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise ValueError(
            f"experiment {name!r} was deleted in MLflow. Restore it there, or set"
            " tracking.experiment to another name."
        )
    return experiment.experiment_id


@pause_garbage_collection()
def search_all(client: "MlflowClient", experiment_id: str, query: str) -> "list[Run]":
    """Returns all runs that match a query, newest first.

    A server process needs seconds for a thousand runs, and a server has several processes. Parallel
    requests therefore fetch one share apiece, by the first digit of the runs' random ids.
    """
    is_server = client.tracking_uri.startswith("http")
    first_page, next_token = _search_page(
        client, experiment_id, query, FIRST_PAGE_RUNS if is_server else PAGE_RUNS
    )
    if not next_token:
        return first_page
    if not is_server:
        return first_page + _search_pages(client, experiment_id, query, next_token)
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        queries = [f"{query} and attributes.run_id LIKE '{digit}%'" for digit in "0123456789abcdef"]
        shares = pool.map(functools.partial(_search_pages, client, experiment_id), queries)
        return sorted(
            (run for share in shares for run in share),
            key=lambda run: run.info.start_time,
            reverse=True,
        )


def _search_pages(
    client: "MlflowClient", experiment_id: str, query: str, token: str | None = None
) -> "list[Run]":
    """Returns the runs of all pages, or of those from the page `token` on."""
    runs: list[Run] = []
    while True:
        page, token = _search_page(client, experiment_id, query, PAGE_RUNS, token)
        runs += page
        if not token:
            return runs


def _search_page(
    client: "MlflowClient", experiment_id: str, query: str, limit: int, token: str | None = None
) -> "tuple[list[Run], str | None]":
    """Returns at most `limit` runs, and the token of the next page or None."""
    page = client.search_runs(
        [experiment_id],
        query,
        max_results=limit,
        order_by=["attributes.start_time DESC"],
        page_token=token,
    )
    return list(page), page.token or None


# For modules that access the tracker by this module alone
artifact_names, artifact_text = artifacts.list_names, artifacts.read_text
