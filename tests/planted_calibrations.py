"""A calibration of round numbers; and as a template's task, where it comes without being measured,
or goes wrong as model.weights asks."""

import os
import signal
import time
from typing import Any

from speech.calibration.agreement import Disagreement
from speech.calibration.costs import Calibration, LoaderCosts, Speed, StepCosts
from speech.calibration.undisturbed_rounds import MachineBusy

MIB = 1 << 20
PACE_S = 0.08  # CPU seconds a batch of the planted speed


class BadClip(ValueError):
    """As speech.audio's."""


def planted(step: StepCosts | None = None, **costs: Any) -> Calibration:
    """Round seconds on 2 cores: a batch takes 80 ms, its step 10 ms of the accelerator."""
    nothing = {
        name: 0.0 if field.annotation is float else []
        for name, field in LoaderCosts.model_fields.items()
        if field.annotation in (float, list[tuple[int, float]])
    }
    plain = nothing | {
        "cores": 2,
        "cpus": None,
        "period_s": 0.1,
        "batch_size": 4,
        "batch_bytes": MIB,
        "inline_s": 0.08,
        "prepare_s": 0.08,
        "fork_s": 0.01,
        "ready_s": 0.03,
    }
    return Calibration(
        loader=LoaderCosts(**plain | costs),
        step=step or StepCosts(wait_s=0.01),
        speed=Speed(prepare_s=PACE_S),
        took_s=20,
    )


def calibrate(arguments: dict[str, Any], emit: Any, gauge: Any) -> None:
    way = arguments["config"]["model"]["weights"]
    if way == "raise":
        raise KeyError("planted")
    if way == "no space":
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_1_1>: No space left on device"
            " (28)"
        )
    if way == "bad clip":
        raise BadClip("low/a.wav: not a wav file")
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "busy":
        time.sleep(0.5)  # in which the launch's look at other programs sees them
        raise MachineBusy("other programs used 50 % of the cores while it was measured")
    if way == "contradicts":
        raise Disagreement("preparing a batch took 815.0 ms and 46.0 ms")
    if way == "asleep":
        time.sleep(60)
    emit({"kind": "calibration", "calibration": planted().model_dump()})


def speed(arguments: dict[str, Any], emit: Any, gauge: Any) -> None:
    """Emits a speed that is slower than planted by the factor in model.weights; 'busy': none."""
    way = arguments["config"]["model"]["weights"]
    found = None if way == "busy" else {"prepare_s": float(way) * PACE_S, "step_s": None}
    emit({"kind": "speed", "speed": found})


TASKS = {"calibrate": calibrate, "speed": speed}
