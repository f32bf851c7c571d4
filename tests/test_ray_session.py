"""The end of a session that has lost what it needs: late, or in time and followed by another."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys, time
from pathlib import Path
from sweeps import environment
from sweeps.execution import ray_session
from sweeps.host.node import Node
environment.apply()
ray_session.SHUTDOWN_S, ray_session.POLL_S = float(sys.argv[2]), 0.1
try:
    with (
        ray_session.start_own_ray(Node((), (0,)), {"CPU": 1}, Path(sys.argv[1], "note")) as session,
        ray_session.watch_processes(session.needed, lambda: "planted problem."),
    ):
        time.sleep(60)
except ray_session.RayEnded as problem:
    time.sleep(float(sys.argv[3]))
    print("goes on after", problem)
"""


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize(
    ("limit_s", "then_s", "status"), [(20.0, 22.0, 0), (0.0, 0.0, 1)], ids=["in time", "late"]
)
def test_a_session_that_ends_in_time_leaves_the_launch_going_on(
    tmp_path, limit_s: float, then_s: float, status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(limit_s), str(then_s)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert ("goes on after planted problem." in done.stdout) is (status == 0)
