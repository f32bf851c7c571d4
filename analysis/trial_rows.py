"""Converts MLflow runs and rows of the plan to rows of the frame that every table starts from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.metrics import SUMMARY
from sweeps.trial_states import SETTLED

if TYPE_CHECKING:
    from mlflow.entities import Run

SURROUNDINGS = (
    "device",
    "device_name",
    "cpu_name",
    "cores",
    "cpu_quota",
    "threads",
    "precision",
    "channels_last",
)  # tags; trials are pooled only if these are equal


def run_row(run: "Run") -> dict[str, Any]:
    """Returns the row of a run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    ended = run.info.status != "RUNNING"
    return {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "trial_id": tags["trial_id"],
        "block": tags["block"],
        "repeat": int(tags["repeat"]),
        "outcome": tags.get("outcome", "running") if ended else "running",
        "evidence": tags.get("evidence"),
        "settled": is_settled(run),
        "disturbed": disturbance(run),
        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
        **{tag: tags.get(tag) for tag in SURROUNDINGS},
        **{tag: tags.get(tag) for tag in ("node", "git_commit", "versions")},
        **{
            tag: float(tags.get(tag, "nan"))
            for tag in ("validation_clips", "warmup_epochs", "batch_bytes")
        },
        "forecast_fit": tags.get("forecast_fit"),
        **{name: metrics.get(name, float("nan")) for name in SUMMARY},
        **{name: _parameter_value(text) for name, text in params.items() if "." in name},
    }


def is_settled(run: "Run") -> bool:
    """Returns whether a run has ended with a settled outcome."""
    return run.info.status != "RUNNING" and run.data.tags.get("outcome") in SETTLED


def disturbance(run: "Run") -> str | None:
    """Returns what disturbed a run from outside; None if nothing did."""
    return run.data.tags.get("disturbed") or None


def attempt_rank(run: "Run") -> int:
    """Returns the rank of an attempt at a trial; among equal ranks the newest counts.

    The duration of an attempt has no influence.
    """
    if not is_settled(run):
        return 0
    return 1 if disturbance(run) else 2


def forecast_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a trial of the plan that is not to be measured, with a measured one's names."""
    identity = {
        name: row[name] for name in ("trial_id", "block", "repeat", "forecast_fit") if name in row
    }
    return identity | row["forecast"] | _parameters(row["config"])


def not_run_rows(
    rows: Sequence[Mapping[str, Any]], ids: set[str], frame: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Yields a dict for each trial of the plan with one of these ids.

    The plan has the swept parameters. Other parameters come from the trials of the block, if these
    agree.
    """
    shared: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["trial_id"] not in ids or "swept" not in row:
            continue
        if (block := row["block"]) not in shared:
            trials = frame[(frame["block"] == block) & frame["planned"].astype(bool)]
            values_by_column = {
                column: distinct_values(trials, column) for column in frame if "." in column
            }
            shared[block] = {
                column: next(iter(values))
                for column, values in values_by_column.items()
                if len(values) == 1
            }
        yield (
            {name: row[name] for name in ("trial_id", "block", "repeat")}
            | shared[block]
            | _parameters(row["swept"])
        )


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts parameters of the plan to the form that a trial's have in the tracker."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in config.items()
    }
    return {
        name: None if config[name] is None else _parameter_value(text)
        for name, text in texts.items()
        if "." in name
    }


def _parameter_value(text: str) -> Any:
    """Returns a parameter as it was before MLflow converted it to text.

    Lists stay text, which a frame can group by.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def distinct_values(trials: pd.DataFrame, column: str) -> set[Any]:
    """Returns the values of a column. An absent column counts as holding only None."""
    values = trials[column] if column in trials else [None] * min(len(trials), 1)
    return {None if pd.isna(value) else value for value in values}
