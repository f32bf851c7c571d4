"""Tests the notes of runs: the varied parameters, the outcome, and figures with their units.

How MLflow shows them is tested in tests/test_browser.py.
"""

import json
import re

from sweeps.metrics import METRICS
from sweeps.names import format_parameter
from sweeps.sandbox.outcome import ClassifiedOutcome
from sweeps.tracking import notes
from sweeps.trial_states import Outcome

SWEPT = {"loader.num_workers": "4", "loader.shm_size": "64M"}
HEADING = notes.TrialHeading("workers", 2, SWEPT)
PLAN = [
    {
        "trial_id": "a",
        "block": "workers",
        "repeat": 1,
        "swept": {"loader.num_workers": 16, "loader.shm_size": 64 << 20},
    },
    {
        "trial_id": "b",
        "block": "workers",
        "repeat": 2,
        "swept": {"loader.num_workers": 4, "loader.shm_size": 64 << 20},
    },
    {"trial_id": "c", "block": "cycles", "repeat": 1, "swept": {}},
]


def ended(
    outcome="completed",
    evidence="the schedule ran to its end",
    disturbed=None,
    artifacts=(),
    **figures,
) -> str:
    return notes.ended_trial_note(
        HEADING, ClassifiedOutcome(Outcome(outcome), evidence), figures, disturbed, artifacts
    )


def data_of(line: str) -> list[str]:
    """Returns the bold names, the code spans and the numbers with their units, in order."""
    return re.findall(r"\*\*[^*]+\*\*|`[^`]+`|\d[\d.]*[A-Z]?(?: (?:s|%)(?!\w))?", line.rstrip("."))


def test_the_note_of_a_sweep_lists_what_each_block_varies() -> None:
    lines = notes.sweep_note(
        "first-look", PLAN, format_parameter, "python -m analysis first-look", "7"
    ).splitlines()
    assert data_of(lines[0]) == ["**first-look**", "3"]
    assert [data_of(line) for line in lines[2:4]] == [
        ["**workers**", "2", "2", "`loader.num_workers`", "4", "16", "`loader.shm_size`", "64M"],
        ["**cycles**", "1", "1"],
    ]
    assert "nothing" in lines[3]
    assert "(#/experiments/7/runs?viewStateShareKey=first-look)" in lines[5]
    assert lines[-1].endswith("`python -m analysis first-look`")


def test_a_launch_replaces_the_outcomes_in_the_note_of_a_sweep() -> None:
    begun = notes.sweep_note("s", PLAN, format_parameter, "", "1")
    once = notes.ended_sweep_note(begun, ["completed", "shm_exhausted", "completed"])
    assert once.startswith(begun + "\n\n")
    assert once.endswith("2 completed, 1 shm_exhausted.")
    again = notes.ended_sweep_note(once, [])
    assert again.startswith(begun + "\n\n")
    assert "no trial" in again.removeprefix(begun)
    assert "completed" not in again.removeprefix(begun)


def test_the_note_of_a_trial_begins_with_its_parameters_its_outcome_and_its_time() -> None:
    note = ended(epoch_s=1.548, ensemble_accuracy=0.8407, evidence="it `ended`")
    assert [data_of(line) for line in note.splitlines()[:3]] == [
        ["**workers**", "2", "`loader.num_workers`", "4", "`loader.shm_size`", "64M"],
        [],
        ["**completed**", "1.55 s", "84.1 %", "`it ended`"],
    ]
    assert notes.trial_note(HEADING).splitlines()[0] == note.splitlines()[0]


def test_figures_have_their_units_and_their_forecasts() -> None:
    foreseen = {
        "forecast_epoch_s": 1.6,
        "forecast_epoch_low_s": 1.32,
        "forecast_epoch_high_s": 1.9,
        "forecast_shm_peak_bytes": 36 << 20,
    }
    note = ended(
        epoch_s=1.548,
        wait_fraction=0.316,
        clips_per_s=804.6,
        shm_peak_bytes=55.2 * 2**20,
        **foreseen,
    )
    assert note.split("\n\n")[2].splitlines() == [
        f"- **1.55 s** `epoch_s`, forecast 1.6 s (1.32 to 1.9): {METRICS['epoch_s'][1]}",
        f"- **31.6 %** `wait_fraction`: {METRICS['wait_fraction'][1]}",
        f"- **805 clips/s** `clips_per_s`: {METRICS['clips_per_s'][1]}",
        f"- **55.2 MiB** `shm_peak_bytes`, forecast 36.0 MiB: {METRICS['shm_peak_bytes'][1]}",
    ]


def test_a_note_omits_missing_figures_and_disturbances() -> None:
    note = ended(
        "shm_exhausted",
        "/dev/shm of 64.0 MiB",
        artifacts=["records.jsonl", "snapshots/snapshot-0.pt", "snapshots/snapshot-1.pt"],
    )
    assert "epoch" not in note.split("Artifacts")[0]
    assert "Disturbed" not in note
    assert [line.split(":")[0] for line in note.splitlines() if line.startswith("- ")] == [
        "- `records.jsonl`",
        "- `snapshots`",
    ]
    (line,) = [
        line for line in ended(disturbed="a compiler").splitlines() if line.startswith("Disturbed")
    ]
    assert "a compiler" in line


def test_a_view_has_the_format_of_mlflow_and_only_columns_that_are_logged() -> None:
    saved = json.loads(notes.runs_view("first-look", PLAN, 1_795_000_000_000))
    state = json.loads(saved["state"])
    assert (saved["name"], saved["createdAt"]) == ("first-look", 1_795_000_000_000)
    assert state["searchFilter"] == "tags.sweep = 'first-look'"
    assert state["selectedColumns"][:3] == [
        "tags.`loader.num_workers`",
        "tags.`loader.shm_size`",
        "tags.`outcome`",
    ]
    figures = [
        column[len("metrics.`") : -1]
        for column in state["selectedColumns"]
        if column.startswith("metrics.")
    ]
    assert figures
    assert set(figures) | set(notes.FIGURES) <= METRICS.keys()
    assert state["columnOrder"][-len(state["selectedColumns"]) :] == state["selectedColumns"]
