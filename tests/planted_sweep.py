"""A whole sweep as the default one leaves it in the tracker, with its figures known: workers and
sizes, cycles, series, records, a YAML.

`plant_first_look(tracking)` writes it through the real tracker: 10 cells of 3 trials of which 64M
overflows from 4 workers on, each with its forecast, and two schedules of cycles of 3 trials each.
Nothing is measured, so all of it is exact.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from sweeps.tracking.mlflow_runs import RunLogger
from tests import bursts
from tests.conftest import make_trial_id, plant_trial

MB = 1 << 20
BATCH = 18 * MB
SPANS = ("start_s", "first_batch_s", "data_wait_s", "step_s", "other_s")
SIMULATED = {
    "device": "simulated", "device_name": "simulated accelerator: 25 ms a step, 0 ms of host CPU", "cpu_name": "Planted CPU", "batch_bytes": BATCH,
    "warmup_epochs": 1, "node": "planted", "git_commit": "abc1234", "versions": {"torch": "2.14.1", "mlflow": "3.17.2"},
}  # fmt: skip
CPU = SIMULATED | {"device": "cpu", "device_name": "Planted CPU", "validation_clips": 270}
# workers -> start, fill, wait, step, other; clips a second, busy, stalls, gap, ready, CPU seconds
# of main and workers, peak in batches, forecast
EPOCHS: dict[int, tuple[tuple[float, ...], tuple[float | None, ...]]] = {
    0: ((0.0, 0.07, 2.26, 0.98, 0.0), (377, 0.30, 38, 0.08, None, 3.2, None, 0, 3.68)),
    1: ((0.0, 0.08, 1.74, 0.98, 0.08), (434, 0.34, 38, 0.07, 0.0, 0.5, 2.6, 1, 3.02)),
    2: ((0.0, 0.09, 0.40, 0.99, 0.06), (805, 0.64, 38, 0.03, 0.45, 0.5, 2.4, 3, 1.60)),
    4: ((0.0, 0.20, 0.44, 1.02, 0.05), (730, 0.59, 38, 0.07, 0.77, 0.6, 2.5, 6, 1.71)),
    8: ((0.0, 0.36, 0.32, 1.06, 0.05), (688, 0.57, 38, 0.05, 0.97, 0.6, 2.4, 12, 1.96)),
}
DRIFT = (1.0, 1.02, 0.99)  # of a repeat, all its trials alike
FIGURES = (
    "clips_per_s",
    "busy_fraction",
    "stall_steps",
    "max_gap_s",
    "prefetch_hit_rate",
    "main_cpu_s",
    "worker_cpu_s",
)
ENSEMBLES = {2: (0.826, 0.834, 0.841), 8: (0.841, 0.838, 0.845)}  # cycle_epochs of 8 -> by repeat
YAML = "name: first-look\nseed: 42   # <of the first repeat>\n"


def figures(workers: int, repeat: int) -> dict[str, float]:
    """The summary of a trial of the workers block."""
    spans, (*others, batches, _) = EPOCHS[workers]
    by = DRIFT[repeat - 1]
    found = {name: by * seconds for name, seconds in zip(SPANS, spans, strict=True)}
    found |= {name: value for name, value in zip(FIGURES, others, strict=True) if value is not None}
    epoch_s = by * sum(spans)
    return found | {
        "epoch_s": epoch_s, "wait_fraction": (spans[1] + spans[2]) / sum(spans), "read_bytes": 0.0, "shm_peak_bytes": batches * BATCH,
        "train_s": 3 * epoch_s,
    } | foreseen(workers)  # fmt: skip


def foreseen(workers: int) -> dict[str, float]:
    forecast_s = EPOCHS[workers][1][-1]
    names = {"epoch_s": 1.0, "epoch_low_s": 0.9, "epoch_high_s": 1.1, "closed_form_s": 0.95}
    found = {f"forecast_{name}": by * forecast_s for name, by in names.items()}
    return found | {
        "forecast_shm_max_bytes": (2 * workers + 1) * BATCH if workers else 0.0,
        "forecast_first_batch_s": 0.08,
    }


def plant_first_look(tracking: RunLogger, records: bool = True) -> str:
    """Writes it and returns the parent's run id. `records`: trials have their records.jsonl, as
    real ones do."""
    workers = [
        ({"loader.num_workers": count, "loader.shm_size": size}, repeat)
        for repeat in (1, 2, 3) for count in EPOCHS for size in (64 * MB, 1024 * MB)
    ]  # fmt: skip
    cycles = [
        ({"sgdr.cycle_epochs": epochs}, repeat) for repeat in (1, 2, 3) for epochs in ENSEMBLES
    ]
    plan = [
        row(block, *trial)
        for block, trials in (("workers", workers), ("cycles", cycles))
        for trial in trials
    ]
    parent = tracking.start_sweep("first-look", YAML, plan, "python -m analysis first-look")
    for swept, repeat in workers:
        plant_of_workers(tracking, parent, swept, repeat, records)
    for swept, repeat in cycles:
        plant_of_cycles(tracking, parent, swept["sgdr.cycle_epochs"], repeat, records)
    tracking.finish_sweep(parent, "FINISHED")
    return parent


def row(block: str, swept: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Of plan.json."""
    return {
        "trial_id": make_trial_id(block, swept, repeat),
        "block": block,
        "repeat": repeat,
        "swept": swept,
    }


def plant_of_workers(
    tracking: RunLogger, parent: str, swept: dict[str, Any], repeat: int, records: bool
) -> None:
    count, size = swept["loader.num_workers"], swept["loader.shm_size"]
    lost = count >= 4 and size == 64 * MB
    fit = "fits" if (2 * count + 1) * BATCH <= size or not count else "depends"
    summary = foreseen(count) | {"shm_peak_bytes": 60 * MB} if lost else figures(count, repeat)
    run = plant_trial(
        tracking,
        parent,
        swept,
        repeat,
        "shm_exhausted" if lost else "completed",
        tags=SIMULATED | {"forecast_fit": fit},
        **summary,
    )
    if records and not lost:
        file_records(tracking, run, bursts.records(epochs=2, workers=count, steps=24))


def plant_of_cycles(
    tracking: RunLogger, parent: str, cycle_epochs: int, repeat: int, records: bool
) -> None:
    """Eight epochs whose losses fall, and a snapshot at each cycle's end."""
    ensemble, members = ENSEMBLES[cycle_epochs][repeat - 1], 8 // cycle_epochs
    alone = (
        [ensemble - 0.02 - 0.05 * (members - 1 - cycle) for cycle in range(members)]
        if members > 1
        else [ensemble]
    )
    summary = {
        "accuracy": alone[-1],
        "best_snapshot_accuracy": max(alone),
        "ensemble_accuracy": ensemble,
        "train_s": 80.0 + repeat,
    }
    run = plant_trial(
        tracking,
        parent,
        {"sgdr.cycle_epochs": cycle_epochs},
        repeat,
        block="cycles",
        tags=CPU,
        epoch_s=10.0,
        **summary,
    )
    for epoch in range(8):
        phase = (epoch % cycle_epochs + 1) / cycle_epochs
        accuracy = 0.8 - 0.5 * math.exp(-epoch / 2)
        course = {"lr": 0.005 * (1 + math.cos(math.pi * phase)), "loss/training": 2 * math.exp(-epoch / 4),
                  "loss/validation": 2 * math.exp(-epoch / 5), "accuracy/validation": accuracy, "time/epoch_s": 10.0}  # fmt: skip
        tracking.log_epoch(run, epoch, course)
    told = []
    for cycle in range(members):
        so_far = ensemble - 0.03 * (members - 1 - cycle)
        metrics = {
            "snapshot/accuracy": alone[cycle],
            "snapshot/ensemble_accuracy": so_far,
            "time/snapshot_s": 0.1,
        }
        metrics |= {"snapshot/disagreement": 0.2} if cycle else {}
        tracking.log_snapshot(run, cycle, metrics)
        pairs = [0.2 + 0.05 * (cycle - other) for other in range(cycle)]
        told.append(
            {"kind": "snapshot", "cycle": cycle, "metrics": metrics, "disagreements": pairs}
        )
    if records:
        file_records(tracking, run, told)


def file_records(tracking: RunLogger, run: str, records: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "records.jsonl")
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        tracking.client.log_artifact(run, str(file))
