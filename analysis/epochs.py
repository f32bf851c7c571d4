"""Builds table 2: where an epoch goes, by number of loader workers.

The one idea is two axes beside each other. On the host's axis, start, first batch, wait, step and
other add up to an epoch, in seconds. On the accelerator's axis, it is busy or it pauses. Whether
the batch was ready when the loop requested it, and how many cores were at work, explain why. The
size of /dev/shm decides whether a trial runs, not how its time is spent. A worker count therefore
has one row, from the largest size for which it has times. Disturbed trials are listed once, below
table 1, since no table 2 stands without a table 1. `epoch_parts` returns the figures, `tables` the
text.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.comparable_groups import Comparable
from analysis.number_text import MIB, count_text, decimals, mib, or_dash
from analysis.runs import SweepRuns
from analysis.text_tables import WIDTH, grid, heading, wrap_columns
from analysis.timed_trials import timed_trials
from analysis.tradeoff import SHM, WORKERS, groups
from sweeps.names import format_parameter

SPANS = ("start_s", "first_batch_s", "data_wait_s", "step_s", "other_s")
MEDIANS = (
    *SPANS,
    "epoch_s",
    "clips_per_s",
    "busy_fraction",
    "stall_steps",
    "max_gap_s",
    "prefetch_hit_rate",
    "shm_peak_bytes",
    "read_bytes",
)
HOST = ("start", "first\nbatch", "wait", "step", "other", "epoch", "clips\n/s")
ACCELERATOR = ("busy\n%", "stall\nsteps", "gap\ns", "ready\n%", "cores", "peak\nMiB", "read\nMiB")
CAPTION = (
    "Medians over {trials}. The host's seconds: start creates workers; first batch and wait are the"
    " waits for the first and the later batches. The accelerator: busy share of the epoch; stall"
    " steps, before which it idled over 1 ms; gap, its longest pause. Ready: batches prepared when"
    " requested. Cores: CPU seconds a second, workers included. Peak: most used of /dev/shm. Read:"
    " from storage; 0.0 means from the page cache."
)


def epoch_parts(runs: SweepRuns) -> pd.DataFrame:
    """Returns table 2 as a tidy frame, a row a worker count.

    Columns:
        sweep, block, varied, surroundings   str; the table that the row belongs to
        num_workers     int
        shm_size        str, '64M' or 'node'
        n, older        int: trials with these figures, and timed trials that were recorded before
                        these figures existed
        device          str
        cores           float, CPU seconds of training and workers over epoch_s
        machine_cores   float
        preparing       float: CPU seconds of workers over epoch_s, for each of the workers that can
                        compute at once; NaN at 0 workers
        main_cpu_s      float
    Each name in MEDIANS is a column too: the median over n trials, in its unit in sweeps.metrics
    (float, NaN where not measured; prefetch_hit_rate has no meaning at 0 workers). Blocks without a
    table 1 are left out.
    """
    return pd.DataFrame([row for group in groups(runs) for row in _rows(group)])


def epoch_parts_of(group: Comparable) -> pd.DataFrame:
    """Returns the rows of one table 2."""
    return pd.DataFrame(_rows(group))


def tables(runs: SweepRuns, markdown: bool = False) -> list[str]:
    """Returns table 2 as texts, one beside each table 1 whose trials have these figures."""
    return [
        _table(group, rows, markdown)
        for group in groups(runs)
        if not (rows := epoch_parts_of(group)).empty
    ]


def _rows(group: Comparable) -> Iterator[dict[str, Any]]:
    """Yields a row for each worker count of a group."""
    with_figures, with_time = _with_figures(group.trials), timed_trials(group.trials)
    for workers, same_count in with_figures.groupby(WORKERS):
        # The node's own size counts as the largest.
        size = None if same_count[SHM].isna().any() else int(same_count[SHM].max())
        yield {
            **group.labels,
            "num_workers": int(workers),
            "shm_size": format_parameter(SHM, size),
            **parts(
                same_count[same_count[SHM].isna() if size is None else same_count[SHM] == size]
            ),
            "older": int((with_time[WORKERS] == workers).sum()) - len(same_count),
        }


def _with_figures(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the timed trials that have these figures."""
    with_time = timed_trials(trials)
    return with_time[with_time[list(SPANS)].notna().all(axis=1)]


def parts(trials: pd.DataFrame) -> dict[str, Any]:
    """Returns where the epochs of trials with one number of workers go.

    The keys are columns of `epoch_parts`.
    """
    trials = _with_figures(trials)
    if trials.empty:
        return {"n": 0}
    workers, machine_cores = (
        int(trials[WORKERS].iloc[0]) * rank_count(trials),
        float(pd.to_numeric(trials["cores"]).iloc[0]),
    )
    return {
        "n": len(trials),
        "device": trials["device"].iloc[0],
        "cores": _cores(trials).median(),
        "machine_cores": machine_cores,
        "preparing": (
            (trials["worker_cpu_s"] / trials["epoch_s"]).median() / min(workers, machine_cores)
            if workers
            else math.nan
        ),
        "main_cpu_s": trials["main_cpu_s"].median(),
        **{name: trials[name].median() for name in MEDIANS},
    }


def rank_count(trials: pd.DataFrame) -> int:
    """Returns the number of ranks of trials that differ in other parameters only."""
    known = trials["device.ranks"].dropna() if "device.ranks" in trials else ()
    return int(max(known, default=1))


def _cores(trials: pd.DataFrame) -> pd.Series:
    """Returns the average number of cores at work in each trial.

    At 0 workers the CPU time of workers is zero. With workers, a missing CPU time stays missing.
    """
    worker_cpu_s = trials["worker_cpu_s"].mask(trials[WORKERS] == 0, 0.0)
    return (trials["main_cpu_s"] + worker_cpu_s) / trials["epoch_s"]


def _table(group: Comparable, rows: pd.DataFrame, markdown: bool) -> str:
    """Returns one table 2 as text."""
    size = f" at shm {_usual_size(rows)}" if group.trials[SHM].nunique(dropna=False) > 1 else ""
    title = heading(f"Where an epoch goes{size}", rows.iloc[0], markdown)
    digits = decimals(rows["epoch_s"].min())
    caption = CAPTION.format(trials=_trial_counts(rows))
    notes = [
        caption if markdown else textwrap.fill(caption, WIDTH),
        *_size_notes(rows),
        *_batch_size_note(group),
        *_rounding_note(rows, digits),
        *_older_note(rows),
    ]
    return "\n".join(
        [
            title,
            *draw_parts(rows, "workers", [str(count) for count in rows["num_workers"]], markdown),
            *notes,
        ]
    )


def draw_parts(
    rows: pd.DataFrame, label_header: str, labels: Sequence[str], markdown: bool
) -> list[str]:
    """Returns the two axes of these rows side by side, or one below the other.

    The terminal's width decides. Each row begins with its label.
    """
    digits = decimals(rows["epoch_s"].min())
    axes = {"host": (HOST, _host), "accelerator": (ACCELERATOR, _accelerator)}

    def draw(names: Sequence[str]) -> str:
        """Returns the axes with these names as one table."""
        headers = [label_header, *(header for name in names for header in axes[name][0])]
        texts = [
            [label, *(text for name in names for text in axes[name][1](row, digits))]
            for label, row in zip(labels, rows.itertuples(), strict=True)
        ]
        return grid(headers, texts, ["right"] * len(headers), markdown)

    return wrap_columns(list(axes), draw, markdown)


def _host(row: Any, digits: int) -> list[str]:
    """Returns the texts of the host's axis."""
    return [
        *(or_dash(getattr(row, name), f",.{digits}f") for name in (*SPANS, "epoch_s")),
        or_dash(row.clips_per_s, ",.0f"),
    ]


def _accelerator(row: Any, digits: int) -> list[str]:
    """Returns the texts of the accelerator's axis."""
    sizes = [value / MIB for value in (row.shm_peak_bytes, row.read_bytes)]
    return [
        or_dash(100 * row.busy_fraction, ",.0f"),
        or_dash(row.stall_steps, "g"),
        or_dash(row.max_gap_s, f",.{max(2, digits)}f"),
        or_dash(100 * row.prefetch_hit_rate, ",.0f"),
        or_dash(row.cores, ",.2f"),
        *(or_dash(size, ",.0f" if size >= 1000 else ",.1f") for size in sizes),
    ]


def _trial_counts(rows: pd.DataFrame) -> str:
    """Returns '3 trials', or '3 trials (1 at 8 workers)' if a row has another number of them."""
    usual = int(rows["n"].mode().max())
    others = [
        f"{row.n} at {row.num_workers} workers" for row in rows.itertuples() if row.n != usual
    ]
    return count_text(usual, "trial") + (f" ({', '.join(others)})" if others else "")


def _usual_size(rows: pd.DataFrame) -> str:
    """Returns the most frequent size of /dev/shm."""
    return str(rows["shm_size"].mode()[0])


def _size_notes(rows: pd.DataFrame) -> list[str]:
    """Returns a note for each row whose /dev/shm differs from that of the table's title."""
    return [
        f"{row.num_workers} workers: at shm {row.shm_size}."
        for row in rows.itertuples()
        if row.shm_size != _usual_size(rows)
    ]


def _batch_size_note(group: Comparable) -> list[str]:
    """Returns the bytes of a batch and of a clip in this format.

    They decide how much /dev/shm is needed.
    """
    trials = group.trials
    # Of joined sweeps, one may have recorded neither figure
    known = trials.reindex(columns=["loader.batch_size", "batch_bytes"]).dropna()
    if known.empty:
        return []
    clips, size = int(known["loader.batch_size"].iloc[0]), float(known["batch_bytes"].max())
    return [f"A batch of {clips} clips is {mib(size)}, {size / clips / 2**10:,.1f} KiB a clip."]


def _rounding_note(rows: pd.DataFrame, digits: int) -> list[str]:
    """Returns a note if the medians of the spans visibly do not add up to the epoch.

    Spans add up in every epoch, but their medians need not.
    """
    spans = rows[list(SPANS)].round(digits).sum(axis=1)
    rounding = (len(SPANS) + 1) / 2 * 10**-digits
    shows = ((spans - rows["epoch_s"].round(digits)).abs() > rounding * 1.001).any()
    return (
        ["Each median is computed separately, so the spans need not add up to the epoch."]
        if shows
        else []
    )


def _older_note(rows: pd.DataFrame) -> list[str]:
    """Returns a note on trials that ran before these figures were recorded."""
    older = int(rows["older"].sum())
    return (
        [f"Excluded: {older} trials that ran before these figures were recorded."] if older else []
    )
