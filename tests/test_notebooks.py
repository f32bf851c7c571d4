"""The shipped notebooks: they define nothing, are small, show what they compute, and run on any
sweep."""

import ast
import re

import nbformat
import pytest

from analysis.recommendation import recommendations
from analysis.runs import join_sweep_runs, sweep_runs
from analysis.tradeoff import epoch_times
from tests.notebooks import FOLDER, executed

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
MOST_BYTES = 250_000
HOME = re.compile(r"/(home|root|Users|tmp|work)/")

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def shown(notebook: nbformat.NotebookNode) -> str:
    """All text that its cells show."""
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    return "\n".join(
        text
        for output in outputs
        for kind, text in output.get("data", {}).items()
        if kind.startswith("text/")
    )


def test_there_are_the_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "compare_sweeps",
        "sgdr_snapshots",
        "worker_tradeoff",
    ]


@by_name
def test_a_notebook_defines_nothing(path) -> None:
    source = "\n".join(
        line
        for cell in code_cells(path)
        for line in cell.source.splitlines()
        if not line.startswith("%")
    )
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, DEFINITIONS)]


@by_name
def test_a_notebook_is_shipped_with_what_it_shows_and_names_nobodys_folders(path) -> None:
    assert path.stat().st_size < MOST_BYTES
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells[2:])
    assert not [
        output
        for cell in cells
        for output in cell.outputs
        if output.output_type in ("error", "stream")
    ]
    assert not HOME.search(shown(nbformat.read(path, as_version=4)))


def test_times_side_by_side_are_of_one_form_on_one_machine_each(tracking, plant) -> None:
    """The cell is run on its own: a kernel takes seconds."""
    planted = {
        ("png", "4", 0): 13.0,
        ("png", "4", 2): 11.0,
        ("wav", "4", 0): 5.0,
        ("wav", "4", 2): 3.0,
        ("wav", "8", 0): 4.0,
    }
    parent = tracking.start_sweep("formats", "", [{"trial_id": str(key)} for key in planted], "")
    for (form, cores, workers), seconds in planted.items():
        swept = {"loader.format": form, "loader.num_workers": workers}
        plant(
            parent,
            swept,
            trial_id=str((form, cores, workers)),
            tags={"cores": cores},
            epoch_s=seconds,
        )
    (cell,) = (
        cell
        for cell in code_cells(FOLDER / "compare_sweeps.ipynb")
        if "pivot_table" in cell.source and "median_s" in cell.source
    )
    names = {"runs": join_sweep_runs(["formats"], tracking.uri), "epoch_times": epoch_times}
    exec(cell.source, names)
    told = [(workers, value) for workers, row in names["wide"].iterrows() for value in row.dropna()]
    assert sorted(told) == sorted(
        (workers, seconds) for (_, _, workers), seconds in planted.items()
    )


@pytest.mark.slow
@pytest.mark.beside
@by_name
def test_a_notebook_runs_on_a_sweep_made_here(path, launched, monkeypatch) -> None:
    uri = f"sqlite:///{launched[0]}/mlflow.db"
    for name, value in {"SWEEP": "planted", "SWEEPS": "planted", "TRACKING_URI": uri}.items():
        monkeypatch.setenv(name, value)
    text, runs = shown(executed(path)), sweep_runs("planted", uri)
    if path.stem != "sgdr_snapshots":
        assert recommendations(runs)["text"].item() in text
    learned = runs.trials[runs.trials["block"] == "cycles"]
    if path.stem != "worker_tradeoff":
        # pandas drops zeros that all end in
        figures = [re.escape(f"{value:.3f}".rstrip("0")) for value in learned["ensemble_accuracy"]]
        assert all(re.search(rf"\b{figure}0*\b", text) for figure in figures)


@pytest.mark.slow
@by_name
def test_a_notebook_runs_on_a_sweep_that_only_failed_and_on_one_of_a_single_trial(
    path, tracking, plant, monkeypatch
) -> None:
    plant(
        tracking.start_sweep("failed", "", [{"trial_id": "a"}], ""),
        {"loader.num_workers": 2},
        trial_id="a",
        outcome="crashed",
    )
    plant(
        tracking.start_sweep("single", "", [{"trial_id": "b"}], ""),
        {"sgdr.lr": 0.1},
        trial_id="b",
        epoch_s=1.0,
        ensemble_accuracy=0.5,
        accuracy=0.5,
    )
    monkeypatch.setenv("TRACKING_URI", tracking.uri)
    for name in ("failed", "single"):
        monkeypatch.setenv("SWEEP", name)
        monkeypatch.setenv("SWEEPS", f"{name} single" if name == "failed" else name)
        executed(path)
