"""The picture of an epoch: its bars lie where the records say, its words follow from them, and nothing is cut off."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from analysis.stalls import FETCH, FILL, START, WAIT, WORK, main, picture
from sweeps.tracking import Tracking
from tests import bursts
from tests.conftest import trial_key


def lanes(figure):
    return {axes.get_ylabel().replace("\n", " "): axes for axes in figure.axes}


def bars(axes, colour, row=0):
    """(begin, end) of every bar of a colour in a row, in seconds."""
    found = [collection for collection in axes.collections if isinstance(collection, PolyCollection)]
    of_colour = [each for each in found if len(each.get_facecolor()) and np.allclose(each.get_facecolor()[0], to_rgba(colour))]
    boxes = [path.get_extents() for each in of_colour for path in each.get_paths()]
    return sorted((box.x0, box.x1) for box in boxes if round((box.y0 + box.y1) / 2) == row)


def to_rgba(colour):
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] + [1.0]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def planted(**changes):
    """Two steps and two workers; the accelerator stalls for 0.3 s."""
    metrics = {"epoch": 1.0, "start": 0.05, "fill": 0.15, "wait": 0.3, "step": 0.4, "other": 0.1}
    epoch = {
        "kind": "epoch",
        "epoch": 0,
        "warmup": False,
        "began_s": 0.0,
        "metrics": {f"time/{span}_s": seconds for span, seconds in metrics.items()},
        "steps": {
            "ask_s": [0.05, 0.45],
            "wait_s": [0.15, 0.3],
            "step_s": [0.2, 0.2],
            "other_s": [0.05, 0.05],
            "shm_bytes": [1 << 20, 3 << 20],
        },
        "busy": {"begin_s": [0.2, 0.7], "end_s": [0.4, 0.95]},
        "fetches": {"step": [0, 1], "worker": [0, 1], "begin_s": [0.0, 0.1], "end_s": [0.2, 0.75], "shm_bytes": [1 << 20, 3 << 20]},
    }
    return [{"kind": "setup"}, epoch | changes, {"kind": "exit", "shm_limit_bytes": 4 << 20}]


def test_bars_and_words_of_planted_spans() -> None:
    found = lanes(picture(planted(), "planted"))
    assert list(found) == ["workers", "batches ready", "training process", "accelerator", "/dev/shm, MiB"]
    assert bars(found["workers"], FETCH[0]) == [pytest.approx((0.0, 0.2))]
    assert bars(found["workers"], FETCH[0], row=1) == [pytest.approx((0.1, 0.75))]
    training = found["training process"]
    assert bars(training, START) == [pytest.approx((0, 0.05))]
    assert bars(training, FILL) == [pytest.approx((0.05, 0.2))]
    assert bars(training, WAIT) == [pytest.approx((0.45, 0.75))]
    assert bars(training, WORK) == [pytest.approx(span) for span in [(0.2, 0.4), (0.75, 0.95), (1.0, 1.0)]]
    assert legend(training) == [
        "start 50.0 ms (5 %)",
        "fill 0.15 s (15 %)",
        "wait 0.30 s (30 %)",
        "step 0.40 s (40 %)",
        "other 0.10 s (10 %)",
    ]
    assert bars(found["accelerator"], WAIT) == [pytest.approx((0.4, 0.7))]
    assert legend(found["accelerator"]) == ["busy 0.45 s (45 %)", "1 stall of over 1 ms, the longest 0.30 s"]
    assert legend(found["batches ready"]) == ["prepared and not yet received, 1 at most"]
    assert legend(found["/dev/shm, MiB"]) == ["in use, 3.0 MiB at most", "its size, 4 MiB"]
    assert found["/dev/shm, MiB"].get_ylim()[1] > 4, "the limit is seen"
    assert found["training process"].get_xlim() == (0, 1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({"fill": 0.15, "wait": 0.3}, "45 % of it waiting for batches"),
        ({"step": 0.6, "wait": 0.1}, "60 % of it in training steps"),
        ({"start": 0.5, "wait": 0.1}, "50 % of it starting workers"),
    ],
)
def test_the_title_says_what_took_most_of_the_epoch(seconds: dict, said: str) -> None:
    records = planted()
    records[1]["metrics"] |= {f"time/{span}_s": value for span, value in seconds.items()}
    assert picture(records, "num_workers=2").get_suptitle() == f"num_workers=2\nepoch 0, 1.00 s, {said}"


def test_the_warm_epoch_of_median_time_unless_one_is_named() -> None:
    records = []
    for number, seconds in enumerate([9.0, 2.0, 1.0, 3.0]):
        (_, epoch, _) = planted(epoch=number, warmup=number == 0)
        epoch["metrics"]["time/epoch_s"] = seconds
        records.append(epoch)
    assert "\nepoch 1, 2.00 s" in picture(records, "t").get_suptitle()
    assert "\nepoch 0 (warm-up), 9.00 s" in picture(records, "t", epoch=0).get_suptitle()
    assert "\nepoch 0 (warm-up), 9.00 s" in picture(records[:1], "t").get_suptitle()
    with pytest.raises(LookupError, match="no epoch 4; there are 0, 1, 2, 3"):
        picture(records, "t", epoch=4)
    with pytest.raises(LookupError, match="no epoch ended whose steps have times"):
        picture([{"kind": "setup"}, {"kind": "epoch", "epoch": 0, "metrics": {}, "steps": {"wait_s": [1.0]}}], "t")


def test_what_the_records_do_not_hold_has_no_lane() -> None:
    records = planted()
    for absent in ("fetches", "busy"):
        del records[1][absent]
    del records[1]["steps"]["shm_bytes"]
    assert list(lanes(picture(records, "t"))) == ["training process"]


def test_without_workers_nothing_queues_and_nothing_travels_through_shm() -> None:
    assert list(lanes(picture(bursts.records(workers=0), "t"))) == ["loader", "training process", "accelerator"]


def test_a_limit_far_above_is_told_in_words_and_not_drawn() -> None:
    records = planted()
    records[-1]["shm_limit_bytes"] = 1 << 30
    shm = lanes(picture(records, "t"))["/dev/shm, MiB"]
    assert legend(shm)[1] == "its size, 1,024 MiB, far above"
    assert (shm.get_ylim()[1] < 4, shm.lines[:]) == (True, [])


@pytest.mark.parametrize("workers", [0, 8, 64])
def test_nothing_is_cut_off_and_no_lane_lies_on_another(workers: int) -> None:
    figure = picture(bursts.records(workers=workers, steps=200), "WWWWW · num_workers=64 shm_size=256M " * 5)
    figure.savefig(io.BytesIO())  # which lays it out
    whole, drawn = figure.bbox_inches, figure.get_tightbbox()
    assert (whole.x0 <= drawn.x0, whole.y0 <= drawn.y0, drawn.x1 <= whole.x1, drawn.y1 <= whole.y1) == (True,) * 4
    boxes = [axes.get_tightbbox() for axes in figure.axes]  # with its labels and its legend
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


@pytest.fixture
def kept(tracking: Tracking, plant, tmp_path: Path):
    """A sweep of a trial with records, at 8 workers, and of one without, at 2."""
    swept = [{"loader.num_workers": 8, "loader.shm_size": 1 << 30}, {"loader.num_workers": 2, "loader.shm_size": 1 << 30}]
    parent = tracking.start_sweep("first-look", "", [{"key": trial_key("workers", values, 1)} for values in swept], "")
    runs = [plant(parent, values, epoch_s=1.0) for values in swept]
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in bursts.records()))
    tracking.client.log_artifact(runs[0], str(file))
    return runs


def test_the_command_draws_what_its_filters_leave_or_one_run(tracking: Tracking, kept, tmp_path: Path, capsys) -> None:
    out = tmp_path / "pictures"
    main(["first-look", "num_workers=8", "shm_size=1G", "repeat=1", "--out", str(out), "--uri", tracking.uri])
    (drawn,) = out.iterdir()
    assert drawn.name == "workers_num_workers=8_shm_size=1G_repeat_1.png"
    assert (capsys.readouterr().out, drawn.read_bytes()[:4]) == (f"{drawn}\n", b"\x89PNG")
    main([kept[0], "--epoch", "0", "--out", str(out), "--uri", tracking.uri])
    assert {path.name for path in out.iterdir()} == {drawn.name, "workers_num_workers=8_shm_size=1G_repeat_1_epoch=0.png"}


def test_a_trial_without_a_picture_is_told_and_the_others_are_drawn(tracking: Tracking, kept, tmp_path: Path, capsys) -> None:
    out = tmp_path / "pictures"
    main(["first-look", "--out", str(out), "--uri", tracking.uri])
    (drawn,) = out.iterdir()
    said = capsys.readouterr()
    assert (said.out, drawn.name) == (f"{drawn}\n", "workers_num_workers=8_shm_size=1G_repeat_1.png")
    assert said.err == "workers · num_workers=2 shm_size=1G · repeat 1: its records are not in the tracker\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frist-look"], "no sweep 'frist-look'"),
        (["first-look", "num_workers=9"], "num_workers=9: no such trial; there are 2, 8"),
        (["first-look", "workers=9"], "workers=9: 'workers' is no parameter of this sweep"),
        (["first-look", "num_workers=2"], "workers · num_workers=2 shm_size=1G · repeat 1: its records are not in the tracker"),
        (["first-look", "num_workers=8", "--epoch", "7"], "repeat 1: no epoch 7; there are 0, 1"),
    ],
)
def test_the_command_says_what_there_is(tracking: Tracking, kept, tmp_path: Path, capsys, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--out", str(tmp_path / "none"), "--uri", tracking.uri])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
