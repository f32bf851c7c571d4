"""The report of a sweep: one HTML file that needs no network, with what to choose first and all that it rests on below.

The one idea is that it adds nothing: the tables are those of tables.md, the pictures those of plots.py, cycle_plots.py and stalls.py, drawn
from the tracker alone. Pictures lie inside the file and there is no script, so it opens in MLflow's artifact view, in a mail, and prints.
"""

import base64
import contextlib
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from analysis import cycle_choice, cycle_plots, plots, recommendation, stalls
from analysis.filters import matching
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, SURROUNDINGS, joined_runs, sweep_yaml
from analysis.series import trial_records
from analysis.tables import head, of_blocks, rebuild_command
from analysis.tradeoff import SHM, WORKERS, groups
from sweeps.tracker import connect

FILE = "report.html"
INLINE = ["image", "link", "autolink", "emphasis", "backticks", "escape", "entity"]  # of Markdown; the report writes none
DRAWN: tuple[tuple[str, Callable[[pd.DataFrame], Figure]], ...] = (  # of a block: what a picture shows, and who draws it
    ("Epoch seconds by loader workers, with the forecast", plots.epoch_seconds),
    ("Where an epoch goes, by loader workers", plots.where_epochs_go),
    ("What was taken of /dev/shm, by loader workers", plots.shm_peaks),
    ("Learning rate, loss and accuracy by epoch", cycle_plots.training_course),
    ("Accuracy of the ensemble by its number of snapshots", cycle_plots.ensemble_accuracy),
    ("How much the snapshots of a run disagree", cycle_plots.snapshot_disagreement),
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1.05rem; }
.choice { border-left: 4px solid #0072B2; background: #f3f7fa; padding: .1rem 1rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom-color: #888; } .words td { white-space: normal; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .8rem; } code { overflow-wrap: anywhere; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; } table { font-size: 7pt; } th, td { padding: .1rem .25rem; white-space: normal; }
  pre { white-space: pre-wrap; } img, .table, .choice { break-inside: avoid; } h1, h2, h3 { break-after: avoid; }
}
"""


def report(
    name: str | Sequence[str], uri: str = DEFAULT_URI, experiment: str = DEFAULT_EXPERIMENT, filters: Sequence[str] = ()
) -> str:  # fmt: skip
    """The HTML of one sweep or of several, of the trials that `filters` leave (filters.py). LookupError: no such sweep, or none is left."""
    names = [name] if isinstance(name, str) else name
    frame = matching(joined_runs(names, uri, experiment), filters)
    title = f"Sweep {frame.attrs['sweep']}"
    flags = [*(word for text in filters for word in ("--where", text)), "--out", "report"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _choice(frame),
        _marked(head(frame, markdown=True).removeprefix("## ")),
        *(part for block, trials in frame.groupby("block", sort=False) for part in _block(str(block), trials)),
        "<h2>What was disturbed</h2>",
        _disturbed(frame),
        "<h2>Machines and versions</h2>",
        _machines(frame),
        "<h2>The file</h2>",
        *(f"<pre>{html.escape(sweep_yaml(name, uri, experiment))}</pre>" for name in names),
        "<h2>Once more</h2>",
        f"<p>This report from the tracker alone: <code>{html.escape(rebuild_command(names, uri, experiment, flags))}</code></p>",
    ]
    return _page(title, parts)


def write(text: str, folder: Path) -> Path:
    """Writes the report into `folder`, which is made; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    file.write_text(text, "utf-8")
    return file


def _page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _marked(markdown: str) -> str:
    """Markdown's headings, lists and tables as HTML. What stands in them stays text: evidence is quoted, whatever it looks like."""
    made = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable(INLINE).render(markdown)
    return made.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def _choice(frame: pd.DataFrame) -> str:
    texts = [text for of in (recommendation.sentences, cycle_choice.sentences) for text in of(frame, markdown=True)]
    return f'<div class="choice">{_marked(chr(10).join(f"- {text}" for text in texts))}</div>' if texts else ""


def _block(block: str, trials: pd.DataFrame) -> Iterator[str]:
    """Its tables, then its pictures."""
    yield f"<h2>Block {html.escape(block)}</h2>"
    shown = [_marked(text) for text in of_blocks(trials, markdown=True)]
    for name, draw in DRAWN:
        with contextlib.suppress(LookupError):  # a block has the pictures that it has figures for
            shown.append(_image(draw(trials), name))
    shown += [_image(figure, "Who waited for whom in one epoch") for figure in _stalls(trials)]
    yield from shown or ["<p>No table and no picture: none of its trials has the figures for one.</p>"]


def _stalls(frame: pd.DataFrame) -> Iterator[Figure]:
    """One epoch of each group's recommended cell, or else of its fastest: that of the trial of median time, where its records are kept."""
    for group in groups(frame):
        advice = recommendation.advise(group)
        if not (cell := advice.cell or advice.fastest):
            continue
        trials = group.trials[group.trials[WORKERS] == cell.workers]
        trials = trials[trials[SHM].isna() if cell.shm_bytes == float("inf") else trials[SHM] == cell.shm_bytes].sort_values("epoch_s")
        trial = trials.iloc[(len(trials) - 1) // 2]
        with contextlib.suppress(LookupError):
            yield stalls.picture(trial_records(connect(frame.attrs["uri"]), trial["run_id"]), trial["run_name"])


def _image(figure: Figure, shown: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=plots.DPI)
    width = round(96 * figure.get_figwidth())  # CSS pixels
    return f'<img alt="{html.escape(shown)}" width="{width}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _disturbed(frame: pd.DataFrame) -> str:
    """Every trial that something outside disturbed, and whether a quiet attempt stands for it."""
    if frame.empty or not (disturbed := frame[(frame["disturbances"] > 0) & frame["planned"]]).size:
        return "<p>Nothing: no settled trial was disturbed from outside.</p>"
    rows = [
        [trial.run_name, trial.disturbed if pd.notna(trial.disturbed) else "ran again, quietly", trial.disturbances, trial.attempts]
        for trial in disturbed.itertuples()
    ]
    return _table(["trial", "what disturbed it", "disturbed runs", "runs"], rows)


def _machines(frame: pd.DataFrame) -> str:
    """What the trials ran on and with, a row for each that differs."""
    columns = [name for name in ("node", *SURROUNDINGS, "git_commit", "versions") if name in frame]
    counted = frame.groupby(columns, dropna=False, sort=False).size() if len(frame) and columns else pd.Series(dtype=int)
    rows = [[*(_said(value) for value in values), count] for values, count in counted.items()]
    return _table([*columns, "trials"], rows) if rows else "<p>No trial has run.</p>"


def _said(value: Any) -> str:
    if pd.isna(value):
        return "-"
    try:
        return ", ".join(f"{name} {version}" for name, version in json.loads(value).items())
    except (ValueError, AttributeError):  # a plain text or number
        return str(value)


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    return f'<div class="table words"><table><tr>{top}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
