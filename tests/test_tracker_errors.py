"""A real tracking server that becomes unavailable during real trials: each record arrives once and
in order, and no trial waits for it."""

import errno
import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import OperationalError

from sweeps.execution.launch_context import LaunchContext
from sweeps.execution.trial_result import EpochEnd, TrialResult
from sweeps.execution.trial_runner import run_trial
from sweeps.forecast.corrections import Corrections
from sweeps.sandbox.isolation import ForkServer
from sweeps.tracking import mlflow_client
from sweeps.tracking.mlflow_client import connect, search_all
from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.outbox_recovery import flush_all, format_message, outbox_folders
from sweeps.tracking.run_queries import find_sweep, trial_runs
from sweeps.tracking.tracker_errors import (
    TrackerUnavailable,
    is_unavailable,
    reason,
    translate_tracker_errors,
)
from tests.conftest import plant_trial
from tests.servers import Server
from tests.test_trial_runner import launch_of, plan_of, spec_of
from tests.trees import ROOT, can_isolate

EPOCHS = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_database) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), empty_database)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def template() -> Iterator[ForkServer]:
    template = ForkServer(ROOT)
    yield template
    template.close()


@pytest.fixture
def launch(server, tmp_path) -> LaunchContext:
    if not server.process:
        server.start()
    return launch_of(RunLogger(server.uri, "speech"), tmp_path, [])


def run(
    template: ForkServer,
    launch: LaunchContext,
    key: str,
    tone_trial,
    actions: dict[int, Callable[[], None]] | None = None,
) -> TrialResult:
    """Runs a simulated trial. `actions` are called, by epoch, once that epoch has been received. Only
    the name of the run differs between trials."""
    config = tone_trial(
        device={"prefer": ["simulated"], "step_s": 0.02},
        loader={"shm_size": 64 << 20},
        sgdr={"epochs": EPOCHS},
    )
    spec = spec_of(config, key)

    def act(epoch: EpochEnd) -> None:
        action = (actions or {}).get(epoch.epoch)
        if action:
            action()

    ended = run_trial(template, spec, plan_of(spec), launch, Corrections(), act)
    assert ended.outcome == "completed"
    return ended


def check(server: Server, key: str) -> None:
    """Asserts that one run has this key, that it is closed, and that it has each epoch of its
    records.jsonl once and in order."""
    with sqlite3.connect(server.database) as database:
        runs = database.execute(
            "select runs.run_uuid, status from runs join tags using (run_uuid)"
            " where key = 'trial_id' and value = ? and lifecycle_stage = 'active'",
            [key],
        ).fetchall()
        assert [status for _, status in runs] == ["FINISHED"]
        run_id, _ = runs[0]
        rows = database.execute(
            "select key, step, value, timestamp from metrics where run_uuid = ? order by timestamp",
            [run_id],
        ).fetchall()
    (file,) = (server.folder / "artifacts").rglob(f"{run_id}/artifacts/records.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    told = [record for record in records if record["kind"] == "epoch"]
    assert len(told) == EPOCHS
    for name in told[0]["metrics"]:
        assert [row[1:3] for row in rows if row[0] == name] == [
            (record["epoch"], record["metrics"][name]) for record in told
        ]
    times = [row[3] for row in rows if row[0] == "time/epoch_s"]
    assert times == sorted(times)


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_and_starts_again_during_a_trial(
    server, template, launch, tone_trial, number
) -> None:
    run(
        template,
        launch,
        f"back-{number}",
        tone_trial,
        {1: lambda: server.stop(number), 3: server.start},
    )
    check(server, f"back-{number}")
    assert not outbox_folders(launch.folder)


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_waiting_records_are_sent_by_the_next_trial_that_reaches_the_tracker(
    server, template, launch, tone_trial
) -> None:
    assert run(
        template, launch, "first", tone_trial, {0: lambda: server.stop(signal.SIGKILL)}
    ).waits
    assert run(template, launch, "second", tone_trial).waits
    unsent = flush_all(launch.folder, patience_s=0.1)
    assert [each.unavailable for each in unsent] == [True, True]
    assert "Connection refused" in format_message(unsent)
    assert re.search(r"\b2 trials .*/unsent\b", format_message(unsent))
    assert not run(template, launch, "third", tone_trial, {EPOCHS - 1: server.start}).waits
    for key in ("first", "second", "third"):
        check(server, key)
    assert not outbox_folders(launch.folder)


@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_server_that_hangs_delays_no_trial(
    server, template, launch, tone_trial, monkeypatch
) -> None:
    """It accepts connections and answers nothing before the trial has ended."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.send(signal.SIGSTOP)
    try:
        run(template, launch, "frozen", tone_trial)
        assert "Read timed out" in format_message(flush_all(launch.folder))
    finally:
        server.send(signal.SIGCONT)
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert flush_all(launch.folder, patience_s=60) == []
    check(server, "frozen")


def test_an_unavailable_tracker_raises_an_error_with_its_uri_and_the_cause() -> None:
    with (
        pytest.raises(TrackerUnavailable) as problem,
        translate_tracker_errors("http://127.0.0.1:9"),
    ):
        RunLogger("http://127.0.0.1:9", "speech")
    assert " http://127.0.0.1:9 " in str(problem.value)
    assert str(problem.value).endswith(": Connection refused")
    with pytest.raises(KeyError), translate_tracker_errors("http://127.0.0.1:9"):
        raise KeyError


def answered(status: int) -> requests.HTTPError:
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError(f"{status}", response=answer)


@pytest.mark.parametrize(
    ("error", "unavailable"),
    [
        (MlflowException("API request failed"), True),
        (
            RestException(
                {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database is locked"}
            ),
            True,
        ),
        (
            RestException(
                {
                    "error_code": "INVALID_PARAMETER_VALUE",
                    "message": "Changing param values is not allowed",
                }
            ),
            False,
        ),
        (
            RestException(
                {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run with id=1 not found"}
            ),
            False,
        ),
        (OperationalError("select", {}, Exception("unable to open database file")), True),
        (requests.ConnectionError("refused"), True),
        (answered(503), True),
        (answered(413), False),
        (answered(403), False),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (ValueError("a bug"), False),
    ],
    ids=str,
)
def test_errors_that_may_end_by_themselves_are_told_from_rejections(
    error: Exception, unavailable: bool
) -> None:
    assert is_unavailable(error) == unavailable


def test_a_reason_is_one_short_line() -> None:
    said = (
        "HTTPConnectionPool(host='x', port=1): Max retries exceeded (Caused by"
        " NewConnectionError('[Errno 111] Connection refused'))"
    )
    assert reason(MlflowException(said)) == "Connection refused"
    first_line = "(sqlite3.OperationalError) database or disk is full"
    assert reason(MlflowException(f"{first_line}\n[SQL: INSERT]")) == first_line
    assert reason(ValueError()) == "ValueError"


SWEEP = """
name: away
calibrate: false
warmup_epochs: 0
repeats: 4
metric: {{name: shm_peak_bytes, goal: minimize}}    # no time: a disturbance is none of its business
tracking: {{uri: {uri}}}
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{batch_size: 4}}
  device: {{prefer: [simulated], step_s: 0.2}}
  sgdr: {{epochs: 4}}
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_sweep_whose_server_ended_is_completed_by_the_same_command_and_no_trial_runs_twice(
    server, tones, tmp_path
) -> None:
    if not server.process:
        server.start()
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(uri=server.uri, tones=tones))
    command = [sys.executable, str(ROOT / "launch.py"), "sweep.yaml"]
    lines = []
    with (
        (tmp_path / "errors").open("w") as file,
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=file, text=True
        ) as running,
    ):
        for line in running.stdout or ():
            lines.append(line)
            if line.startswith("1/4"):
                server.stop(signal.SIGKILL)
    errors = (tmp_path / "errors").read_text()
    print(*lines, errors, sep="")
    assert running.returncode == 1
    assert "Traceback" not in errors
    assert len([line for line in lines if re.match(r"\d/4 .*\brecords wait\b", line)]) == 3
    assert re.search(r"\b3 trials .* \.sweeps/away/unsent\b", errors)
    assert "Connection refused" in errors
    assert "Sweep away" not in "".join(lines)  # no half table
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 3
    assert ".sweeps/away" in again.stderr
    server.start()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "View run" not in "".join([*lines, again.stdout, done.stdout])  # MLflow's own lines
    assert ", 4 settled; 0 to run" in done.stdout
    assert "4 completed" in done.stdout
    assert [path.name for path in (tmp_path / ".sweeps/away").iterdir()] == ["preflight.log"]
    client = connect(server.uri)
    experiment = client.get_experiment_by_name("speech")
    runs = search_all(client, experiment.experiment_id, "tags.kind = 'trial'")
    ours = [
        run
        for run in runs
        if run.data.tags["mlflow.parentRunId"]
        == parent_named(client, experiment.experiment_id, "away")
    ]
    assert len(ours) == 4
    for run in ours:
        assert [
            point.step for point in client.get_metric_history(run.info.run_id, "time/epoch_s")
        ] == [0, 1, 2, 3]


def parent_named(client, experiment: str, name: str) -> str:
    (parent,) = search_all(client, experiment, f"tags.kind = 'sweep' and tags.sweep = '{name}'")
    return parent.info.run_id


def test_parallel_requests_to_a_server_return_each_run_once_newest_first(
    server, empty_database, monkeypatch
):
    if not server.process:
        server.start()
    tracking = RunLogger(f"sqlite:///{server.database}", "many")
    parent = tracking.start_sweep("many", "", [], "")
    for number in range(40):
        plant_trial(tracking, parent, {"loader.num_workers": number}, epoch_s=1.0)
    client, run = find_sweep("many", server.uri, "many")
    alone = [child.info.run_id for child in trial_runs(tracking.client, run)]
    monkeypatch.setattr(mlflow_client, "FIRST_PAGE_RUNS", 10)
    assert [child.info.run_id for child in trial_runs(client, run)] == alone
    assert len(set(alone)) == 40
