"""A tracker that is away, told from one that refuses: what can be sent again later, and what is wrong with itself.

Away is whatever may be over by itself: no connection, a timeout, a server's own errors, a database that is locked for long, a full disk.
MLflow would wait for a server for minutes, and would send a request again whose answer got lost, so that a run could be there twice;
here each request is made once and may take 20 s, and who asked decides what then.
"""

import errno
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = {  # of MLflow, for the environment of whoever uses it, where nothing is set there
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; to connect, and for the answer
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # a stack in the terminal for a locked database, which is told in words here
}
ALWAYS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a server's runs, as they are closed
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED"}
FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk that artifacts are copied to


class TrackerAway(RuntimeError):
    """The tracker can't be reached, or does not take what it is sent; the text says what waits for it, where, and what to do."""


@contextmanager
def asked(uri: str) -> Iterator[None]:
    """Whoever asks the tracker in this block hears of its absence as TrackerAway."""
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        raise TrackerAway(f"The tracker at {uri} can't be reached: {reason(error)}") from error


def is_away(error: Exception) -> bool:
    """Whether what MLflow raised may be over by itself."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code not in REFUSALS
    if isinstance(error, RequestException):  # of uploading an artifact
        return error.response is None or error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, OperationalError) or (isinstance(error, OSError) and error.errno in FULL)


def reason(error: Exception) -> str:
    """One line of what MLflow raised: 'Connection refused' out of half a page."""
    text = str(error).strip() or type(error).__name__
    said = re.findall(r"\[Errno -?\d+\] ([^'\"()\[\]]+)", text) or re.findall(r"Read timed out|too many \d+ error responses", text)
    return said[-1].strip() if said else textwrap.shorten(text.splitlines()[0], 200, placeholder=" ...")
