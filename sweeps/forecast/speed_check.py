"""Checks cached calibrations against the machine's present speed, in about two seconds each.

A calibration is cached for weeks, and a virtual machine may run on another host meanwhile. Each
launch therefore repeats two of its figures (speech/calibration/speed.py). Small differences are
left alone, and very large ones mean another machine: the calibration is then measured again. Those
between scale the costs. The machine then has two speeds, and may change to the other one again:
forecasts are as uncertain as the two are apart.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from speech.calibration.costs import Calibration, Slowdown, Speed
from sweeps.forecast.calibration import CalibrationRequest, calibration_task
from sweeps.host.node import Log
from sweeps.sandbox.isolation import ForkServer, Record

TIMEOUT_S = 60.0
# Factors within which a calibration holds as it is, and within which it is scaled. The cores of a
# shared virtual machine have two speeds, 1.4 apart
UNCHANGED, SCALABLE = 1.08, 1.7


def check_calibrations(
    fork_server: ForkServer,
    requests: Iterable[CalibrationRequest],
    cached: Mapping[str, Calibration],
    private: bool,
    log_file: Path,
    log: Log,
) -> dict[str, Calibration]:
    """Returns the `cached` calibrations at the present speed, without those to measure again.

    `requests` are the calibrations to check. The others are returned unchanged, and so are those
    whose check failed or was disturbed by other programs.
    """
    checked = dict(cached)
    for request in requests:
        calibration = cached.get(request.name)
        if calibration is None or calibration.speed is None:
            continue
        record = _probe(fork_server, request, private, log_file)
        if record is None:
            log(f"{request}: calibrated earlier; the check of its speed failed, see {log_file}")
            continue
        log_file.unlink(missing_ok=True)
        if record["speed"] is None:
            log(f"{request}: calibrated earlier; the machine is too busy to check its speed")
            continue
        speed = Speed.model_validate(record["speed"])
        slowdown = speed.slowdown(calibration.speed)
        if _is_within(slowdown, UNCHANGED):
            continue
        if _is_within(slowdown, SCALABLE):
            checked[request.name] = _scale(calibration, slowdown)
            log(f"{request}: calibrated earlier; {_describe(slowdown)}, and forecasts are scaled")
        else:
            del checked[request.name]
            log(f"{request}: calibrated earlier; {_describe(slowdown)}, too far to scale")
    return checked


def _probe(
    fork_server: ForkServer, request: CalibrationRequest, private: bool, log_file: Path
) -> Record | None:
    """Returns the record of the present speed; None if the probe failed or took too long."""
    task = calibration_task("speed", request, private, log_file.parent)
    records = list(fork_server.run(task, log_file, TIMEOUT_S))
    return next((record for record in records if record["kind"] == "speed"), None)


def _scale(calibration: Calibration, slowdown: Slowdown) -> Calibration:
    """Returns a calibration at the present speed, as uncertain as the change was large."""
    scaled = calibration.at(slowdown)
    spreads = {
        part: max(costs.spread, abs(change - 1))
        for part, costs, change in (
            ("loader", scaled.loader, slowdown.prepare),
            ("step", scaled.step, slowdown.step),
        )
    }
    return scaled.model_copy(
        update={
            "loader": scaled.loader.model_copy(update={"spread": spreads["loader"]}),
            "step": scaled.step.model_copy(update={"spread": spreads["step"]}),
        }
    )


def _is_within(slowdown: Slowdown, factor: float) -> bool:
    """Returns whether preparation and step are at most `factor` times as slow or as fast."""
    return all(1 / factor <= part <= factor for part in (slowdown.prepare, slowdown.step))


def _describe(slowdown: Slowdown) -> str:
    """Returns for example 'a batch now takes 1.31 times as long, a step 1.12 times'."""
    step = "" if slowdown.step == 1 else f", a step {slowdown.step:.2f} times"
    return f"a batch now takes {slowdown.prepare:.2f} times as long{step}"
