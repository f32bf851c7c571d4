"""Every trial of a sweep and what is known of it before it runs: what it needs of /dev/shm, and where it is calibrated its forecast.

A launch and a dry run say the same of a file, as both look at it through this: a launch measures the calibrations that are missing,
a dry run takes those there are.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speech import corpora
from speech.config import Corpus, Pinned, TrialConfig
from speech.costs import Calibration
from speech.shapes import whole_pages
from sweeps.calibration import Wanted, wanted
from sweeps.cgroup import memory_limit
from sweeps.choice import left_out
from sweeps.config import SweepConfig
from sweeps.forecast import Forecast, forecast
from sweeps.names import flatten
from sweeps.plan import Plan, TrialSpec, plan
from sweeps.preflight import Node, PreflightError, Say
from sweeps.shm import shm_usage
from sweeps.shm_fit import ShmFit, fit
from sweeps.states import NEW, NOT_MEASURED, counted


@dataclass
class Outlook:
    """What `outlook` found, and what calibrations add to it."""

    config: SweepConfig
    plan: Plan
    fits: dict[str, ShmFit]  # by the trial's key
    corpora: dict[str, corpora.PreparedCorpus]  # by Corpus.which()
    forecasts: dict[str, Forecast] = field(default_factory=dict)  # by the trial's key, where there is a calibration
    foreseen_only: frozenset[str] = frozenset()  # keys of trials that method: forecast doesn't measure

    def calibrations_wanted(self, pinned: Mapping[str, Pinned], node: Node) -> dict[str, Wanted]:
        """By the key of every trial that is in `pinned` and can be forecast."""
        return wanted(self.plan.trials, pinned, {name: found.fingerprint for name, found in self.corpora.items()}, node)

    def foresee(self, needs: Mapping[str, Wanted], calibrations: Mapping[str, Calibration], settled: Collection[str]) -> None:
        """Forecasts every trial whose calibration there is, by its name, and chooses what is to be measured. `settled`: keys."""
        clips = {name: len(found.split("training")) for name, found in self.corpora.items()}
        self.forecasts = {
            trial.key: forecast(trial.config, calibrations[needs[trial.key].name], clips[trial.config.corpus.which()], self.fits[trial.key])
            for trial in self.plan.trials
            if trial.key in needs and needs[trial.key].name in calibrations
        }
        if self.config.method == "forecast":
            self.foreseen_only = left_out(self.plan.trials, self.forecasts, self.fits) - set(settled)

    def left(self, settled: Collection[str], asked: Collection[str] | None = None) -> list[TrialSpec]:
        """What is to run, in the order of the plan: of the keys that are `asked` for, or of all, those not `settled`."""
        wanted = [trial for trial in self.plan.trials if asked is None or trial.key in asked]
        return [trial for trial in wanted if trial.key not in settled and trial.key not in self.foreseen_only]

    def state(self, key: str, found: Mapping[str, str]) -> str:
        """Of a trial, in the words of sweeps/states.py. `found`: the states of those that have run."""
        return NOT_MEASURED if key in self.foreseen_only else found.get(key, NEW)

    def outline(self, found: Mapping[str, str], left: Sequence[TrialSpec]) -> str:
        """How many trials there are and where they stand, how long those `left` will take, and what was left out and why."""
        trials = self.plan.trials
        blocks = ", ".join(f"{count} in {block}" for block, count in Counter(trial.block for trial in trials).items())
        known = [expected_s for trial in left if (expected_s := self.expected_s(trial)) is not None]
        expected = f", about {roughly(sum(known))}" if known else ""
        if known and len(known) < len(left):
            expected += f" and {len(left) - len(known)} uncalibrated"
        standing = counted(self.state(trial.key, found) for trial in trials)
        lines = [f"{self.config.name}: {len(trials)} trials ({blocks}), {standing}; {len(left)} to run{expected}"]
        if self.config.method == "forecast":
            lines.append(self._chosen())
        return "\n".join(lines + [str(removed) for removed in self.plan.removed])

    def _chosen(self) -> str:
        """What method: forecast makes of the plan."""
        if not self.forecasts:
            return "which trials are measured is chosen once a launch has calibrated"
        total, unmeasured = len(self.plan.trials), [trial for trial in self.plan.trials if trial.key in self.foreseen_only]
        saved_s = sum(self.expected_s(trial) or 0.0 for trial in unmeasured)
        are = "is" if len(unmeasured) == 1 else "are"
        return f"measured: {total - len(unmeasured)} of {total} trials; {len(unmeasured)} {are} forecast, about {roughly(saved_s)} saved"

    def expected_s(self, trial: TrialSpec) -> float | None:
        """Seconds of its epochs; None where there is no forecast. A trial that is sure to overflow ends at once."""
        if trial.key not in self.forecasts:
            return None
        return 0.0 if self.fits[trial.key].verdict == "overflows" else trial.config.sgdr.epochs * self.forecasts[trial.key].epoch_s

    def rows(self) -> list[dict[str, Any]]:
        """plan.json. A trial that isn't measured has no run, so its parameters stand here."""
        rows = []
        for trial in self.plan.trials:
            row = {"key": trial.key, "block": trial.block, "repeat": trial.repeat, "swept": trial.swept}
            if trial.key in self.forecasts:
                row["forecast"] = self.forecasts[trial.key].metrics()
            if trial.key in self.foreseen_only:
                parameters = flatten(trial.config.model_dump(mode="json"))
                row |= {"measured": False, "forecast_fit": self.fits[trial.key].verdict, "config": parameters}
            rows.append(row)
        return rows


def outlook(config: SweepConfig, say: Say) -> Outlook:
    """Nothing calibrated yet. Prepares the corpora, since keys and batches depend on their clips.

    PreflightError where a corpus can't be used.
    """
    prepared: dict[str, corpora.PreparedCorpus] = {}

    def fingerprint(corpus: Corpus) -> str:
        prepared[corpus.which()] = found = corpora.prepare(corpus, say)
        return found.fingerprint

    try:
        made = plan(config, fingerprint)
    except corpora.CorpusError as error:
        raise PreflightError(str(error)) from error
    clips = {name: (len(found.split("training")), len(found.split("validation"))) for name, found in prepared.items()}
    memory = memory_limit()
    rooms = {trial.key: min(_room(config, trial.config), memory) for trial in made.trials}
    fits = {trial.key: fit(trial.config, *clips[trial.config.corpus.which()], rooms[trial.key]) for trial in made.trials}
    return Outlook(config, made, fits, prepared)


def _room(config: SweepConfig, trial: TrialConfig) -> int:
    """Bytes that a trial may fill of its /dev/shm: all of a private one, what is free now of the machine's."""
    usage = shm_usage()
    size = whole_pages(trial.loader.shm_size or usage.limit_bytes)
    return size if config.resources.shm == "private" else min(size, usage.limit_bytes - usage.used_bytes)


def roughly(seconds: float) -> str:
    """'45 s', '7 min', '2.5 h': as much as a forecast of many trials is worth."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
