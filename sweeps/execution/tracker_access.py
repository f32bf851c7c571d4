"""Opens the tracker of a sweep, and turns whatever it raises into an error that names it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sweeps.config.config import SweepConfig
from sweeps.execution.launch_context import WORK_FOLDER
from sweeps.host.node import Log, PreflightError
from sweeps.output import mask_passwords
from sweeps.tracking import artifacts, database, database_schema, outbox_recovery
from sweeps.tracking.database import TrackerUnusable
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.tracker_errors import reason


def open_tracker(config: SweepConfig, log: Log) -> RunLogger:
    """Opens the tracker, migrates its database if the configuration allows it, and updates the
    locations of files.
    """
    with require_tracker(config):
        uri = database.resolve_uri(config.tracking.uri)
        if config.tracking.upgrade and (backup := database_schema.upgrade(uri)):
            log(
                f"{database.database_file(uri)} is migrated to the installed MLflow; the original"
                f" is in {backup}"
            )
        tracking = RunLogger(uri, config.tracking.experiment)
        if file := database.database_file(uri):
            for line in artifacts.relocation_messages(artifacts.relocate(file), file):
                log(line)
        return tracking


def tracker_error(config: SweepConfig, error: Exception) -> PreflightError:
    """Returns the PreflightError for an error that the tracker raised."""
    if isinstance(error, TrackerUnusable):
        return PreflightError(str(error))
    outboxes = outbox_recovery.outbox_folders(WORK_FOLDER / config.name)
    hint = (
        f"\nThe records of earlier trials wait in {WORK_FOLDER / config.name}; the next launch"
        " sends them."
        if outboxes
        else ""
    )
    return PreflightError(
        f"tracking.uri {mask_passwords(config.tracking.uri)} can't be used: {reason(error)}{hint}"
    )


@contextmanager
def require_tracker(config: SweepConfig) -> Iterator[None]:
    """Raises a PreflightError that names the tracker, whatever Exception the block raises."""
    try:
        yield
    except Exception as error:  # MLflow and its database drivers raise types of their own
        raise tracker_error(config, error) from error
