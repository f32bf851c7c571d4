"""What is said of a loader that was measured: its costs, an epoch for every number of workers, which to take, and what bounds it then.

    Loader, Calibration -> rows -> table, recommendation, next bottleneck

A row is a forecast (sweeps/forecast.py) and what that many workers may take of /dev/shm, counted as sweeps/shm_fit.py counts it for a
trial and set beside what is free there now. Recommended are the fewest workers that surely fit and are forecast within 2 % of the
fastest that do. The bottleneck is whichever of the accelerator, preparation, reads and starting would take longest alone.
"""

import math
import textwrap
from dataclasses import dataclass

import tabulate

from speech.config import format_size
from speech.costs import Calibration
from sweeps.forecast import Forecast, foresee
from sweeps.shm import PAGE
from sweeps.shm_fit import VERDICTS, ShmFit
from sweeps.simulation import value_at

tabulate.MIN_PADDING = 0  # a column is as wide as its widest text; by default headers are given two columns more

WIDTH = 100  # columns of the terminal
NEAR = 0.02  # of the fastest forecast: as good
COUNTS = (0, 1, 2, 4, 8, 16)  # of workers; as many as cores, and as many as the loader has, are added


@dataclass(frozen=True)
class Loader:
    """A loader as it was found."""

    dataset: str
    clips: int
    batches: int
    batch_bytes: int
    varies: bool  # its batches are not all of one size: batch_bytes is the largest of a few
    sent_bytes: int  # of its data set, in /dev/shm while workers that are not forked hold it
    num_workers: int
    prefetch_factor: int
    persistent: bool
    first_wait_s: float  # a batch, for reads, when it was read first
    first_read_bytes: int  # a batch, that came from storage then

    @property
    def kept(self) -> str:
        """What a forecast for another number of workers leaves as it is."""
        return f"prefetch_factor={self.prefetch_factor}, persistent_workers={self.persistent}"


@dataclass(frozen=True)
class Row:
    """One number of workers."""

    workers: int
    forecast: Forecast
    fit: ShmFit

    @property
    def fits(self) -> bool:
        return self.fit.verdict == "fits"


def rows(loader: Loader, calibration: Calibration, limit_bytes: int) -> list[Row]:
    """A warm epoch for each number of workers there is to choose from, where /dev/shm has `limit_bytes` free."""
    counts = sorted({*COUNTS, calibration.loader.cores, loader.num_workers})
    return [_row(loader, calibration, workers, shm_need(loader, workers, limit_bytes)) for workers in counts]


def _row(loader: Loader, calibration: Calibration, workers: int, fit: ShmFit) -> Row:
    forecast = foresee(
        calibration,
        batches=loader.batches,
        workers=workers,
        prefetch=loader.prefetch_factor,
        persistent=loader.persistent,
        bound_bytes=fit.bound_bytes,
        base_bytes=_base_bytes(loader, workers),
    )
    return Row(workers, forecast, fit)


def shm_need(loader: Loader, workers: int, limit_bytes: int) -> ShmFit:
    """What so many workers may take of /dev/shm."""
    batch = loader.batch_bytes
    if workers == 0:
        return ShmFit(batch, 0, 0, 0, limit_bytes)
    base = _base_bytes(loader, workers)
    closed = 0 if loader.persistent else 2 * PAGE * workers  # queues of the epoch before, which may or may not be gone
    ahead = min(loader.prefetch_factor * workers, loader.batches - 1)  # and one that the loop holds
    return ShmFit(batch, base + batch, base + workers * batch, base + closed + (ahead + 1) * batch, limit_bytes)


def _base_bytes(loader: Loader, workers: int) -> int:
    """The data set, where it is sent, and semaphores: 3 a queue, which each worker and the results have one of, and 5 of an event."""
    return loader.sent_bytes + PAGE * (3 * (workers + 1) + 5)


def chosen(found: list[Row]) -> Row:
    """The fewest workers that surely fit and are forecast within NEAR of the fastest that do. Their intervals say nothing here, as all
    forecasts are of one calibration and err together."""
    fitting = [row for row in found if row.fits]
    best_s = min(row.forecast.epoch_s for row in fitting)
    return next(row for row in fitting if row.forecast.epoch_s <= (1 + NEAR) * best_s)


def preparation_rate(calibration: Calibration, workers: int) -> float:
    """Samples a second that so many workers prepare, or the training process itself; more workers than cores gain nothing."""
    costs = calibration.loader
    working = min(workers, costs.cores)
    batch_s = costs.prepare_s * value_at(tuple(costs.shared), working, 1.0) / working if workers else costs.inline_s
    return costs.batch_size / batch_s if batch_s else math.inf


def bounds(loader: Loader, calibration: Calibration, row: Row) -> dict[str, float]:
    """What bounds the epoch -> seconds that it alone would take."""
    costs, step = calibration.loader, calibration.step
    step_s = step.wait_s + step.cpu_s * max(1.0, step.threads / costs.cores)
    found = {
        "accelerator": loader.batches * step_s,
        "preparation": loader.batches * costs.batch_size / preparation_rate(calibration, row.workers),
        "reads": loader.batches * costs.read_s / max(row.workers, 1),
    }
    if row.workers:
        found["starting"] = row.forecast.start_s + row.forecast.fill_s
    if row.workers and step.cpu_s:  # workers and step share the cores
        work_s = costs.prepare_s + costs.release_s + step.cpu_s * step.threads
        found["cores"] = loader.batches * work_s / costs.cores
    return found


def bottleneck(loader: Loader, calibration: Calibration, row: Row) -> str:
    """A sentence: what bounds the epoch of this row most, its number, and what it would need."""
    costs = calibration.loader
    alone_s = bounds(loader, calibration, row)
    worst = max(alone_s, key=lambda name: alone_s[name])
    takes, makes = calibration.accelerator_clips_per_s(), preparation_rate(calibration, row.workers)
    who = _workers(row.workers, costs.cores)
    if worst == "accelerator":
        text = f"the accelerator. It takes {_rate(takes)}, and {who} can make {_rate(makes)}: only a faster step gains much."
    elif worst == "preparation":
        text = f"preparation. By {who} it makes {_rate(makes)}{_wanted(calibration, takes)}"
    elif worst == "reads":
        reads = _rate(calibration.reading_clips_per_s(row.workers))
        text = f"reads. {who[0].upper()}{who[1:]} read {reads} where preparation could make {_rate(makes)}: faster storage, or a cache."
    elif worst == "cores":
        rate = _rate(loader.batches * costs.batch_size / alone_s["cores"])
        text = f"the cores. Preparation and a step that computes on the host share {costs.cores}, and make {rate} at most."
    else:
        text = f"starting. Workers and the first batch take {_seconds(alone_s['starting'])} s of {_seconds(row.forecast.epoch_s)}: "
        text += "smaller batches fill sooner." if loader.persistent else "persistent_workers=True would start the workers once."
    return f"Next bottleneck: {text}"


def _workers(workers: int, cores: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)} on {cores} core{'s' * (cores > 1)}" if workers else "the training process itself"


def _wanted(calibration: Calibration, takes: float) -> str:
    if math.isinf(takes):
        return ". Whether that is enough a step would tell."
    times = takes / calibration.preparation_clips_per_s()
    if times <= 1:
        return f", and the accelerator could take {_rate(takes)}: more workers would make that, had /dev/shm room for them."
    cores = math.ceil(calibration.loader.cores * times)
    return f", and the accelerator could take {_rate(takes)}: that needs {cores} cores, or samples that cost {1 / times:.0%} of their CPU."


def recommendation(found: list[Row], loader: Loader) -> str:
    """A sentence or two: which number of workers, how it compares with the loader's own, and what more of /dev/shm would give."""
    best, fastest = chosen(found), min(found, key=lambda row: row.forecast.epoch_s)
    own = next(row for row in found if row.workers == loader.num_workers)
    text = f"Recommended: num_workers={best.workers}, {_seconds(best.forecast.epoch_s)} s an epoch, "
    text += f"at most {_mib(best.fit.bound_bytes)} MiB of /dev/shm. " if best.workers else "nothing of /dev/shm. "
    text += "The fewest that no other clearly beats." if best.forecast.epoch_s > fastest.forecast.epoch_s else "None is faster."
    if own is not best:
        ends = {"fits": "", "depends": ", and may overflow /dev/shm", "overflows": ", and overflows /dev/shm"}[own.fit.verdict]
        text += f" As it is, num_workers={own.workers}: {_seconds(own.forecast.epoch_s)} s{ends}."
    if not fastest.fits and fastest.forecast.high_s < best.forecast.epoch_s:
        text += f" With {_mib(fastest.fit.bound_bytes)} MiB free, {fastest.workers} workers: {_seconds(fastest.forecast.epoch_s)} s."
    return text


def forecasts(loader: Loader, calibration: Calibration, limit_bytes: int) -> str:
    """The table, the recommendation and the next bottleneck."""
    found = rows(loader, calibration, limit_bytes)
    title = f"An epoch by num_workers; {loader.kept}; {format_size(limit_bytes)} of /dev/shm free"
    words = [recommendation(found, loader), bottleneck(loader, calibration, chosen(found))]
    return "\n".join([f"{title}\n", table(found), "", *(textwrap.fill(text, WIDTH) for text in words)])


def table(found: list[Row]) -> str:
    headers = ["num_workers", "epoch s", "low - high", "against 0", "fill s", "wait %", "needs MiB", "/dev/shm"]
    align = ["right"] * (len(headers) - 1) + ["left"]
    cells = [_cells(row, found[0].forecast.epoch_s) for row in found]
    return tabulate.tabulate(cells, headers, "simple", disable_numparse=True, colalign=align)


def _cells(row: Row, alone_s: float) -> list[str]:
    expected = row.forecast
    return [
        str(row.workers),
        _seconds(expected.epoch_s),
        f"{_seconds(expected.low_s)} - {_seconds(expected.high_s)}",
        f"{100 * (expected.epoch_s / alone_s - 1):+.0f}%" if row.workers else "",
        _seconds(expected.fill_s),
        f"{100 * expected.wait_fraction:.0f}",
        _mib(row.fit.bound_bytes),
        VERDICTS[row.fit.verdict][0],
    ]


def introduced(target: str, loader: Loader) -> str:
    """What is about to be measured."""
    size = f"{'up to ' if loader.varies else ''}{_mib(loader.batch_bytes)} MiB"
    lines = [
        f"{target}: {loader.dataset} of {loader.clips:,} samples in {loader.batches:,} batches of {size}",
        f"as it is: num_workers={loader.num_workers}, {loader.kept}",
        "measuring what a batch costs: about a minute, longer where a batch takes over a second",
    ]
    return "\n".join(lines)


def measured(loader: Loader, calibration: Calibration, with_step: bool) -> str:
    """What a batch costs, and DS-Analyzer's three speeds."""
    costs, step, clips = calibration.loader, calibration.step, calibration.loader.batch_size
    first = f"; at first {_mib(loader.first_read_bytes)} MiB a batch came from storage, waited for {_ms(loader.first_wait_s)}"
    handed = [seconds + costs.release_s for _, seconds in costs.receive_s]
    started = f"{_ms(costs.fork_s)} of the loop, {_ms(costs.ready_s)} of its own{', once' if loader.persistent else ', each epoch'}"
    hosts = f", {_ms(step.cpu_s)} on {step.threads} thread{'s' * (step.threads > 1)} of the host" if step.cpu_s else ""
    stepped = f"{_ms(step.wait_s)} of the accelerator{hosts}"
    lines = [
        (
            "c, preparation",
            f"{_ms(costs.prepare_s / clips)} of CPU a sample in a worker, {_ms(costs.inline_s / clips)} on the clock without",
        ),
        ("reads", f"{_ms(costs.read_s / clips)} a sample waited for{first if loader.first_read_bytes else ''}"),
        ("o, hand-over", f"{_ms(min(handed))} to {_ms(max(handed))} of the loop a batch, the more the busier the cores"),
        ("worker's start", started),
        ("s, step", stepped if with_step else "not given, so this is loading alone: add --step-s 0.025 or --step module:step"),
        ("G, accelerator", _rate(calibration.accelerator_clips_per_s())),
        ("P, preparation", f"{_rate(calibration.preparation_clips_per_s())} on {_cores(costs.cores)}"),
        ("F, reads", f"{_rate(calibration.reading_clips_per_s(1))} by one worker"),
    ]
    title = f"Measured in {calibration.took_s:.0f} s, batches of {clips}, one worker at most"
    return "\n".join([title, *(textwrap.fill(f"  {name:<15} {text}", WIDTH, subsequent_indent=" " * 18) for name, text in lines)])


def _cores(cores: int) -> str:
    return f"{cores} core{'s' * (cores > 1)}"


def no_room(loader: Loader, free_bytes: int) -> str:
    """What to say where /dev/shm doesn't hold what measuring with a single worker takes."""
    needs = [(workers, shm_need(loader, workers, 0).bound_bytes) for workers in COUNTS[1:]]
    said = ", ".join(f"{workers} from {format_size(-(-need >> 20) << 20)}" for workers, need in needs)
    return (
        f"A batch is {_mib(loader.batch_bytes)} MiB and /dev/shm has {_mib(free_bytes)} MiB free, too few to measure even one worker. "
        f"With {loader.kept} workers surely fit: {said}. Give it more (docker run --shm-size 1g; in Kubernetes an emptyDir with medium: "
        "Memory), or make batches smaller: pictures in uint8 take a quarter of float32."
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.2f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f}"


def _rate(clips_per_s: float) -> str:
    return "without a limit" if math.isinf(clips_per_s) else f"{clips_per_s:,.0f} samples/s"
