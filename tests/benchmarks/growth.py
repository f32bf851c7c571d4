"""make bench-growth: what a trial costs the launch, in a sweep of 10 trials, of 100 and of 1,000.

The launch's own side is whole and real: configuration, plan, tracker (sqlite), Ray Tune, the events
of every trial, its line, and the end with the tables' frame. Only the process tree that would train
is left out, which costs the same whatever the number of trials is (make bench-overhead): a trial
writes its run to the tracker as the relay does, and reports. A trial's seconds, and CPU seconds of
the launch's process alone, are those from the end of the first trial to the end of the last, by
trial. Tune makes up to 200 trials before the first has ended, so of a small sweep these CPU seconds
leave out the making; all of it is in what each further trial costs the whole launch, from one size
to the next. Beside them stands all else that the launch takes: planning, Ray's start, looking where
trials stand. Last line: the figures as one JSON object.
"""

import os
import sys
import tempfile
import time
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sweeps.config.plan import TrialSpec
from sweeps.config.sweep_file import load
from sweeps.execution import ray_tune, retries, sweep
from sweeps.execution.launch_context import LaunchContext
from sweeps.execution.trial_result import EpochEnd, TrialResult
from sweeps.host.hygiene import wait_until_idle
from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from sweeps.trial_states import Outcome
from tests.benchmarks.report import at_most, print_report
from tests.tones import write_tones

SIZES = (10, 100, 1000)
FLAT = 1.3  # the larger sweeps' cost of a trial, of the smaller's

SWEEP = """
name: growth-{trials}
calibrate: false
order: listed
warmup_epochs: 0
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  sgdr: {{epochs: 1}}
  loader: {{batch_size: 4, num_workers: 0}}
  device: {{prefer: [simulated], step_s: {{values: {steps}}}}}
resources: {{exclusive_node: false, shm: host}}
tracking: {{uri: sqlite:///{folder}/mlflow.db}}
"""

_tracking: RunLogger | None = None  # of this Ray actor's process


def no_op(config: dict[str, str], work: list[Any]) -> None:
    """As the runner's trainable, but for the process tree."""
    from ray import tune

    global _tracking
    trials, _, launch = ray_tune._load_work(work[0])
    spec: TrialSpec = trials[config["trial_id"]]
    _tracking = _tracking or RunLogger(launch.tracking_uri, launch.experiment)
    attempt_id = uuid.uuid4().hex
    run = start(_tracking, spec, launch, attempt_id)
    metrics = {"time/epoch_s": 0.5, "time/first_batch_s": 0.1, "rate/clips_per_s": 100.0}
    _tracking.log_epoch(run, 0, metrics)
    tune.report(EpochEnd(0, False)._asdict())
    _tracking.log_ending(
        run, "completed", "it did nothing", {"epoch_s": 0.5}, {"device": "simulated", "cores": 2}
    )
    _tracking.close_trial(run, "completed", attempt_id)
    result = TrialResult(Outcome.COMPLETED, "it did nothing", {"epoch_s": 0.5}, "", {}, run)
    tune.report({"result": result})


def start(tracking: RunLogger, spec: TrialSpec, launch: LaunchContext, attempt_id: str) -> str:
    return tracking.start_trial(
        launch.parent, TrialDescription(trial_id=spec.trial_id, block=spec.block, repeat=spec.repeat, seed=spec.seed, swept=spec.swept,
                                        config=spec.config.model_dump(mode="json"), tags=launch.provenance), attempt_id,
    )  # fmt: skip


def main() -> int:
    ray_tune._relay_trial = no_op
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        os.chdir(scratch)
        tones = write_tones(Path(scratch) / "tones")
        launched(tones, 2)  # untimed: caches warm up
        unsettled = wait_until_idle().get("unsettled")
        rows = [launched(tones, size) for size in SIZES]
    growth = {
        name: max(row[name] for row in rows[1:]) / rows[0][name]
        for name in ("s a trial", "CPU s a trial")
    }
    further = [
        (more["CPU s"] - less["CPU s"]) / (more["trials"] - less["trials"])
        for less, more in pairwise(rows)
    ]
    growth["CPU s of a further trial"] = further[-1] / further[0]
    print(tabulate(rows, headers="keys", floatfmt=".4f"))
    for (less, more), each_s in zip(pairwise(SIZES), further, strict=True):
        print(
            f"each further trial from {less} to {more:,}: {1000 * each_s:.1f} ms of CPU of the"
            " launch's process, all included"
        )
    bars = [
        at_most(f"{name}, more trials over fewer", FLAT, times, "{:.2f}")
        for name, times in growth.items()
    ]
    print_report("growth", rows, bars, ["ray"], [unsettled], growth=growth)
    return 0


def launched(tones: Path, trials: int) -> dict[str, float]:
    """A launch of so many trials: what each cost it, and what all else did."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))  # of a tracker that is empty
    steps = [round(0.001 * (i + 1), 4) for i in range(trials)]
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(trials=trials, tones=tones, steps=steps, folder=folder))
    config = load(file)
    lines: list[str] = []
    ends: list[tuple[float, float]] = []  # wall and CPU clock

    def say(line: str) -> None:
        lines.append(line)
        if "an epoch" in line:
            ends.append((time.perf_counter(), time.process_time()))

    began, began_cpu = time.perf_counter(), time.process_time()
    with sweep.open_sweep(config, file.read_text(), "", (), say) as opened:
        failed = retries.run(opened, say)
        sweep.finish(opened, "FINISHED")
    took_s, all_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    if failed or len(ends) != trials:
        raise RuntimeError("\n".join(lines[-5:]))
    wall_s, cpu_s = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    return {
        "trials": trials,
        "s a trial": wall_s / (trials - 1),
        "CPU s a trial": cpu_s / (trials - 1),
        "other s": took_s - wall_s,
        "CPU s": all_cpu_s,
    }


if __name__ == "__main__":
    sys.exit(main())
