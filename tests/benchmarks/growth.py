"""make bench-growth: what a trial costs the launch, in a sweep of 10 trials, of 100 and of 1,000.

The launch's own side is whole and real: configuration, plan, tracker (sqlite), Ray Tune, the events of every trial, its line, and the end
with the tables' frame. Only the process tree that would train is left out, which costs the same whatever the number of trials is
(make bench-overhead): a trial writes its run to the tracker as the relay does, and reports. Seconds are those of the whole launch from its
opened sweep on, and of its process's CPU alone, by trial; what a launch pays once, Ray's start above all, is measured with a sweep of
one trial and subtracted. Last line: the figures as one JSON object.
"""

import datetime
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from speech.cpu import cpu_model
from sweeps import rounds, runner, sweep
from sweeps.config import load
from sweeps.hygiene import settle
from sweeps.plan import TrialSpec
from sweeps.relay import Launch
from sweeps.tracking import Tracking
from tests.tones import write_tones

SIZES = (10, 100, 1000)
FLAT = 1.3  # the largest sweep's cost of a trial, of the smallest's

SWEEP = """
name: growth-{trials}
calibrate: false
order: listed
warmup_epochs: 0
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  sgdr: {{epochs: 1}}
  loader: {{batch_size: 4, num_workers: 0}}
  device: {{first_of: [paced], step_s: {{values: {steps}}}}}
resources: {{exclusive_node: false, shm: host}}
tracking: {{uri: sqlite:///{folder}/mlflow.db}}
"""

_tracking: Tracking | None = None  # of this Ray actor's process


def no_op(config: dict[str, int], work: list[Any]) -> None:
    """As the runner's trainable, but for the process tree."""
    import ray
    from ray import tune

    global _tracking
    if runner._work is None:
        runner._work = ray.get(work[0])
    trials, launch = runner._work
    spec: TrialSpec = trials[config["index"]]
    _tracking = _tracking or Tracking(launch.tracking_uri, launch.experiment)
    run = start(_tracking, spec, launch)
    metrics = {"time/epoch_s": 0.5, "time/fill_s": 0.1, "rate/clips_per_s": 100.0}
    _tracking.log_epoch(run, 0, metrics)
    tune.report({"epoch": 0} | metrics)
    _tracking.finish_trial(run, "completed", "it did nothing", {"epoch_s": 0.5}, {"device": "paced", "cores": 2})
    told = {"outcome": "completed", "evidence": "it did nothing", "summary": {"epoch_s": 0.5}, "origin": {}, "run_id": run, "log": ""}
    tune.report(told)


def start(tracking: Tracking, spec: TrialSpec, launch: Launch) -> str:
    return tracking.start_trial(
        launch.parent, key=spec.key, block=spec.block, repeat=spec.repeat, seed=spec.seed, swept=spec.swept,
        config=spec.config.model_dump(mode="json"), tags=launch.provenance,
    )  # fmt: skip


def main() -> int:
    runner._trial = no_op
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        os.chdir(scratch)
        tones = write_tones(Path(scratch) / "tones")
        launched(tones, 1)  # untimed: caches warm up
        unsettled = settle().get("unsettled")
        once = launched(tones, 1)
        rows = [row(size, launched(tones, size), once) for size in SIZES]
    growth = {name: rows[-1][name] / rows[0][name] for name in ("s a trial", "CPU s a trial")}
    machine = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(), "date": f"{datetime.date.today()}"}
    print(tabulate(rows, headers="keys", floatfmt=".4f"))
    for name, times in growth.items():
        print(f"{name}, {SIZES[-1]:,} trials against {SIZES[0]}: {times:.2f} times ({'flat' if times <= FLAT else f'more than {FLAT}'})")
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}; before the first: {unsettled or 'the machine was quiet'}")
    print(json.dumps({"benchmark": "growth", "figures": rows, "growth": growth, "machine": machine, "versions": {"ray": version("ray")}}))
    return 0


def launched(tones: Path, trials: int) -> tuple[float, float]:
    """Wall and CPU seconds of a launch of so many trials, the latter of this process alone."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))  # of a tracker that is empty
    steps = [round(0.001 * (i + 1), 4) for i in range(trials)]
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(trials=trials, tones=tones, steps=steps, folder=folder))
    config = load(file)
    began, cpu = time.perf_counter(), time.process_time()
    lines: list[str] = []
    with sweep.opened(config, file.read_text(), "", (), lines.append) as opened:
        failed = rounds.run(opened, lines.append)
        sweep.finish(opened, "FINISHED")
    took = time.perf_counter() - began, time.process_time() - cpu
    if failed or sum("an epoch" in line for line in lines) != trials:
        raise RuntimeError("\n".join(lines[-5:]))
    return took


def row(trials: int, took: tuple[float, float], once: tuple[float, float]) -> dict[str, float]:
    wall_s, cpu_s = (spent - of_one for spent, of_one in zip(took, once, strict=True))
    return {"trials": trials, "s a trial": wall_s / (trials - 1), "CPU s a trial": cpu_s / (trials - 1), "s in all": took[0]}


if __name__ == "__main__":
    sys.exit(main())
