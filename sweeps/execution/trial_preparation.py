"""Prepares the trials of a sweep before the first of them runs: runtime settings, calibrations and
forecasts.
"""

from typing import TYPE_CHECKING

from speech.calibration.costs import Calibration
from sweeps.execution.host_tasks import Calibrate
from sweeps.execution.runtimes import (
    RUNTIMES_TAG,
    apply_runtimes,
    choose_runtimes,
    recorded_runtimes,
)

if TYPE_CHECKING:
    from sweeps.execution.sweep import Sweep


def prepare_trials(sweep: "Sweep", owner: str) -> None:
    """Chooses runtime settings and calibrations for all pending trials, and forecasts all trials
    that can be forecast.

    Records the forecasts in the tracker before the first trial runs.
    """
    config = sweep.config
    _choose_runtimes(sweep, owner)
    # Beside other trials, a trial takes as long as they let it
    if not (config.calibrate and config.resources.exclusive_node):
        return
    available: dict[str, Calibration] = {}
    for host, calibrations in sweep.hosts.call(_calibration_tasks(sweep, owner)).items():
        sweep.host_plans[host].trial_forecasts.add_forecasts(
            calibrations.requests, calibrations.available, sweep.state.always_measured
        )
        available |= calibrations.available
    host_forecasts = [host_plan.trial_forecasts for host_plan in sweep.host_plans.values()]
    # A trial may run on any host, so it is skipped only if every host can spare it
    forecast_only = frozenset.intersection(*(each.forecast_only for each in host_forecasts))
    for forecasts in host_forecasts:
        forecasts.forecast_only = forecast_only
    sweep.tracking.log_plan(sweep.parent, sweep.trial_forecasts.rows())
    if available:
        sweep.tracking.log_calibrations(
            sweep.parent,
            {name: calibration.model_dump() for name, calibration in available.items()},
        )


def _choose_runtimes(sweep: "Sweep", owner: str) -> None:
    """Stores the runtime settings of each trial in the host plans and in the tracker."""
    runtimes = choose_runtimes(
        sweep.hosts,
        sweep.host_plans,
        sweep.pending,
        recorded_runtimes(sweep.tracking.client.get_run(sweep.parent)),
        sweep.folder / "preflight.log",
        owner,
    )
    recorded = {name: settings.model_dump() for name, settings in runtimes.items()}
    sweep.tracking.set_tags(sweep.parent, {RUNTIMES_TAG: recorded})
    for host_plan in sweep.host_plans.values():
        apply_runtimes(host_plan, runtimes)


def _calibration_tasks(sweep: "Sweep", owner: str) -> dict[str, Calibrate]:
    """Returns what each host calibrates for its pending trials."""
    return {
        host: Calibrate(
            sweep.config,
            host_plan.node,
            sweep.plan.trials,
            host_plan.runtimes,
            sweep.trial_forecasts.fingerprints(),
            [trial.trial_id for trial in sweep.pending if trial.trial_id not in host_plan.refused],
            sweep.folder / "calibration.log",
            owner,
        )
        for host, host_plan in sweep.host_plans.items()
    }
