"""Records an error for another process, and finds the error of a loader worker behind it."""

import signal
import time
import traceback
from typing import Any

# Time from the end of a worker's sockets to the notice of its death: its memory is freed in between
WORKER_DEATH_NOTICE_S = 1.0


def root_cause(error: BaseException) -> BaseException:
    """Returns the exception that names a loader worker's death, or `error` if there is none.

    A dying worker closes its sockets before its parent is notified, so `error` may be only the
    first consequence. Torch raises the cause in the parent's SIGCHLD handler, wherever the parent
    is by then. It may be in the handling of `error`, where the exception would be lost.
    """
    try:
        if isinstance(error, (OSError, EOFError)):
            time.sleep(WORKER_DEATH_NOTICE_S)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except Exception as cause:
        return cause
    return error


def error_record(error: BaseException) -> dict[str, Any]:
    """Returns an error's `type`, `message` and `traceback` as JSON values."""
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": text}
