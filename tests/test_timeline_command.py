"""The command that draws an epoch of each selected trial, through a real tracker."""

import json
from pathlib import Path

import pytest

from analysis.__main__ import main
from sweeps.tracking.mlflow_runs import RunLogger
from tests import bursts
from tests.conftest import make_trial_id


@pytest.fixture
def kept(tracking: RunLogger, plant, tmp_path: Path):
    """A sweep of a trial with records, at 8 workers, and of one without, at 2."""
    swept = [
        {"loader.num_workers": 8, "loader.shm_size": 1 << 30},
        {"loader.num_workers": 2, "loader.shm_size": 1 << 30},
    ]
    parent = tracking.start_sweep(
        "first-look",
        "",
        [{"trial_id": make_trial_id("workers", values, 1)} for values in swept],
        "",
    )
    runs = [plant(parent, values, epoch_s=1.0) for values in swept]
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in bursts.records()))
    tracking.client.log_artifact(runs[0], str(file))
    return runs


def test_the_command_draws_what_its_filters_leave_or_one_run(
    tracking: RunLogger, kept, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "pictures"
    main(
        [
            "timeline",
            "first-look",
            "num_workers=8",
            "shm_size=1G",
            "repeat=1",
            "--out",
            str(out),
            "--uri",
            tracking.uri,
        ]
    )
    (drawn,) = out.iterdir()
    assert drawn.name == "workers_num_workers=8_shm_size=1G_repeat_1.png"
    assert (capsys.readouterr().out, drawn.read_bytes()[:4]) == (f"{drawn}\n", b"\x89PNG")
    main(["timeline", kept[0], "--epoch", "0", "--out", str(out), "--uri", tracking.uri])
    assert {path.name for path in out.iterdir()} == {
        drawn.name,
        "workers_num_workers=8_shm_size=1G_repeat_1_epoch=0.png",
    }


def test_a_trial_without_a_picture_is_told_and_the_others_are_drawn(
    tracking: RunLogger, kept, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "pictures"
    main(["timeline", "first-look", "--out", str(out), "--uri", tracking.uri])
    (drawn,) = out.iterdir()
    said = capsys.readouterr()
    assert (said.out, drawn.name) == (
        f"{drawn}\n",
        "workers_num_workers=8_shm_size=1G_repeat_1.png",
    )
    (line,) = said.err.splitlines()
    assert line.startswith("workers · num_workers=2 shm_size=1G · repeat 1: ")
    assert "no records" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frist-look"], "no sweep 'frist-look'"),
        (["first-look", "num_workers=9"], ": 2, 8\n"),
        (["first-look", "workers=9"], "'workers' matches no parameter"),
        (
            ["first-look", "num_workers=2"],
            "num_workers=2 shm_size=1G · repeat 1: the tracker has no",
        ),
        (["first-look", "num_workers=8", "--epoch", "7"], " 0, 1\n"),
    ],
)
def test_the_command_says_what_there_is(
    tracking: RunLogger, kept, tmp_path: Path, capsys, arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["timeline", *arguments, "--out", str(tmp_path / "none"), "--uri", tracking.uri])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
