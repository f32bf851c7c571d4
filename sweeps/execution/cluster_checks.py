"""Checks before a launch on a cluster that all machines reach one tracker and respect each other's
locks.

The functions take the raylets of every machine, by machine identity.
"""

import platform
from collections.abc import Mapping, Sequence

from sweeps.config.config import SweepConfig
from sweeps.execution.cluster_join import Raylet
from sweeps.host import host_lock
from sweeps.host.node import PreflightError
from sweeps.tracking.database import database_file, resolve_uri

NEEDS_SERVER = """tracking.uri {uri} is a file on one machine, but trials run on {machines}. Start a server that all of them reach:
  mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts '*' --artifacts-destination /srv/mlflow \\
      --backend-store-uri postgresql+psycopg://USER:PASSWORD@localhost/mlflow
and write tracking: {{uri: http://{name}:5000}}."""  # noqa: E501


def check_tracker(config: SweepConfig, machines: Mapping[str, Sequence[Raylet]]) -> None:
    """Raises PreflightError if the tracker is a file and trials would run on more than one
    machine.
    """
    if len({host_lock.identity(), *machines}) > 1 and database_file(
        resolve_uri(config.tracking.uri)
    ):
        names = {platform.node(), *(raylets[0].introduction.name for raylets in machines.values())}
        values = {
            "uri": config.tracking.uri,
            "machines": ", ".join(sorted(names)),
            "name": platform.node(),
        }
        raise PreflightError(NEEDS_SERVER.format(**values))


def check_locks(machines: Mapping[str, Sequence[Raylet]]) -> None:
    """Raises PreflightError if raylets of one machine do not share its lock file.

    Containers of one machine may each have their own /tmp.
    """
    for raylets in machines.values():
        if len({raylet.introduction.lock for raylet in raylets}) > 1:
            names = ", ".join(sorted({raylet.introduction.name for raylet in raylets}))
            raise PreflightError(
                f"{names} are one machine but do not share {host_lock.LOCK}, so their trials"
                " would disturb each other. Let them share /tmp, start Ray in only one of"
                " them, or write resources: {exclusive_node: false}."
            )
