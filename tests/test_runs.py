"""Tests the frame of a sweep's trials with runs planted through the real tracker."""

import errno
import re
import shlex
import sqlite3

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.comparable_groups import comparable
from analysis.runs import join_sweep_runs, sweep_runs
from analysis.tables import SUBCOMMANDS, rebuild_command, render
from sweeps.metrics import SUMMARY
from sweeps.tracking.mlflow_runs import TrialDescription
from sweeps.tracking.run_queries import settled_outcomes
from tests.conftest import make_trial_id

SPREAD = ("loader.num_workers", "loader.shm_size")


def open_sweep(tracking, *keys, name="first-look"):
    return tracking.start_sweep(name, "", [{"trial_id": key} for key in keys], "")


def numbers(line):
    """Returns the numbers in a line, as texts, in order."""
    return re.findall(r"\d+(?:\.\d+)?", line)


def test_every_trial_is_a_row_even_if_it_failed(tracking, plant):
    swept = [{"loader.num_workers": workers, "loader.shm_size": 64 << 20} for workers in (0, 2, 4)]
    parent = open_sweep(tracking, *(make_trial_id("workers", values, 1) for values in swept))
    plant(parent, swept[0], epoch_s=4.0, accuracy=0.5, tags={"validation_clips": 300})
    plant(parent, swept[1], outcome="crashed")
    plant(parent, swept[2], outcome="shm_exhausted", shm_peak_bytes=64 << 20)
    runs = sweep_runs("first-look", tracking.uri)
    frame = runs.trials
    assert frame["outcome"].tolist() == ["completed", "crashed", "shm_exhausted"]
    assert frame["settled"].tolist() == [True, False, True]
    assert frame["planned"].all()
    assert frame["evidence"].tolist() == ["planted"] * 3
    assert frame["loader.num_workers"].tolist() == [0, 2, 4]
    assert frame["loader.shm_size"].tolist() == [64 << 20] * 3
    assert frame["repeat"].tolist() == [1, 1, 1]
    assert frame["corpus.words"].tolist() == ['["yes", "no"]'] * 3
    assert frame["sgdr.lr"].tolist() == [0.01] * 3
    assert frame.loc[0, ["cores", "device", "device_name", "threads"]].tolist() == [
        "2",
        "cpu",
        "Planted CPU",
        "2",
    ]
    assert (
        frame.loc[0, "epoch_s"],
        frame.loc[0, "accuracy"],
        frame.loc[0, "validation_clips"],
    ) == (4.0, 0.5, 300.0)
    assert frame.loc[1:, "epoch_s"].isna().all()
    assert frame.loc[2, "shm_peak_bytes"] == 64 << 20
    assert (runs.name, runs.uri, runs.planned_count) == ("first-look", tracking.uri, 3)
    assert (runs.forecast_only, runs.not_run, runs.corpora) == ((), (), ())


def test_the_columns_have_the_documented_types(tracking, plant):
    parent = open_sweep(tracking)
    plant(parent, {"loader.num_workers": 2}, epoch_s=1.0)
    frame = sweep_runs("first-look", tracking.uri).trials
    assert all(frame[name].dtype == "float64" for name in SUMMARY)
    assert (frame["repeat"].dtype, frame["loader.num_workers"].dtype) == ("Int64", "Int64")
    assert (frame["settled"].dtype, frame["planned"].dtype, frame["attempts"].dtype) == (
        "bool",
        "bool",
        "int64",
    )
    assert (frame["disturbed"].tolist(), frame["disturbances"].dtype) == ([None], "int64")
    assert str(frame["started"].dt.tz) == "UTC"
    assert "loader.shm_size" not in frame  # set by no trial


def test_a_key_is_one_row_its_settled_attempt_or_its_latest(tracking, plant):
    parent = open_sweep(tracking, "a", "b")
    plant(parent, {}, trial_id="a", outcome="crashed")
    plant(parent, {}, trial_id="a", epoch_s=3.0)
    plant(parent, {}, trial_id="a", outcome="interrupted")
    plant(parent, {}, trial_id="b", outcome="oom")
    plant(parent, {}, trial_id="b", outcome="timeout")
    frame = sweep_runs("first-look", tracking.uri).trials.set_index("trial_id")
    assert frame["outcome"].to_dict() == {"a": "completed", "b": "timeout"}
    assert frame["attempts"].to_dict() == {"a": 3, "b": 2}
    assert frame.loc["a", "epoch_s"] == 3.0


def test_an_undisturbed_attempt_is_preferred_and_then_the_newest_however_long_it_took(
    tracking, plant
):
    attempts = {  # oldest first: what disturbed it, epoch_s
        "once": [("a compiler", 1.0), (None, 9.0)],
        "twice": [("a compiler", 1.0), ("a backup", 9.0)],
        "before": [(None, 9.0), ("a compiler", 1.0)],
        "never": [(None, 1.0)],
    }
    parent = open_sweep(tracking, *attempts)
    for key, ended in attempts.items():
        for disturbed, epoch_s in ended:
            plant(parent, {}, trial_id=key, tags={"disturbed": disturbed}, epoch_s=epoch_s)
    plant(parent, {}, trial_id="once", outcome="crashed")
    frame = sweep_runs("first-look", tracking.uri).trials.set_index("trial_id")
    assert frame["epoch_s"].to_dict() == {"once": 9.0, "twice": 9.0, "before": 9.0, "never": 1.0}
    assert {key: why for key, why in frame["disturbed"].items() if pd.notna(why)} == {
        "twice": "a backup"
    }
    assert frame["disturbances"].to_dict() == {"once": 1, "twice": 2, "before": 1, "never": 0}
    assert frame["attempts"].to_dict() == {"once": 3, "twice": 2, "before": 2, "never": 1}


def test_runs_from_before_a_parameter_pool_with_those_that_have_its_default(tracking, plant):
    parent = open_sweep(tracking, *"abc")
    plant(parent, {"loader.num_workers": 0}, trial_id="a")
    plant(
        parent,
        {"loader.num_workers": 2, "corpus.cache": "warm", "corpus.read_latency_s": 0.0},
        trial_id="b",
    )
    plant(
        parent,
        {"loader.num_workers": 2, "corpus.cache": "cold", "corpus.read_latency_s": 0.02},
        trial_id="c",
    )
    found = {group.varied: group for group in groups(tracking)}
    warm, cold = "cache=warm read_latency_s=0", "cache=cold read_latency_s=0.02"
    assert {varied: group.trials["trial_id"].tolist() for varied, group in found.items()} == {
        warm: ["a", "b"],
        cold: ["c"],
    }
    planted = ["Planted CPU", "2 cores", "2 threads", "float32"]
    assert found[warm].surroundings.split(" · ") == planted
    *hardware, cache, latency = found[cold].surroundings.split(" · ")
    assert hardware == planted
    assert "cold" in cache
    assert numbers(latency) == ["20"]
    assert latency.endswith(" ms")


def test_a_trial_under_way_is_running(tracking):
    parent = open_sweep(tracking, "a")
    tracking.start_trial(
        parent,
        TrialDescription(
            trial_id="a",
            block="w",
            repeat=1,
            seed=1,
            swept={},
            config={"loader": {"num_workers": 0}},
            tags={},
        ),
    )
    assert sweep_runs("first-look", tracking.uri).trials["outcome"].tolist() == ["running"]


def test_other_sweeps_stay_out_and_more_than_a_page_is_read(tracking, monkeypatch):
    monkeypatch.setattr("sweeps.tracking.mlflow_client.PAGE_RUNS", 3)
    parent, other = open_sweep(tracking), open_sweep(tracking, name="other")
    for index in range(7):
        tags = {
            "kind": "trial",
            "trial_id": str(index),
            "block": "w",
            "repeat": "1",
            "mlflow.parentRunId": parent,
        }
        run = tracking.client.create_run(tracking.experiment_id, tags=tags)
        tracking.client.log_param(run.info.run_id, "loader.num_workers", index)
    tracking.start_trial(other, TrialDescription("x", "w", 1, seed=1, swept={}, config={}, tags={}))
    assert len(sweep_runs("first-look", tracking.uri).trials) == 7
    assert len(settled_outcomes(tracking.trials(parent))) == 0
    assert len(tracking.trials(parent)) == 7


def test_an_unknown_name_lists_the_sweeps_and_the_nearest(tracking, tmp_path):
    open_sweep(tracking)
    open_sweep(tracking, name="shm-limits")
    with pytest.raises(
        LookupError, match=r"'frist-look'.*\bshm-limits, first-look\b.*\bfirst-look\b"
    ):
        sweep_runs("frist-look", tracking.uri)
    with pytest.raises(LookupError, match=r"'speach'.*\bspeech, Default\b"):
        sweep_runs("first-look", tracking.uri, "speach")
    with pytest.raises(LookupError, match=re.escape(f"{tmp_path}/absent.db")):
        sweep_runs("first-look", f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()


def groups(tracking):
    return list(comparable(sweep_runs("first-look", tracking.uri), SPREAD))


def test_only_equal_parameters_and_surroundings_are_comparable(tracking, plant):
    parent = open_sweep(tracking, *"abcde")
    plant(parent, {"loader.num_workers": 0, "loader.format": "wav"}, trial_id="a")
    plant(parent, {"loader.num_workers": 2, "loader.format": "wav"}, 2, trial_id="b")
    plant(parent, {"loader.num_workers": 0, "loader.format": "png"}, trial_id="c")
    plant(
        parent, {"loader.num_workers": 0, "loader.format": "wav"}, trial_id="d", tags={"cores": 4}
    )
    plant(parent, {"loader.num_workers": 0, "loader.format": "wav"}, trial_id="e", block="other")
    found = {
        (group.block, group.varied, group.surroundings): group.trials["trial_id"].tolist()
        for group in groups(tracking)
    }
    assert found == {
        ("workers", "format=wav", "Planted CPU · 2 cores · 2 threads · float32"): ["a", "b"],
        ("workers", "format=png", "Planted CPU · 2 cores · 2 threads · float32"): ["c"],
        ("workers", "format=wav", "Planted CPU · 4 cores · 2 threads · float32"): ["d"],
        ("other", "", "Planted CPU · 2 cores · 2 threads · float32"): ["e"],
    }


def test_a_trial_that_died_before_it_knew_its_device_belongs_to_the_others(tracking, plant):
    parent = open_sweep(tracking, "a", "b")
    plant(parent, {"loader.num_workers": 0}, trial_id="a")
    plant(
        parent,
        {"loader.num_workers": 2},
        trial_id="b",
        outcome="crashed",
        tags={"device_name": None, "precision": None},
    )
    assert [group.trials["trial_id"].tolist() for group in groups(tracking)] == [["a", "b"]]


def test_trials_of_an_earlier_version_of_the_sweep_are_kept_but_in_no_table(tracking, plant):
    parent = open_sweep(tracking, "old")
    plant(parent, {}, trial_id="old", epoch_s=9.0)
    open_sweep(tracking, "new", "newer")
    plant(parent, {}, trial_id="new", epoch_s=3.0)
    assert sweep_runs("first-look", tracking.uri).trials["planned"].tolist() == [False, True]
    assert [group.trials["trial_id"].tolist() for group in groups(tracking)] == [["new"]]
    text = render("first-look", tracking.uri)
    missing, earlier = text.splitlines()[1:3]
    assert (numbers(missing), numbers(earlier)) == (["1", "2"], ["1"])
    assert "earlier version" in earlier


def planned(key, workers, measured=None, form="wav", **config):
    """Returns a row of plan.json; `method: forecast` skips the trial if measured is False."""
    if measured is None:
        return {"trial_id": key}
    swept = {"loader.num_workers": workers, "loader.format": form} | config
    parameters = {
        "corpus.name": "synthetic",
        "corpus.words": ["yes", "no"],
        "sgdr.epochs": 8,
        "sgdr.cycle_factor": 1,
        "sgdr.lr": 0.01,
    }
    forecast = {"forecast_epoch_s": 9.0 + workers}
    return {
        "trial_id": key,
        "block": "workers",
        "repeat": 1,
        "measured": measured,
        "config": parameters | swept,
        "forecast": forecast,
    }


def test_trials_that_are_only_forecast_are_neither_rows_nor_missing(tracking, plant):
    parent = tracking.start_sweep(
        "first-look", "", [planned("a", 0), planned("b", 1, False), planned("c", 2)], ""
    )
    plant(parent, {"loader.num_workers": 0}, trial_id="a", epoch_s=1.0)
    runs = sweep_runs("first-look", tracking.uri)
    assert (runs.trials["trial_id"].tolist(), runs.planned_count) == (["a"], 2)
    (left_out,) = runs.forecast_only
    assert (
        left_out.items()
        >= {
            "trial_id": "b",
            "block": "workers",
            "repeat": 1,
            "forecast_epoch_s": 10.0,
            "loader.num_workers": 1,
        }.items()
    )
    assert left_out["corpus.words"] == '["yes", "no"]'
    saved, missing = render("first-look", tracking.uri).splitlines()[1:3]
    assert numbers(saved) == ["2", "3", "1.3"], "8 epochs of 10 s are 1.3 min"
    assert " 1.3 min " in saved
    assert numbers(missing) == ["1", "2"]


def test_a_trial_that_is_sure_to_overflow_saves_no_minutes(tracking, plant):
    rows = [
        planned("a", 0),
        planned("b", 1, False),
        planned("c", 2, False) | {"forecast_fit": "overflows"},
    ]
    plant(
        tracking.start_sweep("first-look", "", rows, ""),
        {"loader.num_workers": 0},
        trial_id="a",
        epoch_s=1.0,
    )
    saved = render("first-look", tracking.uri).splitlines()[1]
    assert numbers(saved) == ["1", "3", "1.3"]
    assert " 1.3 min " in saved


def test_a_trial_that_was_measured_before_it_was_only_forecast_is_measured(tracking, plant):
    parent = tracking.start_sweep(
        "first-look", "", [planned("a", 0, False), planned("b", 1, False)], ""
    )
    plant(parent, {"loader.num_workers": 0}, trial_id="a", epoch_s=1.0)
    plant(parent, {"loader.num_workers": 1}, trial_id="b", outcome="crashed")
    runs = sweep_runs("first-look", tracking.uri)
    assert runs.trials.set_index("trial_id")["planned"].to_dict() == {"a": True, "b": False}
    assert [row["trial_id"] for row in runs.forecast_only] == ["b"]


def left_to_forecasts(tracking):
    return {
        (group.varied, group.surroundings): group.forecast_only["trial_id"].tolist()
        for group in groups(tracking)
    }


def test_forecasts_stand_with_the_trials_that_differ_in_workers_and_shm_only(tracking, plant):
    rows = [planned(key, 1) for key in "ab"] + [
        planned("c", 4, False),
        planned("d", 4, False, "png"),
        planned("e", 8, False, "png"),
    ]
    rows += [planned("f", 8, False) | {"block": "other"}]
    parent = tracking.start_sweep("first-look", "", rows, "")
    plant(parent, {"loader.num_workers": 0, "loader.format": "wav"}, trial_id="a")
    plant(parent, {"loader.num_workers": 0, "loader.format": "png"}, trial_id="b")
    here = "Planted CPU · 2 cores · 2 threads · float32"
    assert left_to_forecasts(tracking) == {
        ("format=wav", here): ["c"],
        ("format=png", here): ["d", "e"],
    }


def test_a_parameter_that_only_left_out_trials_have_tells_them_apart(tracking, plant):
    rows = [
        planned("a", 1),
        planned("b", 2, False),
        planned("c", 2, False, **{"loader.prefetch_factor": 4}),
    ]
    plant(tracking.start_sweep("first-look", "", rows, ""), {"loader.num_workers": 1}, trial_id="a")
    assert list(left_to_forecasts(tracking).values()) == [["b"]]


def test_a_forecast_is_for_the_machine_of_the_latest_launch(tracking, plant):
    parent = tracking.start_sweep(
        "first-look", "", [planned("a", 1), planned("b", 1), planned("c", 2, False)], ""
    )
    plant(parent, {"loader.num_workers": 0}, trial_id="a", tags={"cores": 4})
    plant(parent, {"loader.num_workers": 0}, trial_id="b")
    found = {
        surroundings.split(" · ")[1]: keys
        for (_, surroundings), keys in left_to_forecasts(tracking).items()
    }
    assert found == {"4 cores": [], "2 cores": ["c"]}


def test_failures_are_named_with_their_evidence(tracking, plant):
    parent = open_sweep(tracking, "a")
    plant(parent, {"loader.num_workers": 2}, trial_id="a", outcome="data_error")
    head, failure = render("first-look", tracking.uri).splitlines()[:2]
    assert head.partition(": ")[2] == "1 bad data"
    name, _, ended = failure.rpartition(": ")
    assert name == "workers · num_workers=2 · repeat 1"
    assert ended.split(", ") == ["data_error", "planted"]


def test_the_rebuild_command_names_only_what_is_not_the_default():
    assert rebuild_command(["s"]) == "python -m analysis s"
    words = shlex.split(rebuild_command(["s"], "http://box:5000", "mine"))
    assert words[3:] == ["s", "--uri", "http://box:5000", "--experiment", "mine"]


@pytest.mark.parametrize("name", ["timeline", "article"])
def test_a_sweep_with_the_name_of_a_subcommand_follows_two_dashes(tracking, plant, capsys, name):
    plant(
        open_sweep(tracking, "a", name=name), {"loader.num_workers": 2}, trial_id="a", epoch_s=1.0
    )
    assert rebuild_command([name]) == f"python -m analysis -- {name}"
    printed = rebuild_command([name], tracking.uri)
    assert main(shlex.split(printed)[3:]) is None
    head = capsys.readouterr().out.splitlines()[0]
    assert head.endswith(f" {name}: 1 completed")


def test_the_help_names_the_subcommands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in SUBCOMMANDS)


def test_the_rebuild_command_is_one_that_the_command_line_takes(
    tracking, plant, tmp_path, monkeypatch, capsys
):
    for sweep in ("one", "the other"):
        parent = tracking.start_sweep(sweep, "", [{"trial_id": sweep}], "")
        plant(
            parent,
            {"loader.num_workers": 2},
            trial_id=sweep,
            tags={"device_name": "simulated accelerator: 25 ms a step"},
            epoch_s=1.0,
        )
    where = ["--where", "device_name=simulated accelerator: 25 ms a step"]
    printed = rebuild_command(["one", "the other"], tracking.uri, flags=where)
    assert main(shlex.split(printed)[3:]) is None
    head = capsys.readouterr().out.splitlines()[0]
    name, _, counts = head.rpartition(": ")
    assert (name.endswith(" one + the other"), counts) == (True, "2 completed")


def test_an_older_sweep_and_a_newer_one_are_joined(tracking, plant):
    for sweep, newer in (
        ("old", {}),
        ("new", {"corpus.read_latency_s": 0.0, "corpus.cache": "warm"}),
    ):
        parent = tracking.start_sweep(sweep, "", [{"trial_id": sweep}], "")
        plant(parent, {"loader.num_workers": 2} | newer, trial_id=sweep, epoch_s=1.0)
    for names in (["old", "new"], ["new", "old"]):
        runs = join_sweep_runs(names, tracking.uri)
        assert runs.trials["corpus.read_latency_s"].tolist() == [0.0, 0.0]
        assert len({group.surroundings for group in comparable(runs, ("loader.num_workers",))}) == 1


def test_a_run_that_was_killed_as_it_was_opened_is_a_trial_that_has_not_run(
    tracking, plant, monkeypatch
):
    rows = [
        {"trial_id": key, "block": "workers", "repeat": repeat, "swept": {"loader.num_workers": 2}}
        for repeat, key in enumerate("ab", 1)
    ]
    parent = tracking.start_sweep("first-look", "", rows, "")
    plant(parent, {"loader.num_workers": 2}, trial_id="a", epoch_s=1.0)
    created = plant(parent, {"loader.num_workers": 2}, 2, trial_id="b", outcome="interrupted")
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:
        database.execute("delete from params where run_uuid = ?", [created])
    assert sweep_runs("first-look", tracking.uri).trials["trial_id"].tolist() == ["a"]
    assert numbers(render("first-look", tracking.uri).splitlines()[1]) == ["1", "2"]


def test_the_command_prints_the_tables_or_names_what_is_wrong(tracking, plant, capsys):
    plant(open_sweep(tracking, "a"), {"loader.num_workers": 2}, trial_id="a", epoch_s=1.0)
    main(["first-look", "--uri", tracking.uri])
    assert capsys.readouterr() == (render("first-look", tracking.uri), "")
    wrong = {
        "'frist-look'": ["frist-look", "--uri", tracking.uri],
        "'mlruns'": ["s", "--uri", "mlruns"],
    }
    for name, arguments in wrong.items():
        with pytest.raises(SystemExit) as left:
            main(arguments)
        printed, complaint = capsys.readouterr()
        assert (left.value.code, printed) == (2, "")
        assert name in complaint


@pytest.mark.parametrize(
    "words",
    [
        ["s"],
        ["s", "--csv", "tables"],
        ["s", "--out", "report"],
        ["s", "--where", "block=a"],
        ["article", "s"],
        ["timeline", "s"],
        ["timeline", "0" * 32],
    ],
    ids=str,
)
def test_an_unavailable_tracker_is_named_in_one_line(capsys, words):
    with pytest.raises(SystemExit) as left:
        main([*words, "--uri", "http://127.0.0.1:9"])
    printed, complaint = capsys.readouterr()
    assert (left.value.code, printed, len(complaint.splitlines())) == (1, "", 1)
    assert "http://127.0.0.1:9 " in complaint
    assert complaint.endswith(": Connection refused\n")


def test_a_full_disk_is_not_reported_as_an_unavailable_tracker(
    tracking, plant, tmp_path, monkeypatch
):
    plant(open_sweep(tracking, "a"), {"loader.num_workers": 2}, trial_id="a", epoch_s=1.0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space left") as problem:
        main(["first-look", "--uri", tracking.uri, "--csv", str(tmp_path / "tables")])
    assert problem.value.errno == errno.ENOSPC


def test_a_sweep_without_a_trial_has_an_empty_frame_and_a_page(tracking):
    open_sweep(tracking, "a")
    assert sweep_runs("first-look", tracking.uri).trials.empty
    assert "first-look: no trial" in render("first-look", tracking.uri).splitlines()[0]
