"""Table 2: where an epoch goes, by number of loader workers.

The one idea is two axes beside each other. On the host's, start, fill, wait, step and other are all of an epoch, in seconds; on the
accelerator's, it is busy or it pauses. Whether the batch was ready when the loop asked, and the cores that were at work, say why. Size of
/dev/shm changes whether a trial runs and not how its time is spent, so a worker count has one row, from the largest size that it has
times for. Which trials were disturbed is said once, below table 1: there is no table 2 without one. `epoch_parts` gives the figures,
`tables` the page.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.page import WIDTH, decimals, grid, heading, spread
from analysis.runs import Comparable
from analysis.tradeoff import SHM, WORKERS, groups, timed
from sweeps.names import written

SPANS = ("start_s", "fill_s", "wait_s", "step_s", "other_s")
MEDIANS = (*SPANS, "epoch_s", "clips_per_s", "busy_fraction", "stall_steps", "max_gap_s", "occupancy", "shm_peak_bytes", "read_bytes")
HOST = ("start", "fill", "wait", "step", "other", "epoch", "clips\n/s")
ACCELERATOR = ("busy\n%", "stalls", "gap\ns", "ready\n%", "cores", "peak\nMiB", "read\nMiB")
CAPTION = (
    "Medians over {trials}. The host's seconds: start makes workers, fill awaits the first batch, wait the later ones. The accelerator's: "
    "busy, of the epoch; stalls, steps it idled over 1 ms for; gap, its longest pause. Ready: batches there when asked for. Cores: CPU "
    "seconds a second, workers' and all. Peak: of /dev/shm. Read: from storage; 0.0 came from the page cache."
)


def epoch_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 2 as a tidy frame, a row a worker count, from the frame of `runs.sweep_runs`.

    Columns: sweep, block, varied, surroundings (str; the table the row belongs to), num_workers (int), shm_size (str, '64M' or 'node'), n,
    older (int: trials with these figures, and timed trials that were recorded before there were such figures), device (str), cores (float:
    CPU seconds of training and workers over epoch_s), machine_cores (float), preparing (float: CPU seconds of workers over epoch_s, for
    each of the workers that can compute at once; NaN at 0 workers), main_cpu_s (float), and the median over n trials of each name in
    MEDIANS, in its unit there (float, NaN where not measured: occupancy has no meaning at 0 workers). Blocks without a table 1 are left
    out.
    """
    return pd.DataFrame([row for group in groups(frame) for row in _rows(group)])


def epoch_parts_of(group: Comparable) -> pd.DataFrame:
    """The rows of one table 2."""
    return pd.DataFrame(_rows(group))


def tables(frame: pd.DataFrame, markdown: bool = False) -> list[str]:
    """Table 2 as text, one beside each table 1 whose trials have these figures."""
    return [_table(group, rows, markdown) for group in groups(frame) if not (rows := epoch_parts_of(group)).empty]


def _rows(group: Comparable) -> Iterator[dict[str, Any]]:
    told, with_time = _told(group.trials), timed(group.trials)
    for workers, alike in told.groupby(WORKERS):
        size = None if alike[SHM].isna().any() else int(alike[SHM].max())  # the node's own counts as the largest
        yield {
            **group.labels,
            "num_workers": int(workers),
            "shm_size": written(SHM, size),
            **parts(alike[alike[SHM].isna() if size is None else alike[SHM] == size]),
            "older": int((with_time[WORKERS] == workers).sum()) - len(alike),
        }


def _told(trials: pd.DataFrame) -> pd.DataFrame:
    """The timed trials that have these figures."""
    with_time = timed(trials)
    return with_time[with_time[list(SPANS)].notna().all(axis=1)]


def parts(trials: pd.DataFrame) -> dict[str, Any]:
    """Where the epochs of trials of one number of workers go; the columns are those of `epoch_parts`."""
    trials = _told(trials)
    if trials.empty:
        return {"n": 0}
    workers, machine_cores = int(trials[WORKERS].iloc[0]), float(pd.to_numeric(trials["cores"]).iloc[0])
    return {
        "n": len(trials),
        "device": trials["device"].iloc[0],
        "cores": _cores(trials).median(),
        "machine_cores": machine_cores,
        "preparing": (trials["worker_cpu_s"] / trials["epoch_s"]).median() / min(workers, machine_cores) if workers else math.nan,
        "main_cpu_s": trials["main_cpu_s"].median(),
        **{name: trials[name].median() for name in MEDIANS},
    }


def _cores(trials: pd.DataFrame) -> pd.Series:
    """Cores at work on average. Without workers there is no CPU time of theirs; with workers, a missing one is not zero."""
    of_workers = trials["worker_cpu_s"].mask(trials[WORKERS] == 0, 0.0)
    return (trials["main_cpu_s"] + of_workers) / trials["epoch_s"]


def _table(group: Comparable, rows: pd.DataFrame, markdown: bool) -> str:
    size = f" at shm {_usual(rows)}" if group.trials[SHM].nunique(dropna=False) > 1 else ""
    title = heading(f"Where an epoch goes{size}", rows.iloc[0], markdown)
    digits = decimals(rows["epoch_s"].min())
    caption = CAPTION.format(trials=_counts(rows))
    notes = [caption if markdown else textwrap.fill(caption, WIDTH), *_sizes(rows), *_shipped(group), *_sums(rows, digits), *_older(rows)]
    return "\n".join([title, *drawn(rows, "workers", [str(count) for count in rows["num_workers"]], markdown), *notes])


def drawn(rows: pd.DataFrame, of: str, labels: Sequence[str], markdown: bool) -> list[str]:
    """The two axes of these rows beside each other, or below where the terminal is too narrow, each row under its label."""
    digits = decimals(rows["epoch_s"].min())
    axes = {"host": (HOST, _host), "accelerator": (ACCELERATOR, _accelerator)}

    def draw(names: Sequence[str]) -> str:
        headers = [of, *(header for name in names for header in axes[name][0])]
        texts = [
            [label, *(text for name in names for text in axes[name][1](row, digits))]
            for label, row in zip(labels, rows.itertuples(), strict=True)
        ]
        return grid(headers, texts, ["right"] * len(headers), markdown)

    return spread(list(axes), draw, markdown)


def _host(row: Any, digits: int) -> list[str]:
    return [*(_figure(getattr(row, name), digits) for name in (*SPANS, "epoch_s")), _figure(row.clips_per_s, 0)]


def _accelerator(row: Any, digits: int) -> list[str]:
    mib = [value / 2**20 for value in (row.shm_peak_bytes, row.read_bytes)]
    return [
        _figure(100 * row.busy_fraction, 0),
        "-" if pd.isna(row.stall_steps) else f"{row.stall_steps:g}",
        _figure(row.max_gap_s, max(2, digits)),
        _figure(100 * row.occupancy, 0),
        _figure(row.cores, 2),
        *(_figure(value, 0 if value >= 1000 else 1) for value in mib),
    ]


def _figure(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:,.{digits}f}"


def _counts(rows: pd.DataFrame) -> str:
    """'3 trials', and where a row has another number of them, '3 trials (1 at 8 workers)'."""
    usual = int(rows["n"].mode().max())
    others = [f"{row.n} at {row.num_workers} workers" for row in rows.itertuples() if row.n != usual]
    return f"{usual} trial{'s' * (usual > 1)}" + (f" ({', '.join(others)})" if others else "")


def _usual(rows: pd.DataFrame) -> str:
    return str(rows["shm_size"].mode()[0])


def _sizes(rows: pd.DataFrame) -> list[str]:
    """Rows that are from another /dev/shm than the table's title says."""
    return [f"{row.num_workers} workers: at shm {row.shm_size}." for row in rows.itertuples() if row.shm_size != _usual(rows)]


def _shipped(group: Comparable) -> list[str]:
    """What decides how much /dev/shm is needed: the bytes of a clip in this form."""
    trials = group.trials
    if "loader.batch_size" not in trials or trials["batch_bytes"].isna().all():
        return []
    clips, size = int(trials["loader.batch_size"].iloc[0]), float(trials["batch_bytes"].max())
    return [f"A batch of {clips} clips is {size / 2**20:,.1f} MiB, {size / clips / 2**10:,.1f} KiB a clip."]


def _sums(rows: pd.DataFrame, digits: int) -> list[str]:
    """Spans add up to the epoch in every epoch; their medians need not, which is said where it shows."""
    spans = rows[list(SPANS)].round(digits).sum(axis=1)
    rounding = (len(SPANS) + 1) / 2 * 10**-digits
    shows = ((spans - rows["epoch_s"].round(digits)).abs() > rounding * 1.001).any()
    return ["Each median is taken by itself, so the spans need not add up to the epoch."] if shows else []


def _older(rows: pd.DataFrame) -> list[str]:
    older = int(rows["older"].sum())
    return [f"Not in it: {older} trials that ran before these figures were recorded."] if older else []
