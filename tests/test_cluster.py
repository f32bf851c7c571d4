"""Launches on a cluster: its faults are reported before the first trial, and trials run on all of
its nodes, even if one of them is lost."""

import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.config.config_errors import ConfigFaults
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from sweeps.execution.cluster import Cluster
from sweeps.execution.cluster_checks import check_locks, check_tracker
from sweeps.execution.cluster_join import (
    Introduction,
    Raylet,
    build_introduction,
    make_head_check,
    resolve_address,
)
from sweeps.host import host_lock
from sweeps.host.node import Node, PreflightError
from sweeps.tracking.database import resolve_uri
from sweeps.tracking.mlflow_client import connect
from tests.raylets import cluster
from tests.trees import wait_until

ROOT = Path(__file__).parent.parent

SWEEP = """
name: planted
calibrate: false
warmup_epochs: 0
metric: {{name: shm_peak_bytes, goal: minimize}}    # no time: a busy machine makes no trial run twice
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  sgdr: {{epochs: 1}}
  loader: {{batch_size: 4, num_workers: 0}}
  device: {{prefer: [simulated], step_s: {{values: {steps}}}}}
resources: {{exclusive_node: {exclusive}, cpus: 1}}
ray: {{address: auto}}
"""


def write(folder: Path, tones: Path, steps: list[float], exclusive: bool) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(tones=tones, steps=steps, exclusive=str(exclusive).lower()))
    return file


@pytest.fixture
def trials(tones, tmp_path):
    """A checked sweep of four trials, and its plan."""
    config = load(write(tmp_path, tones, [0.1, 0.2, 0.3, 0.4], False))
    return config, plan(config, lambda corpus: corpus.name).trials


def planted(*told: dict, say=lambda line: None) -> Cluster:
    """Returns a cluster of raylets with 2 cores. Each introduces itself as this machine, except for
    what `told` changes."""
    ours = vars(build_introduction(Path.cwd()))
    raylets = [Raylet(f"id{i}", 2, 0, Introduction(**(ours | each))) for i, each in enumerate(told)]
    return Cluster(raylets, Path("/nowhere"), say)


@pytest.mark.parametrize(
    ("address", "remedy"),
    [("ray://head:10001", "Write auto"), ("head", "head:6379"), ("", "Write local")],
)
def test_a_malformed_address_is_a_fault_with_its_line(tmp_path, tones, address, remedy) -> None:
    file = write(tmp_path, tones, [0.1], True)
    file.write_text(file.read_text().replace("address: auto", f"address: '{address}'"))
    with pytest.raises(ConfigFaults) as problem:
        load(file)
    (fault,) = problem.value.faults
    assert (fault.where, fault.key) == (13, "ray.address")
    assert repr(address) in fault.text
    assert remedy in fault.text


def test_without_a_cluster_the_command_that_starts_one_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(PreflightError) as missing:
        resolve_address("auto")
    with pytest.raises(PreflightError) as silent:
        resolve_address("127.0.0.1:1")
    for problem, data in (
        (missing, ["ray.address: auto,", "no cluster", "ray start --head"]),
        (silent, ["ray.address: 127.0.0.1:1,", "refused", "ray start --head"]),
    ):
        assert [part for part in data if part not in str(problem.value)] == []


def test_a_file_of_one_machine_can_not_be_the_tracker_of_two(trials) -> None:
    config, _ = trials
    check_tracker(config, planted({}, {"name": "also this one"})._machines)
    with pytest.raises(PreflightError) as problem:
        check_tracker(config, planted({}, {"name": "n2", "machine": "another"})._machines)
    for part in ("tracking.uri sqlite:///mlflow.db ", platform.node(), "n2", "  mlflow server "):
        assert part in str(problem.value)


def test_containers_of_one_machine_that_do_not_share_its_lock_are_rejected() -> None:
    check_locks(planted({}, {})._machines)
    check_locks(planted({}, {"machine": "another", "lock": (1, 2)})._machines)
    with pytest.raises(PreflightError, match=f"c1, c2 .*{host_lock.LOCK}"):
        check_locks(planted({"name": "c1"}, {"name": "c2", "lock": (1, 2)})._machines)


def test_a_node_with_other_versions_or_without_the_folder_is_reported() -> None:
    ours = build_introduction(Path.cwd())
    theirs = Introduction("n2", "another", (0, 0), ours.software | {"torch": "1.0"}, folder=False)
    missing, different = theirs.differences(ours, Path("/srv/speech"))
    assert "/srv/speech" in missing
    assert re.match(rf"torch .* 1\.0 there .* {re.escape(ours.software['torch'])} here$", different)
    assert ours.differences(ours, Path.cwd()) == []


def test_a_machine_without_the_requested_resources_is_excluded_and_named(trials, tones) -> None:
    config, specs = trials
    said: list[str] = []
    there = planted({}, {"name": "n2", "machine": "another"}, say=said.append)
    here = host_lock.identity()
    there.nodes = {here: Node((), (0, 1)), "another": Node(("a GPU",), (0, 1))}
    there.check(config, specs)
    assert (list(there.nodes), said) == ([here, "another"], []), "simulated requests no GPU"
    whole = config.model_copy(
        update={"resources": config.resources.model_copy(update={"gpus": 0.5})}
    )
    there.check(whole, specs)
    assert list(there.nodes) == ["another"]
    (line,) = said
    assert line.startswith(f"{platform.node()} ")
    assert re.findall(r" (\d[\d.]*\b)", line) == ["2", "0", "1", "0.5"]
    assert "excluded" in line
    with pytest.raises(PreflightError, match=r"^resources: n2 .*\bauto\b") as problem:
        there.check(
            config.model_copy(
                update={"resources": config.resources.model_copy(update={"cpus": 4})}
            ),
            specs,
        )
    assert re.findall(r" (\d[\d.]*\b)", str(problem.value)) == ["2", "1", "4", "0"]


def test_an_excluded_machine_is_named_once_and_the_last_one_stays() -> None:
    said: list[str] = []
    there = planted({}, {"name": "n2", "machine": "another"}, say=said.append)
    there.nodes = {host_lock.identity(): Node((), (0, 1)), "another": Node((), (0, 1))}
    assert there.exclude_host("another")
    assert there.exclude_host("another"), "a second trial that failed there"
    assert (list(there.nodes), len(said)) == ([host_lock.identity()], 1)
    assert re.match(r"n2 .*\bexcluded\b", said[0])
    assert not there.exclude_host(host_lock.identity())
    assert list(there.nodes) == [host_lock.identity()]


def test_a_head_that_does_not_answer_is_reported_after_a_timeout(monkeypatch) -> None:
    monkeypatch.setattr("sweeps.execution.cluster_join.HEAD_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        gone = make_head_check(f"127.0.0.1:{port}")
        time.sleep(0.4)
        assert gone() is None
    assert gone() is None
    time.sleep(0.4)
    assert f" 127.0.0.1:{port} " in (gone() or "")
    with socket.create_server(("127.0.0.1", port)):
        assert gone() is None, "it is back"


def launch(folder: Path, variables: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, ROOT / "launch.py", "sweep.yaml"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def runs(folder: Path) -> list:
    client = connect(resolve_uri(f"sqlite:///{folder}/mlflow.db"))
    experiment = client.get_experiment_by_name("speech")
    return (
        list(client.search_runs([experiment.experiment_id], "tags.kind = 'trial'"))
        if experiment
        else []
    )


def overlaps(found: list) -> int:
    """Returns how many pairs of runs were active at the same time."""
    spans = [(run.info.start_time, run.info.end_time) for run in found]
    return sum(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(spans) for b in spans[:i])


@pytest.fixture(scope="module")
def two_nodes():
    with cluster("--num-cpus=1") as raylets:
        raylets.add("--num-cpus=1")
        yield raylets


@pytest.mark.slow
@pytest.mark.parametrize("exclusive", [True, False])
def test_trials_run_on_both_nodes_and_one_at_a_time_where_they_are_to_be_alone(
    two_nodes, tones, tmp_path, exclusive
) -> None:
    write(tmp_path, tones, [0.5, 0.51, 0.52, 0.53], exclusive)
    running = launch(tmp_path, two_nodes.variables)
    out, err = running.communicate(timeout=600)
    assert (running.returncode, err) == (0, ""), out + err
    found = runs(tmp_path)
    assert [run.data.tags["outcome"] for run in found] == ["completed"] * 4
    assert (overlaps(found) == 0) == exclusive
    assert f"(process {running.pid} " not in out, (
        "a launch does not report that it waits for its own trials"
    )


REACH = """
import os
from dataclasses import replace
from pathlib import Path
from sweeps.execution.cluster import join_cluster
def process():
    return os.getpid()
with join_cluster("auto", Path("remains"), print) as there:
    ours, other = there._raylets
    for raylet in (other, replace(other, id="f" * len(other.id))):
        there._raylets = [ours, replace(raylet, introduction=replace(raylet.introduction, machine="another"))]
        print(os.getpid(), *there.run_on_all(process))
"""


@pytest.mark.slow
def test_work_on_all_machines_runs_on_this_one_and_on_those_that_are_alive(
    two_nodes, tmp_path
) -> None:
    variables = os.environ | two_nodes.variables | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REACH],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    both, alone = (line.split() for line in done.stdout.splitlines())
    assert (len(both), both[0] == both[1], both[0] == both[2]) == (3, True, False)
    assert alone == both[:2], "the other one is gone"


@pytest.mark.slow
def test_a_lost_node_costs_one_attempt_of_its_trial_and_nothing_else(
    two_nodes, tones, tmp_path
) -> None:
    lost = two_nodes.add("--num-cpus=1")
    write(tmp_path, tones, [2.0, 2.01, 2.02, 2.03, 2.04], False)
    running = launch(tmp_path, two_nodes.variables)
    folder = tmp_path / ".sweeps" / "planted"
    assert wait_until(lambda: len(list(folder.glob("*/records.jsonl"))) == 3, seconds=300)
    lost.kill()
    out, err = running.communicate(timeout=600)
    assert (running.returncode, err) == (0, ""), out + err
    assert "lost on " in out
    assert re.search(r"more, 1 of \d+ \(max_restarts\)", out)
    outcomes = [(run.data.tags["trial_id"], run.data.tags["outcome"]) for run in runs(tmp_path)]
    assert sorted(outcome for _, outcome in outcomes) == ["completed"] * 5 + ["interrupted"]
    assert len({key for key, outcome in outcomes if outcome == "completed"}) == 5
