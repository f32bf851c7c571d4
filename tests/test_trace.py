"""Tests the trace of planted records, lane by lane and to the microsecond; of a simulated loader;
and of a real training."""

import gzip
import itertools
import json
import math
import re

import pytest

from speech.config import RuntimeSettings, Trial
from speech.train import fit
from sweeps.tracking import trace as traces
from sweeps.tracking.trace import build_trace, write_trace
from tests import bursts

PLANTED = [
    {
        "kind": "setup",
        "device": "simulated",
        "device_name": "simulated accelerator: 20 ms a step",
        "steps_per_epoch": 3,
        "batch_bytes": 2 << 20,
    },
    {
        "kind": "epoch",
        "epoch": 0,
        "warmup": True,
        "began_s": 2.0,
        "metrics": {"time/epoch_s": 0.2, "time/eval_s": 0.05, "loss/training": math.nan},
        "steps": {
            "request_s": [0.01, 0.065, 0.09],
            "data_wait_s": [0.03, 0.001, 0.07],
            "step_s": [0.02, 0.02, 0.02],
            "other_s": [0.005, 0.004, 0.01],
            "shm_bytes": [2 << 20, 4 << 20, 2 << 20],
        },
        "busy": {"begin_s": [0.041, 0.0615, 0.161], "end_s": [0.061, 0.0815, 0.181]},
        "fetches": {
            "step": [1, 0, 2],
            "worker": [1, 0, 0],
            "begin_s": [0.012, 0.008, 0.0391],
            "end_s": [0.035, 0.039, 0.159],
            "cpu_s": [0.01, 0.02, 0.03],
            "read_bytes": [0, 4096, -1],
        },
    },
    {
        "kind": "snapshot",
        "cycle": 0,
        "epoch": 0,
        "file": "cycle-0.pt",
        "metrics": {"snapshot/accuracy": 0.5},
    },
    {"kind": "end", "summary": {}},
    {"kind": "exit", "status": 0, "shm_limit_bytes": 64 << 20},
]

METRICS = {  # by the name of the span
    "start-up": "time/start_s",
    "first batch": "time/first_batch_s",
    "wait": "time/data_wait_s",
    "step": "time/step_s",
    "other": "time/other_s",
}


def spans(found, lane):
    """Returns (name, begin, end) of the spans of a lane, in microseconds."""
    threads = {
        event["args"]["name"]: event["tid"]
        for event in found["traceEvents"]
        if event["name"] == "thread_name"
    }
    of_lane = [
        event
        for event in found["traceEvents"]
        if event["ph"] == "X" and event["tid"] == threads.get(lane)
    ]
    return [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in of_lane]


def counter(found, name):
    return [
        (event["ts"], *event["args"].values())
        for event in found["traceEvents"]
        if event["ph"] == "C" and event["name"] == name
    ]


def args(found, name):
    return next(event.get("args") for event in found["traceEvents"] if event["name"] == name)


def lanes(found):
    return [
        event["args"]["name"] for event in found["traceEvents"] if event["name"] == "thread_name"
    ]


def loader_lanes(found):
    """Returns the names of the lanes of workers, or of the loader in the training process."""
    return [lane for lane in lanes(found) if "worker" in lane or "loader" in lane]


def test_the_training_process_epoch_spans_what_stands_outside_and_the_snapshot() -> None:
    found = build_trace(PLANTED)
    assert spans(found, "training process") == [
        ("epoch 0 (warm-up)", 2_000_000, 2_200_000),
        ("start-up", 2_000_000, 2_010_000),
        ("first batch", 2_010_000, 2_040_000),
        ("step", 2_040_000, 2_060_000),
        ("other", 2_060_000, 2_065_000),
        ("wait", 2_065_000, 2_066_000),
        ("step", 2_066_000, 2_086_000),
        ("other", 2_086_000, 2_090_000),
        ("wait", 2_090_000, 2_160_000),
        ("step", 2_160_000, 2_180_000),
        ("other", 2_180_000, 2_190_000),
        ("step", 2_190_000, 2_200_000),  # until the accelerator has finished
        ("evaluation", 2_200_000, 2_250_000),
    ]
    (snapshot,) = (event for event in found["traceEvents"] if event["ph"] == "i")
    assert (snapshot["name"], snapshot["ts"], snapshot["args"]) == (
        "snapshot 0",
        2_250_000,
        {"snapshot/accuracy": 0.5},
    )
    assert args(found, "epoch 0 (warm-up)") == {
        "time/epoch_s": 0.2,
        "time/eval_s": 0.05,
    }, "JSON has no nan"


def test_the_workers_and_what_each_batch_cost() -> None:
    found = build_trace(PLANTED)
    assert lanes(found) == ["training process", "accelerator", "worker 0", "worker 1"]
    assert spans(found, "worker 0") == [
        ("batch 0", 2_008_000, 2_039_000),
        ("batch 2", 2_039_100, 2_159_000),
    ]
    assert spans(found, "worker 1") == [("batch 1", 2_012_000, 2_035_000)]
    assert args(found, "batch 0") == {"cpu_s": 0.02, "read_bytes": 4096}
    assert args(found, "batch 2") == {"cpu_s": 0.03}, (
        "where the kernel doesn't count bytes, there are none"
    )


def test_the_accelerator_and_only_pauses_above_a_millisecond_are_stalls() -> None:
    assert spans(build_trace(PLANTED), "accelerator") == [
        ("busy", 2_041_000, 2_061_000),
        ("busy", 2_061_500, 2_081_500),
        ("busy", 2_161_000, 2_181_000),
        ("stall", 2_081_500, 2_161_000),
    ]


def test_counters_of_ready_batches_and_of_shm_against_its_limit() -> None:
    found = build_trace(PLANTED)
    assert counter(found, "batches") == [
        (2_000_000, 0),
        (2_035_000, 1),
        (2_039_000, 2),
        (2_040_000, 1),
        (2_066_000, 0),
        (2_159_000, 1),
        (2_160_000, 0),
    ]
    assert counter(found, "/dev/shm in use") == [
        (2_040_000, 2.0),
        (2_066_000, 4.0),
        (2_160_000, 2.0),
    ]
    assert counter(found, "/dev/shm limit") == [(2_040_000, 64.0), (2_160_000, 64.0)]


@pytest.mark.parametrize("workers", [0, 1, 3, 8, 64])
def test_a_simulated_loader_partitions_the_epoch_and_empties_its_queue(workers: int) -> None:
    records = bursts.records(epochs=3, workers=workers, steps=40)
    found = build_trace(records)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    epochs = [span for span in spans(found, "training process") if span[0].startswith("epoch")]
    parts = [span for span in spans(found, "training process") if not span[0].startswith("epoch")]
    for record, (name, begin, end) in zip(records[1:4], epochs, strict=True):
        assert name == f"epoch {record['epoch']}" + (" (warm-up)" if record["epoch"] == 0 else "")
        assert (begin, end) == (
            round(record["began_s"] * 1e6),
            round((record["began_s"] + record["metrics"]["time/epoch_s"]) * 1e6),
        )
        within = [part for part in parts if begin <= part[1] and part[2] <= end]
        edges = [begin, *itertools.chain.from_iterable(part[1:] for part in within), end]
        assert edges[::2] == edges[1::2], "each span begins where the last one ended"
        for span, name in METRICS.items():
            metric = record["metrics"][name]
            assert sum(part[2] - part[1] for part in within if part[0] == span) == pytest.approx(
                metric * 1e6, abs=len(within)
            )
    ready = counter(found, "batches")
    assert min(count for _, count in ready) == 0
    assert max(count for _, count in ready) <= max(2 * workers, 1)
    starts = {begin for _, begin, _ in epochs}
    assert all(left == 0 for (_, left), (at, _) in itertools.pairwise(ready) if at in starts)
    assert ready[-1][1] == 0
    assert sum(name == "stall" for name, _, _ in spans(found, "accelerator")) == sum(
        record["metrics"]["stall/steps"] for record in records[1:4]
    )
    fetched = loader_lanes(found)
    if workers:
        assert fetched == [f"worker {worker}" for worker in range(min(workers, 40))]
    else:
        assert [lane.startswith("loader") for lane in fetched] == [True]
    for lane in fetched:
        times = [
            time
            for span in sorted(spans(found, lane), key=lambda span: span[1])
            for time in span[1:]
        ]
        assert times == sorted(times), "a viewer drops spans of a lane that overlap"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_really_ran_agrees_with_its_metrics(
    tmp_path, tone_trial, workers: int
) -> None:
    records: list[dict] = []
    fit(
        Trial(
            config=tone_trial(loader={"num_workers": workers}),
            seed=1,
            warmup_epochs=0,
            runtime=RuntimeSettings(threads=1),
            folder=str(tmp_path),
        ),
        records.append,
    )
    found = build_trace(records)
    (epoch,) = (record for record in records if record["kind"] == "epoch")
    _, *parts, (last, *_) = spans(found, "training process")
    assert last == "evaluation"
    for name, figure in METRICS.items():
        metric = epoch["metrics"][figure]
        assert sum(end - begin for part, begin, end in parts if part == name) == pytest.approx(
            metric * 1e6, abs=10
        ), name
    assert all(before[2] == after[1] for before, after in itertools.pairwise(parts))
    ready = [count for _, count in counter(found, "batches")]
    assert (min(ready), ready[-1], len(ready)) == (0, 0, 1 + 2 * len(epoch["steps"]["request_s"]))
    assert len(loader_lanes(found)) == max(workers, 1)
    assert spans(found, loader_lanes(found)[0])[0][0] == "batch 0"
    assert any(event["ph"] == "i" for event in found["traceEvents"])


def test_slow_workers_deliver_in_bursts() -> None:
    """Simulates eight workers that finish together every 0.4 s and feed 0.2 s of steps. The queue
    fills and empties, and the accelerator stalls, once a round."""
    found = build_trace(bursts.records(epochs=1, workers=8))
    long_waits = [
        end - begin
        for name, begin, end in spans(found, "training process")
        if name == "wait" and end - begin > 100_000
    ]
    assert len(long_waits) == 48 / 8 - 1
    assert sum(
        end - begin > 100_000 for name, begin, end in spans(found, "accelerator") if name == "stall"
    ) == len(long_waits)


def test_what_the_records_do_not_hold_has_no_lane() -> None:
    old = {
        "kind": "epoch",
        "epoch": 0,
        "metrics": {"time/epoch_s": 1.0},
        "steps": {"data_wait_s": [0.5], "step_s": [0.5]},
    }
    assert build_trace([{"kind": "setup"}, old, {"kind": "exit", "status": 1}])["traceEvents"] == []
    placed = build_trace([old | {"began_s": 0.0}])
    assert (lanes(placed), spans(placed, "training process")) == (
        ["training process"],
        [("epoch 0", 0, 1_000_000)],
    )
    without = {key: value for key, value in PLANTED[1].items() if key not in ("fetches", "busy")}
    found = build_trace([without])
    assert lanes(found) == ["training process"]
    assert {event["name"] for event in found["traceEvents"] if event["ph"] == "C"} == {
        "/dev/shm in use"
    }


def test_of_a_long_training_the_first_and_the_last_epochs_are_traced(monkeypatch) -> None:
    monkeypatch.setattr(traces, "MAX_STEPS", 100)
    found = build_trace(bursts.records(epochs=10, workers=2, steps=30))
    epochs = [name for name, _, _ in spans(found, "training process") if name.startswith("epoch")]
    assert epochs == ["epoch 0 (warm-up)", "epoch 8", "epoch 9"]
    (left_out,) = found["otherData"]["left_out"]
    assert left_out.startswith(f"{traces.NOT_TRACED}epochs")
    assert re.findall(r"\d+", left_out) == ["1", "7"]
    (hole,) = (span for span in spans(found, "training process") if span[0] == left_out)
    first, eighth = (
        next(span for span in spans(found, "training process") if span[0] == name)
        for name in epochs[:2]
    )
    assert first[2] < hole[1] < hole[2] == eighth[1]


def test_of_a_long_epoch_the_first_steps_are_traced(monkeypatch) -> None:
    monkeypatch.setattr(traces, "MAX_STEPS", 20)
    records = bursts.records(epochs=1, workers=2, steps=30)
    found = build_trace(records)
    begun = [name for name, _, _ in spans(found, "training process")]
    assert begun.count("step") == 10
    assert begun[-1].startswith(f"{traces.NOT_TRACED}steps")
    assert re.findall(r"\d+", begun[-1]) == ["10", "29", "0"]
    assert spans(found, "training process")[-1][2] == spans(found, "training process")[0][2], (
        "to the end of the epoch"
    )
    assert [name for lane in ("worker 0", "worker 1") for name, _, _ in spans(found, lane)] == [
        f"batch {step}" for first in (0, 1) for step in range(first, 10, 2)
    ]
    assert counter(found, "batches")[-1][1] == 0


def test_the_file_is_gzipped_json_the_same_every_time_and_absent_without_an_epoch(tmp_path) -> None:
    records, file = tmp_path / "records.jsonl", tmp_path / "trace.json.gz"
    records.write_text("".join(json.dumps(record) + "\n" for record in PLANTED))
    assert write_trace(records, file)
    written = file.read_bytes()
    assert json.loads(gzip.decompress(written)) == build_trace(PLANTED)
    assert write_trace(records, file)
    assert file.read_bytes() == written
    records.write_text(json.dumps(PLANTED[0]) + "\n")
    assert not write_trace(records, tmp_path / "none.json.gz")
    assert not (tmp_path / "none.json.gz").exists()


def test_steps_that_wait_in_the_queue_of_the_accelerator_are_counted():
    """Planted: steps begun at 0.04, 0.066 and 0.16 s; the second waits until 0.1 s."""
    epoch = PLANTED[1] | {
        "busy": {"begin_s": [0.041, 0.1, 0.161], "end_s": [0.1, 0.14, 0.181]},
    }
    found = build_trace([PLANTED[0], epoch, *PLANTED[2:]])
    times = [(time - 2_000_000, queued) for time, queued in counter(found, "steps")]
    assert times == [
        (40_000, 1),
        (41_000, 0),
        (66_000, 1),
        (100_000, 0),
        (160_000, 1),
        (161_000, 0),
    ]
    assert counter(build_trace(PLANTED), "steps") == [], "a loop that waits queues nothing"


def test_every_rank_has_lanes_of_its_own():
    own = PLANTED[1]
    other = {"rank": 1, "began_s": 0.002} | {
        name: own[name] for name in ("metrics", "steps", "busy", "fetches")
    }
    found = build_trace([PLANTED[0], own | {"ranks": [other]}, *PLANTED[2:]])
    for lane in ("training process", "accelerator", "worker 0", "worker 1"):
        first, second = (spans(found, f"rank {rank}: {lane}") for rank in (0, 1))
        assert [name for name, *_ in first if not name.startswith("evaluation")]
        # Each moment is rounded to a microsecond by itself
        assert [begin for _, begin, _ in second] == pytest.approx(
            [begin + 2000 for _, begin, _ in first], abs=1
        )
    assert counter(found, "rank 1: batches")
    assert len(counter(found, "/dev/shm in use")) == 3


def test_ranks_share_the_steps_that_a_trace_may_show(monkeypatch) -> None:
    monkeypatch.setattr(traces, "MAX_STEPS", 40)
    records = bursts.records(epochs=4, workers=2, steps=30)
    columns = ("metrics", "steps", "busy", "fetches")
    for record in records:
        if record["kind"] == "epoch":
            other = {"rank": 1, "began_s": 0.0} | {name: record[name] for name in columns}
            record["ranks"] = [other]
    found = build_trace(records)
    for rank in (0, 1):
        names = [name for name, _, _ in spans(found, f"rank {rank}: training process")]
        assert names.count("step") == 20, "ten of each of two epochs"
