"""kill -9 of each link of a real launch: what is left ten seconds later, and what the next launch
makes of it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from speech.shm_usage import shm_usage
from sweeps.environment import with_project
from sweeps.sandbox.janitor import MARK, clean_after_crash, clean_up
from tests.sampling import sample
from tests.trees import ROOT, can_isolate, descendants, wait_until

SWEEP = """
name: links
calibrate: false
warmup_epochs: 0
repeats: 2
resources: {{shm: {shm}}}
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{format: png, batch_size: 4, num_workers: 2}}
  device: {{prefer: [simulated], step_s: 0.4}}
  sgdr: {{epochs: 4}}
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For TMPDIR: sockets in it have paths that are limited to 107 letters, which pytest's own
    folders would use up."""
    folder = Path(tempfile.mkdtemp(prefix="links-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def launch(folder: Path, temporary: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ROOT / "launch.py", "sweep.yaml"], cwd=folder, env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def links(launched: int) -> dict[str, psutil.Process]:
    """The chain of a running trial, from launch.py to a loader worker; incomplete while it starts."""
    found = {"launch.py": psutil.Process(launched)}
    for process in descendants(launched):
        try:
            parent, words = process.parent(), process.cmdline()
            name = process.name()
        except psutil.Error:
            continue
        if name in ("raylet", "gcs_server", "sweep-init"):
            found[name] = process
        elif name == "sweep-trial" and parent and parent.name() == "sweep-init":
            found["training"] = process
        elif parent and parent == found.get("training"):
            found["worker"] = process
        elif "sweeps.sandbox.isolation" in words and parent and parent.name().startswith("ray::"):
            found["fork server"], found["actor"] = process, parent
    return found


LINKS = (
    "launch.py",
    "raylet",
    "gcs_server",
    "actor",
    "fork server",
    "sweep-init",
    "training",
    "worker",
)
CRASHED = {"fork server", "sweep-init", "training", "worker"}  # whose end the actor sees and files
MENDED = {
    "raylet": r"Ray's raylet was killed .* 2 of 2 \(max_restarts\)",
    "gcs_server": r"Ray's gcs_server was killed .* 2 of 2 \(max_restarts\)",
    "actor": r"runs once more, 1 of 1 \(max_restarts\)",
}  # what is said where the same launch goes on


# In four days CI takes every case, and on each day both kinds of /dev/shm
CASES = [
    (link, shm)
    for number, link in enumerate(LINKS)
    for shm in (("private", "host") if number // 2 % 2 == 0 else ("host", "private"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("link", "shm"), sample(CASES))
def test_nothing_is_left_ten_seconds_after_a_link_was_killed(
    tones, tmp_path, short_folder, link: str, shm: str
) -> None:
    folder, temporary = tmp_path, short_folder
    if shm == "private" and not can_isolate():
        pytest.skip("this machine forbids mount namespaces")
    (folder / "sweep.yaml").write_text(SWEEP.format(tones=tones, shm=shm))
    before, mounts, used = (
        set(os.listdir("/dev/shm")),
        Path("/proc/mounts").read_text(),
        shm_usage().used_bytes,
    )
    running = launch(folder, temporary)
    assert wait_until(lambda: set(links(running.pid)) == set(LINKS), seconds=120), links(
        running.pid
    )
    chain = links(running.pid)
    tree = [
        process
        for process in descendants(running.pid)
        if "sweep" in process.name() or process == chain["worker"]
    ]
    everything = [*descendants(running.pid), *marked(temporary)]
    chain[link].kill()
    killed = time.monotonic()
    if link == "launch.py":
        assert wait_until(
            lambda: not alive(everything) and not os.listdir(temporary), seconds=10
        ), (
            alive(everything),
            list(temporary.iterdir()),
        )
    else:
        assert wait_until(lambda: not alive(tree), seconds=10 - (time.monotonic() - killed)), alive(
            tree
        )
    out, _ = running.communicate(timeout=240)
    assert running.returncode == (-9 if link == "launch.py" else 0 if link in MENDED else 1), out
    assert re.search(MENDED.get(link, ""), out)
    if link in MENDED:
        assert "2 completed" in out
    assert wait_until(
        lambda: not alive(everything) and not marked(temporary) and not os.listdir(temporary),
        seconds=10,
    ), os.listdir(temporary)
    assert set(os.listdir("/dev/shm")) <= before
    assert shm_usage().used_bytes <= used
    assert Path("/proc/mounts").read_text() == mounts
    if link in CRASHED:
        assert "crashed: " in out
        assert "1 crashed, 1 completed" in out
    assert "Traceback" not in out
    again, _ = (rerun := launch(folder, temporary)).communicate(timeout=240)
    assert rerun.returncode == 0, again
    assert "2 completed" in again
    assert not os.listdir(temporary)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def marked(temporary: Path) -> list[psutil.Process]:
    """What the launches whose folders lie there have started through Ray."""
    mark = f"{MARK}={temporary}".encode()
    return [process for process in psutil.process_iter() if mark in environment_of(process.pid)]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_a_process_whose_mark_is_gone_is_known_by_its_log_and_a_reader_is_a_stranger(
    short_folder,
) -> None:
    (short_folder / "seen").mkdir()
    log = short_folder / "seen" / "log"
    with log.open("w") as writing, log.open() as reading:
        sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
        ours = subprocess.Popen(sleep, env={}, stdout=writing)
        stranger = subprocess.Popen(sleep, env={}, stdin=reading)
    try:
        clean_up(str(short_folder / "seen"), os.getpid())
        assert ours.wait(timeout=5) == -9
        assert stranger.poll() is None
    finally:
        ours.kill()
        stranger.kill()
        stranger.wait()


def test_a_process_that_renamed_itself_and_left_its_session_goes_too(
    short_folder, tmp_path
) -> None:
    code = f"""
import os, subprocess, sys, tempfile
from pathlib import Path
tempfile.tempdir = {str(short_folder)!r}
from sweeps.sandbox.janitor import scratch_dir
with scratch_dir(Path({str(tmp_path)!r}) / "note") as folder:
    (folder / "file").write_text("x")
    child = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'other', 0, 0, 0); time.sleep(1000)"
    print(subprocess.Popen([sys.executable, "-c", child], start_new_session=True).pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=with_project(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9
    assert wait_until(
        lambda: not psutil.pid_exists(int(done.stdout)) and not os.listdir(short_folder), seconds=5
    )


def test_the_next_launch_does_the_work_of_a_janitor_that_was_killed(short_folder) -> None:
    note, folder = short_folder / "note", short_folder / "sweep-planted"
    folder.mkdir()
    note.write_text(str(folder))
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        env={MARK: str(folder)},
        start_new_session=True,
    )
    clean_after_crash(note)
    assert left.wait(timeout=5) == -9
    assert not os.listdir(short_folder)
    clean_after_crash(note)


def test_a_note_without_a_name_ends_nobody(short_folder) -> None:
    note, log = short_folder / "note", short_folder / "log"
    note.touch()
    with log.open("w") as writing:
        stranger = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(1000)"], stdout=writing
        )
    try:
        clean_after_crash(note)
        assert stranger.poll() is None
        assert not note.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_the_note_of_a_launch_that_runs_is_a_copy_and_ends_nobody(short_folder) -> None:
    note, folder = short_folder / "note", short_folder / "sweep-planted"
    folder.mkdir()
    at_work = subprocess.Popen(["sleep", "60"], env={MARK: str(folder)})
    try:
        note.write_text(f"{folder}\n{at_work.pid} {psutil.Process(at_work.pid).create_time()}")
        clean_after_crash(note)  # as where the project's folder was copied meanwhile
        assert at_work.poll() is None
        assert folder.exists()
        assert not note.exists()
        note.write_text(f"{folder}\n{at_work.pid} 1.0")  # the number is another process's by now
        clean_after_crash(note)
        assert at_work.wait(10) == -9
    finally:
        at_work.kill()
        at_work.wait()
