"""Converts a trial's records to a trace for the viewer at https://ui.perfetto.dev.

Drop trace.json.gz on that page to view it.

All lanes share one time axis: the workers' preparation of batches, the loop's waits, the
accelerator's busy time, the steps that are queued on it, and the use of /dev/shm. A stall is
therefore visible together with its cause. Every rank of a trial has lanes of its own. Times are
microseconds since the trial's setup record. A lane without records is absent.

The format is Chrome's Trace Event JSON, gzipped to a tenth of its bytes. Perfetto unpacks the file
itself, and MLflow serves it unchanged. Of a long training only the first epoch and the last ones
are traced; the trace names the omitted ones.
"""

import gzip
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speech.timing import STALL_S
from sweeps.tracking.trace_events import (
    ACCELERATOR,
    FIRST_WORKER,
    RANK_THREADS,
    TRAINING,
    TRIAL,
    Event,
    make_counter,
    make_span,
    name_lanes,
)

Record = Mapping[str, Any]

# In a trace, which is then some 2 MB. An epoch takes at most half, so that the first and the last
# epoch have space
MAX_STEPS = 20_000
MIB = 1 << 20
# Counters: name, series
READY, USED, LIMIT = ("batches", "ready"), ("/dev/shm in use", "MiB"), ("/dev/shm limit", "MiB")
QUEUED = ("steps", "queued")
FIGURES = ("cpu_s", "read_bytes")  # shown with a fetch
NOT_TRACED = "not traced: "


def write_trace(records: Path, file: Path) -> bool:
    """Writes the trace of a trial's records.jsonl to `file`, gzipped.

    Returns whether it wrote a file: it writes none if no epoch has ended.
    """
    with records.open(encoding="utf-8") as lines:
        trace = build_trace(json.loads(line) for line in lines)
    if not trace["traceEvents"]:
        return False
    text = json.dumps(trace, separators=(",", ":"), allow_nan=False)
    file.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
    return True


def build_trace(records: Iterable[Record]) -> dict[str, Any]:
    """Returns the records of one trial as a Chrome trace.

    The result is {'traceEvents': [...], 'displayTimeUnit': 'ms', 'otherData': {...}}, with times
    and durations in microseconds. Epochs without a start time, as in old records, are omitted.
    """
    setup: Record = {}
    ending: Record = {}
    epochs: list[Record] = []
    snapshots: dict[int, Record] = {}
    steps = 0
    for record in records:
        match record["kind"]:
            case "setup":
                setup = record
            case "epoch" if "began_s" in record:
                epochs.append(_truncate(record, _rank_count(record)))
                steps += _step_count(epochs[-1]) * _rank_count(epochs[-1])
                while steps > MAX_STEPS:
                    dropped = epochs.pop(1)
                    steps -= _step_count(dropped) * _rank_count(dropped)
            case "snapshot":
                snapshots[record["epoch"]] = record
            case "exit":
                ending = record
    events = [
        event for epoch in epochs for event in _epoch_events(epoch, snapshots.get(epoch["epoch"]))
    ]
    events += [event for epoch in epochs for event in _rank_events(epoch)]
    gaps = [
        (before, after)
        for before, after in itertools.pairwise(epochs)
        if after["epoch"] - before["epoch"] > 1
    ]
    events += [_gap_span(before, after) for before, after in gaps]
    events += _limit_counters(events, ending.get("shm_limit_bytes"))
    metadata = {
        name: setup[name]
        for name in ("device", "device_name", "steps_per_epoch", "batch_bytes")
        if name in setup
    }
    omitted = [event["name"] for event in events if event["name"].startswith(NOT_TRACED)]
    return {
        "traceEvents": [*name_lanes(events), *events] if events else [],
        "displayTimeUnit": "ms",
        "otherData": metadata | {"time_zero": "the setup record", "left_out": omitted},
    }


def _step_count(epoch: Record) -> int:
    """Returns the number of steps that the record of an epoch holds of one rank."""
    return max(map(len, epoch.get("steps", {}).values()), default=0)


def _rank_count(epoch: Record) -> int:
    """Returns the number of ranks whose steps the record of an epoch holds."""
    return 1 + len(epoch.get("ranks", []))


def _truncate(epoch: Record, ranks: int) -> Record:
    """Returns the record of an epoch with at most as many first steps as a trace may show.

    `ranks` is the number of ranks among which the steps of a trace are divided.
    """
    limit = MAX_STEPS // 2 // ranks
    if _step_count(epoch) <= limit:
        return epoch
    truncated = {
        name: {key: values[:limit] for key, values in epoch[name].items()}
        for name in ("steps", "busy")
        if name in epoch
    }
    if fetches := epoch.get("fetches"):
        selected = [step < limit for step in fetches["step"]]
        truncated["fetches"] = {
            key: list(itertools.compress(values, selected)) for key, values in fetches.items()
        }
    return {**epoch, **truncated, "steps_left_out": _step_count(epoch) - limit}


def _epoch_events(epoch: Record, snapshot: Record | None) -> Iterator[Event]:
    """Yields the events of one epoch for all lanes."""
    steps = epoch.get("steps", {})
    received = [
        requested + waited
        for requested, waited in zip(
            steps.get("request_s", []), steps.get("data_wait_s", []), strict=False
        )
    ]
    yield from _training_events(epoch, received, snapshot)
    yield from _accelerator_events(epoch)
    yield from _fetch_events(epoch)
    yield from _queue_counters(epoch, received)
    yield from _step_queue_counters(epoch, received)
    yield from _shm_counters(epoch, received)


def _rank_events(epoch: Record) -> Iterator[Event]:
    """Yields the events of an epoch in the lanes of the further ranks.

    They are measured from the start of rank 0's epoch. The use of /dev/shm is the same for all.
    """
    for other in epoch.get("ranks", []):
        rank = other["rank"]
        began_s = epoch["began_s"] + other["began_s"]
        own = _truncate({**epoch, **other, "began_s": began_s, "ranks": []}, _rank_count(epoch))
        for event in _epoch_events(own, None):
            if "tid" in event:
                yield event | {"tid": event["tid"] + RANK_THREADS * rank}
            elif event["name"] != USED[0]:
                yield event | {"name": f"rank {rank}: {event['name']}"}


def _training_events(
    epoch: Record, received: Sequence[float], snapshot: Record | None
) -> Iterator[Event]:
    """Yields the epoch, the spans that partition it, then evaluation and snapshot.

    Evaluation and snapshot are outside the epoch's clock.
    """
    metrics = epoch["metrics"]
    name = f"epoch {epoch['epoch']}" + (" (warm-up)" if epoch.get("warmup") else "")
    spans = list(_step_spans(epoch, received))
    began, ended = _us(epoch, 0), _us(epoch, metrics["time/epoch_s"])
    if spans:
        last_end = spans[-1]["ts"] + spans[-1]["dur"]
        if ended - last_end > 1:  # more than the rounding of two times to a microsecond
            omitted = epoch.get("steps_left_out")
            first = _step_count(epoch)
            label = (
                f"{NOT_TRACED}steps {first} to {first + omitted - 1} of epoch {epoch['epoch']}"
                if omitted
                else "step"
            )
            spans.append(make_span(TRAINING, label, last_end, ended))
        ended = max(ended, last_end)
    yield make_span(TRAINING, name, began, ended, **_finite(metrics))
    yield from (span for span in spans if span["dur"])
    if "time/eval_s" in metrics:
        evaluated = ended + round(metrics["time/eval_s"] * 1e6)
        yield make_span(TRAINING, "evaluation", ended, evaluated)
        ended = evaluated
    if snapshot:
        figures = {
            "ph": "i",
            "s": "t",
            "pid": TRIAL,
            "tid": TRAINING,
            "ts": ended,
            "args": _finite(snapshot["metrics"]),
        }
        yield {"name": f"snapshot {snapshot['cycle']}"} | figures


def _step_spans(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    """Yields the spans start-up, first batch, step, other, wait, step, other ...

    Every span ends where the next one begins, to the microsecond.
    """
    steps = epoch.get("steps", {})
    if not received or "step_s" not in steps:
        return
    step_ends = [
        arrival + duration for arrival, duration in zip(received, steps["step_s"], strict=True)
    ]
    last_other_s = steps.get("other_s", [0.0])[-1]
    boundaries = [_us(epoch, time) for time in [*steps["request_s"], step_ends[-1] + last_other_s]]
    yield make_span(TRAINING, "start-up", _us(epoch, 0), boundaries[0])
    for step, (begin, end) in enumerate(itertools.pairwise(boundaries)):
        step_begin, step_end = (
            min(_us(epoch, time), end) for time in (received[step], step_ends[step])
        )
        yield make_span(TRAINING, "wait" if step else "first batch", begin, step_begin, step=step)
        yield make_span(TRAINING, "step", step_begin, step_end, step=step)
        yield make_span(TRAINING, "other", step_end, end, step=step)


def _accelerator_events(epoch: Record) -> Iterator[Event]:
    """Yields the busy spans, and every pause between two steps that counts as a stall."""
    busy = epoch.get("busy", {"begin_s": [], "end_s": []})
    intervals = list(zip(busy["begin_s"], busy["end_s"], strict=True))
    for step, (begin, end) in enumerate(intervals):
        yield make_span(ACCELERATOR, "busy", _us(epoch, begin), _us(epoch, end), step=step)
    for step, ((_, end), (begin, _)) in enumerate(itertools.pairwise(intervals), 1):
        if begin - end > STALL_S:
            yield make_span(
                ACCELERATOR, "stall", _us(epoch, end), _us(epoch, begin), before_step=step
            )


def _fetch_events(epoch: Record) -> Iterator[Event]:
    """Yields every batch on the lane of the process that prepared it.

    Worker -1 is the training process itself. A figure of -1 is unknown, and is omitted.
    """
    fetches = epoch.get("fetches", {})
    for index, step in enumerate(fetches.get("step", [])):
        begin, end = (_us(epoch, fetches[edge][index]) for edge in ("begin_s", "end_s"))
        figures = {
            name: _round_number(fetches[name][index], 1)
            for name in FIGURES
            if name in fetches and fetches[name][index] >= 0
        }
        yield make_span(
            FIRST_WORKER + fetches["worker"][index], f"batch {step}", begin, end, **figures
        )


def _queue_counters(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    """Yields the number of batches that are prepared and not yet received.

    It increases when a fetch ends, and decreases when the loop receives a batch.
    """
    fetches = epoch.get("fetches")
    if not fetches or not received:
        return
    changes = [(_us(epoch, end), -1) for end in fetches["end_s"]] + [
        (_us(epoch, received[step]), 1) for step in fetches["step"]
    ]
    ready = 0
    yield make_counter(READY, _us(epoch, 0), ready)
    for time, taken in sorted(changes):  # at the same microsecond the fetch ends first
        ready -= taken
        yield make_counter(READY, time, ready)


def _step_queue_counters(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    """Yields the number of steps that the loop has begun to launch and the accelerator has not.

    Yields nothing if the loop waits for every step.
    """
    steps, begins = epoch.get("steps", {}), epoch.get("busy", {}).get("begin_s", [])
    step_ends = [
        begin + lasted for begin, lasted in zip(received, steps.get("step_s", []), strict=False)
    ]
    if not any(begin > ended for begin, ended in zip(begins, step_ends, strict=False)):
        return
    changes = [(_us(epoch, launched), 1) for launched in received]
    changes += [(_us(epoch, begin), -1) for begin in begins]
    queued = 0
    # At the same microsecond the launch begins first
    for time, change in sorted(changes, key=lambda one: (one[0], -one[1])):
        queued += change
        yield make_counter(QUEUED, time, queued)


def _shm_counters(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    """Yields the samples of the use of /dev/shm."""
    for time, used in zip(received, epoch.get("steps", {}).get("shm_bytes", []), strict=False):
        if used is not None:
            yield make_counter(USED, _us(epoch, time), _round_number(used, MIB))


def _limit_counters(events: Sequence[Event], limit_bytes: int | None) -> list[Event]:
    """Returns the size of /dev/shm, from the first sample of its use to the last."""
    times = [event["ts"] for event in events if event["name"] == USED[0]]
    if not times or limit_bytes is None:
        return []
    return [
        make_counter(LIMIT, time, _round_number(limit_bytes, MIB)) for time in (times[0], times[-1])
    ]


def _gap_span(before: Record, after: Record) -> Event:
    """Returns a span in place of omitted epochs, after the evaluation of the epoch before them."""
    traced_s = sum(before["metrics"].get(name, 0) for name in ("time/epoch_s", "time/eval_s"))
    first, last = before["epoch"] + 1, after["epoch"] - 1
    return make_span(
        TRAINING, f"{NOT_TRACED}epochs {first} to {last}", _us(before, traced_s) + 1, _us(after, 0)
    )


def _us(epoch: Record, time_s: float) -> int:
    """Converts seconds since the start of the epoch's clock.

    Returns microseconds since the setup record.
    """
    return round((epoch["began_s"] + time_s) * 1e6)


def _round_number(value: float, unit: int) -> float:
    """Returns a value in a unit with six decimals, and an integer in unit 1 unchanged."""
    return value if unit == 1 and isinstance(value, int) else round(value / unit, 6)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the finite metrics, because JSON can't represent a NaN or infinite loss."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
