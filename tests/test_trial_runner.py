"""Tests trials as a Ray actor runs them, one after another, with a real tracker."""

import json
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from speech.calibration.costs import Slowdown
from speech.config import RuntimeSettings, TrialConfig
from sweeps.config.config import Metric
from sweeps.config.plan import TrialSpec
from sweeps.environment import with_project
from sweeps.execution import trial_artifacts
from sweeps.execution.launch_context import LaunchContext, TrialPlan
from sweeps.execution.trial_result import EpochEnd
from sweeps.execution.trial_runner import run_trial
from sweeps.forecast.corrections import Corrections
from sweeps.forecast.forecast import forecast_trial
from sweeps.forecast.shm_fit import shm_requirement
from sweeps.sandbox.isolation import ForkServer
from sweeps.sandbox.pid1 import INIT_NAME
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.mlflow_runs import RunLogger
from tests.conftest import tracking_in
from tests.planted_calibrations import planted
from tests.tones import write_tones
from tests.trees import ROOT, can_isolate

pytestmark = pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")

FAULTS = {
    None: "completed",
    "share": "shm_exhausted",
    "fill_shm": "shm_exhausted",
    "raises": "crashed",
    "sigkill": "crashed",
    "abort": "crashed",
    "exit": "crashed",
    "memory_error": "oom",
    "bad_clip": "data_error",
    "asleep": "timeout",
}


def spec_of(config: TrialConfig, key: str, timeout_s: float = 60.0) -> TrialSpec:
    return TrialSpec(
        key, "trials", 1, 7, config, {}, Metric(name="epoch_s", goal="minimize"), 0, timeout_s
    )


def plan_of(spec: TrialSpec) -> TrialPlan:
    runtime = RuntimeSettings(threads=1, cpus=[min(os.sched_getaffinity(0))])
    return TrialPlan(runtime, shm_requirement(spec.config, 12, 6, 1 << 30))


def launch_of(tracking: RunLogger, folder: Path, specs: list[TrialSpec]) -> LaunchContext:
    parent = tracking.start_sweep("faults", "name: faults\n", [], "")
    return LaunchContext(
        tracking_uri=tracking.uri,
        experiment="speech",
        parent=parent,
        started_in=ROOT,
        folder=folder / "work",
        private_shm=True,
        planned=frozenset(spec.trial_id for spec in specs),
        keep="none",
        exclusive=False,
        attempts={},
        trial_plans={},
    )


def simulated(tone_trial, **loader) -> TrialConfig:
    return tone_trial(
        device={"prefer": ["simulated"], "step_s": 0.05}, loader={"shm_size": 64 << 20, **loader}
    )


def test_a_wav_that_disappears_under_way_is_a_data_error_that_names_it(tmp_path, tracking) -> None:
    corpus = write_tones(tmp_path / "vanishing")
    config = TrialConfig.model_validate(
        {
            "corpus": {"name": "folder", "path": str(corpus), "words": ["low", "high"]},
            "features": {"n_mels": 16, "hop_ms": 25.0},
            "loader": {"batch_size": 4, "num_workers": 2, "shm_size": 64 << 20},
            "device": {"prefer": ["simulated"], "step_s": 0.2},
            "sgdr": {"epochs": 4},
        }
    )
    spec = spec_of(config, "vanishing")
    launch = launch_of(tracking, tmp_path, [spec])
    template = ForkServer(ROOT)

    def vanish(epoch: EpochEnd) -> None:
        for clip in (corpus / "low").glob("*.wav"):
            clip.unlink(missing_ok=True)

    try:
        ended = run_trial(template, spec, plan_of(spec), launch, Corrections(), vanish)
    finally:
        template.close()
    assert ended.outcome == "data_error"
    assert "low/" in ended.evidence
    assert ".wav" in ended.evidence


def test_the_forecast_is_in_the_tracker_before_the_trial_runs(
    tmp_path, tracking, tone_trial
) -> None:
    spec = spec_of(simulated(tone_trial), "foreseen")
    launch = launch_of(tracking, tmp_path, [spec])
    plan = plan_of(spec)
    calibration = planted()
    forecast = forecast_trial(spec.config, calibration, 12, plan.shm_requirement)
    plan = replace(plan, forecast=forecast, calibration=calibration, training_clips=12)
    template, seen = ForkServer(ROOT), []

    def look(epoch: EpochEnd) -> None:
        (run,) = tracking.trials(launch.parent)
        seen.append(run.data.metrics)

    try:
        ended = run_trial(template, spec, plan, launch, Corrections(), look)
    finally:
        template.close()
    assert forecast.metrics().items() <= seen[0].items()
    assert "epoch_s" not in seen[0]
    start_s = [seen[-1][f"forecast_at_start{end}_s"] for end in ("_low", "", "_high")]
    assert start_s == sorted(start_s)
    # A tone takes far less than the planted 80 ms; on a busy machine the planned forecast holds
    assert start_s[1] <= 1.001 * forecast.epoch_s
    # The planted batch of 80 ms is far from what a tone takes, and so is the speed
    met = Slowdown(
        prepare=ended.summary["batch_cpu_s"] / forecast.batch_cpu_s,
        step=ended.summary["batch_cpu_s"] / forecast.batch_cpu_s,
    )
    assert ended.summary["forecast_at_speed_s"] == pytest.approx(
        forecast_trial(spec.config, calibration.at(met), 12, plan.shm_requirement).epoch_s
    )


def test_a_wrong_forecast_is_told_once_and_corrects_the_next_one(
    tmp_path, tracking, tone_trial
) -> None:
    """Plants batches of 2 s whose speed was never probed, so that nothing scales them."""
    spec = spec_of(simulated(tone_trial, num_workers=0), "wrong")
    calibration = planted(inline_s=2.0).model_copy(update={"speed": None})
    plan = plan_of(spec)
    forecast = forecast_trial(spec.config, calibration, 12, plan.shm_requirement)
    plan = replace(plan, forecast=forecast, calibration=calibration, training_clips=12)
    template, corrections = ForkServer(ROOT), Corrections()
    launch = launch_of(tracking, tmp_path, [spec])
    try:
        first, second = (
            run_trial(template, spec, plan, launch, corrections, lambda epoch: None)
            for _ in range(2)
        )
    finally:
        template.close()
    assert first.wrong_forecast
    assert f"{forecast.epoch_s:.2f}" in first.wrong_forecast
    assert second.wrong_forecast is None
    assert first.summary["shm_peak_bytes"] == 0, "the probe puts no batch into the trial's /dev/shm"
    assert corrections.factor(calibration, 0) == pytest.approx(
        first.summary["epoch_s"] / forecast.epoch_s
    )


def test_a_run_tells_what_was_foreseen_what_was_read_back_and_what_it_ran_on(
    tmp_path, tracking, tone_trial
) -> None:
    spec = spec_of(simulated(tone_trial, num_workers=1), "told")
    launch = launch_of(tracking, tmp_path, [spec])
    template = ForkServer(ROOT)
    try:
        ended = run_trial(template, spec, plan_of(spec), launch, Corrections(), lambda epoch: None)
    finally:
        template.close()
    (run,) = tracking.trials(launch.parent)
    tags, metrics = run.data.tags, run.data.metrics
    assert ended.outcome == tags["outcome"] == "completed"
    assert (tags["forecast_fit"], tags["shm_limit_bytes"], tags["status"], tags["oom_kills"]) == (
        "fits",
        str(64 << 20),
        "0",
        "0",
    )
    assert metrics["forecast_shm_max_bytes"] >= metrics["shm_peak_bytes"] > 0
    assert (tags["threads"], tags["omp_threads"], json.loads(tags["affinity"])) == (
        "1",
        "1",
        [min(os.sched_getaffinity(0))],
    )


@pytest.mark.slow
def test_fifty_random_faults_have_fifty_right_outcomes_and_the_actor_stays_as_it_was(
    tmp_path, empty_database, tone_trial
) -> None:
    """Runs trials in a real Ray actor, each fault in its own process tree, with one fork server."""
    import ray

    class Actor:
        def __init__(self) -> None:
            self.template = ForkServer(ROOT, tasks="tests.provoked")
            self.process = psutil.Process()

        def run(self, spec: TrialSpec, launch: LaunchContext) -> tuple[str, dict]:
            ended = run_trial(
                self.template, spec, plan_of(spec), launch, Corrections(), lambda epoch: None
            )
            own = self.process
            deadline = time.monotonic() + 5
            while len(own.children(recursive=True)) > 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            server = psutil.Process(self.template._process.pid)
            figures = {
                "rss": own.memory_info().rss,
                "fds": own.num_fds(),
                "server fds": server.num_fds(),
                "server rss": server.memory_info().rss,
            }
            return str(ended.outcome), figures | {"children": len(own.children(recursive=True))}

    tracking = tracking_in(tmp_path, empty_database)
    draws = random.Random(50)
    faults = [draws.choice(list(FAULTS)) for _ in range(50)]
    assert set(faults) == set(FAULTS), "each is met"
    specs = []
    for n, fault in enumerate(faults):
        config = simulated(tone_trial, num_workers=draws.choice([0, 2])).model_copy(
            update={"precision": "float32"}
        )
        specs.append(
            spec_of(config, f"{n:02}-{fault}", timeout_s=3.0 if fault == "asleep" else 60.0)
        )
    launch = launch_of(tracking, tmp_path, specs)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="CRITICAL",
        runtime_env={"env_vars": with_project()},
    )
    try:
        actor = ray.remote(Actor).options(max_concurrency=1).remote()
        ended = [ray.get(actor.run.remote(spec, launch)) for spec in specs]
    finally:
        ray.shutdown()
    assert [outcome for outcome, _ in ended] == [FAULTS[fault] for fault in faults]
    kept = {
        run.data.tags["trial_id"]: run.data.tags["outcome"]
        for run in tracking.trials(launch.parent)
    }
    assert kept == {spec.trial_id: FAULTS[fault] for spec, fault in zip(specs, faults, strict=True)}
    first, last = ended[9][1], ended[-1][1]
    for name in ("fds", "server fds", "children"):
        assert last[name] == first[name], (name, first, last)
    for name in ("rss", "server rss"):
        assert last[name] < first[name] + (16 << 20), (name, first, last)


def test_a_process_tree_that_ends_without_records_is_still_recorded(
    tmp_path, tracking, tone_trial
) -> None:
    """Kills the supervisor, so that no exit record arrives; the run is closed all the same."""
    endless = tone_trial(
        device={"prefer": ["simulated"], "step_s": 30.0},
        loader={"shm_size": 64 << 20, "num_workers": 1},
    )
    spec = spec_of(endless, "killed")
    launch = launch_of(tracking, tmp_path, [spec])
    template = ForkServer(ROOT)

    def kill() -> None:
        # imports run children of their own, so the supervisor is known by its init
        server = psutil.Process(template._process.pid)
        while not (
            inits := [
                process
                for process in server.children(recursive=True)
                if process.name() == INIT_NAME
            ]
        ):
            time.sleep(0.01)
        inits[0].parent().kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        ended = run_trial(template, spec, plan_of(spec), launch, Corrections(), lambda epoch: None)
    finally:
        thread.join()
        template.close()
    assert ended.outcome == "crashed"
    assert "from outside" in ended.evidence
    client = connect(tracking.uri)
    (run,) = tracking.trials(launch.parent)
    assert run.info.status == "FAILED"
    assert "records.jsonl" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_snapshot_is_kept_where_no_hard_link_can_be_made(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "a").write_bytes(b"weights")
    trial_artifacts._link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"weights"
