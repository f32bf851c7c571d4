"""Launches from the file to the tables, with real Ray and real MLflow: trials in process trees, and
their runs."""

import fcntl
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from analysis import panels
from analysis.runs import sweep_runs
from launch import _report
from speech.usage import external_limit
from sweeps.config.sweep_file import load
from sweeps.execution.sweep_lock import lock_file
from sweeps.tracking.database import resolve_uri
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.tracker_errors import TrackerUnavailable
from tests.launches import SWEEP, launch
from tests.trees import can_isolate, wait_until

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beside,
    pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces"),
]


@pytest.fixture(scope="module")
def runs(launched):
    folder, _ = launched
    return sweep_runs("planted", f"sqlite:///{folder}/mlflow.db").trials


def cells(text: str, title: str) -> list[list[str]]:
    """Returns the rows of the table below `title`, split at two or more spaces."""
    body = text[text.index(title) :].split("\n\n")[1].splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in body]


def test_each_cell_of_the_worker_table_is_its_runs(launched, runs) -> None:
    table = cells(launched[1].stdout, "Epoch seconds by num_workers and shm_size")
    assert table[0][0] == "workers"
    assert [re.sub("shm ", "", cell) for cell in table[0][1:]] == ["4M", "n", "64M", "n"]
    for row in table[2:]:
        for size, cell, n in zip((4 << 20, 64 << 20), row[1::2], row[2::2], strict=True):
            (trial,) = runs[
                (runs["loader.num_workers"] == int(row[0])) & (runs["loader.shm_size"] == size)
            ].itertuples()
            if trial.outcome == "completed":
                assert float(cell) == pytest.approx(trial.epoch_s, rel=0.01)
                assert n == "1"
            else:
                assert (cell, n) == ("1 of 1 overflowed", "0")


def test_two_workers_overflow_the_small_shm_and_nothing_else_does(runs) -> None:
    workers = runs[runs["block"] == "workers"]
    overflowed = {
        tuple(row)
        for row in workers[workers["outcome"] == "shm_exhausted"][
            ["loader.num_workers", "loader.shm_size"]
        ].to_numpy()
    }
    assert overflowed == {(2, 4 << 20)}
    assert (workers["outcome"] == "completed").sum() == 3
    assert (
        runs["evidence"][runs["outcome"] == "shm_exhausted"]
        .item()
        .startswith("/dev/shm of 4.0 MiB")
    )


def test_each_cell_of_the_cycle_table_is_its_runs(launched, runs) -> None:
    cycles = runs[runs["block"] == "cycles"].set_index("sgdr.cycle_epochs")
    table = cells(launched[1].stdout, "Validation accuracy by SGDR cycle length")
    rows = {row[0].split(",")[0]: row for row in table if row[0].split(",")[0] in ("1", "2")}
    for length, row in rows.items():
        trial = cycles.loc[int(length)]
        assert [float(value) for value in row[2:5]] == pytest.approx(
            [
                100 * trial[name]
                for name in ("accuracy", "best_snapshot_accuracy", "ensemble_accuracy")
            ],
            abs=0.06,
        )
    assert set(rows) == {"1", "2"}


def test_summaries_are_medians_of_the_undisturbed_epochs_of_the_records(launched, runs) -> None:
    client = connect(resolve_uri(f"sqlite:///{launched[0]}/mlflow.db"))
    for trial in runs[runs["outcome"] == "completed"].itertuples():
        lines = (
            Path(client.download_artifacts(trial.run_id, "records.jsonl")).read_text().splitlines()
        )
        records = [json.loads(line) for line in lines]
        epochs = [
            record["metrics"]
            for record in records
            if record["kind"] == "epoch" and not record["warmup"]
        ]
        limit = external_limit(len(os.sched_getaffinity(0)))
        quiet = [epoch for epoch in epochs if epoch["cpu/external_fraction"] <= limit]
        warm = [epoch["time/epoch_s"] for epoch in epochs]
        series = [point.value for point in client.get_metric_history(trial.run_id, "time/epoch_s")]
        assert trial.epoch_s == statistics.median(
            epoch["time/epoch_s"] for epoch in quiet or epochs
        )
        assert series[1:] == warm
        assert records[-1]["kind"] == "exit"


def test_a_run_records_its_hardware_and_versions(launched, runs) -> None:
    client = connect(resolve_uri(f"sqlite:///{launched[0]}/mlflow.db"))
    tags = client.get_run(runs[runs["block"] == "workers"]["run_id"].iloc[0]).data.tags
    assert int(tags["shm_limit_bytes"]) == int(
        client.get_run(runs["run_id"].iloc[0]).data.params["loader.shm_size"]
    )
    assert tags["device"] == "simulated"
    assert int(tags["cores"]) == len(os.sched_getaffinity(0))
    assert json.loads(tags["versions"]).keys() >= {"torch", "ray", "mlflow"}


def test_snapshots_and_confusion_are_kept_with_the_best_trial(launched, runs) -> None:
    client = connect(resolve_uri(f"sqlite:///{launched[0]}/mlflow.db"))
    learned = runs[runs["block"] == "cycles"]
    best = learned.sort_values("ensemble_accuracy", ascending=False, kind="stable").iloc[0]
    kept = {file.path for file in client.list_artifacts(best["run_id"], "snapshots")}
    assert len(kept) == {1: 2, 2: 1}[best["sgdr.cycle_epochs"]]
    rows = Path(client.download_artifacts(best["run_id"], "confusion.csv")).read_text().splitlines()
    assert rows[0].split(",")[1:] == ["low", "high"]
    assert sum(int(cell) for row in rows[1:] for cell in row.split(",")[1:]) == 6


def test_the_test_split_is_read_once(launched, runs) -> None:
    folder, done = launched
    assert _test_reads(folder) == 1
    assert runs["test_ensemble_accuracy"].notna().sum() == 1
    ((percent, correct),) = re.findall(
        r"^test accuracy .*: ([\d.]+) % \((\d) of 6;", done.stdout, re.MULTILINE
    )
    best = runs[runs["test_ensemble_accuracy"].notna()].iloc[0]
    assert float(percent) == pytest.approx(100 * best["test_ensemble_accuracy"], abs=0.05)
    again = launch(folder, "--evaluate-test")
    assert again.returncode == 0
    assert _test_reads(folder) == 1
    assert f"({correct} of 6;" in again.stdout


def _test_reads(folder: Path) -> int:
    """Returns how often the sweep has read the test split."""
    client = connect(resolve_uri(f"sqlite:///{folder}/mlflow.db"))
    experiment = client.get_experiment_by_name("speech")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    return int(parent.data.tags["test_reads"])


def test_the_best_ensemble_predicts_words_as_its_confusion_counts_them(
    launched, runs, tones
) -> None:
    folder, _ = launched
    names = [line for line in (tones / "validation_list.txt").read_text().splitlines() if line]
    command = [
        sys.executable,
        ROOT / "launch.py",
        "predict",
        "planted",
        *names,
        "--uri",
        f"sqlite:///{folder}/mlflow.db",
    ]
    said = subprocess.run(
        command,
        cwd=tones,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    learned = (
        runs[runs["block"] == "cycles"]
        .sort_values("ensemble_accuracy", ascending=False, kind="stable")
        .iloc[0]
    )
    assert said.stdout.startswith(f"{learned['run_name']}: ")
    rows = [line.split() for line in said.stdout.splitlines()[4:]]
    client = connect(resolve_uri(f"sqlite:///{folder}/mlflow.db"))
    head, *counted = [
        line.split(",")
        for line in (
            Path(client.download_artifacts(learned["run_id"], "confusion.csv"))
            .read_text()
            .splitlines()
        )
    ]
    found = {
        (row[0], word): int(count)
        for row in counted
        for word, count in zip(head[1:], row[1:], strict=True)
    }
    assert Counter((path.split("/")[0], word) for path, word, *_ in rows) == Counter(found)


def test_settled_trials_do_not_run_again_and_a_new_repeat_does(launched, tones) -> None:
    folder, _ = launched
    (folder / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=2))
    done = launch(
        folder,
        "--set",
        "blocks.workers.parameters.loader.shm_size=64M",
        "--set",
        "blocks.cycles.repeats=1",
    )
    assert done.returncode == 0
    outline = re.search(r"^planted: .*$", done.stdout, re.MULTILINE)[0]
    assert re.findall(r"\d+", outline)[:6] == ["6", "4", "2", "4", "2", "2"]
    for count in ("4 in workers", "2 in cycles", "4 settled", "2 new"):
        assert count in outline


@pytest.mark.slow
def test_a_settled_trial_that_rerun_names_runs_again_and_no_other_does(launched, runs) -> None:
    folder, _ = launched
    key = next(
        trial.trial_id
        for trial in runs.itertuples()
        if trial.block == "workers" and trial.outcome == "completed"
    )
    before = Counter(run.data.tags["trial_id"] for run in _children(folder))
    done = launch(folder, "--rerun", key[:8])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 1 to run" in done.stdout
    assert re.search(r"^1/1  workers · .* \d+\.\d\d s\b", done.stdout, re.MULTILINE)
    after = Counter(run.data.tags["trial_id"] for run in _children(folder))
    assert (after - before).keys() == {key}


def test_the_output_has_no_line_of_ray_or_mlflow(launched) -> None:
    _, done = launched
    assert done.stderr == ""
    noise = re.compile(r"ray|raylet|tune|alembic|warning|INFO|deprecat", re.IGNORECASE)
    assert not [line for line in done.stdout.splitlines() if noise.search(line)]


def test_the_tables_are_rebuilt_from_the_tracker_alone(launched) -> None:
    folder, done = launched
    again = subprocess.run([sys.executable, "-m", "analysis", "planted"], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
                           capture_output=True, text=True, check=True)  # fmt: skip
    title = "Validation accuracy by SGDR cycle length"
    assert cells(again.stdout, title) == cells(done.stdout, title)


def test_the_report_is_kept_with_the_sweep_s_run(launched) -> None:
    folder, _ = launched
    client = connect(f"sqlite:///{folder}/mlflow.db")
    (parent,) = client.search_runs(
        [client.get_experiment_by_name("speech").experiment_id], "tags.kind = 'sweep'"
    )
    page = Path(
        client.download_artifacts(parent.info.run_id, "report.html", str(folder))
    ).read_text()
    assert "name: planted" in page
    assert page.count("<img") >= 5, "both blocks have pictures, of epochs and of snapshots"


def test_a_picture_that_can_not_be_drawn_prevents_only_the_report(
    first_look, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(panels, "DPI", 0)
    assert _report(("first-look", first_look.uri, "speech"), "digest") is None
    said = capsys.readouterr().err
    assert "report" in said
    assert said.count("\n") == 1


def test_an_unavailable_tracker_is_reported_as_such_while_the_report_is_built() -> None:
    with pytest.raises(TrackerUnavailable, match=r"http://127\.0\.0\.1:9 "):
        _report(("first-look", "http://127.0.0.1:9", "speech"), "digest")


def test_no_process_and_no_file_of_a_trial_remains(launched) -> None:
    folder, _ = launched
    assert not [
        process for process in psutil.process_iter() if str(folder) in " ".join(_words(process))
    ]
    left = sorted(path.name for path in (folder / ".sweeps" / "planted").iterdir())
    assert left == ["preflight.log"]


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), process.cwd()]
    except psutil.Error:
        return []


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running_and_the_rest_runs_next_time(tones, tmp_path) -> None:
    text = (
        SWEEP.format(tones=tones, repeats=1)
        .split("  cycles:")[0]
        .replace("step_s: 0.05", "step_s: 0.5")
        .replace("epochs: 2", "epochs: 3")
    )
    (tmp_path / "sweep.yaml").write_text(text)
    # a test runner in the background may have it ignored
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = (
        f"import signal, sys; {heed}; sys.path.insert(0, {str(ROOT)!r}); import launch;"
        " sys.exit(launch.main(['sweep.yaml']))"
    )
    command = [sys.executable, "-c", code]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / ".sweeps" / "planted"
    assert wait_until(
        lambda: any(file.stat().st_size for file in folder.glob("*/records.jsonl")), seconds=60
    )
    # as the terminal does: to every process of the foreground group
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, out + err
    assert "Traceback" not in err
    assert wait_until(
        lambda: not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_words(p))]
    )
    states = {run.data.tags.get("outcome") for run in _children(tmp_path)}
    assert "interrupted" in states
    assert "RUNNING" not in {run.info.status for run in _children(tmp_path)}
    done = launch(tmp_path, "--set", "blocks.workers.parameters.device.step_s=0.5")
    assert done.returncode == 0
    assert "3 completed, 1 overflowed" in done.stdout


def _children(folder: Path) -> list:
    client = connect(resolve_uri(f"sqlite:///{folder}/mlflow.db"))
    experiment = client.get_experiment_by_name("speech")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "tags.kind = 'trial'"))


def test_an_impossible_test_is_rejected_before_any_trial_and_closes_the_sweep(
    tones, tmp_path
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=1).split("  cycles:")[0])
    done = launch(tmp_path, "--evaluate-test")
    assert done.returncode == 3
    assert "--evaluate-test: " in done.stderr
    assert " simulated " in done.stderr
    assert not _children(tmp_path)
    client = connect(resolve_uri(f"sqlite:///{tmp_path}/mlflow.db"))
    assert [run.info.status for run in client.search_runs(["1"], "tags.kind = 'sweep'")] == [
        "KILLED"
    ]


def test_a_second_launch_of_a_sweep_names_the_process_that_runs_it(launched) -> None:
    folder, _ = launched
    with lock_file(f"sqlite:///{folder}/mlflow.db", load(folder / "sweep.yaml")).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid = int(lock.read())
        done = launch(folder)
    assert done.returncode == 3
    assert f"process {pid} " in done.stderr


def test_two_trackers_can_not_have_a_sweep_of_one_name_in_one_folder(launched) -> None:
    """The second launch would remove the files of the first, which still runs."""
    folder, _ = launched
    with (folder / ".sweeps" / "planted.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid = int(lock.read())
        done = launch(folder, "--set", "tracking.experiment=other")
    assert done.returncode == 3
    assert f"process {pid} " in done.stderr


@pytest.mark.parametrize(
    ("flag", "code", "datum"),
    [
        ("parameters.sgdr.epoch=3", 2, "mean epochs?"),
        ("parameters.corpus.path=/no/such/place", 3, "/no/such/place"),
        ("parameters.corpus.words=[low, hihg]", 3, "mean high?"),
        ("blocks.cycles.parameters.device=cuda", 3, "no CUDA GPU"),
        ("tracking.uri=http://127.0.0.1:9", 3, "tracking.uri http://127.0.0.1:9"),
        ("resources.gpus=4", 2, "4 GPUs"),
    ],
)
def test_a_sweep_that_can_not_run_is_rejected_before_anything_starts(
    tones, tmp_path, monkeypatch, flag: str, code: int, datum: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=1))
    if "cuda" in flag and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    done = launch(tmp_path, "--set", flag)
    assert done.returncode == code, done.stdout + done.stderr
    assert datum in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".sweeps/planted/*/records.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "data"),
    [
        ("model={weights: gone.pt}", ["model.weights: gone.pt "]),
        ("loader.batch_size=64", ["loader.batch_size 64 ", " 12 training clips"]),
    ],
)
def test_a_block_that_can_not_be_trained_fails_alone(
    tones, tmp_path, flag: str, data: list[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=1))
    done = launch(tmp_path, "--set", f"blocks.cycles.parameters.{flag}")
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes: dict[str, set[str]] = {}
    for run in _children(tmp_path):
        outcomes.setdefault(run.data.tags["block"], set()).add(run.data.tags["outcome"])
        if run.data.tags["block"] == "cycles":
            assert [part for part in data if part not in run.data.tags["evidence"]] == []
    assert outcomes == {"workers": {"completed", "shm_exhausted"}, "cycles": {"crashed"}}


def test_a_dry_run_lists_the_states_while_another_launch_runs_the_sweep(tones, launched) -> None:
    folder, _ = launched
    (folder / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=2))
    before = sorted(run.info.run_id for run in _children(folder))
    with lock_file(f"sqlite:///{folder}/mlflow.db", load(folder / "sweep.yaml")).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = launch(folder, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    verdicts = re.search(r"^/dev/shm: .*$", launched[1].stdout, re.MULTILINE)[0]
    assert re.findall(r"(\d+) (\w+)", verdicts) == [("5", "fit"), ("1", "depends")]
    states = [
        re.split(r"\s{2,}", line.strip())
        for line in done.stdout.splitlines()
        if re.match("[0-9a-f]{12} ", line)
    ]
    assert {(row[3], row[4], row[6]) for row in states if row[1:3] == ["workers", "1"]} == {
        ("0", "4M", "completed"),
        ("0", "64M", "completed"),
        ("2", "4M", "shm_exhausted"),
        ("2", "64M", "completed"),
    }
    assert {row[-1] for row in states if row[3:5] == ["2", "4M"]} == {"depends"}
    assert sorted(run.info.run_id for run in _children(folder)) == before
    assert not (folder / ".sweeps" / "planted" / states[0][0]).exists()


@pytest.mark.parametrize(
    ("flag", "code", "datum"),
    [
        ("parameters.sgdr.epoch=3", 2, "mean epochs?"),
        ("parameters.corpus.path=/no/such/place", 3, "/no/such/place"),
    ],
)
def test_a_dry_run_exits_as_a_launch_does(
    tones, tmp_path, flag: str, code: int, datum: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=1))
    done = launch(tmp_path, "--dry-run", "--set", flag)
    assert done.returncode == code, done.stdout + done.stderr
    assert datum in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
