"""The tracker as such: where it is, a client of it, all runs that match a query, and a sweep by its name."""

import contextlib
import difflib
import functools
import gc
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.away import ALWAYS, PATIENCE
from sweeps.away import TrackerAway as TrackerAway  # for who asks the tracker by this module alone
from sweeps.away import asked as asked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000  # runs that MLflow is asked for at a time
FEW = 50  # so many a server gives at once
SIDE_BY_SIDE = 4  # questions to a server, as many as the processes that MLflow starts


def resolve_uri(uri: str) -> str:
    """'sqlite:///mlflow.db' -> 'sqlite:////home/me/mlflow.db': relative to the current directory, once; servers pass unchanged.

    ValueError for a folder or a file: URI, which MLflow no longer takes.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme == "file":
        raise ValueError(
            f"tracking uri {uri!r}: MLflow keeps runs in a database. Write sqlite:///mlflow.db, or a server's http://host:5000"
        )
    return f"sqlite:///{Path(rest.removeprefix('/')).absolute()}" if scheme == "sqlite" else uri


def database_file(uri: str) -> Path | None:
    """The file of a resolved sqlite URI; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: MLflow makes a hundred objects of a run, and looking at them over and over takes longer than all else."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@uncollected()
def connect(uri: str) -> "MlflowClient":
    """A client of the tracker at a resolved URI, without telemetry and without MLflow's chatter on stderr."""
    os.environ |= ALWAYS
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():  # MLflow trips over deprecations of its own dependencies on import and on the first query
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@uncollected()
def search_all(client: "MlflowClient", experiment_id: str, query: str) -> "list[Run]":
    """Every run that matches, newest first.

    A server takes seconds of one of its processes for a thousand, and has several: it is asked for shares side by side, by the first
    digit of the runs' ids, which are random.
    """
    few, more = _page(client, experiment_id, query, FEW if client.tracking_uri.startswith("http") else PAGE)
    if not more:
        return few
    if not client.tracking_uri.startswith("http"):
        return few + _pages(client, experiment_id, query, more)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        queries = [f"{query} and attributes.run_id LIKE '{digit}%'" for digit in "0123456789abcdef"]
        shares = pool.map(functools.partial(_pages, client, experiment_id), queries)
        return sorted((run for share in shares for run in share), key=lambda run: run.info.start_time, reverse=True)


def _pages(client: "MlflowClient", experiment_id: str, query: str, token: str | None = None) -> "list[Run]":
    """All pages, or those from `token` on."""
    runs: list[Run] = []
    while True:
        page, token = _page(client, experiment_id, query, PAGE, token)
        runs += page
        if not token:
            return runs


def _page(client: "MlflowClient", experiment_id: str, query: str, most: int, token: str | None = None) -> "tuple[list[Run], str | None]":
    page = client.search_runs([experiment_id], query, max_results=most, order_by=["attributes.start_time DESC"], page_token=token)
    return list(page), page.token or None


def find_sweep(name: str, uri: str, experiment: str) -> "tuple[MlflowClient, Run]":
    """The tracker and the sweep's parent run, or a LookupError that says what there is. Makes no database."""
    uri = resolve_uri(uri)
    file = database_file(uri)
    if file and not file.exists():  # MLflow would make an empty database here
        raise LookupError(f"no tracking database at {file}. Run a sweep first, or name another database with --uri.")
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        there = [each.name for each in client.search_experiments()]
        raise LookupError(f"no experiment {experiment!r} at {uri}. There are: {', '.join(there)}.")
    sweeps = search_all(client, found.experiment_id, "tags.kind = 'sweep'")
    for run in sweeps:
        if run.data.tags["sweep"] == name:
            return client, run
    there = [run.data.tags["sweep"] for run in sweeps]
    near = difflib.get_close_matches(name, there, 1)
    listed = f"There are: {', '.join(there)}." if there else "It holds no sweep yet."
    raise LookupError(f"no sweep {name!r} in experiment {experiment!r} at {uri}. {listed}" + (f" Did you mean {near[0]}?" if near else ""))


def plan_rows(client: "MlflowClient", parent: "Run") -> list[dict[str, Any]]:
    """The latest plan of a sweep, a row a trial, as `Tracking.log_plan` took it."""
    return json.loads(artifact_text(client, parent, "plan.json"))


def artifact_text(client: "MlflowClient", run: "Run", path: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        return Path(client.download_artifacts(run.info.run_id, path, scratch)).read_text("utf-8")
