"""Runs the notebooks of analysis/notebooks and keeps what they show in them: `make notebooks`, or

    SWEEP=first-look SWEEPS="first-look second" python -m tests.notebooks

They are told by environment variables which sweep they are about: SWEEP (compare_sweeps: SWEEPS,
names apart by spaces) and TRACKING_URI, a tracker as in a sweep's file; without, they take the
default sweep in this folder's mlflow.db.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "analysis" / "notebooks"
TIMEOUT_S = 600  # of a cell, on a busy machine


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook, run top to bottom by a kernel of its own from its own folder.
    nbclient.CellExecutionError names a cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    # it warns of its port, which takes nothing that isn't signed with a key of its own
    quiet = ["--log-level=40"]
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=TIMEOUT_S,
        resources=where,
        record_timing=False,
        extra_arguments=quiet,
    ).execute()
    # the kernel's version is nobody's business
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
