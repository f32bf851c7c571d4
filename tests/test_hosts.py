"""A cluster of hosts, each with an address, a name and folders of its own (tests/hosts.py). If one
of them fails, or its link, or the head, no record is lost, none is stored twice, and a line reports
it."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from sweeps.tracking.mlflow_client import connect
from tests.hosts import HOME, Host, hosts, inner, slow_link, why_not
from tests.tones import write_tones
from tests.trees import can_isolate, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.beside]

SWEEP = """
name: {name}
calibrate: false
warmup_epochs: 0
metric: {{name: shm_peak_bytes, goal: minimize}}    # no time: a busy machine makes no trial run twice
parameters:
  corpus: {{name: folder, path: {home}/tones, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  sgdr: {{epochs: {epochs}}}
  loader: {{batch_size: 4, num_workers: 0}}
  device: {{prefer: [simulated], step_s: {{values: {steps}}}}}
resources: {{exclusive_node: false, cpus: 1}}
tracking: {{uri: "http://tracker:5000"}}
ray: {{address: auto}}
"""
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
QUICK = {  # a host is given up after some 4 s instead of 20
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_memory_monitor_refresh_ms": "0",
}


@dataclass
class Network:
    """The head of a Ray cluster, its two workers, and the host of the tracker."""

    head: Host
    a: Host
    b: Host
    tracker: Host

    @contextlib.contextmanager
    def tracking(self) -> Iterator[None]:
        where = [
            "--backend-store-uri",
            f"sqlite:///{HOME}/work/mlflow.db",
            "--artifacts-destination",
            HOME / "work" / "artifacts",
        ]
        server = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "0.0.0.0",
            "--port",
            "5000",
            "--workers",
            "1",
            "--allowed-hosts",
            "*",
        ]
        log = self.tracker.folder / "work" / "server.log"
        health = "import urllib.request as r; r.urlopen('http://tracker:5000/health', timeout=1)"
        with self.tracker.start(
            *server, *where, log=log, MLFLOW_DISABLE_TELEMETRY="true"
        ) as running:
            assert wait_until(
                lambda: self.head.start(sys.executable, "-c", health, log=log).wait() == 0,
                seconds=60,
            )
            yield
            inner(running).kill()

    def start_ray(self, host: Host, *flags: str) -> None:
        command = [
            *RAY,
            "start",
            "--disable-usage-stats",
            "--object-store-memory=80000000",
            "--num-cpus=1",
            *flags,
        ]
        host.run(*command, **QUICK)

    def start_head(self) -> None:
        self.start_ray(self.head, "--head", "--include-dashboard=false")

    def join(self, host: Host) -> None:
        self.start_ray(host, "--address=head:6379")

    def stop_ray(self, host: Host) -> None:
        host.run(*RAY, "stop", "--force")

    def launch(self, name: str, trials: int, epochs: int = 3, step_s: float = 0.3) -> "Launch":
        steps = [round(step_s + count / 1000, 3) for count in range(trials)]
        text = SWEEP.format(name=name, home=HOME, epochs=epochs, steps=steps)
        (self.head.folder / "work" / f"{name}.yaml").write_text(text)
        return Launch(self, name, trials, epochs)


class Launch:
    """Holds a launch that runs on the head."""

    def __init__(self, network: Network, name: str, trials: int, epochs: int) -> None:
        self.network, self.name, self.trials, self.epochs = network, name, trials, epochs
        self.process = self.start()

    def start(self) -> subprocess.Popen:
        self.log = self.network.head.folder / "work" / f"{self.name}.out"
        self.log.unlink(missing_ok=True)
        return self.network.head.start(
            sys.executable, HOME / "project" / "launch.py", f"{self.name}.yaml", log=self.log
        )

    def again(self) -> str:
        """Returns what the same command prints; it must run all remaining trials."""
        self.process = self.start()
        return self.end(0)

    def said(self) -> str:
        return self.log.read_text()

    def end(self, code: int, seconds: float = 200) -> str:
        """Returns what it printed; it must end with this exit code within this time."""
        assert self.process.wait(seconds) == code, self.said()
        assert "Traceback" not in self.said(), self.said()
        return self.said()

    def folder(self, host: Host) -> Path:
        return host.folder / "work" / ".sweeps" / self.name

    def at_work(self, host: Host) -> bool:
        """Returns whether a trial has completed an epoch on `host`."""
        return any(
            '"epoch"' in file.read_text() for file in self.folder(host).glob("*/records.jsonl")
        )

    @property
    def client(self) -> MlflowClient:
        return connect(f"sqlite:///{self.network.tracker.folder}/work/mlflow.db")

    def epochs_of(self, run: Run) -> list[int]:
        return sorted(
            each.step for each in self.client.get_metric_history(run.info.run_id, "time/epoch_s")
        )

    def runs(self) -> list[Run]:
        client = self.client
        experiment = client.get_experiment_by_name("speech")
        assert experiment
        return list(
            client.search_runs(
                [experiment.experiment_id], f"tags.kind = 'trial' and tags.sweep = '{self.name}'"
            )
        )

    def ends(self) -> list[tuple[str, str | None]]:
        return [(run.info.status, run.data.tags.get("outcome")) for run in self.runs()]

    def check(self) -> list[str]:
        """Asserts that each trial has completed once, with all its epochs, and that no run is open;
        returns the outcomes of the other attempts."""
        runs = self.runs()
        assert [
            run.info.status
            for run in runs
            if run.info.status not in ("FINISHED", "KILLED", "FAILED")
        ] == []
        settled = [run for run in runs if run.data.tags["outcome"] == "completed"]
        assert sorted(run.data.tags["trial_id"] for run in settled) == sorted(
            {run.data.tags["trial_id"] for run in runs}
        )
        assert len(settled) == self.trials
        for run in settled:
            assert self.epochs_of(run) == list(range(self.epochs))
        return [run.data.tags["outcome"] for run in runs if run not in settled]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    if not can_isolate():
        pytest.skip("this machine forbids mount namespaces")
    with hosts(tmp_path_factory.mktemp("hosts"), "head", "a", "b", "tracker") as made:
        for host in made[:3]:
            write_tones(host.folder / "tones")
        there = Network(*made)
        with there.tracking():
            there.start_head()
            there.join(there.a)
            there.join(there.b)
            yield there


def test_a_worker_that_is_unplugged_and_comes_back_is_not_settled_twice(network) -> None:
    """Its trial continues there and runs again on another host. The next launch that reaches the
    worker sends the records of its trial."""
    launch = network.launch("unplugged", 4, epochs=4)
    assert wait_until(lambda: launch.at_work(network.b), seconds=150), launch.said()
    network.b.unplug()
    assert wait_until(lambda: "lost on b: " in launch.said(), seconds=60), launch.said()
    network.b.plug_in()
    assert re.search(r"(?<!\S)b .*: 1 run .*closed", launch.end(0))
    network.stop_ray(network.b)
    network.join(network.b)
    (records,) = launch.folder(network.b).glob("*/outbox.jsonl")
    epochs = records.read_text().count("log_epoch")
    launch.again()
    assert not records.exists()
    assert launch.check() == ["interrupted"]
    (given_up,) = [run for run in launch.runs() if run.data.tags["outcome"] == "interrupted"]
    assert given_up.data.tags["node"] == "b"
    assert launch.epochs_of(given_up) == list(range(epochs))
    assert epochs > 0


def test_a_link_of_200_ms_that_loses_frames_changes_nothing(network) -> None:
    with slow_link(network.b, 0.1, 0.01):  # either way
        launch = network.launch("far", 4)
        launch.end(0)
        assert launch.check() == []
        assert "b" in {run.data.tags["node"] for run in launch.runs()}


def test_trials_continue_while_the_trackers_host_is_unplugged_for_a_minute(network) -> None:
    launch = network.launch("untracked", 6, epochs=12, step_s=0.6)
    assert wait_until(lambda: launch.at_work(network.a), seconds=150), launch.said()
    network.tracker.unplug()
    time.sleep(60)
    assert launch.process.poll() is None
    assert re.search(r"\d/6 .*\brecords wait\b", launch.said())
    network.tracker.plug_in()
    launch.end(0)
    assert launch.check() == []


def test_a_worker_whose_disk_is_full_is_named_and_excluded(network) -> None:
    place = HOME / "work" / ".sweeps"
    launch_folder = network.b.folder / "work" / ".sweeps"
    launch_folder.mkdir(exist_ok=True)
    network.b.run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place)
    try:
        launch = network.launch("full", 6, epochs=6)
        filled = [
            "sh",
            "-c",
            (
                f'test -n "$(grep -l epoch {place}/full/*/records.jsonl)" && cat /dev/zero >'
                f" {place}/zeros"
            ),
        ]
        assert wait_until(
            lambda: "No space left" in network.b.start(*filled).communicate()[1], seconds=150
        ), launch.said()
        said = launch.end(0)
    finally:
        network.b.run("umount", "-l", place)
    lost = re.findall(r"lost on b: .*", said)
    assert [line for line in lost if re.search(rf" space .*{place}/full\b", line)], said
    assert "b is excluded" in said
    assert set(launch.check()) <= {"interrupted", "crashed"}


def test_a_launch_that_is_interrupted_or_killed_leaves_no_run_open(network) -> None:
    launch = network.launch("cut", 3, epochs=15)
    interrupt(launch, signal.SIGINT)
    launch.end(130)
    assert launch.ends() == [("KILLED", "interrupted")] * 3, "as soon as it has ended"
    launch.process = launch.start()
    interrupt(launch, signal.SIGKILL)
    launch.process.wait(60)
    assert wait_until(lambda: launch.ends() == [("KILLED", "interrupted")] * 6, seconds=90), (
        launch.ends()
    )
    launch.again()
    assert launch.check() == ["interrupted"] * 6


def interrupt(launch: Launch, number: int) -> None:
    """Sends the signal once a trial runs on each host."""
    there = launch.network.head, launch.network.a, launch.network.b
    assert wait_until(lambda: all(map(launch.at_work, there)), seconds=150), launch.said()
    inner(launch.process).send_signal(number)


def test_a_dead_head_ends_the_launch_and_the_same_command_continues(network) -> None:
    launch = network.launch("headless", 4, epochs=6)
    assert wait_until(lambda: launch.at_work(network.a), seconds=150), launch.said()
    (gcs,) = network.head.processes("gcs_server")
    gcs.kill()
    said = launch.end(1, 58)  # before Ray would end it with a stack trace
    assert re.search(r"head .*:6379 ", said), said
    for host in (network.head, network.a, network.b):
        network.stop_ray(host)
    network.start_head()
    network.join(network.a)
    network.join(network.b)
    launch.again()
    assert set(launch.check()) <= {"interrupted"}
