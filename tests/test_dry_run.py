"""Tests the dry run: it shows the plan, the states and the verdicts, and changes nothing."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from speech.cache_folder import cache_dir
from speech.calibration.costs import StepCosts
from speech.config import RuntimeSettings
from speech.cpu import cpu_model
from speech.shm_usage import shm_usage
from sweeps.commands.dry_run import (
    TrackerRecords,
    build_dry_run,
    document,
    print_dry_run,
    read_tracker,
)
from sweeps.config.sweep_file import load
from sweeps.forecast import calibration
from sweeps.forecast.trial_forecasts import prepare_forecasts
from sweeps.host.node import Node, PreflightError
from sweeps.tracking.mlflow_runs import TrialDescription
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.provenance import software
from sweeps.tracking.rerun import Rerun
from sweeps.trial_states import StatusGroup
from tests.conftest import plant_trial
from tests.planted_calibrations import planted
from tests.tones import write_tones

ROOT = Path(__file__).parent.parent
CORES = tuple(sorted(os.sched_getaffinity(0)))
NODE = Node((), CORES)
SWEEP = """
name: planted
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  loader: {{format: png, batch_size: 4}}    # 2.3 MiB a batch, 3 batches an epoch
  sgdr: {{epochs: 2}}
order: listed
exclude: [{{loader.num_workers: 0, loader.shm_size: 2M}}]
blocks:
  workers:
    parameters:
      loader: {{num_workers: {{values: [0, 1]}}, shm_size: {{values: [2M, 6M, 8M]}}}}
      device: {{prefer: [simulated], step_s: 0.05}}
  cycles:
    parameters:
      device: cpu
      sgdr: {{cycle_epochs: {{values: [1, 2]}}}}
"""


@pytest.fixture
def config(tones, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones))
    return load(tmp_path / "sweep.yaml")


def printed(config, *rerun: str) -> list[str]:
    """Returns the lines of a dry run that are not blank."""
    lines: list[str] = []
    print_dry_run(build_dry_run(config, rerun, lines.append), lines.append)
    return [line for line in "\n".join(lines).splitlines() if line.strip()]


def rows(lines: list[str]) -> list[list[str]]:
    """Returns the cells of the table's rows, split at two spaces; blank cells are missing."""
    return [re.split(r"\s{2,}", line.strip()) for line in lines if re.match(r"[0-9a-f]{12} ", line)]


def numbers(lines: list[str], start: str) -> list[int]:
    """Returns the numbers in the only line that begins with `start`."""
    (line,) = [line for line in lines if line.startswith(start)]
    return [int(number) for number in re.findall(r"\d+", line)]


def outline(lines: list[str]) -> tuple[list[int], dict[str, int]]:
    """Returns the numbers in the sweep's outline, and those of them that count trials by state.

    The numbers are those of trials, of each block's trials, of each state's and of those to run;
    then the forecast duration, and the trials that it omits.
    """
    (line,) = [line for line in lines if line.startswith("planted: ")]
    states = re.findall(rf"(\d+) ({'|'.join(StatusGroup)})\b", line)
    return numbers(lines, "planted: "), {state: int(count) for count, state in states}


def device_changes(lines: list[str]) -> list[list[str]]:
    """Returns the numbers and the devices in each warning about a device."""
    return [
        re.findall(r"\b(?:\d+|cuda|cpu|simulated)\b", line)
        for line in lines
        if line.startswith("warning: ") and " device " in line
    ]


def test_every_trial_is_a_row_in_the_order_of_the_plan(config) -> None:
    lines = printed(config)
    free, cores = shm_usage().limit_bytes / 2**20, str(len(CORES))
    cells = [row[1:] for row in rows(lines)]
    assert cells[:5] == [
        ["workers", "1", "0", "6M", cores, "new", "uncalibrated", "0.0", "6.0", "fits"],
        ["workers", "1", "0", "8M", cores, "new", "uncalibrated", "0.0", "8.0", "fits"],
        ["workers", "1", "1", "2M", cores, "new", "uncalibrated", "6.9", "2.0", "overflows"],
        ["workers", "1", "1", "6M", cores, "new", "uncalibrated", "6.9", "6.0", "depends"],
        ["workers", "1", "1", "8M", cores, "new", "uncalibrated", "6.9", "8.0", "fits"],
    ]
    assert [row[:3] for row in cells[5:]] == [["cycles", "1", "1"], ["cycles", "1", "2"]]
    assert all(0 < float(row[-2].replace(",", "")) <= free + 0.5 for row in cells[5:]), (
        "the limit is the free part of the node's own /dev/shm"
    )
    assert [row[0] for row in rows(lines)] == [
        trial.trial_id for trial in prepare_forecasts(config, print).plan.trials
    ]
    assert outline(lines) == ([7, 5, 2, 7, 7], {"new": 7})
    at = next(index for index, line in enumerate(lines) if line.startswith("planted: "))
    removed, _, points = lines[at + 1].rpartition(" (")
    assert removed.startswith("1 ")
    assert removed.split(": ", 1)[0].endswith(" workers")
    assert removed.endswith(" {loader.num_workers: 0, loader.shm_size: 2M}")
    assert points == "num_workers=0 shm_size=2M)"
    assert lines[-1].startswith("/dev/shm: ")
    assert re.findall(r"(\d+) (\w+)", lines[-1]) == [
        ("5", "fit"),
        ("1", "overflows"),
        ("1", "depends"),
    ]


def test_the_lines_are_aligned_and_no_wider_than_a_page(config) -> None:
    lines = printed(config)
    (rule,) = [line for line in lines if set(line) == {"-", " "}]
    assert max(map(len, lines)) <= 110
    table = lines[lines.index(rule) - 3 : -1]
    gaps = [at for at, character in enumerate(rule) if character == " "]
    assert all(line.ljust(len(rule))[at] == " " for line in table for at in gaps)


@pytest.fixture
def calibrated(config, tmp_path, monkeypatch):
    """Caches a calibration of the simulated device: a batch takes 80 ms, its step 50."""
    found = prepare_forecasts(config, print)
    trial = found.plan.trials[0]
    pinned = RuntimeSettings(threads=len(CORES), cpus=list(CORES))
    fingerprint = found.corpora[trial.config.corpus.selection_key()].fingerprint
    name = calibration.calibration_name(trial.config, pinned, fingerprint, NODE)
    calibration.save_calibration(name, planted(StepCosts(wait_s=0.05)))
    yield config
    (cache_dir() / "calibrations" / f"{name}.json").unlink()


def test_trials_with_a_cached_calibration_are_forecast(calibrated) -> None:
    """Compares with 3 batches, worked out by hand: 3 x 130 ms without workers; 3 x 80 ms and the
    last step with one. The interval is 10 % to either side, and a trial has 2 epochs."""
    lines = printed(calibrated)
    found = [row[-4] for row in rows(lines)]
    assert found == ["0.39 (0.33-0.46)"] * 2 + ["0.29 (0.24-0.35)"] * 3 + ["uncalibrated"] * 2
    assert outline(lines) == ([7, 5, 2, 7, 7, 3, 2], {"new": 7})


def test_what_method_forecast_would_not_measure_is_marked(calibrated, tmp_path) -> None:
    lines = printed(load(tmp_path / "sweep.yaml", ["method=forecast"]))
    assert [row[6] for row in rows(lines)[:5]] == [
        "not measured",
        "not measured",
        "not measured",
        "new",
        "new",
    ]
    assert numbers(lines, "measured: ") == [4, 7, 3, 2]
    assert outline(lines) == ([7, 5, 2, 4, 3, 4, 1, 2], {"new": 4, "not measured": 3})


def test_without_calibrate_nothing_is_forecast(calibrated, tmp_path) -> None:
    lines = printed(load(tmp_path / "sweep.yaml", ["calibrate=false"]))
    assert {row[-4] for row in rows(lines)} == {"uncalibrated"}


def test_a_missing_tracker_is_not_created(config, tmp_path) -> None:
    assert read_tracker(config) == TrackerRecords()
    printed(config)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_states_are_read_from_the_tracker_and_nothing_is_written_to_it(config, tracking) -> None:
    first, second, third, fourth, *_ = [
        trial.trial_id for trial in prepare_forecasts(config, print).plan.trials
    ]
    other = tracking.start_sweep("another", "", [], "")
    plant_trial(tracking, other, {}, trial_id=fourth)
    assert read_tracker(config) == TrackerRecords(), "another sweep of the same tracker"
    parent = tracking.start_sweep("planted", "", [], "")
    plant_trial(tracking, parent, {}, trial_id=first)
    plant_trial(tracking, parent, {}, trial_id=first, outcome="crashed")  # settled stays settled
    plant_trial(tracking, parent, {}, trial_id=second, outcome="timeout")
    plant_trial(tracking, parent, {}, trial_id=second, outcome="oom")
    plant_trial(tracking, parent, {}, trial_id=third, outcome="shm_exhausted")
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    before = database.read_bytes()
    lines = printed(config)
    assert [row[6] for row in rows(lines)[:5]] == [
        "completed",
        "oom",
        "shm_exhausted",
        "new",
        "new",
    ]
    assert outline(lines) == ([7, 5, 2, 2, 1, 4, 5], {"settled": 2, "failed": 1, "new": 4})
    assert database.read_bytes() == before


@pytest.fixture
def some_settled(config, tracking) -> list[str]:
    """Returns the plan's trial ids: the first is settled, the second failed, the others are new."""
    keys = [trial.trial_id for trial in prepare_forecasts(config, print).plan.trials]
    parent = tracking.start_sweep("planted", "", [], "")
    plant_trial(
        tracking,
        parent,
        {},
        trial_id=keys[0],
        tags={"git_commit": "0ld", "cpu_name": "Planted", "cores": len(CORES)},
    )
    plant_trial(tracking, parent, {}, trial_id=keys[1], outcome="crashed")
    return keys


@pytest.mark.parametrize(
    ("rerun", "run"),
    [
        ([], range(1, 7)),
        (["failed"], [1]),
        (["all"], range(7)),
        ([0], [0]),
        ([0, 3], [0, 3]),
        (["failed", 4], [1, 4]),
    ],
)
def test_what_a_launch_would_run_is_marked_and_counted(config, some_settled, rerun, run) -> None:
    words = [word if isinstance(word, str) else some_settled[word][:10] for word in rerun]
    seen = build_dry_run(config, words, print)
    assert [trial.trial_id for trial in seen.pending] == [some_settled[index] for index in run]
    lines = printed(config, *words)
    assert outline(lines) == (
        [7, 5, 2, 1, 1, 5, len(run)],
        {"settled": 1, "failed": 1, "new": 5},
    )
    assert ["yes" in row for row in rows(lines)] == [
        index in run and bool(rerun) for index in range(7)
    ]


def test_a_changed_environment_is_a_warning_below_the_outline(config, some_settled) -> None:
    lines = printed(config)
    at = next(index for index, line in enumerate(lines) if line.startswith("planted:"))
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert warnings == lines[at + 2 : at + 5]
    assert all("1 of 1" in line for line in warnings)
    name = re.compile(r"\b(?:commit|CPU|cores|device)\b")
    assert [name.search(line)[0] for line in warnings] == ["commit", "CPU", "device"]
    assert "0ld" in warnings[0]
    assert warnings[0].endswith(f" {software()['git_commit']}")
    assert "Planted" in warnings[1]
    assert warnings[1].endswith(f" {cpu_model()}")
    assert device_changes(lines) == [["1", "1", "cpu", "simulated"]]


def test_a_gpu_that_settled_trials_had_is_a_warning_where_there_is_none(
    config, tracking, monkeypatch, tmp_path
) -> None:
    overrides = [
        "parameters.device={prefer: [cuda, cpu]}",
        "blocks.cycles.parameters.device={prefer: [cuda, cpu]}",
    ]
    config = load(tmp_path / "sweep.yaml", overrides)
    *_, key = [trial.trial_id for trial in prepare_forecasts(config, print).plan.trials]
    parent = tracking.start_sweep("planted", "", [], "")
    plant_trial(
        tracking,
        parent,
        {},
        trial_id=key,
        tags={"device": "cuda", "device_name": "T4", "cpu_name": cpu_model(), "cores": len(CORES)},
    )
    monkeypatch.setattr("sweeps.commands.dry_run.GPU_DRIVERS", [tmp_path / "none"])
    assert device_changes(printed(config)) == [["1", "1", "cuda", "cpu"]]
    of_a_cluster = load(tmp_path / "sweep.yaml", [*overrides, "ray.address=auto"])
    assert device_changes(printed(of_a_cluster)) == [], "another node may have a GPU"
    monkeypatch.setattr("sweeps.commands.dry_run.GPU_DRIVERS", [tmp_path / "none", tmp_path])
    assert device_changes(printed(config)) == [], "the device is unknown without torch"
    without = load(tmp_path / "sweep.yaml", [*overrides, "resources.gpus=0"])
    *_, key = [trial.trial_id for trial in prepare_forecasts(without, print).plan.trials]
    plant_trial(
        tracking,
        parent,
        {},
        trial_id=key,
        tags={"device": "simulated", "cpu_name": cpu_model(), "cores": len(CORES)},
    )
    assert device_changes(printed(without)) == [["1", "1", "simulated", "cpu"]]


def test_an_interrupted_rerun_continues_with_the_trials_that_have_not_run_since(
    config, some_settled, tracking
) -> None:
    (sweep,) = tracking.client.search_runs([tracking.experiment_id], "tags.kind = 'sweep'")
    parent, begun = sweep.info.run_id, Rerun.create(["all"])
    tracking.set_tags(parent, {"rerun": begun.to_json()})
    plant_trial(tracking, parent, {}, trial_id=some_settled[2], tags={"rerun": begun.id})
    plant_trial(
        tracking,
        parent,
        {},
        trial_id=some_settled[3],
        tags={"rerun": begun.id},
        outcome="interrupted",
    )
    lines = printed(config, "all")
    assert ["yes" in row for row in rows(lines)] == [True, True, False, True, True, True, True]
    (line,) = [line for line in lines if line.startswith("continues --rerun all ")]
    assert begun.began in line
    assert re.findall(r"\d+", line.replace(begun.began, "")) == ["6"]
    assert document(build_dry_run(config, ["all"], print))["notes"] == [line]
    other = build_dry_run(config, [some_settled[2]], print)
    assert [trial.trial_id for trial in other.pending] == [some_settled[2]], "a rerun of its own"
    for dropping in (other, build_dry_run(config, [], print)):
        (note,) = dropping.notes
        assert note.startswith("drops ")
        assert "--rerun all" in note
        assert begun.began in note


def test_records_that_wait_for_the_tracker_count_as_if_they_had_been_sent(
    config, some_settled, tracking, tmp_path
) -> None:
    (sweep,) = tracking.client.search_runs([tracking.experiment_id], "tags.kind = 'sweep'")
    own = sweep.info.run_id
    attempts = [
        (1, own, "oom"),
        (1, own, "completed"),
        (2, own, "oom"),
        (3, own, None),
        (4, "of another tracker's sweep", "completed"),
    ]
    for number, (trial, parent, outcome) in enumerate(attempts):
        folder = tmp_path / ".sweeps" / "planted" / "unsent" / f"{number}"
        folder.mkdir(parents=True)
        time.sleep(0.002)
        outbox = Outbox.create(folder, tracking.uri, "speech")
        outbox.start(
            parent,
            TrialDescription(
                trial_id=some_settled[trial],
                block="workers",
                repeat=1,
                seed=1,
                swept={},
                config={},
                tags={"git_commit": "0ld"},
            ),
        )
        if trial == 1:
            outbox.send_next(tracking)  # opens the run of this attempt
        if outcome:
            outbox.finish(outcome, "planted", {}, {}, {})
        outbox.close()
    lines = printed(config)
    assert outline(lines) == (
        [7, 5, 2, 2, 1, 1, 3, 5],
        {"settled": 2, "failed": 1, "running": 1, "new": 3},
    )
    assert [row[6] for row in rows(lines)[:5]] == [
        "completed",
        "completed",
        "oom",
        "running",
        "new",
    ]
    (waiting,) = [line for line in lines if ".sweeps/planted" in line]
    assert re.findall(r"\d+", waiting) == ["2"]
    (commit,) = [line for line in lines if line.startswith("warning: ") and "commit" in line]
    assert "2 of 2" in commit
    assert "0ld" in commit


def test_the_document_holds_everything_that_the_lines_show(calibrated, some_settled) -> None:
    seen = build_dry_run(calibrated, ["failed"], print)
    found = json.loads(json.dumps(document(seen), allow_nan=False))
    assert found["counts"] == {"trials": 7, "settled": 1, "failed": 1, "new": 5, "to_run": 1}
    assert [
        (trial["trial_id"], trial["state"], trial["outcome"], trial["runs"])
        for trial in found["trials"][:3]
    ] == [
        (some_settled[0], "settled", "completed", False),
        (some_settled[1], "failed", "crashed", True),
        (some_settled[2], "new", None, False),
    ]
    first, third = found["trials"][0], found["trials"][2]
    assert (first["swept"], first["repeat"]) == (
        {"loader.num_workers": 0, "loader.shm_size": 6 << 20},
        1,
    )
    assert first["resources"] == {
        "cpus": len(CORES),
        "gpus": 0,
        "exclusive_node": True,
        "shm": "private",
    }
    assert first["forecast"]["forecast_epoch_s"] == pytest.approx(0.39)
    assert (first["expected_s"], third["expected_s"]) == (
        pytest.approx(0.78),
        0,
    ), "a trial that overflows ends at once"
    assert third["fit"]["verdict"] == "overflows"
    assert (found["expected_s"], found["uncalibrated"]) == (pytest.approx(0.78), 0)
    assert found["trials"][-1]["forecast"] is None
    (removed,) = found["removed"]
    assert removed["points"] == [{"loader.num_workers": 0, "loader.shm_size": "2M"}]
    assert found["warnings"] == seen.state.environment_changes


def test_the_limit_of_a_host_shm_is_its_free_part(tones, config, tmp_path) -> None:
    (tmp_path / "host.yaml").write_text(
        "name: host\nresources: {shm: host}\nparameters:\n  corpus: {name: folder, path:"
        f" {tones}, words: [low, high]}}\n  loader: {{num_workers: 1, batch_size: 4}}\n  device:"
        " {prefer: [simulated], step_s: 0.1}\n  sgdr: {epochs: 2}\n"
    )
    ((*_, has, verdict),) = rows(printed(load(tmp_path / "host.yaml")))
    free = shm_usage().limit_bytes - shm_usage().used_bytes
    assert float(has.replace(",", "")) == pytest.approx(free / 2**20, rel=0.2)
    assert verdict == "fits"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parameters.corpus.words=[low, hihg]", r"'hihg'.*\bmean high\b"),
        ("tracking.uri=sqlite:///sweep.yaml", "not a database"),
    ],
)
def test_an_unusable_corpus_or_tracker_is_a_preflight_error(
    config, tmp_path, override: str, message: str
) -> None:
    with pytest.raises(PreflightError, match=message):
        printed(load(tmp_path / "sweep.yaml", [override]))


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_it_imports_neither_torch_nor_ray_and_without_a_tracker_no_mlflow(
    config, tmp_path, flags
) -> None:
    done = dry_run_of_a_process(tmp_path, "{'torch', 'ray', 'mlflow', 'pandas'}", *flags)
    assert (done.returncode, done.stderr) == (0, "")


def test_with_a_tracker_it_imports_neither_torch_nor_ray(config, some_settled, tmp_path) -> None:
    done = dry_run_of_a_process(tmp_path, "{'torch', 'ray'}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["counts"]["settled"] == 1


def dry_run_of_a_process(
    folder: Path, forbidden: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launch; code ="
        f" launch.main(['sweep.yaml', '--dry-run', *{flags!r}]);sys.exit(code or '"
        f" '.join({forbidden} & sys.modules.keys()) or 0)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_progress_of_a_json_document_goes_to_stderr(tmp_path) -> None:
    unread = write_tones(tmp_path / "tones")
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=unread))
    done = dry_run_of_a_process(tmp_path, "set()", "--json")
    assert "25 files" in done.stderr
    assert len(json.loads(done.stdout)["trials"]) == 7


@pytest.mark.parametrize(
    ("rerun", "message"),
    [("zzz", "--rerun zzz: "), ("", "--rerun : ")],
)
def test_an_unknown_trial_id_is_reported_with_its_option(
    config, capsys, rerun: str, message: str
) -> None:
    assert launch.main(["sweep.yaml", "--dry-run", "--rerun", rerun]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_trial_that_cannot_be_trained_is_reported_with_its_key_and_value(
    tones, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        SWEEP.format(tones=tones)
        .replace("low, high]}", "low, high], seconds: 0.3}")
        .replace("format: png, batch_size: 4", "batch_size: 4")
    )
    (tmp_path / "sweep.yaml").write_text(
        text.replace(
            "      device: cpu\n",
            "      device: cpu\n      loader: {batch_size: {values: [1, 8, 99]}}\n",
        )
    )
    seen = build_dry_run(load(tmp_path / "sweep.yaml"), [], lambda line: None)
    refused = {
        trial["swept"]["loader.batch_size"]: trial["problem"]
        for trial in document(seen)["trials"]
        if trial["block"] == "cycles"
    }
    assert {size: problem and problem.split(" ")[:2] for size, problem in refused.items()} == {
        1: ["loader.batch_size", "1:"],
        8: None,
        99: ["loader.batch_size", "99"],
    }
    assert all(
        trial["problem"] is None
        for trial in document(seen)["trials"]
        if trial["block"] == "workers"
    ), "the simulated device does not train"
    lines: list[str] = []
    print_dry_run(seen, lines.append)
    assert (
        sum(
            "batch_size=1 cycle_epochs=1" in line and "BatchNorm" in line
            for line in "\n".join(lines).splitlines()
        )
        == 1
    )
