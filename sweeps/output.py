"""Provides standard streams that never fail: only the output that can't be printed is lost.

A terminal may close, the reader of a pipe may stop, a disk may be full, or an encoding may lack a
character. None of this may cost a trial. `protect_streams` replaces the streams once, at the start
of a program, so that no print needs special treatment. A program whose only product is its output
calls `exit_code` at its end, to learn whether the output was read.

A stopped terminal (Ctrl-S) or an idle pager blocks the lines, but not the program. The lines wait
in memory, and a thread writes them in order. The program ends when they are written, or with
Ctrl-C.
"""

import codecs
import contextlib
import errno
import io
import os
import re
import select
import sys
import threading
from collections import deque
from typing import Any, TextIO

ERROR_HANDLER = "speech-sweeps"  # name of the project's error handler for codecs
PLAIN_CHARACTERS = str.maketrans(
    {
        "·": "-",
        "±": "+-",
        "×": "x",
        "…": "...",
        "≈": "~",
        "≥": ">=",
        "≤": "<=",
        "–": "-",
        "−": "-",
        "━": "#",
        "─": "-",
    }
)

_failure: int | None = None  # errno of the first write to stdout that failed
# Descriptor and bytes of the pieces still to be written
_waiting: deque[tuple[int, bytes]] = deque()
_writer: threading.Thread | None = None  # writes the pieces in _waiting
_lock = threading.RLock()  # a signal's handler may print while a print is under way


class Descriptor(io.RawIOBase):
    """Wraps a file descriptor so that every write succeeds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Returns the file descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Returns True."""
        return True

    def isatty(self) -> bool:
        """Returns whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Writes `data`, at once or later in the writer thread; returns its length in bytes."""
        pieces = [
            bytes(data[first : first + select.PIPE_BUF])
            for first in range(0, len(data), select.PIPE_BUF)
        ]
        with _lock:
            _waiting.extend((self._descriptor, piece) for piece in pieces)
            if _writer is None and not _write_waiting(0):
                _start_writer()
        return len(data)


def _write_waiting(wait_ms: int | None) -> bool:
    """Writes the waiting pieces in order, and returns whether all are written.

    `wait_ms` is the time to wait until a descriptor is writable; None waits without limit.
    """
    global _failure
    while _waiting:
        descriptor, piece = _waiting[0]
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(wait_ms):
            return False
        _waiting.popleft()  # before it is written: a signal's handler may print meanwhile
        try:
            # A pipe that is writable takes PIPE_BUF bytes without waiting
            written = os.write(descriptor, piece)
        except BlockingIOError:
            written = 0
        except OSError as problem:
            written = len(piece)
            if descriptor == 1:
                _failure = _failure or problem.errno
        if written < len(piece):
            _waiting.appendleft((descriptor, piece[written:]))
    return True


def _start_writer() -> None:
    """Starts the thread that writes the waiting pieces, or writes them itself at Python's end."""
    global _writer
    try:
        _writer = threading.Thread(target=_write_until_empty, name="output")
        _writer.start()  # not a daemon: Python waits for it when it ends
    except RuntimeError:  # no thread can start because Python is ending
        _writer = None
        _write_waiting(None)


def _write_until_empty() -> None:
    """Writes the waiting pieces until none remains; runs in the writer thread."""
    global _writer
    while True:
        _write_waiting(None)
        with _lock:
            if not _waiting:
                _writer = None
                return


def _discard_waiting() -> None:
    """Discards the waiting pieces in a forked process, because its parent writes them."""
    global _lock, _writer
    _waiting.clear()
    _lock, _writer = threading.RLock(), None


os.register_at_fork(after_in_child=_discard_waiting)


def protect_streams() -> None:
    """Replaces stdout and stderr by streams that never fail.

    Closed standard descriptors are opened on /dev/null. Otherwise the next opened file would get
    their numbers.
    """
    codecs.register_error(ERROR_HANDLER, _replace_unencodable)
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)  # child processes have the same problem
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # stays open as long as the program runs
    sys.stdout = _wrap_stream(sys.stdout, 1)
    sys.stderr = _wrap_stream(sys.stderr, 2)
    # Used for printing while the other streams are redirected
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]


def _wrap_stream(stream: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    """Returns a stream that never fails, in the encoding of `stream`.

    It is line-buffered, also if the output is a file or a pipe.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Descriptor(descriptor)), encoding, ERROR_HANDLER, line_buffering=True
    )


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Handles encoding errors for `codecs`.

    It replaces ornaments by plain characters, and all others as backslashreplace does.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(PLAIN_CHARACTERS)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


def mask_passwords(text: str) -> str:
    """Returns a URI, or a text that contains URIs, with masked passwords."""
    text = re.sub(r"(\w://[^\s/:@'\"]*):[^\s'\"]*@(?=[^\s@/]*)", r"\1:***@", text)
    return re.sub(
        r"([?&](?:password|passwd|token|sslpassword)=)[^&\s'\"]+",
        r"\1***",
        text,
        flags=re.IGNORECASE,
    )


def exit_code(code: int) -> int:
    """Returns the exit code of a program whose only product is its output.

    A `code` other than 0 is returned unchanged. Otherwise the result is 141 if the reader closed
    the pipe, 1 if output was lost for another reason, and 0 if all was written.
    """
    with contextlib.suppress(ValueError):
        sys.stdout.flush()
    if writer := _writer:
        writer.join()
    if code or _failure is None:
        return code
    if _failure == errno.EPIPE:
        return 141
    print(f"stdout can't be written: {os.strerror(_failure)}", file=sys.stderr)
    return 1
