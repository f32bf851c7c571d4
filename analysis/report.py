"""Builds the report of a sweep: one HTML file that needs no network.

The recommendations come first, and the figures that they rest on below. The one idea is that the
report adds nothing. Its tables are those of tables.md, and its pictures those of the modules with
`plot` in their names and of epoch_timeline.py, drawn from the tracker alone. Pictures are embedded
and there is no script, so the file opens in MLflow's artifact view and in a mail, and prints.
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
from matplotlib import style
from matplotlib.figure import Figure

from analysis import (
    cycle_plots,
    cycle_recommendation,
    ensemble_plot,
    epoch_parts_plot,
    epoch_time_plot,
    epoch_timeline,
    panels,
    recommendation,
    shm_plot,
)
from analysis.filters import filter_trials
from analysis.runs import (
    DEFAULT_EXPERIMENT,
    DEFAULT_URI,
    SweepRuns,
    join_sweep_runs,
    sweep_yaml,
)
from analysis.series import trial_records
from analysis.tables import block_tables, head, rebuild_command
from analysis.tradeoff import SHM, WORKERS, groups
from analysis.trial_rows import SURROUNDINGS
from sweeps.tracking.mlflow_client import connect

FILE = "report.html"
# Markdown rules that are disabled, since the report uses none
INLINE = ["image", "link", "autolink", "emphasis", "backticks", "escape", "entity"]
# pictures of a block: what each shows, and the function that draws it
PICTURES: tuple[tuple[str, Callable[[SweepRuns], Figure]], ...] = (
    ("Epoch seconds by loader workers, with the forecast", epoch_time_plot.epoch_seconds),
    ("Where an epoch goes, by loader workers", epoch_parts_plot.where_epochs_go),
    ("Use of /dev/shm by loader workers", shm_plot.shm_peaks),
    ("Learning rate, loss and accuracy by epoch", cycle_plots.training_course),
    ("Accuracy of the ensemble by its number of snapshots", ensemble_plot.ensemble_accuracy),
    ("Disagreement between the snapshots of a run", cycle_plots.snapshot_disagreement),
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.3rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1.05rem; }
.choice { border-left: 4px solid #0072B2; background: #f3f7fa; padding: .1rem 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; white-space: nowrap; }
th { border-bottom-color: #888; } .words td { white-space: normal; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .8rem; }
code { overflow-wrap: anywhere; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  table { font-size: 7pt; }
  th, td { padding: .1rem .25rem; white-space: normal; }
  pre { white-space: pre-wrap; } img, .table, .choice { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
}
"""


# A matplotlibrc of the user or of this folder must not change these pictures.
@style.context("default")
def build_report(
    name: str | Sequence[str],
    uri: str = DEFAULT_URI,
    experiment: str = DEFAULT_EXPERIMENT,
    filters: Sequence[str] = (),
) -> str:
    """Returns the HTML of one or several sweeps, for the trials that `filters` select (filters.py).

    Raises LookupError if there is no such sweep or no trial remains.
    """
    names = [name] if isinstance(name, str) else name
    runs = filter_trials(join_sweep_runs(names, uri, experiment), filters)
    title = f"Sweep {runs.name}"
    flags = [*(word for text in filters for word in ("--where", text)), "--out", "report"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _recommendations(runs),
        _markdown_to_html(head(runs, markdown=True).removeprefix("## ")),
        *(part for block, trials in runs.blocks() for part in _block(block, trials)),
        "<h2>Disturbed trials</h2>",
        _disturbances(runs.trials),
        "<h2>Machines and versions</h2>",
        _machines(runs.trials),
        "<h2>Sweep file</h2>",
        *(f"<pre>{html.escape(sweep_yaml(name, uri, experiment))}</pre>" for name in names),
        "<h2>Rebuild this report</h2>",
        (
            "<p>This command builds the report again, from the tracker alone:"
            f" <code>{html.escape(rebuild_command(names, uri, experiment, flags))}</code></p>"
        ),
    ]
    return _html_page(title, parts)


def write_report(text: str, folder: Path) -> Path:
    """Writes the report into `folder`, which is created if needed, and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    file.write_text(text, "utf-8")
    return file


def _html_page(title: str, parts: Sequence[str]) -> str:
    """Returns a whole HTML page."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _markdown_to_html(markdown: str) -> str:
    """Converts Markdown's headings, lists and tables to HTML.

    Their contents stay plain text, since quoted evidence may look like markup.
    """
    html_text = (
        MarkdownIt("commonmark", {"html": False, "breaks": True})
        .enable("table")
        .disable(INLINE)
        .render(markdown)
    )
    return html_text.replace("<table>", '<div class="table"><table>').replace(
        "</table>", "</table></div>"
    )


def _recommendations(runs: SweepRuns) -> str:
    """Returns the recommendations as an HTML list; '' if there are none."""
    texts = [
        text
        for build_sentences in (recommendation.sentences, cycle_recommendation.sentences)
        for text in build_sentences(runs, markdown=True)
    ]
    return (
        "<div"
        f' class="choice">{_markdown_to_html(chr(10).join(f"- {text}" for text in texts))}</div>'
        if texts
        else ""
    )


def _block(block: str, runs: SweepRuns) -> Iterator[str]:
    """Yields the heading of a block, its tables, then its pictures."""
    yield f"<h2>Block {html.escape(block)}</h2>"
    shown = [_markdown_to_html(text) for text in block_tables(runs, markdown=True)]
    for name, draw in PICTURES:
        # a block lacks the pictures for which it has no figures
        with contextlib.suppress(LookupError):
            shown.append(_image(draw(runs), name))
    shown += [_image(figure, "Timeline of one epoch") for figure in _timelines(runs)]
    yield from shown or [
        "<p>No table and no picture: no trial of this block has the required figures.</p>"
    ]


def _timelines(runs: SweepRuns) -> Iterator[Figure]:
    """Yields one epoch of the recommended, or else the fastest, cell of each group.

    The epoch is of the trial of median time. A trial without records in the tracker has no picture.
    """
    for group in groups(runs):
        advice = recommendation.advise_workers(group)
        if not (cell := advice.cell or advice.fastest):
            continue
        trials = group.trials[group.trials[WORKERS] == cell.workers]
        trials = trials[
            trials[SHM].isna() if cell.shm_bytes == float("inf") else trials[SHM] == cell.shm_bytes
        ].sort_values("epoch_s")
        trial = trials.iloc[(len(trials) - 1) // 2]
        with contextlib.suppress(LookupError):
            yield epoch_timeline.draw_epoch(
                trial_records(connect(runs.uri, read_only=True), trial["run_id"]),
                trial["run_name"],
            )


def _image(figure: Figure, description: str) -> str:
    """Returns an HTML image with the figure embedded as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=panels.DPI)
    width = round(96 * figure.get_figwidth())  # CSS pixels
    return (
        f'<img alt="{html.escape(description)}" width="{width}"'
        f' src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
    )


def _disturbances(trials: pd.DataFrame) -> str:
    """Returns a table of the disturbed trials, and whether a quiet attempt replaced each."""
    if (
        trials.empty
        or not (disturbed := trials[(trials["disturbances"] > 0) & trials["planned"]]).size
    ):
        return "<p>No settled trial was disturbed from outside.</p>"
    rows = [
        [
            trial.run_name,
            trial.disturbed if pd.notna(trial.disturbed) else "ran again undisturbed",
            trial.disturbances,
            trial.attempts,
        ]
        for trial in disturbed.itertuples()
    ]
    return _table(["trial", "cause", "disturbed runs", "runs"], rows)


def _machines(trials: pd.DataFrame) -> str:
    """Returns a table of the machines and versions, a row for each distinct combination."""
    columns = [name for name in ("node", *SURROUNDINGS, "git_commit", "versions") if name in trials]
    counted = (
        trials.groupby(columns, dropna=False, sort=False).size()
        if len(trials) and columns
        else pd.Series(dtype=int)
    )
    rows = [[*(_value_text(value) for value in values), count] for values, count in counted.items()]
    return _table([*columns, "trials"], rows) if rows else "<p>No trial has run.</p>"


def _value_text(value: Any) -> str:
    """Returns the text of a value; versions in JSON become 'name version' pairs."""
    if pd.isna(value):
        return "-"
    try:
        return ", ".join(f"{name} {version}" for name, version in json.loads(value).items())
    except (ValueError, AttributeError):  # plain text or a number
        return str(value)


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns an HTML table of texts."""
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    return (
        f'<div class="table words"><table><tr>{top}</tr>'
        f"{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"
    )
