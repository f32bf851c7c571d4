"""Draws one epoch as a timeline: who waited for whom, and when.

The one idea is a common time axis, with a batch's way from top to bottom. The lanes are the workers
that prepare it, the batches that are ready, and the training process, which waits or works. Below
them are the accelerator, and /dev/shm against its limit. A burst of batches, and the stall before
it, is therefore a visible shape. All of it comes from a trial's records.jsonl, which the tracker
holds. A figure that the records lack has no lane.
"""

import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.number_text import MIB, count_text, percent, seconds_or_ms
from analysis.panels import DPI, FILL, OTHER, START, WAIT, WORK

Record = Mapping[str, Any]
Intervals = list[tuple[float, float]]  # (begin, end) in seconds since the epoch began

WIDTH_IN, TITLE_COLUMNS = 11.0, 110
MAIN = -1  # worker number of the training process, at 0 workers
# A longer pause of the accelerator between two steps is a stall, as in the metric stall/steps.
STALL_S = 1e-3
LIMIT = "#000000"
FETCH = ("#56B4E9", "#A9D9F4")  # alternating batches of a worker
SPANS = {"start": START, "first_batch": FILL, "data_wait": WAIT, "step": WORK, "other": OTHER}
LABELS = {"first_batch": "first batch", "data_wait": "wait"}  # of spans, where they differ
SPAN_PHRASES = {
    "start": "starting workers",
    "loader": "waiting for batches",
    "step": "in training steps",
    "other": "between the steps",
}
# Fraction of the limit. Below it, the limit's line would flatten the curve, so the legend alone
# states the limit.
MIN_USED_FRACTION = 0.2


class Lane(NamedTuple):
    """A lane of the timeline: its name, its height, and the function that draws it."""

    name: str
    inches: float
    draw: Callable[[Axes], None]


def draw_epoch(records: Sequence[Record], title: str, epoch: int | None = None) -> Figure:
    """Draws one epoch of a trial's records.

    Draws the epoch with number `epoch`, or by default the warm one of median time. Raises
    LookupError if there is none.
    """
    epoch_record = _select_epoch(records, epoch)
    limit = next(
        (record.get("shm_limit_bytes") for record in records if record["kind"] == "exit"), None
    )
    lanes = list(_lanes(epoch_record, limit))
    heights = [lane.inches for lane in lanes]
    figure = Figure(
        figsize=(WIDTH_IN, 1.1 + sum(heights) + 0.4 * len(lanes)), dpi=DPI, layout="constrained"
    )
    title = textwrap.fill(title, TITLE_COLUMNS)
    figure.suptitle(f"{title}\n{_headline(epoch_record)}", fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(len(lanes), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, lane in zip(panels, lanes, strict=True):
        lane.draw(axes)
        axes.set_ylabel(lane.name, rotation=0, ha="right", va="center")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[-1].set_xlim(0, epoch_record["metrics"]["time/epoch_s"])
    panels[-1].set_xlabel("seconds since the epoch began")
    figure.align_ylabels(panels)
    return figure


def _select_epoch(records: Sequence[Record], number: int | None) -> Record:
    """Returns the record of epoch `number`, or of the warm epoch of median time.

    Raises LookupError if there is none.
    """
    epochs = [
        record
        for record in records
        if record["kind"] == "epoch" and "request_s" in record.get("steps", {})
    ]
    candidates = [record for record in epochs if not record["warmup"]] or epochs
    if number is not None:
        candidates = [record for record in epochs if record["epoch"] == number]
    if not candidates:
        numbers = ", ".join(str(record["epoch"]) for record in epochs)
        raise LookupError(
            f"no epoch {number}; the recorded epochs are {numbers}"
            if epochs
            else "no recorded epoch has step times"
        )
    return sorted(candidates, key=lambda record: record["metrics"]["time/epoch_s"])[
        (len(candidates) - 1) // 2
    ]


def _headline(epoch: Record) -> str:
    """Returns for example 'epoch 1, 1.78 s: 64 % waiting for batches'.

    It names the part that took most of the epoch.
    """
    metrics = epoch["metrics"]
    spent_s = {span: metrics[f"time/{span}_s"] for span in ("start", "step", "other")}
    spent_s["loader"] = metrics["time/first_batch_s"] + metrics["time/data_wait_s"]
    longest = max(spent_s, key=lambda span: spent_s[span])
    share = percent(spent_s[longest] / metrics["time/epoch_s"])
    warm_up = " (warm-up)" if epoch["warmup"] else ""
    return (
        f"epoch {epoch['epoch']}{warm_up}, {seconds_or_ms(metrics['time/epoch_s'])}: {share}"
        f" {SPAN_PHRASES[longest]}"
    )


def _lanes(epoch: Record, limit: int | None) -> Iterator[Lane]:
    """Yields the lanes for which the record has figures, from top to bottom."""
    steps, fetches = epoch["steps"], epoch.get("fetches", {})
    received = [
        requested + data_wait_s
        for requested, data_wait_s in zip(steps["request_s"], steps["data_wait_s"], strict=True)
    ]
    rows = _intervals_by_worker(fetches)
    if rows:
        name = "loader" if MAIN in rows else "workers"
        yield Lane(
            name, min(max(0.16 * len(rows), 0.3), 4.5), lambda axes: _draw_workers(axes, rows)
        )
    if rows and MAIN not in rows:
        yield Lane("batches\nready", 0.8, lambda axes: _draw_ready(axes, fetches, received))
    yield Lane("training\nprocess", 0.3, lambda axes: _draw_training(axes, epoch, received))
    if epoch.get("busy"):
        yield Lane("accelerator", 0.3, lambda axes: _draw_accelerator(axes, epoch))
    samples = [
        (time, used)
        for time, used in zip(received, steps.get("shm_bytes", []), strict=False)
        if used is not None
    ]
    if samples and MAIN not in rows:  # without workers no batch passes through it
        yield Lane("/dev/shm,\nMiB", 0.8, lambda axes: _draw_shm(axes, samples, limit))


def _draw_workers(axes: Axes, rows: Mapping[int, Intervals]) -> None:
    """Draws the batches in preparation, a row a worker."""
    for row, fetched in enumerate(rows.values()):
        for offset, colour in enumerate(FETCH):
            _draw_bars(axes, fetched[offset::2], colour, row)
    label_step = -(-len(rows) // 16)  # at most 16 labels
    axes.set_yticks(range(0, len(rows), label_step), [str(worker) for worker in rows][::label_step])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if MAIN in rows:
        axes.set_yticks([])
    worker_text = "by the training process itself" if MAIN in rows else "a row a worker"
    has_second = any(len(fetched) > 1 for fetched in rows.values())
    _draw_legend(
        axes,
        {f"a batch in preparation, {worker_text}": FETCH[0]}
        | ({"the next batch": FETCH[1]} if has_second else {}),
    )


def _intervals_by_worker(fetches: Record) -> dict[int, Intervals]:
    """Returns for each worker the intervals in which it prepared its batches, in order."""
    columns = zip(*(fetches.get(key, []) for key in ("worker", "begin_s", "end_s")), strict=True)
    grouped = itertools.groupby(sorted(columns), key=lambda fetch: fetch[0])
    return {worker: [(begin, end) for _, begin, end in fetched] for worker, fetched in grouped}


def _draw_ready(axes: Axes, fetches: Record, received: Sequence[float]) -> None:
    """Draws the number of batches that are prepared and not yet received."""
    # At equal times, a batch becomes ready before it is received.
    changes = sorted(
        [(end, -1) for end in fetches["end_s"]] + [(received[step], 1) for step in fetches["step"]]
    )
    times = [0.0, *(time for time, _ in changes)]
    counts = list(itertools.accumulate((-taken for _, taken in changes), initial=0))
    axes.fill_between(times, counts, step="post", color=FETCH[0], linewidth=0, snap=False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(0, max(counts) * 1.05)
    _draw_legend(axes, {f"prepared and not yet received, {max(counts)} at most": FETCH[0]})


def _draw_training(axes: Axes, epoch: Record, received: Sequence[float]) -> None:
    """Draws what the training process spends its time on."""
    steps, metrics = epoch["steps"], epoch["metrics"]
    requested = [*steps["request_s"], received[-1] + steps["step_s"][-1] + steps["other_s"][-1]]
    finished = [
        received_s + step_s for received_s, step_s in zip(received, steps["step_s"], strict=True)
    ]
    waits = list(zip(requested[:-1], received, strict=True))
    intervals = {
        "start": [(0.0, requested[0])],
        "first_batch": waits[:1],
        "data_wait": waits[1:],
        # The loop waits for the accelerator at the end.
        "step": [*zip(received, finished, strict=True), (requested[-1], metrics["time/epoch_s"])],
        "other": list(zip(finished, requested[1:], strict=True)),
    }
    for span, colour in SPANS.items():
        _draw_bars(axes, intervals[span], colour)
    axes.set_yticks([])
    _draw_legend(
        axes,
        {
            f"{LABELS.get(span, span)} {_time_share(metrics[f'time/{span}_s'], metrics)}": colour
            for span, colour in SPANS.items()
        },
    )


def _draw_accelerator(axes: Axes, epoch: Record) -> None:
    """Draws when the accelerator is busy, and its stalls."""
    busy, metrics = (
        list(zip(epoch["busy"]["begin_s"], epoch["busy"]["end_s"], strict=True)),
        epoch["metrics"],
    )
    stalls = [
        (end, begin) for (_, end), (begin, _) in itertools.pairwise(busy) if begin - end > STALL_S
    ]
    _draw_bars(axes, busy, WORK)
    _draw_bars(axes, stalls, WAIT)
    axes.set_yticks([])
    worked = sum(end - begin for begin, end in busy)
    counted = f"{count_text(len(stalls), 'stall')} of over 1 ms"
    if stalls:
        counted += f", the longest {seconds_or_ms(max(end - begin for begin, end in stalls))}"
    _draw_legend(axes, {f"busy {_time_share(worked, metrics)}": WORK, counted: WAIT})


def _draw_shm(axes: Axes, samples: Sequence[tuple[float, int]], limit: int | None) -> None:
    """Draws the use of /dev/shm, and its limit if the use comes near it."""
    times, used = [time for time, _ in samples], [size / MIB for _, size in samples]
    axes.fill_between(times, used, step="post", color=OTHER, linewidth=0, snap=False)
    labels = {f"in use, {max(used):,.1f} MiB at most": OTHER}
    top = max(*used, 1.0)
    if limit is not None:
        is_near = max(used) >= MIN_USED_FRACTION * limit / MIB
        labels[f"limit {limit / MIB:,.0f} MiB" + ("" if is_near else ", far above")] = LIMIT
        if is_near:
            axes.axhline(limit / MIB, color=LIMIT, linewidth=1.5)
            top = max(top, limit / MIB)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(0, top * 1.08)
    _draw_legend(axes, labels)


def _draw_bars(axes: Axes, intervals: Intervals, colour: str, row: int = 0) -> None:
    """Draws intervals as bars in one row."""
    axes.broken_barh(
        [(begin, end - begin) for begin, end in intervals],
        (row - 0.44, 0.88),
        facecolor=colour,
        linewidth=0,
        snap=False,
    )


def _draw_legend(axes: Axes, colours: Mapping[str, str]) -> None:
    """Draws the legend above the lane, so that it hides nothing."""
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0.1,
        borderpad=0.2,
        handlelength=1.2,
        handleheight=0.8,
        columnspacing=1.6,
    )


def _time_share(seconds: float, metrics: Mapping[str, float]) -> str:
    """Returns seconds, and in brackets their share of the epoch."""
    return f"{seconds_or_ms(seconds)} ({percent(seconds / metrics['time/epoch_s'])})"
