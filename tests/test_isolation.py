"""Tests isolation with real process trees. The /dev/shm and the process list of the host, which
they must not change, are checked from outside."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from speech.config import Trial
from speech.shm_usage import PAGE_BYTES, shm_usage
from sweeps.sandbox.isolation import ForkServer, Task
from sweeps.sandbox.outcome import classify
from sweeps.sandbox.private_shm import IsolationError, enter_namespaces
from tests.trees import ROOT, can_isolate, descendants, finish, trees, wait_until

NOBODY = 65534
PR_SET_DUMPABLE = 4


pytestmark = [
    pytest.mark.quiet,
    pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces"),
]


@pytest.fixture(scope="module")
def template():
    made = ForkServer(ROOT)
    yield made
    made.close()


def training(
    tone_trial,
    folder: Path,
    shm_bytes: int | None = None,
    step_s: float = 0.001,
    ranks: int = 1,
    **loader,
) -> Task:
    """Returns a simulated trial with batches of four pictures of 3 x 224 x 224: 2.3 MiB a batch."""
    config = tone_trial(
        device={"prefer": ["simulated"], "step_s": step_s, "ranks": ranks},
        loader={"format": "png", **loader},
    )
    return Task(
        "train",
        Trial(config=config, seed=1, warmup_epochs=0, folder=str(folder)).model_dump(),
        shm_bytes=shm_bytes,
    )


@pytest.fixture(autouse=True, scope="module")
def pictures(template, tone_trial, tmp_path_factory) -> None:
    log = tmp_path_factory.mktemp("prepare") / "log"
    *_, ending = template.run(
        Task("prepare", tone_trial(loader={"format": "png"}).model_dump(), private=False), log
    )
    assert ending["status"] == 0, log.read_text()


@pytest.mark.parametrize("size", [1 << 20, 64 << 20, (3 << 20) + 5])
def test_a_tree_has_a_shm_of_its_own_size_and_the_hosts_stays(
    template, tmp_path, size: int
) -> None:
    before = shm_usage()
    *_, ending = template.run(Task("list_gpus", {}, shm_bytes=size), tmp_path / "log")
    assert ending["status"] == 0
    assert ending["shm_limit_bytes"] == -(-size // PAGE_BYTES) * PAGE_BYTES
    assert shm_usage().limit_bytes == before.limit_bytes
    assert not [
        mount
        for mount in Path("/proc/mounts").read_text().splitlines()
        if f"size={size // 1024}k" in mount
    ]


def test_without_a_size_it_has_one_of_its_own_as_large_as_the_nodes(template, tmp_path) -> None:
    """Expects a private /dev/shm, so that nothing that a killed worker leaves there stays."""
    with open("/dev/shm/of-the-node", "wb") as file:
        file.write(bytes(1 << 20))
    try:
        *_, ending = template.run(Task("list_gpus", {}), tmp_path / "log")
        assert ending["status"] == 0
        assert ending["shm_limit_bytes"] == shm_usage().limit_bytes
        assert ending["shm_unrelated_bytes"] == 0 < shm_usage().used_bytes
    finally:
        os.unlink("/dev/shm/of-the-node")


def test_modules_in_the_folder_of_a_launch_are_not_taken_for_ours(tmp_path) -> None:
    for name in ("select.py", "speech.py", "sweeps.py"):
        (tmp_path / name).write_text("raise RuntimeError('a stranger was imported')")
    made = ForkServer(tmp_path)
    try:
        *_, ending = made.run(Task("list_gpus", {}), tmp_path / "log")
        assert ending["status"] == 0
    finally:
        made.close()


def as_nobody(dumpable: bool) -> str:
    """Forks a child that becomes an ordinary user and asks for a /dev/shm of 2 MiB. Returns the
    size of its /dev/shm, or the error."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            # 1: as for a process that was never root
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)
            enter_namespaces(2 << 20)
            said = str(shm_usage().limit_bytes)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pipe.read()


@pytest.mark.skipif(
    os.getuid() != 0,
    reason="becomes another user, which needs root; as an ordinary user all tests here try it",
)
def test_an_ordinary_user_gets_one_too() -> None:
    assert as_nobody(dumpable=True) == str(2 << 20)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which needs root")
def test_where_it_is_forbidden_an_error_says_so() -> None:
    error = as_nobody(dumpable=False)
    assert error.startswith(IsolationError.__name__)
    assert "/proc/self/setgroups " in error
    assert os.strerror(errno.EACCES) in error


def test_a_trial_that_fits_completes_and_its_peak_is_the_bound_to_the_page(
    template, tone_trial, tmp_path
) -> None:
    """Expects min(2, 3) + 1 batches and the queues' semaphores: 1 worker, prefetch 2."""
    records, outcome = finish(
        template,
        training(tone_trial, tmp_path, shm_bytes=64 << 20, step_s=0.3, num_workers=1),
        tmp_path,
    )
    batch = next(record for record in records if record["kind"] == "setup")["batch_bytes"]
    assert outcome.outcome == "completed"
    assert batch == 4 * 3 * 224 * 224 * 4 + PAGE_BYTES
    assert records[-1]["shm_peak_bytes"] == 3 * batch + PAGE_BYTES * (3 * 2 + 5)
    assert (
        next(r for r in records if r["kind"] == "epoch")["metrics"]["shm/peak_bytes"]
        == records[-1]["shm_peak_bytes"]
    )


def test_an_overflow_is_its_own_outcome_with_its_figures(template, tone_trial, tmp_path) -> None:
    before = shm_usage().used_bytes
    _, outcome = finish(
        template,
        training(tone_trial, tmp_path, shm_bytes=4 << 20, step_s=0.2, num_workers=2),
        tmp_path,
    )
    assert outcome.outcome == "shm_exhausted"
    assert "/dev/shm of 4.0 MiB" in outcome.evidence
    assert "2.3 MiB a batch" in outcome.evidence
    assert shm_usage().used_bytes == before


def test_no_worker_outlives_its_trial(template, tone_trial, tmp_path) -> None:
    task = training(tone_trial, tmp_path, shm_bytes=64 << 20, step_s=30.0, num_workers=2)
    records = template.run(task, tmp_path / "stderr.log", timeout_s=4)
    assert next(records)["kind"] == "setup"
    assert wait_until(lambda: len(trees(template)) >= 5)  # supervisor, init, training, two workers
    ending = list(records)[-1]
    assert classify(None, ending, None, "").outcome == "timeout"
    assert wait_until(lambda: not trees(template)), "only the template is left"


def test_leaving_early_kills_the_tree(template, tone_trial, tmp_path) -> None:
    records = template.run(
        training(tone_trial, tmp_path, step_s=30.0, num_workers=1), tmp_path / "stderr.log"
    )
    next(records)
    records.close()
    assert wait_until(lambda: not trees(template))


@pytest.mark.parametrize(
    ("private", "ranks"),
    [(True, 1), (False, 1), (False, 2), pytest.param(True, 2, marks=pytest.mark.slow)],
)
def test_when_the_parent_is_killed_the_whole_tree_dies(
    tone_trial, tmp_path, private: bool, ranks: int
) -> None:
    task = training(
        tone_trial,
        tmp_path,
        shm_bytes=64 << 20 if private else None,
        step_s=30.0,
        ranks=ranks,
        num_workers=2,
        batch_size=2,
    )
    code = f"""
import sys
from pathlib import Path
from sweeps.sandbox.isolation import ForkServer, Task
for record in ForkServer().run(Task("train", {task.arguments!r}, {private}, {task.shm_bytes!r}), Path({str(tmp_path / "log")!r})):
    print(record["kind"], flush=True)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "setup\n"
    assert wait_until(lambda: len(descendants(parent.pid)) >= 3 + 3 * ranks)
    tree = descendants(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(
        lambda: (
            not any(
                process.is_running() and process.status() != psutil.STATUS_ZOMBIE
                for process in tree
            )
        )
    )


def test_many_trees_leave_the_template_as_it_was(template, tmp_path) -> None:
    process = psutil.Process(template._process.pid)
    before = process.num_fds(), process.num_threads()
    for _ in range(20):
        *_, ending = template.run(Task("list_gpus", {}, shm_bytes=1 << 20), tmp_path / "log")
        assert ending["status"] == 0
    assert (process.num_fds(), process.num_threads()) == before
    assert wait_until(lambda: not trees(template))


def test_a_tree_that_is_killed_from_outside_ends_without_a_status(
    template, tone_trial, tmp_path
) -> None:
    records = template.run(training(tone_trial, tmp_path, step_s=30.0), tmp_path / "stderr.log")
    next(records)
    trees(template)[0].kill()
    assert list(records)[-1] == {"kind": "exit", "status": None}


def test_an_ended_template_says_so(tmp_path) -> None:
    ended = ForkServer(ROOT)
    ended._process.kill()
    ended._process.wait()
    with pytest.raises(RuntimeError, match="has ended"):
        list(ended.run(Task("list_gpus", {}), tmp_path / "log"))
    ended.close()
