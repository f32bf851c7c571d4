"""A launch on a cluster: what is wrong with one is told before the first trial, and trials run on
all of it, whatever becomes of a node."""

import os
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
    """A cluster of raylets with 2 cores that introduce themselves as machines of other names, and
    otherwise as this one."""
    ours = vars(build_introduction(Path.cwd()))
    raylets = [Raylet(f"id{i}", 2, 0, Introduction(**(ours | each))) for i, each in enumerate(told)]
    return Cluster(raylets, Path("/nowhere"), say)


@pytest.mark.parametrize(
    ("address", "mend"),
    [("ray://head:10001", "Write auto there"), ("head", "as in head:6379"), ("", "Write local")],
)
def test_an_address_that_is_none_is_a_fault_with_its_line(tmp_path, tones, address, mend) -> None:
    file = write(tmp_path, tones, [0.1], True)
    file.write_text(file.read_text().replace("address: auto", f"address: '{address}'"))
    with pytest.raises(ConfigFaults, match=rf"line 13  ray.address.*{mend}"):
        load(file)


def test_without_a_cluster_it_is_said_how_to_start_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        PreflightError, match=r"no cluster was started on this machine.*\n.*ray start --head"
    ):
        resolve_address("auto")
    with pytest.raises(PreflightError, match=r"nobody answers at 127.0.0.1:1 .*refused"):
        resolve_address("127.0.0.1:1")


def test_a_file_of_one_machine_is_no_tracker_of_two(trials) -> None:
    config, _ = trials
    check_tracker(config, planted({}, {"name": "also this one"})._machines)
    with pytest.raises(
        PreflightError, match=r"^tracking.uri sqlite:///mlflow.db .*n2, .*\n  mlflow server"
    ):
        check_tracker(config, planted({}, {"name": "n2", "machine": "another"})._machines)


def test_containers_of_one_machine_that_do_not_see_each_others_lock_are_told() -> None:
    check_locks(planted({}, {})._machines)
    check_locks(planted({}, {"machine": "another", "lock": (1, 2)})._machines)
    with pytest.raises(PreflightError, match=f"c1, c2 .*{host_lock.LOCK}"):
        check_locks(planted({"name": "c1"}, {"name": "c2", "lock": (1, 2)})._machines)


def test_a_node_with_another_checkout_or_none_of_the_folder_is_told() -> None:
    ours = build_introduction(Path.cwd())
    theirs = Introduction("n2", "another", (0, 0), ours.software | {"torch": "1.0"}, folder=False)
    missing, different = theirs.differences(ours, Path("/srv/speech"))
    assert "/srv/speech" in missing
    assert different == f"torch is 1.0 there and {ours.software['torch']} here"
    assert ours.differences(ours, Path.cwd()) == []


def test_a_machine_without_what_trials_ask_for_is_left_out_and_said(trials, tones) -> None:
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
    assert re.search(r"2 cores and 0 GPUs, .* 1 and 0.5: .* excluded$", said[0])
    with pytest.raises(PreflightError, match=r"n2 has 2 cores and 1 GPUs, .* 4 and 0\. Write auto"):
        there.check(
            config.model_copy(
                update={"resources": config.resources.model_copy(update={"cpus": 4})}
            ),
            specs,
        )


def test_a_machine_that_is_left_out_is_named_and_the_last_one_stays() -> None:
    said: list[str] = []
    there = planted({}, {"name": "n2", "machine": "another"}, say=said.append)
    there.nodes = {host_lock.identity(): Node((), (0, 1)), "another": Node((), (0, 1))}
    assert there.exclude_host("another")
    assert there.exclude_host("another"), "a second trial that failed there"
    assert (list(there.nodes), len(said)) == ([host_lock.identity()], 1)
    assert said[0].startswith("n2 is excluded")
    assert not there.exclude_host(host_lock.identity())
    assert list(there.nodes) == [host_lock.identity()]


def test_a_head_that_does_not_answer_is_gone_after_a_while_and_not_at_once(monkeypatch) -> None:
    monkeypatch.setattr("sweeps.execution.cluster_join.HEAD_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        gone = make_head_check(f"127.0.0.1:{port}")
        time.sleep(0.4)
        assert gone() is None
    assert gone() is None
    time.sleep(0.4)
    assert f"127.0.0.1:{port} has not answered" in (gone() or "")
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
    """How many pairs of runs were under way at the same time."""
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
        "a launch that waits for its own trials says nothing of it"
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
def test_what_is_done_on_every_machine_is_done_on_this_one_and_on_those_that_are_there(
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
def test_a_node_that_is_lost_costs_its_trial_an_attempt_and_nothing_else(
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
    assert "runs once more, 1 of" in out
    outcomes = [(run.data.tags["trial_id"], run.data.tags["outcome"]) for run in runs(tmp_path)]
    assert sorted(outcome for _, outcome in outcomes) == ["completed"] * 5 + ["interrupted"]
    assert len({key for key, outcome in outcomes if outcome == "completed"}) == 5
