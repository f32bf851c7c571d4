"""Closes the runs that a killed launch has not closed, on all machines of its cluster.

The launch's janitor runs this module in the launch's environment, once the launch has ended.

    python -m sweeps.execution.closing auto head:6379 /srv/speech/.sweeps/first-look

Every machine ends the attempts of relays that have died, in its own folder of the sweep, and sends
their records (outbox_recovery.end_and_flush_all). An outbox that a relay holds is not touched, so
that other launches may run meanwhile. What cannot be done now is left to the next launch.
"""

import sys
from pathlib import Path

from sweeps.execution.cluster_join import RESPONSE_TIMEOUT_S, connect, on_node, resolve_address
from sweeps.tracking import outbox_recovery

TRACKER_TIMEOUT_S = 20.0  # for how long a machine tries to reach the tracker


def command(configured_address: str, address: str, folder: Path) -> list[str]:
    """Returns the command that closes the runs.

    `configured_address` is the address as in the YAML, `address` the host:port of the head,
    `folder` that of the sweep.
    """
    return [
        sys.executable,
        "-P",
        "-m",
        "sweeps.execution.closing",
        configured_address,
        address,
        str(folder),
    ]


def close(configured_address: str, address: str, folder: Path) -> None:
    """Closes the runs on all machines of the cluster; its parameters are those of `command`."""
    import ray

    resolve_address(address)  # raises, where Ray would wait for a head that has ended
    connect(configured_address, address)
    work = ray.remote(outbox_recovery.end_and_flush_all)
    nodes = [
        node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    ]
    results = [
        on_node(work, node, num_cpus=0, max_retries=0).remote(folder, TRACKER_TIMEOUT_S)
        for node in nodes
    ]
    ray.wait(results, num_returns=len(results), timeout=RESPONSE_TIMEOUT_S)
    ray.shutdown()


if __name__ == "__main__":
    close(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
