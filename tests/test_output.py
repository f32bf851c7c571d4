"""Standard streams that never fail, each tried in a program of its own."""

import contextlib
import errno
import fcntl
import os
import pty
import subprocess
import sys
import termios
import time
import tty
from pathlib import Path

import pytest

from tests.trees import ROOT

PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from sweeps import output
output.protect_streams()
{{body}}
with open({{done!r}}, "w") as file:
    file.write("to the end")
sys.exit(output.exit_code(0))
"""


@pytest.fixture
def program(tmp_path):
    """program(body): the file of a program that prints through protected streams; its last deed is
    a file named done."""

    def write(body: str) -> Path:
        file = tmp_path / "program.py"
        file.write_text(PROGRAM.format(body=body, done=str(tmp_path / "done")))
        return file

    return write


def test_characters_that_an_encoding_has_not_are_replaced(program) -> None:
    done = subprocess.run(
        [sys.executable, program("print('1/4 · ±0.2 … \\u4e2d \\udcff')")],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        b"1/4 - +-0.2 ... \\u4e2d \\udcff\n",
        b"",
    )


def test_names_of_undecodable_bytes_are_printed_in_any_encoding(program) -> None:
    done = subprocess.run(
        [sys.executable, program("print(sys.argv[1])"), b"\xff.wav"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"\\udcff.wav\n")


def test_a_full_disk_behind_stdout_ends_nothing_and_is_told(program, tmp_path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, program("print('x' * 100000)")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (tmp_path / "done").exists()
    assert done.returncode == 1
    assert os.strerror(errno.ENOSPC) in done.stderr


def test_a_full_disk_behind_both_streams_ends_nothing(program, tmp_path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, program("print('x'); print('y', file=sys.stderr)")],
            stdout=full,
            stderr=full,
            check=False,
        )
    assert (tmp_path / "done").exists()
    assert done.returncode == 1


def test_a_reader_that_has_read_enough_ends_nothing(program, tmp_path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, program("for _ in range(1000): print('x')")],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (tmp_path / "done").exists()
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(program, tmp_path, closed: str) -> None:
    body = f"""
file = open({str(tmp_path / "data")!r}, "w")
assert file.fileno() > 2
print("lost"); print("lost", file=sys.stderr)
os.write(1, b"lost"); os.system("echo lost; echo lost >&2")
import subprocess
assert subprocess.run(["test", "-e", "/proc/self/fd/0", "-a", "-e", "/proc/self/fd/1", "-a", "-e", "/proc/self/fd/2"]).returncode == 0
sys.stdin.read(0); sys.stdout.isatty(); sys.stderr.flush()
"""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, program(body)],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, (tmp_path / "done").exists(), (tmp_path / "data").read_text()) == (
        0,
        True,
        "",
    ), done.stderr


def test_a_pipe_that_does_not_block_loses_nothing_to_a_slow_reader(program, tmp_path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    running = subprocess.Popen(
        [sys.executable, program("for i in range(40000): print(i)")], stdout=writing
    )
    os.close(writing)
    time.sleep(0.5)  # the pipe is full by now
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    assert running.wait() == 0
    assert lines == [str(i) for i in range(40000)]


@pytest.mark.parametrize("stopped", ["pipe", "terminal"])
def test_a_reader_that_pauses_holds_back_the_lines_and_not_the_program(
    program, tmp_path, stopped: str
) -> None:
    if stopped == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = pty.openpty()
        tty.setraw(writing)
        termios.tcflow(writing, termios.TCOOFF)  # Ctrl-S
    body = "for i in range(40000): print(i)\nif os.fork() == 0: os._exit(0)"
    running = subprocess.Popen([sys.executable, program(body)], stdout=writing)
    until = time.monotonic() + 30
    while not (tmp_path / "done").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / "done").exists()
    assert running.poll() is None, "it ends when its lines are read"
    if stopped == "terminal":
        termios.tcflow(writing, termios.TCOON)
    os.close(writing)
    lines = b""
    with contextlib.suppress(OSError):  # a terminal's end
        while piece := os.read(reading, 1 << 16):
            lines += piece
    assert lines.split() == [b"%d" % i for i in range(40000)]
    assert running.wait(30) == 0


def test_a_line_is_there_as_soon_as_it_is_printed(program) -> None:
    running = subprocess.Popen(
        [sys.executable, program("print('now'); sys.stdin.read()")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "now\n"
    running.communicate()
