"""Formats the forecasts for a loader: a table, the recommendation and the next bottleneck.

The bottleneck is whichever of accelerator, preparation, reads, cores and starting would take
longest alone.
"""

import math
import textwrap
from collections.abc import Sequence

import tabulate

from speech.byte_sizes import format_size
from speech.calibration.costs import Calibration
from sweeps.commands.advise.figures import (
    WIDTH,
    format_cores,
    format_mib,
    format_rate,
    format_seconds,
)
from sweeps.commands.advise.loader_forecast import (
    MeasuredLoader,
    Row,
    forecast_rows,
    preparation_rate,
    recommended_row,
    time_bounds,
)
from sweeps.forecast.shm_fit import VERDICTS
from sweeps.trial_states import ShmVerdict

# A column is as wide as its widest text; by default tabulate pads headers by two columns
tabulate.MIN_PADDING = 0


def format_forecasts(
    loader: MeasuredLoader, calibration: Calibration, limit_bytes: int, available_bytes: int = 0
) -> str:
    """Returns the table, the recommendation and the next bottleneck."""
    rows = forecast_rows(loader, calibration, limit_bytes, available_bytes)
    title = (
        f"An epoch by num_workers; {loader.fixed_settings}; {format_size(limit_bytes)} of /dev/shm"
        " free"
    )
    title += f", {format_mib(available_bytes)} MiB of memory available" if loader.memory else ""
    paragraphs = [recommendation_text(rows, loader)]
    if best := recommended_row(rows):
        paragraphs.append(bottleneck_text(loader, calibration, best, rows))
    if loader.only_workers:
        text = (
            "num_workers=0 is omitted, as this data set works only in a worker. In the training"
            f" process it fails: {loader.only_workers}"
        )
        paragraphs.append(text)
    if loader.memory is None:
        paragraphs.append(
            "Memory is not shown: this kernel does not report it (/proc/<pid>/smaps_rollup)."
        )
    return "\n".join(
        [
            f"{textwrap.fill(title, WIDTH)}\n",
            format_table(rows),
            "",
            *(textwrap.fill(text, WIDTH) for text in paragraphs),
        ]
    )


def format_table(rows: list[Row]) -> str:
    """Returns a table with a line for every number of workers."""
    headers = [
        "workers",
        "epoch s",
        "low - high",
        "vs 0",
        "first\nbatch s",
        "wait %",
        "shm MiB",
        "/dev/shm",
    ]
    align = ["right"] * (len(headers) - 1) + ["left"]
    if rows[0].memory:
        headers, align = [*headers, "all MiB", "memory"], [*align, "right", "left"]
    inline_s = rows[0].forecast.epoch_s if rows[0].workers == 0 else None
    return tabulate.tabulate(
        [_cells(row, inline_s) for row in rows],
        headers,
        "simple",
        disable_numparse=True,
        colalign=align,
    )


def _cells(row: Row, inline_s: float | None) -> list[str]:
    """Returns the cells of a row; `inline_s` is the epoch with 0 workers, if it is known."""
    expected = row.forecast
    cells = [
        str(row.workers),
        format_seconds(expected.epoch_s),
        f"{format_seconds(expected.low_s)} - {format_seconds(expected.high_s)}",
        f"{100 * (expected.epoch_s / inline_s - 1):+.0f}%" if row.workers and inline_s else "",
        format_seconds(expected.first_batch_s),
        f"{100 * expected.wait_fraction:.0f}",
        format_mib(row.shm.max_bytes),
        VERDICTS[row.shm.verdict][0],
    ]
    return (
        [*cells, f"{row.memory.total_bytes / 2**20:,.0f}", "fits" if row.memory.fits else "exceeds"]
        if row.memory
        else cells
    )


def recommendation_text(rows: list[Row], loader: MeasuredLoader) -> str:
    """Returns the recommended number of workers in some sentences.

    They compare it with the loader's own number, and state what more /dev/shm or memory would gain.
    """
    best, fastest = recommended_row(rows), min(rows, key=lambda row: row.forecast.epoch_s)
    if best is None:
        return (
            "Nothing is recommended, as no number of workers certainly fits: the table shows"
            " what is too small."
        )
    own = next((row for row in rows if row.workers == loader.num_workers), best)
    rank = (
        "No other number that fits is clearly faster."
        if best.forecast.epoch_s > fastest.forecast.epoch_s
        else "No other number is faster."
    )
    return "".join(
        [
            f"Recommended: num_workers={best.workers}, {format_seconds(best.forecast.epoch_s)} s"
            f" an epoch, {_requirements(best)}. {rank}",
            _own_number(own) if own is not best else "",
            _missed_gain(best, fastest),
        ]
    )


def _requirements(row: Row) -> str:
    """Returns the /dev/shm and the memory that the workers of a row may take."""
    if not row.workers:
        return "no /dev/shm"
    shm = f"at most {format_mib(row.shm.max_bytes)} MiB of /dev/shm"
    return (
        f"{shm} and {format_mib(row.memory.workers_bytes)} MiB of memory for workers"
        if row.memory
        else shm
    )


def _own_number(own: Row) -> str:
    """Returns a sentence on the loader with its own number of workers."""
    caveat = {
        ShmVerdict.FITS: "",
        ShmVerdict.DEPENDS: ", and may overflow /dev/shm",
        ShmVerdict.OVERFLOWS: ", and overflows /dev/shm",
    }[own.shm.verdict]
    caveat += "" if own.memory is None or own.memory.fits else ", and exceeds the memory"
    return (
        f" The loader's own num_workers={own.workers}:"
        f" {format_seconds(own.forecast.epoch_s)} s{caveat}."
    )


def _missed_gain(best: Row, fastest: Row) -> str:
    """Returns a sentence on what the fastest row lacks, or '' if it fits or is hardly faster."""
    if fastest.fits or fastest.forecast.high_s >= best.forecast.epoch_s:
        return ""
    lacks = []
    if fastest.shm.verdict != ShmVerdict.FITS:
        lacks.append(f"{format_mib(fastest.shm.max_bytes)} MiB of /dev/shm free")
    if fastest.memory and not fastest.memory.fits:
        lacks.append(f"{format_mib(fastest.memory.total_bytes)} MiB of memory available")
    return (
        f" With {' and '.join(lacks)}, {fastest.workers} workers:"
        f" {format_seconds(fastest.forecast.epoch_s)} s."
    )


def bottleneck_text(
    loader: MeasuredLoader, calibration: Calibration, row: Row, rows: Sequence[Row] = ()
) -> str:
    """Returns a sentence on what bounds the epoch of this row most, with its rate and a remedy.

    `rows` are the forecasts for all numbers of workers.
    """
    costs = calibration.loader
    alone_s = time_bounds(loader, calibration, row)
    takes = calibration.accelerator_clips_per_s()
    makes = format_rate(preparation_rate(calibration, row.workers))
    workers = _workers(row.workers, costs.cores)
    match max(alone_s, key=lambda name: alone_s[name]):
        case "accelerator":
            text = (
                f"the accelerator. It takes {format_rate(takes)}, and {workers} can prepare"
                f" {makes}: only a faster step gains much."
            )
        case "preparation":
            demand = _accelerator_demand(calibration, takes, _missing_room(row, rows))
            text = f"preparation, at {makes} by {workers}{demand}"
        case "reads":
            reads = format_rate(calibration.reading_clips_per_s(row.workers))
            text = (
                f"reads, at {reads} by {workers}. Preparation alone could reach {makes}: use"
                " faster storage or a cache."
            )
        case "cores":
            rate = format_rate(loader.batches * costs.batch_size / alone_s["cores"])
            text = (
                "the cores. Preparation and a step that computes on the host share"
                f" {costs.cores:g} of them, and reach {rate} at most."
            )
        case _:
            text = _starting_text(loader, row, alone_s["starting"])
    return f"Next bottleneck: {text}"


def _starting_text(loader: MeasuredLoader, row: Row, starting_s: float) -> str:
    """Returns the end of a sentence on an epoch that starting workers bounds."""
    remedy = (
        "use smaller batches."
        if loader.persistent
        else "persistent_workers=True starts the workers only once."
    )
    return (
        f"starting. Workers and the first batch take {format_seconds(starting_s)} s of"
        f" {format_seconds(row.forecast.epoch_s)}: {remedy}"
    )


def _workers(workers: int, cores: float) -> str:
    """Returns the number of workers as text, or names the training process for 0."""
    return (
        f"{workers} worker{'s' * (workers > 1)} on {format_cores(cores)}"
        if workers
        else "the training process itself"
    )


def _missing_room(row: Row, rows: Sequence[Row]) -> str:
    """Returns what lacks room for more workers than in this row, as the end of a sentence."""
    larger = [other for other in rows if other.workers > row.workers]
    missing = ["/dev/shm"] if any(other.shm.verdict != ShmVerdict.FITS for other in larger) else []
    missing += (
        ["memory"]
        if any(other.memory is not None and not other.memory.fits for other in larger)
        else []
    )
    return f", if {' and '.join(missing)} had room for them" if missing else ""


def _accelerator_demand(calibration: Calibration, takes: float, missing_room: str) -> str:
    """Returns the end of a sentence on what would satisfy the accelerator."""
    if math.isinf(takes):
        return ". With --step, the advice shows whether that is enough."
    times = takes / calibration.preparation_clips_per_s()
    if times <= 1:
        return (
            f", and the accelerator could take {format_rate(takes)}: more workers would prepare"
            f" as many{missing_room}."
        )
    cores = math.ceil(calibration.loader.cores * times)
    return (
        f", and the accelerator could take {format_rate(takes)}: that needs {cores} cores, or"
        f" samples that need {1 / times:.0%} of their present CPU time."
    )
