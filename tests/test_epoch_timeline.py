"""Tests the picture of an epoch: bars lie where the records say, texts have their figures, and
nothing is cut off."""

import io
import itertools
import re

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from analysis.epoch_timeline import FETCH, FILL, START, WAIT, WORK, draw_epoch
from tests import bursts


def lanes(figure):
    return {axes.get_ylabel().replace("\n", " "): axes for axes in figure.axes}


def bars(axes, colour, row=0):
    """Returns (begin, end) of every bar of a colour in a row, in seconds."""
    found = [
        collection for collection in axes.collections if isinstance(collection, PolyCollection)
    ]
    of_colour = [
        each
        for each in found
        if len(each.get_facecolor()) and np.allclose(each.get_facecolor()[0], to_rgba(colour))
    ]
    boxes = [path.get_extents() for each in of_colour for path in each.get_paths()]
    return sorted((box.x0, box.x1) for box in boxes if round((box.y0 + box.y1) / 2) == row)


def to_rgba(colour):
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] + [1.0]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def numbers(text):
    """Returns the numbers of a text in order, as they are written."""
    return re.findall(r"\d[\d,.]*\d|\d", text)


def planted(**changes):
    """Returns records with two steps and two workers; the accelerator stalls for 0.3 s."""
    metrics = {
        "epoch": 1.0,
        "start": 0.05,
        "first_batch": 0.15,
        "data_wait": 0.3,
        "step": 0.4,
        "other": 0.1,
    }
    epoch = {
        "kind": "epoch",
        "epoch": 0,
        "warmup": False,
        "began_s": 0.0,
        "metrics": {f"time/{span}_s": seconds for span, seconds in metrics.items()},
        "steps": {
            "request_s": [0.05, 0.45],
            "data_wait_s": [0.15, 0.3],
            "step_s": [0.2, 0.2],
            "other_s": [0.05, 0.05],
            "shm_bytes": [1 << 20, 3 << 20],
        },
        "busy": {"begin_s": [0.2, 0.7], "end_s": [0.4, 0.95]},
        "fetches": {
            "step": [0, 1],
            "worker": [0, 1],
            "begin_s": [0.0, 0.1],
            "end_s": [0.2, 0.75],
            "shm_bytes": [1 << 20, 3 << 20],
        },
    }
    return [{"kind": "setup"}, epoch | changes, {"kind": "exit", "shm_limit_bytes": 4 << 20}]


def test_bars_and_texts_of_planted_spans() -> None:
    found = lanes(draw_epoch(planted(), "planted"))
    assert list(found) == [
        "workers",
        "batches ready",
        "training process",
        "accelerator",
        "/dev/shm, MiB",
    ]
    assert bars(found["workers"], FETCH[0]) == [pytest.approx((0.0, 0.2))]
    assert bars(found["workers"], FETCH[0], row=1) == [pytest.approx((0.1, 0.75))]
    training = found["training process"]
    assert bars(training, START) == [pytest.approx((0, 0.05))]
    assert bars(training, FILL) == [pytest.approx((0.05, 0.2))]
    assert bars(training, WAIT) == [pytest.approx((0.45, 0.75))]
    assert bars(training, WORK) == [
        pytest.approx(span) for span in [(0.2, 0.4), (0.75, 0.95), (1.0, 1.0)]
    ]
    assert legend(training) == [
        "start 50.0 ms (5 %)",
        "first batch 0.15 s (15 %)",
        "wait 0.30 s (30 %)",
        "step 0.40 s (40 %)",
        "other 0.10 s (10 %)",
    ]
    assert bars(found["accelerator"], WAIT) == [pytest.approx((0.4, 0.7))]
    busy, stalls = legend(found["accelerator"])
    assert busy == "busy 0.45 s (45 %)"
    assert stalls.startswith("1 stall ")
    assert numbers(stalls) == ["1", "1", "0.30"]
    assert [numbers(label) for label in legend(found["batches ready"])] == [["1"]]
    used, limit = legend(found["/dev/shm, MiB"])
    assert numbers(used) == ["3.0"]
    assert limit == "limit 4 MiB"
    assert found["/dev/shm, MiB"].get_ylim()[1] > 4, "the limit is seen"
    assert found["training process"].get_xlim() == (0, 1)


@pytest.mark.parametrize(
    ("seconds", "percent", "part"),
    [
        ({"first_batch": 0.15, "data_wait": 0.3}, "45 %", "waiting"),
        ({"step": 0.6, "data_wait": 0.1}, "60 %", "steps"),
        ({"start": 0.5, "data_wait": 0.1}, "50 %", "starting"),
    ],
)
def test_the_title_names_the_part_that_took_most_of_the_epoch(
    seconds: dict, percent: str, part: str
) -> None:
    records = planted()
    records[1]["metrics"] |= {f"time/{span}_s": value for span, value in seconds.items()}
    title = draw_epoch(records, "num_workers=2").get_suptitle()
    assert title.startswith(f"num_workers=2\nepoch 0, 1.00 s: {percent} ")
    assert part in title


def test_the_warm_epoch_of_median_time_unless_one_is_named() -> None:
    records = []
    for number, seconds in enumerate([9.0, 2.0, 1.0, 3.0]):
        _, epoch, _ = planted(epoch=number, warmup=number == 0)
        epoch["metrics"]["time/epoch_s"] = seconds
        records.append(epoch)
    assert "\nepoch 1, 2.00 s" in draw_epoch(records, "t").get_suptitle()
    assert "\nepoch 0 (warm-up), 9.00 s" in draw_epoch(records, "t", epoch=0).get_suptitle()
    assert "\nepoch 0 (warm-up), 9.00 s" in draw_epoch(records[:1], "t").get_suptitle()
    with pytest.raises(LookupError, match=r"no epoch 4; .* 0, 1, 2, 3$"):
        draw_epoch(records, "t", epoch=4)
    with pytest.raises(LookupError, match="no recorded epoch"):
        draw_epoch(
            [
                {"kind": "setup"},
                {"kind": "epoch", "epoch": 0, "metrics": {}, "steps": {"data_wait_s": [1.0]}},
            ],
            "t",
        )


def test_what_the_records_do_not_hold_has_no_lane() -> None:
    records = planted()
    for absent in ("fetches", "busy"):
        del records[1][absent]
    del records[1]["steps"]["shm_bytes"]
    assert list(lanes(draw_epoch(records, "t"))) == ["training process"]


def test_without_workers_nothing_queues_and_nothing_travels_through_shm() -> None:
    assert list(lanes(draw_epoch(bursts.records(workers=0), "t"))) == [
        "loader",
        "training process",
        "accelerator",
    ]


def test_a_limit_far_above_the_use_is_written_and_not_drawn() -> None:
    records = planted()
    records[-1]["shm_limit_bytes"] = 1 << 30
    shm = lanes(draw_epoch(records, "t"))["/dev/shm, MiB"]
    assert legend(shm)[1].startswith("limit 1,024 MiB, ")
    assert (shm.get_ylim()[1] < 4, shm.lines[:]) == (True, [])


@pytest.mark.parametrize("workers", [0, 8, 64])
def test_nothing_is_cut_off_and_no_lane_lies_on_another(workers: int) -> None:
    figure = draw_epoch(
        bursts.records(workers=workers, steps=200), "WWWWW · num_workers=64 shm_size=256M " * 5
    )
    figure.savefig(io.BytesIO())  # which lays it out
    whole, drawn = figure.bbox_inches, figure.get_tightbbox()
    assert (
        whole.x0 <= drawn.x0,
        whole.y0 <= drawn.y0,
        drawn.x1 <= whole.x1,
        drawn.y1 <= whole.y1,
    ) == (True,) * 4
    boxes = [axes.get_tightbbox() for axes in figure.axes]  # with its labels and its legend
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
