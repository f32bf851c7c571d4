"""The tracker as such: where it is, a client of it, and all runs that match a query."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.away import ALWAYS, PATIENCE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000  # runs that MLflow is asked for at a time


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


def search_all(client: "MlflowClient", experiment_id: str, query: str) -> "list[Run]":
    """Every run that matches, newest first, page by page."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=PAGE, order_by=["attributes.start_time DESC"], page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs
