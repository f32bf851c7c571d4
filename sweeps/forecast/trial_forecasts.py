"""Forecasts every trial of a sweep before it runs.

Every trial has a /dev/shm requirement; a calibrated trial also has a forecast of its epochs. A
launch and a dry run use the same forecasts, and therefore report the same about a sweep file. A
launch measures missing calibrations; a dry run uses only those in the cache.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speech import corpora
from speech.calibration.costs import Calibration
from speech.config import RuntimeSettings, TrialConfig
from speech.corpus_config import Corpus
from speech.feasibility import find_obstacle
from speech.shapes import whole_pages
from speech.shm_usage import shm_usage
from sweeps.config.config import SweepConfig
from sweeps.config.plan import Plan, TrialSpec, plan
from sweeps.forecast.calibration import CalibrationRequest, required_calibrations
from sweeps.forecast.forecast import Forecast, forecast_trial
from sweeps.forecast.shm_fit import ShmRequirement, shm_requirement
from sweeps.forecast.trial_selection import skippable_trials
from sweeps.host.node import Log, Node, PreflightError
from sweeps.names import flatten
from sweeps.sandbox.cgroup import memory_limit
from sweeps.tracking.states import format_counts
from sweeps.trial_states import ShmVerdict, TrialState


@dataclass
class TrialForecasts:
    """A sweep's plan, corpora and forecasts, as prepared before any trial runs."""

    config: SweepConfig
    plan: Plan
    shm_requirements: dict[str, ShmRequirement]  # by trial id
    corpora: dict[str, corpora.PreparedCorpus]  # by Corpus.selection_key()
    # By the id of every calibrated trial
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    # The calibrations that they are made from, by the same ids
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    # By the trial's id: why it cannot be trained, as far as is known before a launch
    refused: dict[str, str] = field(default_factory=dict)
    # Ids of the trials that method: forecast does not measure
    forecast_only: frozenset[str] = frozenset()

    def required_calibrations(
        self, runtimes: Mapping[str, RuntimeSettings], node: Node
    ) -> dict[str, CalibrationRequest]:
        """Returns the required calibration of every trial that is in `runtimes` and can be
        forecast.

        Both mappings are by trial id.
        """
        return required_calibrations(self.plan.trials, runtimes, self.fingerprints(), node)

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprints of the corpora, by Corpus.selection_key()."""
        return {name: corpus.fingerprint for name, corpus in self.corpora.items()}

    def add_forecasts(
        self,
        requests: Mapping[str, CalibrationRequest],
        calibrations: Mapping[str, Calibration],
        settled: Collection[str],
    ) -> None:
        """Forecasts every calibrated trial, and with method: forecast selects what to measure.

        `requests` is by trial id, `calibrations` by the request's name. `settled` holds the
        ids of trials that the selection never skips.
        """
        self.calibrations = {
            trial_id: calibrations[request.name]
            for trial_id, request in requests.items()
            if request.name in calibrations
        }
        clips = self.training_clips()
        self.forecasts = {
            trial.trial_id: forecast_trial(
                trial.config,
                self.calibrations[trial.trial_id],
                clips[trial.config.corpus.selection_key()],
                self.shm_requirements[trial.trial_id],
            )
            for trial in self.plan.trials
            if trial.trial_id in self.calibrations
        }
        if self.config.method == "forecast":
            self.forecast_only = skippable_trials(
                self.plan.trials, self.forecasts, self.shm_requirements
            ) - set(settled)

    def training_clips(self) -> dict[str, int]:
        """Returns the number of training clips, by Corpus.selection_key()."""
        return {name: len(corpus.split("training")) for name, corpus in self.corpora.items()}

    def pending(
        self, settled: Collection[str], selected: Collection[str] | None = None
    ) -> list[TrialSpec]:
        """Returns the pending trials in plan order: all trials, or only the `selected` ones.

        Trials that are `settled`, and trials that are only forecast, are not pending. Both
        collections hold ids.
        """
        candidates = [
            trial for trial in self.plan.trials if selected is None or trial.trial_id in selected
        ]
        return [
            trial
            for trial in candidates
            if trial.trial_id not in settled and trial.trial_id not in self.forecast_only
        ]

    def state(self, trial_id: str, states: Mapping[str, str]) -> str:
        """Returns a trial's state, an outcome or a TrialState.

        `states` holds the states of the trials that have run, by trial id.
        """
        if trial_id in self.forecast_only:
            return TrialState.NOT_MEASURED
        return states.get(trial_id, TrialState.NEW)

    def outline(self, states: Mapping[str, str], pending: Sequence[TrialSpec]) -> str:
        """Returns a summary of the sweep for people.

        It states the number of trials and their states, how long the `pending` trials will take,
        and what was removed from the plan and why.
        """
        trials = self.plan.trials
        blocks = ", ".join(
            f"{count} in {block}"
            for block, count in Counter(trial.block for trial in trials).items()
        )
        known = [
            expected_s for trial in pending if (expected_s := self.expected_s(trial)) is not None
        ]
        expected = f", about {format_rough_duration(sum(known))}" if known else ""
        if known and len(known) < len(pending):
            expected += f" and {len(pending) - len(known)} uncalibrated"
        counts = format_counts(self.state(trial.trial_id, states) for trial in trials)
        lines = [
            f"{self.config.name}: {len(trials)} trial{'' if len(trials) == 1 else 's'} ({blocks}),"
            f" {counts}; {len(pending)} to"
            f" run{expected}"
        ]
        if self.config.method == "forecast":
            lines.append(self._selection_text())
        return "\n".join(lines + [str(removed) for removed in self.plan.removed])

    def accounts(self) -> list[str]:
        """Returns the lines of every corpus's account: its clips, used and skipped."""
        return [
            line
            for lines in dict.fromkeys(
                tuple(corpus.account.lines()) for corpus in self.corpora.values()
            )
            for line in lines
        ]

    def _selection_text(self) -> str:
        """Returns a line on how many trials method: forecast measures, and the time it saves."""
        if not self.forecasts:
            return "a launch chooses the trials to measure after it has calibrated"
        total, unmeasured = (
            len(self.plan.trials),
            [trial for trial in self.plan.trials if trial.trial_id in self.forecast_only],
        )
        saved_s = sum(self.expected_s(trial) or 0.0 for trial in unmeasured)
        are = "is" if len(unmeasured) == 1 else "are"
        saved = format_rough_duration(saved_s)
        return (
            f"measured: {total - len(unmeasured)} of {total} trials; {len(unmeasured)} {are}"
            f" forecast, about {saved} saved"
        )

    def expected_s(self, trial: TrialSpec) -> float | None:
        """Returns the expected seconds of all epochs of a trial, or None without a forecast.

        The value is 0 for a trial that certainly overflows, because it ends at once.
        """
        if trial.trial_id not in self.forecasts:
            return None
        return (
            0.0
            if self.shm_requirements[trial.trial_id].verdict == ShmVerdict.OVERFLOWS
            else trial.config.sgdr.epochs * self.forecasts[trial.trial_id].epoch_s
        )

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of plan.json, one a trial.

        A trial that is not measured has no run, so its row contains its parameters.
        """
        rows = []
        for trial in self.plan.trials:
            row = {
                "trial_id": trial.trial_id,
                "block": trial.block,
                "repeat": trial.repeat,
                "swept": trial.swept,
            }
            if trial.trial_id in self.forecasts:
                row["forecast"] = self.forecasts[trial.trial_id].metrics()
            if trial.trial_id in self.forecast_only:
                parameters = flatten(trial.config.model_dump(mode="json"))
                row |= {
                    "measured": False,
                    "forecast_fit": self.shm_requirements[trial.trial_id].verdict,
                    "config": parameters,
                }
            rows.append(row)
        return rows


def prepare_forecasts(config: SweepConfig, log: Log) -> TrialForecasts:
    """Prepares the corpora and the plan of a sweep, without any calibration yet.

    Keys and batches depend on the clips of the corpora. Raises PreflightError if a corpus cannot be
    used.
    """
    prepared: dict[str, corpora.PreparedCorpus] = {}

    def prepare_and_fingerprint(corpus: Corpus) -> str:
        prepared[corpus.selection_key()] = corpora.prepare_corpus(corpus, log)
        return prepared[corpus.selection_key()].fingerprint

    try:
        trial_plan = plan(config, prepare_and_fingerprint)
    except corpora.CorpusError as error:
        raise PreflightError(str(error)) from error
    clips = {
        name: (len(corpus.split("training")), len(corpus.split("validation")))
        for name, corpus in prepared.items()
    }
    memory = memory_limit()
    limits = {
        trial.trial_id: min(_shm_limit_bytes(config, trial.config), memory)
        for trial in trial_plan.trials
    }
    shm_requirements = {
        trial.trial_id: shm_requirement(
            trial.config, *clips[trial.config.corpus.selection_key()], limits[trial.trial_id]
        )
        for trial in trial_plan.trials
    }
    refused = {
        trial.trial_id: why
        for trial in trial_plan.trials
        if (why := _obstacle(trial.config, prepared))
    }
    return TrialForecasts(config, trial_plan, shm_requirements, prepared, refused=refused)


def _obstacle(trial: TrialConfig, prepared: Mapping[str, corpora.PreparedCorpus]) -> str | None:
    """Returns why a trial cannot be trained, or None.

    Of a trial that may get the simulated device, it is not required that it can learn.
    """
    return find_obstacle(
        trial, prepared[trial.corpus.selection_key()], learns="simulated" not in trial.device.prefer
    )


def _shm_limit_bytes(config: SweepConfig, trial: TrialConfig) -> int:
    """Returns how many bytes of /dev/shm a trial may fill.

    This is all of a private /dev/shm, or what is free now in the machine's.
    """
    usage = shm_usage()
    size = whole_pages(trial.loader.shm_size or usage.limit_bytes)
    return (
        size
        if config.resources.shm == "private"
        else min(size, usage.limit_bytes - usage.used_bytes)
    )


def format_rough_duration(seconds: float) -> str:
    """Returns a duration as '45 s', '7 min' or '2.5 h', as precise as a forecast of many trials."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
