"""A tree on the node's own /dev/shm, where no namespace ends it: whoever of init and supervisor is
left does."""

import os
from pathlib import Path

import psutil
import pytest

from speech.shm_usage import shm_usage
from sweeps.sandbox.isolation import ForkServer, Task
from tests.trees import ROOT, trees, wait_until


@pytest.fixture(scope="module")
def template():
    made = ForkServer(ROOT, tasks="tests.provoked")
    yield made
    made.close()


def in_shm() -> set[str]:
    return {
        name
        for name in os.listdir("/dev/shm")
        if name.startswith(("torch_", "sem.", "of-a-library"))
    }


@pytest.mark.parametrize("link", ["supervisor", "sweep-init", "sweep-trial", "worker"])
def test_no_process_and_no_name_is_left_whichever_link_is_killed(
    template, tmp_path, link: str
) -> None:
    before, used = in_shm(), shm_usage().used_bytes
    task = Task(
        "loop", {"num_workers": 2, "step_s": 30.0, "accident": "hold_names", "at": 3}, private=False
    )
    records = template.run(task, tmp_path / "log")
    assert next(records)["kind"] == "setup"
    assert wait_until(lambda: len(in_shm() - before) == 2), (
        "a semaphore and a segment that a worker holds by name"
    )
    supervisor, *below = trees(template)
    named = {process.name(): process for process in below}
    worker = next(process for process in below if process.parent() == named["sweep-trial"])
    {"supervisor": supervisor, "worker": worker}.get(link, named.get(link)).kill()
    if link == "worker":
        ending = list(records)[-1]
        assert ending["status"] == 1, "the loop is told of it by torch"
    elif link == "sweep-trial":
        assert list(records)[-1]["status"] == -9
    else:
        assert list(records)[-1]["status"] is None
    assert wait_until(lambda: not trees(template))
    assert wait_until(lambda: in_shm() <= before), in_shm() - before
    assert wait_until(lambda: shm_usage().used_bytes <= used)


def test_what_lay_in_shm_before_stays_whoever_opens_it(template, tmp_path) -> None:
    folder, file = Path("/dev/shm/a-strangers-folder"), Path("/dev/shm/a-strangers-file")
    folder.mkdir()
    file.write_text("precious")
    try:
        *_, ending = template.run(
            Task("accident", {"accident": "open_strangers"}, private=False), tmp_path / "log"
        )
        assert ending["status"] == 7
        assert file.read_text() == "precious"
        assert folder.is_dir()
    finally:
        file.unlink(missing_ok=True)
        folder.rmdir()


def test_a_process_that_left_its_session_and_lost_its_parent_ends_with_the_tree(
    template, tmp_path
) -> None:
    records = list(
        template.run(Task("accident", {"accident": "daemon"}, private=False), tmp_path / "log")
    )
    pid = int(Path(tmp_path / "log").read_text())
    assert records[-1]["status"] == 0
    assert not psutil.pid_exists(pid)
