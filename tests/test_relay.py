"""Trials as the Ray actor sees them, one after another, against a real tracker."""

import json
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from speech.config import Pinned, TrialConfig
from sweeps.config import Metric
from sweeps.forecast import forecast
from sweeps.init import INIT_NAME
from sweeps.isolation import Template, environment
from sweeps.plan import TrialSpec
from sweeps.relay import Launch, run_trial
from sweeps.shm_fit import fit
from sweeps.tracking import Tracking, connect
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
    return TrialSpec(key, "trials", 1, 7, config, {}, Metric(name="epoch_s", goal="minimize"), 0, timeout_s)


def launch_of(tracking: Tracking, folder: Path, specs: list[TrialSpec]) -> Launch:
    parent = tracking.start_sweep("faults", "name: faults\n", [], "")
    return Launch(
        tracking_uri=tracking.uri,
        experiment="speech",
        parent=parent,
        started_in=ROOT,
        folder=folder / "work",
        private_shm=True,
        planned=frozenset(spec.key for spec in specs),
        keep="none",
        provenance={},
        pinned={spec.key: Pinned(threads=1, cpus=[min(os.sched_getaffinity(0))]) for spec in specs},
        fits={spec.key: fit(spec.config, 12, 6, 1 << 30) for spec in specs},
        forecasts={},
        exclusive=False,
        attempts={},
    )


def paced(tone_trial, **loader) -> TrialConfig:
    return tone_trial(device={"first_of": ["paced"], "step_s": 0.05}, loader={"shm_size": 64 << 20, **loader})


def test_a_wav_that_disappears_under_way_is_a_data_error_that_names_it(tmp_path, tracking) -> None:
    corpus = write_tones(tmp_path / "vanishing")
    config = TrialConfig.model_validate(
        {
            "corpus": {"name": "folder", "path": str(corpus), "words": ["low", "high"]},
            "features": {"n_mels": 16, "hop_ms": 25.0},
            "loader": {"batch_size": 4, "num_workers": 2, "shm_size": 64 << 20},
            "device": {"first_of": ["paced"], "step_s": 0.2},
            "sgdr": {"epochs": 4},
        }
    )
    spec = spec_of(config, "vanishing")
    launch = launch_of(tracking, tmp_path, [spec])
    template = Template(ROOT)

    def vanish(figures: dict) -> None:
        for clip in (corpus / "low").glob("*.wav"):
            clip.unlink(missing_ok=True)

    try:
        outcome, *_ = run_trial(template, spec, launch, vanish)
    finally:
        template.close()
    assert outcome.name == "data_error"
    assert "low/" in outcome.evidence
    assert ".wav" in outcome.evidence


def test_the_forecast_is_in_the_tracker_before_the_trial_runs(tmp_path, tracking, tone_trial) -> None:
    spec = spec_of(paced(tone_trial), "foreseen")
    launch = launch_of(tracking, tmp_path, [spec])
    foreseen = forecast(spec.config, planted(), 12, launch.fits["foreseen"])
    launch = replace(launch, forecasts={"foreseen": foreseen})
    template, seen = Template(ROOT), []

    def look(figures: dict) -> None:
        (run,) = tracking.trials(launch.parent)
        seen.append(run.data.metrics)

    try:
        run_trial(template, spec, launch, look)
    finally:
        template.close()
    assert foreseen.metrics().items() <= seen[0].items()
    assert "epoch_s" not in seen[0]


def test_a_run_tells_what_was_foreseen_what_was_read_back_and_what_it_ran_on(tmp_path, tracking, tone_trial) -> None:
    spec = spec_of(paced(tone_trial, num_workers=1), "told")
    launch = launch_of(tracking, tmp_path, [spec])
    template = Template(ROOT)
    try:
        outcome, *_ = run_trial(template, spec, launch, lambda figures: None)
    finally:
        template.close()
    (run,) = tracking.trials(launch.parent)
    tags, metrics = run.data.tags, run.data.metrics
    assert outcome.name == tags["outcome"] == "completed"
    assert (tags["forecast_fit"], tags["shm_limit_bytes"], tags["status"], tags["oom_kills"]) == ("fits", str(64 << 20), "0", "0")
    assert metrics["forecast_shm_bound_bytes"] >= metrics["shm_peak_bytes"] > 0
    assert (tags["threads"], tags["omp_threads"], json.loads(tags["affinity"])) == ("1", "1", [min(os.sched_getaffinity(0))])


@pytest.mark.slow
def test_fifty_random_faults_have_fifty_right_outcomes_and_the_actor_stays_as_it_was(tmp_path, empty_database, tone_trial) -> None:
    """In a real Ray actor, each fault in a tree of its own; one template serves all."""
    import ray

    class Actor:
        def __init__(self) -> None:
            self.template = Template(ROOT, tasks="tests.provoked")
            self.process = psutil.Process()

        def run(self, spec: TrialSpec, launch: Launch) -> tuple[str, dict]:
            outcome, *_ = run_trial(self.template, spec, launch, lambda figures: None)
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
            return outcome.name, figures | {"children": len(own.children(recursive=True))}

    tracking = tracking_in(tmp_path, empty_database)
    draws = random.Random(50)
    faults = [draws.choice(list(FAULTS)) for _ in range(50)]
    assert set(faults) == set(FAULTS), "each is met"
    specs = []
    for n, fault in enumerate(faults):
        config = paced(tone_trial, num_workers=draws.choice([0, 2])).model_copy(update={"precision": "float32"})
        specs.append(spec_of(config, f"{n:02}-{fault}", timeout_s=3.0 if fault == "asleep" else 60.0))
    launch = launch_of(tracking, tmp_path, specs)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="CRITICAL",
        runtime_env={"env_vars": environment()},
    )
    try:
        actor = ray.remote(Actor).options(max_concurrency=1).remote()
        ended = [ray.get(actor.run.remote(spec, launch)) for spec in specs]
    finally:
        ray.shutdown()
    assert [outcome for outcome, _ in ended] == [FAULTS[fault] for fault in faults]
    kept = {run.data.tags["key"]: run.data.tags["outcome"] for run in tracking.trials(launch.parent)}
    assert kept == {spec.key: FAULTS[fault] for spec, fault in zip(specs, faults, strict=True)}
    first, last = ended[9][1], ended[-1][1]
    for name in ("fds", "server fds", "children"):
        assert last[name] == first[name], (name, first, last)
    for name in ("rss", "server rss"):
        assert last[name] < first[name] + (16 << 20), (name, first, last)


def test_a_tree_that_ended_without_records_is_still_filed(tmp_path, tracking, tone_trial) -> None:
    """Its supervisor killed: no exit record comes, and the run closes all the same."""
    endless = tone_trial(device={"first_of": ["paced"], "step_s": 30.0}, loader={"shm_size": 64 << 20, "num_workers": 1})
    spec = spec_of(endless, "killed")
    launch = launch_of(tracking, tmp_path, [spec])
    template = Template(ROOT)

    def kill() -> None:
        server = psutil.Process(template._process.pid)  # imports run children of their own, so the supervisor is known by its init
        while not (inits := [process for process in server.children(recursive=True) if process.name() == INIT_NAME]):
            time.sleep(0.01)
        inits[0].parent().kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        outcome, *_ = run_trial(template, spec, launch, lambda figures: None)
    finally:
        thread.join()
        template.close()
    assert outcome == ("crashed", "the process tree was killed from outside")
    client = connect(tracking.uri)
    (run,) = tracking.trials(launch.parent)
    assert run.info.status == "FAILED"
    assert "records.jsonl" in {file.path for file in client.list_artifacts(run.info.run_id)}
