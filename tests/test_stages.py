"""Stages: what they answer, and how they end; and the lines that processes which hang are at."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from speech.calibration.stages import StageFailed, run_stage
from sweeps.sandbox.stacks import find_frames


def test_a_stage_answers_from_a_process_of_its_own() -> None:
    here = {"touched": False}

    def touch() -> list:
        here["touched"] = True
        return [os.getpid(), threading.active_count()]

    pid, threads = run_stage(touch)
    assert pid != os.getpid()
    assert threads == 1
    assert here == {"touched": False}


def fail() -> None:
    raise KeyError("planted")


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [(fail, "KeyError", "planted"), (lambda: sys.exit(4), "SystemExit", "4"), (lambda: os._exit(4), "Ended", "status 4"),
     (lambda: os.kill(os.getpid(), 9), "Ended", "signal 9"), (lambda: object(), "TypeError", "JSON")],
)  # fmt: skip
def test_a_stage_that_fails_says_how(work, kind: str, message: str) -> None:
    with pytest.raises(StageFailed) as failed:
        run_stage(work)
    assert failed.value.record["type"] == kind
    assert message in failed.value.record["message"]


def test_a_daemon_that_a_stage_leaves_behind_keeps_nobody_waiting() -> None:
    began = time.monotonic()
    left = run_stage(lambda: subprocess.Popen(["sleep", "60"]).pid)
    assert time.monotonic() - began < 30
    psutil.Process(left).kill()


HANGING = """
import sys, time
sys.path.insert(0, {root!r})
from speech.calibration.stages import run_stage
sys.path.insert(0, {folder!r})
import hangs
run_stage(hangs.make_loader)
"""


def test_what_hangs_is_found_by_its_line_and_others_get_no_signal(tmp_path) -> None:
    (tmp_path / "hangs.py").write_text(
        "import subprocess, threading\ndef make_loader():\n    subprocess.Popen(['sleep', '60'])\n "
        "   threading.Event().wait()\n"
    )
    log = tmp_path / "log"
    code = HANGING.format(root=str(Path(__file__).parent.parent), folder=str(tmp_path))
    with (
        log.open("w") as file,
        subprocess.Popen([sys.executable, "-c", code], stderr=file) as process,
    ):
        frames: list = []
        until = time.monotonic() + 60
        try:
            while time.monotonic() < until and not (frames := find_frames(process.pid, log)):
                time.sleep(0.1)
            below = psutil.Process(process.pid).children(recursive=True)
            assert "sleep" in {each.name() for each in below}
        finally:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
    own = [frame for frame in frames if frame.file == str(tmp_path / "hangs.py")]
    assert [(frame.line, frame.name) for frame in own] == [(4, "make_loader")]
    assert not any("speech" in frame.file for frame in frames)
