"""Notes as a reader needs them: what was varied, how it ended, figures with units. How MLflow shows
them: tests/test_browser.py."""

import json

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


def test_a_sweeps_note_says_what_each_block_varies() -> None:
    lines = notes.sweep_note(
        "first-look", PLAN, format_parameter, "python -m analysis first-look", "7"
    ).splitlines()
    assert lines[0].startswith("**first-look**: a sweep of 3 trials")
    assert lines[2:4] == [
        "- **workers**, 2 trials, 2 repeats: `loader.num_workers` 4, 16; `loader.shm_size` 64M",
        "- **cycles**, 1 trial, 1 repeat: nothing is varied",
    ]
    assert "(#/experiments/7/runs?viewStateShareKey=first-look)" in lines[5]
    assert lines[-1].endswith("`python -m analysis first-look`")


def test_how_a_sweeps_trials_ended_is_said_once_however_often_it_is_launched() -> None:
    begun = notes.sweep_note("s", PLAN, format_parameter, "", "1")
    once = notes.ended_sweep_note(begun, ["completed", "shm_exhausted", "completed"])
    assert once.startswith(begun + "\n\n")
    assert once.endswith("2 completed, 1 shm_exhausted.")
    again = notes.ended_sweep_note(once, [])
    assert again.startswith(begun + "\n\n")
    assert again.endswith("no trial had run.")
    assert "completed" not in again.removeprefix(begun)


def test_a_trials_first_lines_say_what_was_varied_how_it_ended_and_its_time() -> None:
    note = ended(epoch_s=1.548, ensemble_accuracy=0.8407, evidence="it `ended`")
    assert note.splitlines()[:3] == [
        (
            "A trial of block **workers**, repeat 2: `loader.num_workers` = 4, `loader.shm_size` ="
            " 64M."
        ),
        "",
        "**completed**, 1.55 s an epoch, ensemble 84.1 %: `it ended`",
    ]
    assert notes.trial_note(HEADING).splitlines()[0] == note.splitlines()[0]


def test_figures_have_their_units_and_what_was_foreseen_of_them() -> None:
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


def test_what_there_is_not_is_not_told_of() -> None:
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
    assert "Disturbed from outside: a compiler." in ended(disturbed="a compiler")


def test_a_view_holds_what_mlflow_asks_of_a_saved_one_and_only_names_that_are_logged() -> None:
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
