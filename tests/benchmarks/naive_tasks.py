"""A trial as people track one who call log_metric at every step, in the training process: the rival
of make bench-tracking."""

import os
from typing import Any

from mlflow import MlflowClient

from speech import accelerator, tasks
from speech.timing import Gauge


def train(arguments: dict[str, Any], emit: tasks.Emit, gauge: Gauge) -> None:
    client, simulated = MlflowClient(os.environ["BENCH_URI"]), accelerator.run_simulated_step
    run, step = client.create_run("0").info.run_id, 0

    def logged(keys: Any) -> tuple[float, float]:
        nonlocal step
        step += 1
        spans = simulated(keys)
        client.log_metric(run, "loss/training", 1.0 / step, step=step)
        return spans

    accelerator.run_simulated_step = logged
    tasks.train(arguments, emit, gauge)


TASKS = {"train": train}
