"""Defines what all trials of one launch share, and what is known of each trial before it runs.

A launch builds one `LaunchContext` for each round of trials. Ray passes it to every process that
runs trials.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech.calibration.costs import Calibration, Slowdown
from speech.config import RuntimeSettings, TrialConfig
from sweeps.config.plan import TrialSpec
from sweeps.forecast.forecast import START_UNCERTAINTY, Forecast, forecast_trial
from sweeps.forecast.shm_fit import ShmRequirement
from sweeps.trial_states import ShmVerdict

WORK_FOLDER = Path(".sweeps")  # a trial's folder in it is removed when MLflow has its files


@dataclass(frozen=True)
class TrialPlan:
    """Holds the settings, the /dev/shm requirement and the forecast of one trial on one host."""

    runtime: RuntimeSettings
    shm_requirement: ShmRequirement
    forecast: Forecast | None = None  # None without a calibration
    calibration: Calibration | None = None
    training_clips: int = 0

    def forecast_at(self, config: TrialConfig, slowdown: Slowdown) -> Forecast:
        """Returns the forecast of the trial on cores that are slower than planned."""
        assert self.calibration
        return forecast_trial(
            config,
            self.calibration.at(slowdown),
            self.training_clips,
            self.shm_requirement,
            START_UNCERTAINTY,
        )


@dataclass(frozen=True)
class LaunchContext:
    """Holds where all trials of one launch report and write, and the settings that they share."""

    tracking_uri: str  # resolved, the same from every process
    experiment: str
    parent: str  # run id of the sweep
    started_in: Path  # relative paths of the YAML start in this folder
    folder: Path  # of the sweep; every trial has its own folder in it
    private_shm: bool
    exclusive: bool  # a trial holds its host alone
    keep: str  # which snapshots are uploaded: best, all, none
    planned: frozenset[str]  # ids of all trials of the plan
    attempts: Mapping[str, int]  # number of earlier attempts, by trial id
    trial_plans: Mapping[str, Mapping[str, TrialPlan]]  # by host_lock.identity() and trial id
    provenance: Mapping[str, Any] = field(default_factory=dict)  # tags: versions, git commit
    owner: str = "a sweep"  # named to processes that wait for a host of this launch
    # Of the corpora that trials were planned with, by Corpus.selection_key()
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def is_sure_to_fit(self, plan: TrialPlan) -> bool:
        """Returns whether a trial certainly cannot overflow its /dev/shm.

        That is never certain on the host's own /dev/shm, whose space other processes may use.
        """
        return self.private_shm and plan.shm_requirement.verdict == ShmVerdict.FITS

    def trial_folder(self, spec: TrialSpec) -> Path:
        """Returns the folder of a trial's records, which is removed when the tracker has them."""
        return self.folder / spec.trial_id
