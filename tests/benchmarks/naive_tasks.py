"""A trial as people track one who call log_metric at every step, in the training process: the rival
of make bench-tracking."""

import os
from typing import Any

from mlflow import MlflowClient

from speech import tasks
from speech.simulated_accelerator import SimulatedAccelerator
from speech.timing import Gauge


def train(arguments: dict[str, Any], emit: tasks.Emit, gauge: Gauge) -> None:
    client, run_step = MlflowClient(os.environ["BENCH_URI"]), SimulatedAccelerator.run_step
    run, step = client.create_run("0").info.run_id, 0

    def logged(accelerator: SimulatedAccelerator) -> None:
        nonlocal step
        step += 1
        run_step(accelerator)
        client.log_metric(run, "loss/training", 1.0 / step, step=step)

    SimulatedAccelerator.run_step = logged  # type: ignore[method-assign]
    tasks.train(arguments, emit, gauge)


TASKS = {"train": train}
