"""One trial from start to end, seen from outside its process tree: records come up the pipe and go to disk, to MLflow and to Ray.

Every record is appended to the trial's records.jsonl before anything else is done with it. Tracking happens here, never in the timed
process. When the tree has ended the outcome is read from the evidence, and the run closes with its summary and its files.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speech.config import Pinned, Trial
from sweeps.disturbance import disturbance
from sweeps.forecast import Forecast
from sweeps.hang import modelled_wait_s
from sweeps.hygiene import settle
from sweeps.isolation import Record, Task, Template
from sweeps.outcome import Outcome, classify
from sweeps.plan import TrialSpec
from sweeps.shm_fit import ShmFit
from sweeps.trace import write_trace
from sweeps.tracking import Tracking

SETUP_TAGS = (
    "device",
    "device_name",
    "cpu_name",
    "cores",
    "precision",
    "channels_last",
    "threads",
    "omp_threads",
    "mkl_threads",
    "affinity",
    "training_clips",
    "validation_clips",
    "skipped_clips",
    "batch_bytes",
)
LOG_BYTES = 1 << 18  # of the log that is kept; a worker that warns at every clip writes gigabytes
SETTLE_S = 5.0  # how long a trial waits for a quiet node at most
ENDING_TAGS = ("shm_limit_bytes", "status", "oom_kills")


@dataclass(frozen=True)
class Foreseen:
    """What was pinned and foreseen for each trial on one machine, all by the trial's key."""

    pinned: dict[str, Pinned]
    fits: dict[str, ShmFit]
    forecasts: dict[str, Forecast]  # where there is a calibration


@dataclass(frozen=True)
class Launch:
    """What all trials of one launch share: where they report, where they may write, and what was pinned for them."""

    tracking_uri: str  # resolved, the same from every process
    experiment: str
    parent: str  # run id of the sweep
    started_in: Path  # the folder that relative paths of the YAML start from
    folder: Path  # of the sweep; every trial has a folder of its own below it
    private_shm: bool
    planned: frozenset[str]  # keys of all trials of the plan
    keep: str  # which snapshots are uploaded: best, all, none
    provenance: dict[str, Any]  # tags: versions, git commit
    pinned: dict[str, Pinned]  # by the trial's key
    fits: dict[str, ShmFit]  # by the trial's key
    forecasts: dict[str, Forecast]  # by the trial's key, where there is a calibration
    exclusive: bool  # a trial holds its node alone
    who: str = "a sweep"  # what others are told that wait for a machine
    machines: Mapping[str, Foreseen] = field(default_factory=dict)  # by sweeps.machine.identity(); empty where there is but one

    def on(self, machine: str) -> "Launch":
        """The launch as a trial sees it on one of its machines."""
        return replace(self, **vars(self.machines[machine])) if self.machines else self

    def sure_to_fit(self, spec: TrialSpec) -> bool:
        """Whether a trial can't overflow its /dev/shm. On the machine's own, others may take the room meanwhile."""
        return self.private_shm and self.fits[spec.key].verdict == "fits"


@dataclass
class _Heard:
    """What the records have told so far."""

    setup: Record = field(default_factory=dict)
    summary: dict[str, float] | None = None
    confusion: list[list[int]] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)  # without their raw steps
    snapshots: list[Record] = field(default_factory=list)
    error: Record | None = None
    ending: Record = field(default_factory=dict)


def run_trial(
    template: Template, spec: TrialSpec, launch: Launch, report: Callable[[dict[str, Any]], None]
) -> tuple[Outcome, dict[str, float]]:
    """Runs `spec` in a tree of its own and tracks it; returns how it ended and its summary. `report` hears of every epoch."""
    folder = launch.folder / spec.key
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier attempt left; its run has its files
    folder.mkdir(parents=True)
    tracking, fit = Tracking(launch.tracking_uri, launch.experiment), launch.fits[spec.key]
    found = settle(SETTLE_S) if launch.exclusive else None
    config = spec.config.model_dump(mode="json")
    run_id = tracking.start_trial(
        launch.parent, key=spec.key, block=spec.block, repeat=spec.repeat, seed=spec.seed, swept=spec.swept, config=config,
        tags=launch.provenance
        | {"node": platform.node(), "warmup_epochs": spec.warmup_epochs, "forecast_fit": fit.verdict, "node_before": found},
    )  # fmt: skip
    tracking.log_summary(run_id, fit.metrics())
    if foreseen := launch.forecasts.get(spec.key):
        tracking.log_summary(run_id, foreseen.metrics())
    heard = _listen(template, spec, launch, folder, tracking, run_id, report)
    outcome = classify(heard.error, heard.ending, heard.summary is not None, _log(folder), launch.sure_to_fit(spec))
    summary = dict(heard.summary or {})
    if heard.ending.get("shm_peak_bytes") is not None:
        summary["shm_peak_bytes"] = heard.ending["shm_peak_bytes"]
    tags = {name: heard.setup.get(name) for name in SETUP_TAGS} | {name: heard.ending.get(name) for name in ENDING_TAGS}
    if launch.exclusive:  # otherwise the trials beside it are what disturbs it, and it is as it should be
        tags["disturbed"] = disturbance(summary, heard.epochs)
    files = _files(folder, heard) | _kept_snapshots(folder, heard, launch, tracking, spec.block)
    tracking.finish_trial(run_id, outcome.name, outcome.evidence, summary, tags, files)
    shutil.rmtree(folder)
    return outcome, summary


def _listen(
    template: Template,
    spec: TrialSpec,
    launch: Launch,
    folder: Path,
    tracking: Tracking,
    run_id: str,
    report: Callable[[dict[str, Any]], None],
) -> _Heard:
    """Passes every record on until the tree has ended."""
    heard, pinned = _Heard(), launch.pinned[spec.key]
    trial = Trial(config=spec.config, seed=spec.seed, warmup_epochs=spec.warmup_epochs, pinned=pinned, folder=str(folder))
    task = Task(
        "train", trial.model_dump(), launch.private_shm, spec.config.loader.shm_size, pinned.cpus, pinned.threads,
        launch.sure_to_fit(spec), modelled_wait_s(spec.config),
    )  # fmt: skip
    with (folder / "records.jsonl").open("a") as journal:
        for record in template.run(task, folder / "stderr.log", spec.trial_timeout_s):
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            match record["kind"]:
                case "setup":
                    heard.setup = record
                case "epoch":
                    heard.epochs.append({"warmup": record["warmup"], "metrics": record["metrics"]})
                    tracking.log_epoch(run_id, record["epoch"], record["metrics"])
                    report({"epoch": record["epoch"]} | record["metrics"])
                case "snapshot":
                    heard.snapshots.append(record)
                    tracking.log_snapshot(run_id, record["cycle"], record["metrics"])
                case "end":
                    heard.summary, heard.confusion = record["summary"], record.get("confusion")
                case "error":
                    heard.error = record
                case "exit":
                    heard.ending = record
    return heard


def _files(folder: Path, heard: _Heard) -> dict[str, Path]:
    """Artifacts: the records and their trace, what was written to stderr if anything, and the confusion matrix of the ensemble."""
    files = {"records.jsonl": folder / "records.jsonl"}
    said = _log(folder) + (heard.error["traceback"] if heard.error else "")
    try:
        if write_trace(folder / "records.jsonl", folder / "trace.json.gz"):
            files["trace.json.gz"] = folder / "trace.json.gz"
    except Exception as error:  # whatever is wrong with a picture of the trial, it must not cost the trial
        said += f"\nno trace.json.gz could be made of the records: {error!r}\n"
    log = folder / "stderr.log"
    if said:
        log.write_text(said)
        files["stderr.log"] = log
    if heard.confusion:
        labels = heard.setup["labels"]
        rows = [
            ",".join(["true \\ said", *labels]),
            *(",".join(map(str, [label, *row])) for label, row in zip(labels, heard.confusion, strict=True)),
        ]
        (folder / "confusion.csv").write_text("\n".join(rows) + "\n")
        files["confusion.csv"] = folder / "confusion.csv"
    return files


def _log(folder: Path) -> str:
    """What the tree wrote to stderr; of very much only the beginning and the end."""
    with (folder / "stderr.log").open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= LOG_BYTES:
            return file.read().decode(errors="replace")
        first = file.read(LOG_BYTES // 2)
        file.seek(size - LOG_BYTES // 2)
        return f"{first.decode(errors='replace')}\n... {size - LOG_BYTES:,} bytes left out ...\n{file.read().decode(errors='replace')}"


def _kept_snapshots(folder: Path, heard: _Heard, launch: Launch, tracking: Tracking, block: str) -> dict[str, Path]:
    """`best` keeps each trial's best snapshot, and all members of the best ensemble of the block so far, which --test will read."""
    if heard.summary is None or not heard.snapshots or launch.keep == "none":
        return {}
    kept = heard.snapshots
    if launch.keep == "best":
        record = tracking.best_ensemble_so_far(launch.parent, block, launch.planned)
        if record is not None and heard.summary["ensemble_accuracy"] <= record:
            kept = [max(kept, key=lambda snapshot: snapshot["metrics"]["snapshot/accuracy"])]
    return {f"snapshots/{snapshot['file']}": folder / snapshot["file"] for snapshot in kept}
