"""Distinguishes an unavailable tracker from one that rejects a request.

A request to an unavailable tracker can be sent again later; a rejected request is itself wrong.

An error counts as unavailability if it may end by itself: no connection, a timeout, a server's own
errors, a database that is locked for long, a full disk. MLflow would wait minutes for a server. It
would also repeat a request whose answer was lost, so that a run could exist twice. In this project
every request is made once and may take 20 s; the caller decides about a retry.
"""

import errno
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from sweeps.output import mask_passwords
from sweeps.user_error import UserError

REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
}
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)  # for the disk to which artifacts are copied


class TrackerUnavailable(UserError):
    """Reports a tracker that can't be reached or rejects a request.

    The message names the waiting records, their folder, and the remedy.
    """

    exit_code = 1


@contextmanager
def translate_tracker_errors(uri: str) -> Iterator[None]:
    """Raises TrackerUnavailable for any error in the block that means an unavailable tracker."""
    try:
        yield
    except Exception as error:
        if not is_unavailable(error):
            raise
        raise TrackerUnavailable(
            f"The tracker at {mask_passwords(uri)} can't be reached: {reason(error)}"
        ) from error


def is_unavailable(error: Exception) -> bool:
    """Returns whether an error that MLflow raised may end by itself."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code not in REFUSALS
    if isinstance(error, RequestException):  # while uploading an artifact
        return (
            error.response is None
            or error.response.status_code in (408, 429)
            or error.response.status_code >= 500
        )
    return isinstance(error, OperationalError) or (
        isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS
    )


def reason(error: Exception) -> str:
    """Returns the cause of an MLflow error in one line, such as 'Connection refused'."""
    text = mask_passwords(str(error).strip() or type(error).__name__)
    causes = re.findall(r"\[Errno -?\d+\] ([^'\"()\[\]]+)", text) or re.findall(
        r"Read timed out|too many \d+ error responses", text
    )
    return (
        causes[-1].strip()
        if causes
        else textwrap.shorten(text.splitlines()[0], 200, placeholder=" ...")
    )
