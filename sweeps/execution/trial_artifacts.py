"""Writes the artifacts of a trial that has ended: its trace, its log, its confusion matrix and the
snapshots to upload.
"""

import csv
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.sandbox.isolation import Record
from sweeps.tracking.trace import write_trace

LOG_BYTES = 1 << 18  # of a stored log; a worker that warns at every clip writes gigabytes


@dataclass
class TrialRecords:
    """Holds what the records of an attempt contain."""

    setup: Record = field(default_factory=dict)
    summary: dict[str, float] | None = None
    diverged: str | None = None  # how the training diverged
    cycles_without_member: list[int] | None = None  # of the ensemble
    confusion: list[list[int]] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)  # without their raw steps
    snapshots: list[Record] = field(default_factory=list)
    error: Record | None = None
    ending: Record = field(default_factory=dict)


def write_artifacts(folder: Path, records: TrialRecords) -> dict[str, Path]:
    """Writes the artifacts of a trial and returns them by name.

    These are the records and their trace, the text written to stderr if there is any, and the
    ensemble's confusion matrix.
    """
    files = {"records.jsonl": folder / "records.jsonl"}
    log_text = read_log(folder) + (records.error["traceback"] if records.error else "")
    try:
        if write_trace(folder / "records.jsonl", folder / "trace.json.gz"):
            files["trace.json.gz"] = folder / "trace.json.gz"
    except Exception as error:  # a trace that fails must not fail the trial
        log_text += f"\ntrace.json.gz could not be written: {error!r}\n"
    if log_text:
        files["stderr.log"] = folder / "stderr.log"
        files["stderr.log"].write_text(log_text)
    if records.confusion:
        files["confusion.csv"] = folder / "confusion.csv"
        _write_confusion(files["confusion.csv"], records.setup["labels"], records.confusion)
    return files


def _write_confusion(file: Path, labels: list[str], confusion: list[list[int]]) -> None:
    """Writes a confusion matrix with a row for every true label."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["true \\ predicted", *labels])
        rows.writerows([label, *row] for label, row in zip(labels, confusion, strict=True))


def read_log(folder: Path) -> str:
    """Returns what the tree wrote to stderr; of a very long text only the beginning and the end."""
    with (folder / "stderr.log").open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= LOG_BYTES:
            return file.read().decode(errors="replace")
        first = file.read(LOG_BYTES // 2)
        file.seek(size - LOG_BYTES // 2)
        return (
            f"{first.decode(errors='replace')}\n... {size - LOG_BYTES:,} bytes omitted"
            f" ...\n{file.read().decode(errors='replace')}"
        )


def select_snapshots(
    records: TrialRecords, keep: str, read_best_accuracy: Callable[[], float | None]
) -> list[Record]:
    """Returns the records of the snapshots to upload.

    With `keep: best` these are each trial's best snapshot, and all members of the best ensemble of
    the block so far, which --evaluate-test reads. `read_best_accuracy` returns the accuracy of that
    ensemble, or None if it is unknown: one snapshot too many is better than a missing one.
    """
    # Snapshots without an accuracy have diverged
    snapshots = [
        snapshot for snapshot in records.snapshots if "snapshot/accuracy" in snapshot["metrics"]
    ]
    if records.summary is None or not snapshots or keep == "none":
        return []
    if keep == "best":
        best_accuracy = read_best_accuracy()
        if best_accuracy is not None and records.summary["ensemble_accuracy"] <= best_accuracy:
            return [max(snapshots, key=lambda snapshot: snapshot["metrics"]["snapshot/accuracy"])]
    return snapshots


def link_snapshots(snapshots: Iterable[Record], checkpoints: Path, folder: Path) -> dict[str, Path]:
    """Links the files of snapshots into the trial's folder, where they outlast its checkpoints.

    Returns them by artifact name.
    """
    files = {}
    for name in [snapshot["file"] for snapshot in snapshots]:
        _link_or_copy(checkpoints / name, folder / name)
        files[f"snapshots/{name}"] = folder / name
    return files


def _link_or_copy(file: Path, name: Path) -> None:
    """Makes `name` a hard link to `file`, or a copy.

    Some file systems (vfat, exfat, some network drives) have no hard links.
    """
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(file, name)
