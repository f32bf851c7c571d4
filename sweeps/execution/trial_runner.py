"""Runs one trial from start to end, outside its process tree: passes its records to disk, to MLflow
and to Ray.

Every record is appended to the trial's records.jsonl before it is used otherwise. Tracking happens
in this process, never in the timed one, and through the trial's outbox: an unavailable tracker
stops nothing. When the tree has ended, the outcome is determined from the evidence, and the run is
closed with its summary and its files.
"""

import contextlib
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.config import Trial
from speech.epoch_figures import epoch_figures
from sweeps.config.config import LEARNING_METRICS
from sweeps.config.plan import TrialSpec
from sweeps.execution.forecast_checks import (
    check_forecast,
    forecast_at_speed,
    forecast_at_start,
)
from sweeps.execution.launch_context import LaunchContext, TrialPlan
from sweeps.execution.trial_artifacts import (
    TrialRecords,
    link_snapshots,
    read_log,
    select_snapshots,
    write_artifacts,
)
from sweeps.execution.trial_result import EpochEnd, TrialResult
from sweeps.forecast.corrections import Corrections
from sweeps.host.disturbance import disturbance
from sweeps.host.gpus import GpuSampler, visible_gpus
from sweeps.host.hygiene import wait_until_idle
from sweeps.names import format_parameter
from sweeps.sandbox.hang import simulated_wait_s
from sweeps.sandbox.isolation import ForkServer, Task
from sweeps.sandbox.outcome import ClassifiedOutcome, TrainingEnd, classify
from sweeps.tracking import notes
from sweeps.tracking.best_ensemble import DIVERGED_CYCLES, best_accuracy_so_far
from sweeps.tracking.mlflow_runs import TrialDescription
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.outbox_recovery import flush_all, quarantine, remove_folder
from sweeps.tracking.sender import Sender
from sweeps.tracking.tracker_errors import is_unavailable
from sweeps.trial_states import Outcome, ShmVerdict

SETUP_TAGS = (
    "device",
    "device_name",
    "cpu_name",
    "cores",
    "cpu_quota",
    "cpu_weight",
    "precision",
    "channels_last",
    "threads",
    "omp_threads",
    "mkl_threads",
    "affinity",
    "training_clips",
    "validation_clips",
    "skipped_clips",
    "split",
    "batch_bytes",
    "continued_epoch",
    "started_over",
)
LEARNED = "learned"  # in the sweep's folder: checkpoints of trials, in a folder for each trial
# A trial continues after these outcomes, and after an attempt without one. Otherwise it restarts
CONTINUED_OUTCOMES = (Outcome.OOM,)
IDLE_WAIT_S = 5.0  # a trial waits at most this long for an idle host
ENDING_TAGS = ("shm_limit_bytes", "status", "oom_kills")


def run_trial(
    fork_server: ForkServer,
    spec: TrialSpec,
    plan: TrialPlan,
    launch: LaunchContext,
    corrections: Corrections,
    on_epoch: Callable[[EpochEnd], None],
) -> TrialResult:
    """Runs `spec` in its own process tree, tracks it, and returns its result.

    `corrections` are those that earlier trials on this host have shown; this one may add to them.
    """
    folder = launch.trial_folder(spec)
    quarantine(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt, whose run has its files
    folder.mkdir(parents=True)
    with Sender(Outbox.create(folder, launch.tracking_uri, launch.experiment)) as sender:
        attempt = _Attempt(spec, plan, launch, sender, corrections, on_epoch)
        attempt.checkpoints.mkdir(parents=True, exist_ok=True)
        result = attempt.run(fork_server)
        sent = sender.flush()
        result = result._replace(run_id=sender.outbox.run_id, waits=not sent)
    if result.outcome not in CONTINUED_OUTCOMES:
        shutil.rmtree(attempt.checkpoints)
    if sent:
        remove_folder(folder)
        flush_all(launch.folder)  # the tracker is available; records of earlier trials may wait
    else:
        quarantine(folder)
    return result


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a trial: what it runs, where its records go, and the caller to inform."""

    spec: TrialSpec
    plan: TrialPlan
    launch: LaunchContext
    sender: Sender
    corrections: Corrections
    on_epoch: Callable[[EpochEnd], None]

    @property
    def folder(self) -> Path:
        """The folder of the attempt's records."""
        return self.launch.trial_folder(self.spec)

    @property
    def checkpoints(self) -> Path:
        """The folder of the trial's checkpoints, which a later attempt may continue."""
        return self.launch.folder / LEARNED / self.spec.trial_id

    def run(self, fork_server: ForkServer) -> TrialResult:
        """Runs the attempt and writes all its records and its result to the outbox."""
        self._open_run()
        records = self._collect_records(fork_server)
        ended = classify(
            records.error,
            records.ending,
            _training_end(records),
            read_log(self.folder),
            self.launch.is_sure_to_fit(self.plan),
        )
        summary = self._build_summary(records)
        if at_speed := forecast_at_speed(self.spec.config, self.plan, summary):
            summary["forecast_at_speed_s"] = at_speed.epoch_s
        tags = self._build_tags(records, summary)
        files = write_artifacts(self.folder, records) | link_snapshots(
            select_snapshots(records, self.launch.keep, self._read_best_accuracy),
            self.checkpoints,
            self.folder,
        )
        tags[notes.NOTE_TAG] = self._build_note(ended, summary, tags.get("disturbed"), files)
        self.sender.outbox.finish(ended.outcome, ended.evidence, summary, tags, files)
        origin: dict[str, Any] = {
            name: records.setup[name]
            for name in ("continued_epoch", "started_over")
            if name in records.setup
        }
        log = "stderr.log" if "stderr.log" in files else "records.jsonl"
        wrong = None
        if not tags.get("disturbed"):
            wrong = check_forecast(
                self.spec.config, self.plan, records.setup, summary, self.corrections
            )
        return TrialResult(ended.outcome, ended.evidence, summary, log, origin, wrong)

    def _open_run(self) -> None:
        """Opens the trial's run, with its parameters and what was forecast of it."""
        spec, launch, plan = self.spec, self.launch, self.plan
        host_state = wait_until_idle(IDLE_WAIT_S) if launch.exclusive else None
        tags = {
            **launch.provenance,
            "attempt": launch.attempts.get(spec.trial_id, 0) + 1,
            "node": platform.node(),
            "warmup_epochs": spec.warmup_epochs,
            "forecast_fit": plan.shm_requirement.verdict,
            "node_before": host_state,
        }
        self.sender.outbox.start(
            launch.parent,
            TrialDescription(
                spec.trial_id,
                spec.block,
                spec.repeat,
                spec.seed,
                spec.swept,
                spec.config.model_dump(mode="json"),
                tags,
            ),
        )
        self.sender.put("log_summary", metrics=plan.shm_requirement.metrics())
        if plan.forecast:
            self.sender.put("log_summary", metrics=plan.forecast.metrics())
        self.sender.flush()  # sent now, so that it is not sent while the trial is timed

    def _record_forecast_at_start(self, setup: dict[str, Any]) -> None:
        """Sends the forecast at the trial's start to the tracker, before the first epoch."""
        forecast = forecast_at_start(self.spec.config, self.plan, setup, self.corrections)
        if forecast:
            self.sender.put("log_summary", metrics=forecast.start_metrics())

    def _collect_records(self, fork_server: ForkServer) -> TrialRecords:
        """Runs the trial, passes every record on until the tree has ended, and returns what they
        contain.
        """
        records = TrialRecords()
        stderr_file = self.folder / "stderr.log"
        sampler: GpuSampler | None = None
        with (
            contextlib.ExitStack() as sampling,
            (self.folder / "records.jsonl").open("a") as journal,
        ):
            for record in fork_server.run(self._task(), stderr_file, self.spec.trial_timeout_s):
                if record["kind"] == "setup" and record.get("device") == "cuda":
                    sampler = sampling.enter_context(GpuSampler(visible_gpus()))
                elif record["kind"] == "epoch" and sampler and "replayed" not in record:
                    metrics, record["gpus"] = sampler.take()
                    record["metrics"] |= metrics
                journal.write(json.dumps(record) + "\n")
                journal.flush()
                match record["kind"]:
                    case "setup":
                        records.setup = record
                        self._record_forecast_at_start(record)
                    case "epoch":
                        records.epochs.append(
                            {"warmup": record["warmup"], "metrics": record["metrics"]}
                        )
                        self.sender.put(
                            "log_epoch", epoch=record["epoch"], metrics=record["metrics"]
                        )
                        self.on_epoch(EpochEnd(record["epoch"], record.get("replayed", False)))
                    case "snapshot":
                        records.snapshots.append(record)
                        self.sender.put(
                            "log_snapshot", cycle=record["cycle"], metrics=record["metrics"]
                        )
                    case "end":
                        records.summary = record["summary"]
                        records.confusion = record.get("confusion")
                        records.diverged = record.get("diverged")
                        records.cycles_without_member = record.get("cycles_without_member")
                    case "error":
                        # A later one may only be a consequence of the first
                        records.error = records.error or record
                    case "exit":
                        records.ending = record
        return records

    def _task(self) -> Task:
        """Returns the task that the trial's process tree runs."""
        spec, launch, runtime = self.spec, self.launch, self.plan.runtime
        trial = Trial(
            config=spec.config,
            seed=spec.seed,
            warmup_epochs=spec.warmup_epochs,
            runtime=runtime,
            folder=str(self.checkpoints),
            continues=spec.metric.name in LEARNING_METRICS,
            timed=spec.metric.name not in LEARNING_METRICS,
            fingerprint=launch.fingerprints.get(spec.config.corpus.selection_key(), ""),
            alone=launch.exclusive,
            probe_speed=self.plan.calibration is not None
            and self.plan.shm_requirement.verdict != ShmVerdict.OVERFLOWS,
        )
        return Task(
            "train",
            trial.model_dump(),
            launch.private_shm,
            spec.config.loader.shm_size,
            runtime.cpus,
            runtime.threads,
            launch.is_sure_to_fit(self.plan),
            simulated_wait_s(spec.config),
        )

    def _build_summary(self, records: TrialRecords) -> dict[str, float]:
        """Returns the summary of the attempt, with the highest peak of /dev/shm.

        The attempt that this one continues may have had a higher peak. What others did on a GPU is
        known only outside the trial, so the timed epochs are chosen anew with it.
        """
        summary = dict(records.summary or {})
        metrics = [epoch["metrics"] for epoch in records.epochs]
        if summary and any(name.startswith("gpu/") for epoch in metrics for name in epoch):
            summary |= epoch_figures(
                metrics,
                self.spec.warmup_epochs,
                float(records.setup.get("cores", 1)),
                self.launch.exclusive,
            )
        if records.ending.get("shm_peak_bytes") is not None:
            summary["shm_peak_bytes"] = max(
                records.ending["shm_peak_bytes"], summary.get("shm_peak_bytes", 0)
            )
        return summary

    def _build_tags(self, records: TrialRecords, summary: dict[str, float]) -> dict[str, Any]:
        """Returns the tags of the trial's run that are known when the trial has ended."""
        tags = {name: records.setup.get(name) for name in SETUP_TAGS} | {
            name: records.ending.get(name) for name in ENDING_TAGS
        }
        tags[DIVERGED_CYCLES] = records.cycles_without_member
        # Without exclusive hosts the trials beside this one disturb it, as intended
        if self.launch.exclusive:
            tags["disturbed"] = disturbance(
                summary, records.epochs, float(records.setup.get("cores", 1))
            )
        return tags

    def _build_note(
        self,
        ended: ClassifiedOutcome,
        summary: dict[str, float],
        disturbed: Any,
        files: dict[str, Path],
    ) -> str:
        """Returns the text that describes the trial on the page of its run."""
        forecast = self.plan.forecast.metrics() if self.plan.forecast else {}
        heading = notes.TrialHeading(
            self.spec.block,
            self.spec.repeat,
            {path: format_parameter(path, value) for path, value in self.spec.swept.items()},
        )
        return notes.ended_trial_note(heading, ended, forecast | summary, disturbed, files)

    def _read_best_accuracy(self) -> float | None:
        """Returns the accuracy of the block's best ensemble so far; None if there is none or the
        tracker is unavailable.
        """
        if not self.sender.flush() or self.sender.tracking is None:
            return None
        try:
            return best_accuracy_so_far(
                self.sender.tracking, self.launch.parent, self.spec.block, self.launch.planned
            )
        except Exception as error:
            if not is_unavailable(error):
                raise
            return None


def _training_end(records: TrialRecords) -> TrainingEnd | None:
    """Returns how training ended; None if its end record has not arrived."""
    if records.summary is None:
        return None
    return TrainingEnd(records.diverged, "ensemble_accuracy" in records.summary)
