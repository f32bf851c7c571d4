"""A trial's records as a trace that a viewer zooms into: drop trace.json.gz on https://ui.perfetto.dev.

The one idea is a common time axis: when a worker prepared a batch, when the loop waited for it, when the accelerator was busy and how
full /dev/shm was then stand below each other, a lane each, so that a stall is seen together with its cause. Times are microseconds
since the trial's setup record. A lane of which the records hold nothing is absent.

The format is Chrome's Trace Event JSON, gzipped, as the name says: Perfetto unpacks it itself, MLflow hands it out as it lies, and a
tenth of the bytes travels. Of a long training the first epoch and the last ones are traced; the trace says what is left out.
"""

import gzip
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speech.timing import STALL_S

Record = Mapping[str, Any]
Event = dict[str, Any]

MOST_STEPS = 20_000  # of a trace, some 2 MB; an epoch takes half of it at most, so that the first and the last one have room
MIB = 1 << 20
TRIAL = 1  # one process id for all: Perfetto opens a process unfolded if it is the only one, its threads by id, its counters below
TRAINING, ACCELERATOR, FIRST_WORKER = 1, 2, 10  # thread ids, of worker 0 and its successors; 0 would be the idle task
READY, USED, LIMIT = ("batches", "ready"), ("/dev/shm in use", "MiB"), ("/dev/shm limit", "MiB")  # counters: name and series
FIGURES = ("cpu_s", "read_bytes")  # of a fetch
NOT_TRACED = "not traced: "


def write_trace(records: Path, file: Path) -> bool:
    """Writes the trace of a trial's records.jsonl to `file`, gzipped; False, and no file, where no epoch ended."""
    with records.open(encoding="utf-8") as lines:
        found = trace(json.loads(line) for line in lines)
    if not found["traceEvents"]:
        return False
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    file.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
    return True


def trace(records: Iterable[Record]) -> dict[str, Any]:
    """The records of one trial as a Chrome trace: {'traceEvents': [...], 'displayTimeUnit': 'ms', 'otherData': {...}}.

    Durations and times in microseconds. Epochs that do not say when they began, as records once didn't, are not in it.
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
                epochs.append(_cut(record))
                steps += _steps(epochs[-1])
                while steps > MOST_STEPS:
                    steps -= _steps(epochs.pop(1))
            case "snapshot":
                snapshots[record["epoch"]] = record
            case "exit":
                ending = record
    events = [event for epoch in epochs for event in _epoch(epoch, snapshots.get(epoch["epoch"]))]
    holes = [(before, after) for before, after in itertools.pairwise(epochs) if after["epoch"] - before["epoch"] > 1]
    events += [_hole(before, after) for before, after in holes]
    events += _limit(events, ending.get("shm_limit_bytes"))
    told = {name: setup[name] for name in ("device", "device_name", "steps_per_epoch", "batch_bytes") if name in setup}
    left_out = [event["name"] for event in events if event["name"].startswith(NOT_TRACED)]
    return {
        "traceEvents": [*_names(events), *events] if events else [],
        "displayTimeUnit": "ms",
        "otherData": told | {"time_zero": "the setup record", "left_out": left_out},
    }


def _steps(epoch: Record) -> int:
    return max(map(len, epoch.get("steps", {}).values()), default=0)


def _cut(epoch: Record) -> Record:
    """The epoch's first steps, as many as may be traced."""
    most = MOST_STEPS // 2
    if _steps(epoch) <= most:
        return epoch
    cut = {name: {key: values[:most] for key, values in epoch[name].items()} for name in ("steps", "busy") if name in epoch}
    if fetches := epoch.get("fetches"):
        kept = [step < most for step in fetches["step"]]
        cut["fetches"] = {key: list(itertools.compress(values, kept)) for key, values in fetches.items()}
    return {**epoch, **cut, "steps_left_out": _steps(epoch) - most}


def _epoch(epoch: Record, snapshot: Record | None) -> Iterator[Event]:
    """Every lane's events of one epoch."""
    steps = epoch.get("steps", {})
    received = [asked + waited for asked, waited in zip(steps.get("ask_s", []), steps.get("wait_s", []), strict=False)]
    yield from _training(epoch, received, snapshot)
    yield from _accelerator(epoch)
    yield from _fetches(epoch)
    yield from _queue(epoch, received)
    yield from _shm(epoch, received)


def _training(epoch: Record, received: Sequence[float], snapshot: Record | None) -> Iterator[Event]:
    """The epoch and below it the spans that partition it, then evaluation and snapshot, which stand outside its clock."""
    metrics = epoch["metrics"]
    name = f"epoch {epoch['epoch']}" + (" (warm-up)" if epoch.get("warmup") else "")
    spans = list(_spans(epoch, received))
    began, ended = _us(epoch, 0), _us(epoch, metrics["time/epoch_s"])
    if spans:
        last = spans[-1]["ts"] + spans[-1]["dur"]
        if ended - last > 1:  # more than the rounding of two times to a microsecond
            left_out = epoch.get("steps_left_out")
            first = _steps(epoch)
            what = f"{NOT_TRACED}steps {first} to {first + left_out - 1} of epoch {epoch['epoch']}" if left_out else "step"
            spans.append(_span(TRAINING, what, last, ended))
        ended = max(ended, last)
    yield _span(TRAINING, name, began, ended, **_finite(metrics))
    yield from (span for span in spans if span["dur"])
    if "time/eval_s" in metrics:
        evaluated = ended + round(metrics["time/eval_s"] * 1e6)
        yield _span(TRAINING, "evaluation", ended, evaluated)
        ended = evaluated
    if snapshot:
        figures = {"ph": "i", "s": "t", "pid": TRIAL, "tid": TRAINING, "ts": ended, "args": _finite(snapshot["metrics"])}
        yield {"name": f"snapshot {snapshot['cycle']}"} | figures


def _spans(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    """start-up, fill, step, other, wait, step, other ... Each ends where the next begins, to the microsecond."""
    steps = epoch.get("steps", {})
    if not received or "step_s" not in steps:
        return
    done = [got + worked for got, worked in zip(received, steps["step_s"], strict=True)]
    rest = steps.get("other_s", [0.0])[-1]
    asked = [_us(epoch, time) for time in [*steps["ask_s"], done[-1] + rest]]
    yield _span(TRAINING, "start-up", _us(epoch, 0), asked[0])
    for step, (begin, end) in enumerate(itertools.pairwise(asked)):
        got, left = (min(_us(epoch, time), end) for time in (received[step], done[step]))
        yield _span(TRAINING, "wait" if step else "fill", begin, got, step=step)
        yield _span(TRAINING, "step", got, left, step=step)
        yield _span(TRAINING, "other", left, end, step=step)


def _accelerator(epoch: Record) -> Iterator[Event]:
    """What it was busy with, and every pause between two steps that counts as a stall."""
    busy = epoch.get("busy", {"begin_s": [], "end_s": []})
    intervals = list(zip(busy["begin_s"], busy["end_s"], strict=True))
    for step, (begin, end) in enumerate(intervals):
        yield _span(ACCELERATOR, "busy", _us(epoch, begin), _us(epoch, end), step=step)
    for step, ((_, end), (begin, _)) in enumerate(itertools.pairwise(intervals), 1):
        if begin - end > STALL_S:
            yield _span(ACCELERATOR, "stall", _us(epoch, end), _us(epoch, begin), before_step=step)


def _fetches(epoch: Record) -> Iterator[Event]:
    """A batch on the lane of who prepared it; worker -1 is the training process itself. A figure of -1 is unknown, and absent here."""
    fetches = epoch.get("fetches", {})
    for index, step in enumerate(fetches.get("step", [])):
        begin, end = (_us(epoch, fetches[edge][index]) for edge in ("begin_s", "end_s"))
        told = {name: _number(fetches[name][index], 1) for name in FIGURES if name in fetches and fetches[name][index] >= 0}
        yield _span(FIRST_WORKER + fetches["worker"][index], f"batch {step}", begin, end, **told)


def _queue(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    """How many batches are prepared and not yet received: one more when a fetch ends, one fewer when the loop has its batch."""
    fetches = epoch.get("fetches")
    if not fetches or not received:
        return
    changes = [(_us(epoch, end), -1) for end in fetches["end_s"]] + [(_us(epoch, received[step]), 1) for step in fetches["step"]]
    ready = 0
    yield _counter(READY, _us(epoch, 0), ready)
    for time, taken in sorted(changes):  # at the same microsecond the fetch ends first
        ready -= taken
        yield _counter(READY, time, ready)


def _shm(epoch: Record, received: Sequence[float]) -> Iterator[Event]:
    for time, used in zip(received, epoch.get("steps", {}).get("shm_bytes", []), strict=False):
        if used is not None:
            yield _counter(USED, _us(epoch, time), _number(used, MIB))


def _limit(events: Sequence[Event], limit_bytes: int | None) -> list[Event]:
    """The size of /dev/shm, from the first sample of its use to the last."""
    times = [event["ts"] for event in events if event["name"] == USED[0]]
    if not times or limit_bytes is None:
        return []
    return [_counter(LIMIT, time, _number(limit_bytes, MIB)) for time in (times[0], times[-1])]


def _hole(before: Record, after: Record) -> Event:
    """Stands where epochs are left out, below the evaluation of the one before."""
    outside = sum(before["metrics"].get(name, 0) for name in ("time/epoch_s", "time/eval_s"))
    first, last = before["epoch"] + 1, after["epoch"] - 1
    return _span(TRAINING, f"{NOT_TRACED}epochs {first} to {last}", _us(before, outside) + 1, _us(after, 0))


def _names(events: Sequence[Event]) -> Iterator[Event]:
    """What every lane is called, and in which order they stand."""
    yield {"ph": "M", "pid": TRIAL, "name": "process_name", "args": {"name": "trial"}}
    for thread in sorted({event["tid"] for event in events if "tid" in event}):
        worker = thread - FIRST_WORKER
        loader = f"worker {worker}" if worker >= 0 else "loader, in the training process"
        name = {TRAINING: "training process", ACCELERATOR: "accelerator"}.get(thread, loader)
        yield {"ph": "M", "pid": TRIAL, "tid": thread, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": TRIAL, "tid": thread, "name": "thread_sort_index", "args": {"sort_index": thread}}


def _span(thread: int, name: str, begin: int, end: int, **args: Any) -> Event:
    return {"ph": "X", "pid": TRIAL, "tid": thread, "name": name, "ts": begin, "dur": end - begin} | ({"args": args} if args else {})


def _counter(counter: tuple[str, str], time: int, value: float) -> Event:
    name, series = counter
    return {"ph": "C", "pid": TRIAL, "name": name, "ts": time, "args": {series: value}}


def _us(epoch: Record, time_s: float) -> int:
    """Microseconds since the setup record, of seconds since the epoch's clock start."""
    return round((epoch["began_s"] + time_s) * 1e6)


def _number(value: float, unit: int) -> float:
    return value if unit == 1 and isinstance(value, int) else round(value / unit, 6)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """JSON has no word for a loss that is not a number."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
