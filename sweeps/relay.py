"""One trial from start to end, seen from outside its process tree: records come up the pipe and go to disk, to MLflow and to Ray.

Every record is appended to the trial's records.jsonl before anything else is done with it. Tracking happens here, never in the timed
process, and through the trial's outbox: a tracker that is away stops nothing. When the tree has ended the outcome is read from the
evidence, and the run closes with its summary and its files.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from speech.config import Pinned, Trial
from sweeps import notes
from sweeps.away import is_away
from sweeps.config import OF_LEARNING
from sweeps.disturbance import disturbance
from sweeps.forecast import Forecast
from sweeps.hang import modelled_wait_s
from sweeps.hygiene import settle
from sweeps.isolation import Record, Task, Template
from sweeps.names import written
from sweeps.outbox import Outbox
from sweeps.outcome import Outcome, classify
from sweeps.plan import TrialSpec
from sweeps.sender import Sender
from sweeps.shm_fit import ShmFit
from sweeps.trace import write_trace
from sweeps.unsent import deliver, remove, set_aside

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
    "continued_epoch",
    "started_over",
)
LEARNED = "learned"  # in the sweep's folder: what a trial goes on from, in a folder of its key
GOES_ON = ("oom",)  # besides an attempt that ended without an outcome: whoever fails otherwise starts over
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
    attempts: Mapping[str, int]  # by the trial's key: how many there have been
    who: str = "a sweep"  # what others are told that wait for a machine
    machines: Mapping[str, Foreseen] = field(default_factory=dict)  # by sweeps.machine.identity(); empty where there is but one

    def on(self, machine: str) -> "Launch":
        """The launch as a trial sees it on one of its machines."""
        return replace(self, **vars(self.machines[machine])) if self.machines else self

    def sure_to_fit(self, spec: TrialSpec) -> bool:
        """Whether a trial can't overflow its /dev/shm. On the machine's own, others may take the room meanwhile."""
        return self.private_shm and self.fits[spec.key].verdict == "fits"


class Ended(NamedTuple):
    """How an attempt ended."""

    outcome: Outcome
    summary: dict[str, float]
    run_id: str
    log: str  # the artifact of its run that tells most
    origin: dict[str, Any]  # continued_epoch: after how many epochs it went on; started_over: why it did not
    waits: bool = False  # what it recorded, for the tracker


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


def run_trial(template: Template, spec: TrialSpec, launch: Launch, report: Callable[[dict[str, Any]], None]) -> Ended:
    """Runs `spec` in a tree of its own and tracks it; returns how it ended. `report` hears of every epoch."""
    folder, learned = launch.folder / spec.key, launch.folder / LEARNED / spec.key
    set_aside(folder)
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier attempt left; its run has its files
    folder.mkdir(parents=True)
    learned.mkdir(parents=True, exist_ok=True)
    with Sender(Outbox.new(folder, launch.tracking_uri, launch.experiment)) as sender:
        ended = _run_tracked(template, spec, launch, folder, learned, sender, report)
        sent = sender.flush()
        ended = ended._replace(run_id=sender.outbox.run_id, waits=not sent)
    if ended.outcome.name not in GOES_ON:
        shutil.rmtree(learned)
    if sent:
        remove(folder)
        deliver(launch.folder)  # the tracker is there: between trials is the time for what waits of earlier ones
    else:
        set_aside(folder)
    return ended


def _run_tracked(
    template: Template,
    spec: TrialSpec,
    launch: Launch,
    folder: Path,
    learned: Path,
    sender: Sender,
    report: Callable[[dict[str, Any]], None],
) -> Ended:
    """Runs `spec` and puts all there is to tell of it into the outbox."""
    fit, found = launch.fits[spec.key], settle(SETTLE_S) if launch.exclusive else None
    config = spec.config.model_dump(mode="json")
    sender.outbox.start(
        launch.parent, key=spec.key, block=spec.block, repeat=spec.repeat, seed=spec.seed, swept=spec.swept, config=config,
        tags=launch.provenance
        | {"attempt": launch.attempts.get(spec.key, 0) + 1}
        | {"node": platform.node(), "warmup_epochs": spec.warmup_epochs, "forecast_fit": fit.verdict, "node_before": found},
    )  # fmt: skip
    sender.put("log_summary", metrics=fit.metrics())
    if foreseen := launch.forecasts.get(spec.key):
        sender.put("log_summary", metrics=foreseen.metrics())
    sender.flush()  # what can be sent before the clock runs is sent before
    heard = _listen(template, spec, launch, folder, sender, report)
    outcome = classify(heard.error, heard.ending, heard.summary is not None, _log(folder), launch.sure_to_fit(spec))
    summary = dict(heard.summary or {})
    if heard.ending.get("shm_peak_bytes") is not None:
        summary["shm_peak_bytes"] = max(heard.ending["shm_peak_bytes"], summary.get("shm_peak_bytes", 0))  # or before it was continued
    tags = {name: heard.setup.get(name) for name in SETUP_TAGS} | {name: heard.ending.get(name) for name in ENDING_TAGS}
    if launch.exclusive:  # otherwise the trials beside it are what disturbs it, and it is as it should be
        tags["disturbed"] = disturbance(summary, heard.epochs)
    files = _files(folder, heard) | _kept_snapshots(learned, folder, heard, launch, sender, spec.block)
    tags[notes.NOTE] = notes.of_ended_trial(
        spec.block, spec.repeat, {path: written(path, value) for path, value in spec.swept.items()}, outcome=outcome.name,
        evidence=outcome.evidence, figures=(foreseen.metrics() if foreseen else {}) | summary, disturbed=tags.get("disturbed"),
        artifacts=files,
    )  # fmt: skip
    sender.outbox.finish(outcome.name, outcome.evidence, summary, tags, files)
    log = "stderr.log" if "stderr.log" in files else "records.jsonl"
    origin: dict[str, Any] = {name: heard.setup[name] for name in ("continued_epoch", "started_over") if name in heard.setup}
    return Ended(outcome, summary, "", log, origin)


def _listen(
    template: Template,
    spec: TrialSpec,
    launch: Launch,
    folder: Path,
    sender: Sender,
    report: Callable[[dict[str, Any]], None],
) -> _Heard:
    """Passes every record on until the tree has ended."""
    heard, pinned = _Heard(), launch.pinned[spec.key]
    trial = Trial(
        config=spec.config, seed=spec.seed, warmup_epochs=spec.warmup_epochs, pinned=pinned,
        folder=str(launch.folder / LEARNED / spec.key), continues=spec.metric.name in OF_LEARNING,
    )  # fmt: skip
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
                    sender.put("log_epoch", epoch=record["epoch"], metrics=record["metrics"])
                    report({"epoch": record["epoch"], "again": record.get("again", False)} | record["metrics"])
                case "snapshot":
                    heard.snapshots.append(record)
                    sender.put("log_snapshot", cycle=record["cycle"], metrics=record["metrics"])
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


def _kept_snapshots(learned: Path, folder: Path, heard: _Heard, launch: Launch, sender: Sender, block: str) -> dict[str, Path]:
    """Which are uploaded, linked into the trial's folder, where they outlast what it learned.

    `best` keeps each trial's best snapshot, and all members of the best ensemble of the block so far, which --test will read.
    """
    if heard.summary is None or not heard.snapshots or launch.keep == "none":
        return {}
    kept = heard.snapshots
    if launch.keep == "best":
        record = _best_so_far(sender, launch, block)
        if record is not None and heard.summary["ensemble_accuracy"] <= record:
            kept = [max(kept, key=lambda snapshot: snapshot["metrics"]["snapshot/accuracy"])]
    for snapshot in kept:
        os.link(learned / snapshot["file"], folder / snapshot["file"])
    return {f"snapshots/{snapshot['file']}": folder / snapshot["file"] for snapshot in kept}


def _best_so_far(sender: Sender, launch: Launch, block: str) -> float | None:
    """None also while the tracker is away: rather a snapshot too many than one that --test will miss."""
    if not sender.flush() or sender.tracking is None:
        return None
    try:
        return sender.tracking.best_ensemble_so_far(launch.parent, block, launch.planned)
    except Exception as error:
        if not is_away(error):
            raise
        return None
