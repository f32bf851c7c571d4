"""A picture of one epoch: who waited for whom, and when. `python -m analysis.stalls NAME num_workers=8 shm_size=1G --out FOLDER`

The one idea is a common time axis, a batch's way from top to bottom: the workers that prepare it, the batches that are ready, the training
process that waits for one or works, the accelerator, and /dev/shm against its limit. So a burst of batches, and the stall before it, is a
shape one sees. All of it is in a trial's records.jsonl, which the tracker holds; what that does not tell has no lane.
"""

import argparse
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.filters import matching
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, sweep_runs
from analysis.series import trial_records
from sweeps.names import written
from sweeps.tracker import connect, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = Mapping[str, Any]
Intervals = list[tuple[float, float]]  # (begin, end) in seconds since the epoch began

WIDTH_IN, DPI, TITLE_COLUMNS = 11.0, 150, 110
MIB = 1 << 20
MAIN = -1  # the worker that stands for the training process, at 0 workers
STALL_S = 1e-3  # a longer pause of the accelerator between two steps is a stall, as in the metric stall/steps
# Okabe and Ito's colours, which people who see red and green alike tell apart: blue is work, orange and vermilion are waiting
WORK, FILL, WAIT, START, OTHER, LIMIT = "#0072B2", "#E69F00", "#D55E00", "#CC79A7", "#999999", "#000000"
FETCH = ("#56B4E9", "#A9D9F4")  # one batch and the next of a worker
SPANS = {"start": START, "fill": FILL, "wait": WAIT, "step": WORK, "other": OTHER}
MOST = {"start": "starting workers", "loader": "waiting for batches", "step": "in training steps", "other": "between the steps"}
LEAST_USED = 0.2  # of the limit; where less is used, its line would press the curve flat, and words tell of it


class Lane(NamedTuple):
    name: str
    inches: float
    draw: Callable[[Axes], None]


def picture(records: Sequence[Record], title: str, epoch: int | None = None) -> Figure:
    """One epoch of a trial's records: that of the number given, or the warm one of median time. LookupError: there is none."""
    shown = _epoch(records, epoch)
    limit = next((record.get("shm_limit_bytes") for record in records if record["kind"] == "exit"), None)
    lanes = list(_lanes(shown, limit))
    heights = [lane.inches for lane in lanes]
    figure = Figure(figsize=(WIDTH_IN, 1.1 + sum(heights) + 0.4 * len(lanes)), dpi=DPI, layout="constrained")
    title = textwrap.fill(title, TITLE_COLUMNS)
    figure.suptitle(f"{title}\n{_headline(shown)}", fontsize=11, x=0.01, ha="left")
    every = figure.subplots(len(lanes), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, lane in zip(every, lanes, strict=True):
        lane.draw(axes)
        axes.set_ylabel(lane.name, rotation=0, ha="right", va="center")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    every[-1].set_xlim(0, shown["metrics"]["time/epoch_s"])
    every[-1].set_xlabel("seconds since the epoch began")
    figure.align_ylabels(every)
    return figure


def _epoch(records: Sequence[Record], number: int | None) -> Record:
    epochs = [record for record in records if record["kind"] == "epoch" and "ask_s" in record.get("steps", {})]
    wanted = [record for record in epochs if not record["warmup"]] or epochs
    if number is not None:
        wanted = [record for record in epochs if record["epoch"] == number]
    if not wanted:
        there = ", ".join(str(record["epoch"]) for record in epochs)
        raise LookupError(f"no epoch {number}; there are {there}" if epochs else "no epoch ended whose steps have times")
    return sorted(wanted, key=lambda record: record["metrics"]["time/epoch_s"])[(len(wanted) - 1) // 2]


def _headline(epoch: Record) -> str:
    """'epoch 1, 1.78 s, 64 % of it waiting for batches': what took most of it."""
    metrics = epoch["metrics"]
    spent = {span: metrics[f"time/{span}_s"] for span in ("start", "step", "other")}
    spent["loader"] = metrics["time/fill_s"] + metrics["time/wait_s"]
    most = max(spent, key=lambda span: spent[span])
    share = _percent(spent[most] / metrics["time/epoch_s"])
    return (
        f"epoch {epoch['epoch']}{' (warm-up)' if epoch['warmup'] else ''}, {_seconds(metrics['time/epoch_s'])}, {share} of it {MOST[most]}"
    )


def _lanes(epoch: Record, limit: int | None) -> Iterator[Lane]:
    steps, fetches = epoch["steps"], epoch.get("fetches", {})
    received = [asked + waited for asked, waited in zip(steps["ask_s"], steps["wait_s"], strict=True)]
    rows = _by_worker(fetches)
    if rows:
        name = "loader" if MAIN in rows else "workers"
        yield Lane(name, min(max(0.16 * len(rows), 0.3), 4.5), lambda axes: _workers(axes, rows))
    if rows and MAIN not in rows:
        yield Lane("batches\nready", 0.8, lambda axes: _ready(axes, fetches, received))
    yield Lane("training\nprocess", 0.3, lambda axes: _training(axes, epoch, received))
    if epoch.get("busy"):
        yield Lane("accelerator", 0.3, lambda axes: _accelerator(axes, epoch))
    samples = [(time, used) for time, used in zip(received, steps.get("shm_bytes", []), strict=False) if used is not None]
    if samples and MAIN not in rows:  # without workers no batch travels through it
        yield Lane("/dev/shm,\nMiB", 0.8, lambda axes: _shm(axes, samples, limit))


def _workers(axes: Axes, rows: Mapping[int, Intervals]) -> None:
    for row, fetched in enumerate(rows.values()):
        for first, colour in enumerate(FETCH):
            _bars(axes, fetched[first::2], colour, row)
    apart = -(-len(rows) // 16)  # at most 16 labels
    axes.set_yticks(range(0, len(rows), apart), [str(worker) for worker in rows][::apart])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if MAIN in rows:
        axes.set_yticks([])
    whose = "by the training process itself" if MAIN in rows else "a row a worker"
    again = any(len(fetched) > 1 for fetched in rows.values())
    _legend(axes, {f"a batch in preparation, {whose}": FETCH[0]} | ({"the next one": FETCH[1]} if again else {}))


def _by_worker(fetches: Record) -> dict[int, Intervals]:
    """worker -> when it prepared its batches, in order."""
    columns = zip(*(fetches.get(key, []) for key in ("worker", "begin_s", "end_s")), strict=True)
    grouped = itertools.groupby(sorted(columns), key=lambda fetch: fetch[0])
    return {worker: [(begin, end) for _, begin, end in fetched] for worker, fetched in grouped}


def _ready(axes: Axes, fetches: Record, received: Sequence[float]) -> None:
    changes = sorted([(end, -1) for end in fetches["end_s"]] + [(received[step], 1) for step in fetches["step"]])  # first it is ready
    times = [0.0, *(time for time, _ in changes)]
    counts = list(itertools.accumulate((-taken for _, taken in changes), initial=0))
    axes.fill_between(times, counts, step="post", color=FETCH[0], linewidth=0, snap=False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(0, max(counts) * 1.05)
    _legend(axes, {f"prepared and not yet received, {max(counts)} at most": FETCH[0]})


def _training(axes: Axes, epoch: Record, received: Sequence[float]) -> None:
    steps, metrics = epoch["steps"], epoch["metrics"]
    asked = [*steps["ask_s"], received[-1] + steps["step_s"][-1] + steps["other_s"][-1]]
    done = [got + worked for got, worked in zip(received, steps["step_s"], strict=True)]
    waits = list(zip(asked[:-1], received, strict=True))
    intervals = {
        "start": [(0.0, asked[0])],
        "fill": waits[:1],
        "wait": waits[1:],
        "step": [*zip(received, done, strict=True), (asked[-1], metrics["time/epoch_s"])],  # at last the accelerator is waited for
        "other": list(zip(done, asked[1:], strict=True)),
    }
    for span, colour in SPANS.items():
        _bars(axes, intervals[span], colour)
    axes.set_yticks([])
    _legend(axes, {f"{span} {_share(metrics[f'time/{span}_s'], metrics)}": colour for span, colour in SPANS.items()})


def _accelerator(axes: Axes, epoch: Record) -> None:
    busy, metrics = list(zip(epoch["busy"]["begin_s"], epoch["busy"]["end_s"], strict=True)), epoch["metrics"]
    stalls = [(end, begin) for (_, end), (begin, _) in itertools.pairwise(busy) if begin - end > STALL_S]
    _bars(axes, busy, WORK)
    _bars(axes, stalls, WAIT)
    axes.set_yticks([])
    worked = sum(end - begin for begin, end in busy)
    longest = f", the longest {_seconds(max(end - begin for begin, end in stalls))}" if stalls else ""
    counted = f"{len(stalls)} stall{'s' * (len(stalls) != 1)} of over 1 ms{longest}"
    _legend(axes, {f"busy {_share(worked, metrics)}": WORK, counted: WAIT})


def _shm(axes: Axes, samples: Sequence[tuple[float, int]], limit: int | None) -> None:
    times, used = [time for time, _ in samples], [size / MIB for _, size in samples]
    axes.fill_between(times, used, step="post", color=OTHER, linewidth=0, snap=False)
    told = {f"in use, {max(used):,.1f} MiB at most": OTHER}
    top = max(*used, 1.0)
    if limit is not None:
        close = max(used) >= LEAST_USED * limit / MIB
        told[f"its size, {limit / MIB:,.0f} MiB" + ("" if close else ", far above")] = LIMIT
        if close:
            axes.axhline(limit / MIB, color=LIMIT, linewidth=1.5)
            top = max(top, limit / MIB)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(0, top * 1.08)
    _legend(axes, told)


def _bars(axes: Axes, intervals: Intervals, colour: str, row: int = 0) -> None:
    axes.broken_barh([(begin, end - begin) for begin, end in intervals], (row - 0.44, 0.88), facecolor=colour, linewidth=0, snap=False)


def _legend(axes: Axes, colours: Mapping[str, str]) -> None:
    """Above the lane, so that it hides nothing."""
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), fontsize=8.5, frameon=False,
        borderaxespad=0.1, borderpad=0.2, handlelength=1.2, handleheight=0.8, columnspacing=1.6,
    )  # fmt: skip


def _share(seconds: float, metrics: Mapping[str, float]) -> str:
    return f"{_seconds(seconds)} ({_percent(seconds / metrics['time/epoch_s'])})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def draw(client: "MlflowClient", run_id: str, folder: Path, epoch: int | None) -> Path:
    """Fetches a trial's records and saves its picture in `folder`; returns the file. LookupError: there is nothing to draw."""
    run = client.get_run(run_id)
    title = run.info.run_name
    for path in ("loader.num_workers", "loader.shm_size"):
        value = run.data.params.get(path)
        said = f"{path.removeprefix('loader.')}={written(path, None if value is None else int(value))}"
        title += "" if said in title else f" · {said}"
    if not (records := trial_records(client, run_id)):
        raise LookupError(f"{title}: its records are not in the tracker")
    try:
        figure = picture(records, title, epoch)
    except LookupError as error:
        raise LookupError(f"{title}: {error.args[0]}") from None
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (re.sub(r"[^\w.=-]+", "_", title) + ("" if epoch is None else f"_epoch={epoch}") + ".png")
    figure.savefig(file)
    return file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m analysis.stalls", description="Draws an epoch of each trial that is asked for.")
    parser.add_argument("name", help="name of the sweep, as in its YAML, or the run id of one trial")
    parser.add_argument("filters", nargs="*", metavar="KEY=VALUE", help="which of its trials: num_workers=8 shm_size=1G repeat=1")
    parser.add_argument("--epoch", type=int, help="which epoch, from 0 (default: the warm one of median time)")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go (default: here)")
    parser.add_argument("--uri", default=DEFAULT_URI, help="the tracker (default: %(default)s)")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT, help="MLflow experiment that holds the sweep (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        uri = resolve_uri(given.uri)
    except ValueError as error:
        parser.error(str(error))
    try:
        runs = [given.name]
        if not re.fullmatch("[0-9a-f]{32}", given.name):
            frame = sweep_runs(given.name, given.uri, given.experiment)
            ended = frame[frame["planned"].astype(bool) & (frame["outcome"] != "running")]
            runs = matching(ended, given.filters)["run_id"].tolist()
    except LookupError as error:
        parser.exit(2, f"{error.args[0]}\n")
    client, drawn = connect(uri), 0
    for run_id in runs:
        try:
            print(draw(client, run_id, given.out, given.epoch))
            drawn += 1
        except LookupError as error:  # as of a trial that overflowed in its first epoch; the others have their pictures
            print(error.args[0], file=sys.stderr)
    if not drawn:
        parser.exit(2)


if __name__ == "__main__":
    main()
