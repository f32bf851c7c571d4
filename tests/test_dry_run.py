"""A dry run tells the plan, what is settled, and what fits; and leaves everything as it was."""

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
from sweeps.tracking.rerun import Rerun
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


def told(config, *rerun: str) -> list[str]:
    lines: list[str] = []
    print_dry_run(build_dry_run(config, rerun, lines.append), lines.append)
    return [line for line in "\n".join(lines).splitlines() if line.strip()]


def rows(lines: list[str]) -> list[list[str]]:
    """The table's lines, split where two spaces are; a blank cell is lost."""
    return [re.split(r"\s{2,}", line.strip()) for line in lines if re.match(r"[0-9a-f]{12} ", line)]


def test_it_tells_every_trial_in_the_order_of_the_plan(config) -> None:
    lines = told(config)
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
        "what is free on the node's own"
    )
    assert [row[0] for row in rows(lines)] == [
        trial.trial_id for trial in prepare_forecasts(config, print).plan.trials
    ]
    at = lines.index("planted: 7 trials (5 in workers, 2 in cycles), 7 new; 7 to run")
    removed = (
        "1 point removed from workers: exclude {loader.num_workers: 0, loader.shm_size: 2M}"
        " (num_workers=0 shm_size=2M)"
    )
    assert lines[at + 1] == removed
    assert lines[-1] == "/dev/shm: 5 fit, 1 overflows, 1 depends on rates"


def test_the_lines_are_aligned_and_no_wider_than_a_page(config) -> None:
    lines = told(config)
    (rule,) = [line for line in lines if set(line) == {"-", " "}]
    assert max(map(len, lines)) <= 110
    table = lines[lines.index(rule) - 3 : -1]
    gaps = [at for at, character in enumerate(rule) if character == " "]
    assert all(line.ljust(len(rule))[at] == " " for line in table for at in gaps)


@pytest.fixture
def calibrated(config, tmp_path, monkeypatch):
    """A cache in which the trials on the simulated device are calibrated: a batch takes 80 ms, its step
    50."""
    found = prepare_forecasts(config, print)
    trial = found.plan.trials[0]
    pinned = RuntimeSettings(threads=len(CORES), cpus=list(CORES))
    fingerprint = found.corpora[trial.config.corpus.selection_key()].fingerprint
    name = calibration.calibration_name(trial.config, pinned, fingerprint, NODE)
    calibration.save_calibration(name, planted(StepCosts(wait_s=0.05)))
    yield config
    (cache_dir() / "calibrations" / f"{name}.json").unlink()


def test_what_earlier_launches_calibrated_is_forecast(calibrated) -> None:
    """3 batches: without workers 3 x 130 ms; with one, 3 x 80 ms and the last step. 10 % either
    way, 2 epochs each."""
    lines = told(calibrated)
    found = [row[-4] for row in rows(lines)]
    assert found == ["0.39 (0.35-0.43)"] * 2 + ["0.29 (0.26-0.32)"] * 3 + ["uncalibrated"] * 2
    assert (
        "planted: 7 trials (5 in workers, 2 in cycles), 7 new; 7 to run, about 3 s and 2"
        " uncalibrated" in lines
    )


def test_what_method_forecast_would_not_measure_is_marked(calibrated, tmp_path) -> None:
    lines = told(load(tmp_path / "sweep.yaml", ["method=forecast"]))
    assert [row[6] for row in rows(lines)[:5]] == [
        "not measured",
        "not measured",
        "not measured",
        "new",
        "new",
    ]
    assert "measured: 4 of 7 trials; 3 are forecast, about 2 s saved" in lines
    assert (
        "planted: 7 trials (5 in workers, 2 in cycles), 4 new, 3 not measured; 4 to run, about 1 s"
        " and 2 uncalibrated" in lines
    )


def test_without_calibrate_nothing_is_forecast(calibrated, tmp_path) -> None:
    lines = told(load(tmp_path / "sweep.yaml", ["calibrate=false"]))
    assert {row[-4] for row in rows(lines)} == {"uncalibrated"}


def test_without_a_tracker_none_is_made(config, tmp_path) -> None:
    assert read_tracker(config) == TrackerRecords()
    told(config)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_what_is_settled_failed_and_new_is_read_from_the_tracker_and_nothing_written(
    config, tracking
) -> None:
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
    lines = told(config)
    assert [row[6] for row in rows(lines)[:5]] == [
        "completed",
        "oom",
        "shm_exhausted",
        "new",
        "new",
    ]
    assert (
        "planted: 7 trials (5 in workers, 2 in cycles), 2 settled, 1 failed, 4 new; 5 to run"
        in lines
    )
    assert database.read_bytes() == before


@pytest.fixture
def some_settled(config, tracking) -> list[str]:
    """Keys of the plan: the first is settled, the second has failed, the others are new."""
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
    lines = told(config, *words)
    assert (
        f"planted: 7 trials (5 in workers, 2 in cycles), 1 settled, 1 failed, 5 new; {len(run)}"
        " to run" in lines
    )
    assert ["yes" in row for row in rows(lines)] == [
        index in run and bool(rerun) for index in range(7)
    ]


def test_what_settled_trials_had_otherwise_is_a_warning_below_the_outline(
    config, some_settled
) -> None:
    lines = told(config)
    at = next(index for index, line in enumerate(lines) if line.startswith("planted:"))
    assert re.fullmatch(
        r"warning: 1 of 1 settled trials ran with commit 0ld; it is now \S+", lines[at + 2]
    )
    assert (
        lines[at + 3]
        == f"warning: 1 of 1 settled trials ran with CPU Planted; it is now {cpu_model()}"
    )
    assert not [line for line in lines if "had cores" in line]


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
    warning = "warning: 1 of 1 settled trials ran with device cuda; it is now cpu"
    monkeypatch.setattr("sweeps.commands.dry_run.GPU_DRIVERS", [tmp_path / "none"])
    assert warning in told(config)
    assert warning not in told(load(tmp_path / "sweep.yaml", [*overrides, "ray.address=auto"])), (
        "another node may have one"
    )
    monkeypatch.setattr("sweeps.commands.dry_run.GPU_DRIVERS", [tmp_path / "none", tmp_path])
    assert warning not in told(config), "only torch can tell which it gets"
    without = load(tmp_path / "sweep.yaml", [*overrides, "resources.gpus=0"])
    *_, key = [trial.trial_id for trial in prepare_forecasts(without, print).plan.trials]
    plant_trial(
        tracking,
        parent,
        {},
        trial_id=key,
        tags={"device": "simulated", "cpu_name": cpu_model(), "cores": len(CORES)},
    )
    assert "warning: 1 of 1 settled trials ran with device simulated; it is now cpu" in told(
        without
    )


def test_what_ran_since_a_rerun_that_was_cut_short_does_not_run_again(
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
    lines = told(config, "all")
    assert ["yes" in row for row in rows(lines)] == [True, True, False, True, True, True, True]
    (line,) = [
        line
        for line in lines
        if re.fullmatch(r"continues --rerun all of .*: 6 trials have not run since", line)
    ]
    assert document(build_dry_run(config, ["all"], print))["notes"] == [line]
    other = build_dry_run(config, [some_settled[2]], print)
    assert [trial.trial_id for trial in other.pending] == [some_settled[2]], "asked for anew"
    assert (
        [note.split(" of ")[0] for note in other.notes]
        == ["drops the unfinished --rerun all"]
        == [note.split(" of ")[0] for note in build_dry_run(config, [], print).notes]
    )


def test_what_waits_for_the_tracker_counts_as_it_will_once_a_launch_has_sent_it(
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
            outbox.send_next(tracking)  # its run is open, and is the same attempt
        if outcome:
            outbox.finish(outcome, "planted", {}, {}, {})
        outbox.close()
    lines = told(config)
    assert (
        "planted: 7 trials (5 in workers, 2 in cycles), 2 settled, 1 failed, 1 running, 3 new; 5"
        " to run" in lines
    )
    assert [row[6] for row in rows(lines)[:5]] == [
        "completed",
        "completed",
        "oom",
        "running",
        "new",
    ]
    assert [line for line in lines if re.match(r"records of 2 trials .*\.sweeps/planted", line)]
    assert (
        len(
            [
                line
                for line in lines
                if line.startswith("warning: 2 of 2 settled trials ran with commit 0ld")
            ]
        )
        == 1
    )


def test_the_document_holds_all_that_the_lines_tell(calibrated, some_settled) -> None:
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
    ), "what overflows ends at once"
    assert third["fit"]["verdict"] == "overflows"
    assert (found["expected_s"], found["uncalibrated"]) == (pytest.approx(0.78), 0)
    assert found["trials"][-1]["forecast"] is None
    (removed,) = found["removed"]
    assert removed["points"] == [{"loader.num_workers": 0, "loader.shm_size": "2M"}]
    assert found["warnings"] == seen.state.environment_changes


def test_a_host_shm_is_what_is_free_of_it(tones, config, tmp_path) -> None:
    (tmp_path / "host.yaml").write_text(
        "name: host\nresources: {shm: host}\nparameters:\n  corpus: {name: folder, path:"
        f" {tones}, words: [low, high]}}\n  loader: {{num_workers: 1, batch_size: 4}}\n  device:"
        " {prefer: [simulated], step_s: 0.1}\n  sgdr: {epochs: 2}\n"
    )
    ((*_, has, verdict),) = rows(told(load(tmp_path / "host.yaml")))
    free = shm_usage().limit_bytes - shm_usage().used_bytes
    assert float(has.replace(",", "")) == pytest.approx(free / 2**20, rel=0.2)
    assert verdict == "fits"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parameters.corpus.words=[low, hihg]", "Did you mean high"),
        ("tracking.uri=sqlite:///sweep.yaml", "not a database"),
    ],
)
def test_what_can_not_be_read_is_a_preflight_error(
    config, tmp_path, override: str, message: str
) -> None:
    with pytest.raises(PreflightError, match=message):
        told(load(tmp_path / "sweep.yaml", [override]))


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
    assert "reading 25 files" in done.stderr
    assert len(json.loads(done.stdout)["trials"]) == 7


@pytest.mark.parametrize(
    ("rerun", "message"),
    [("zzz", "--rerun zzz: "), ("", "--rerun : ")],
)
def test_a_key_that_there_is_not_is_told(config, capsys, rerun: str, message: str) -> None:
    assert launch.main(["sweep.yaml", "--dry-run", "--rerun", rerun]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_what_can_not_be_trained_is_told_with_its_trial_key_and_mend(
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
    ), "the simulated device learns not"
    lines: list[str] = []
    print_dry_run(seen, lines.append)
    assert (
        sum(
            "batch_size=1 cycle_epochs=1" in line and "BatchNorm" in line
            for line in "\n".join(lines).splitlines()
        )
        == 1
    )
