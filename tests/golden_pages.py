"""Renders the four golden pages, in which the wording of the product's output is pinned.

`python -m tests.golden_pages` writes the pages in tests/golden/ anew. Their difference to the
committed ones shows what a change of the product does to its output.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from analysis import recommendation, shm_table, tradeoff_table
from analysis.runs import sweep_runs
from speech.calibration.costs import StepCosts
from sweeps.config.sweep_file import load
from sweeps.forecast.calibration import save_calibration
from sweeps.forecast.trial_forecasts import prepare_forecasts
from sweeps.host.node import Node, default_runtime
from sweeps.names import flatten
from sweeps.tracking.mlflow_runs import RunLogger
from tests.conftest import CONFIG, plant_trial
from tests.planted_calibrations import planted
from tests.planted_sweep import MB, SIMULATED, figures, row
from tests.test_shm_table import TRIALS, plant_shm_sweep
from tests.tones import write_tones
from tests.trees import ROOT

GOLDEN = ROOT / "tests" / "golden"
DATABASE = "planted.db"  # created if it is absent; launch.py does not read it
SMALL, LARGE = 64 * MB, 1024 * MB
OVERFLOW, NOT_RUN, FORECAST = "overflow", "not run", "forecast"
# Sweep -> cells (number of workers, bytes of /dev/shm) -> epoch seconds by repeat, or why none
SWEEPS: dict[str, dict[tuple[int, int], list[Any]]] = {
    "notes": {
        (0, SMALL): [3.30, 4.10, 3.40],
        (2, SMALL): [1.60, 1.50, 3.20],
        (4, SMALL): [1.60, OVERFLOW, 1.70],
        (8, SMALL): [OVERFLOW, OVERFLOW, OVERFLOW],
        (0, LARGE): [3.31, 3.40, 3.28],
        (1, LARGE): [NOT_RUN, NOT_RUN, NOT_RUN],
        (2, LARGE): [1.54, 1.60, 1.50],
        (4, LARGE): [1.50, 1.52, 1.53],
        (8, LARGE): [FORECAST, FORECAST, FORECAST],
    },
    "fastest": {(1, LARGE): [3.02, 3.10, 2.98], (2, LARGE): [1.54, 1.57, 1.52]},
    "two-repeats": {(0, LARGE): [3.31, 3.40], (2, LARGE): [1.54, 1.60]},
    "overflows": {(2, SMALL): [1.54, OVERFLOW], (4, SMALL): [OVERFLOW, OVERFLOW]},
}
# Trial of the sweep "notes" -> what disturbed each of its attempts
DISTURBED = {(0, LARGE, 1): ["a compiler", None], (2, LARGE, 3): ["a backup"]}


def config_errors(folder: Path) -> str:
    """Returns what launch.py prints for faulty sweep files, overrides and paths."""
    (folder / "empty.yaml").write_text("")
    (folder / "cut.yaml").write_text("name: cut\nparameters: {corpus: [1,\n")
    (folder / "tab.yaml").write_text("name: tab\nparameters:\n\tcorpus: {}\n")
    overrides = [
        "repeats",
        "name.long=first",
        "warmup_epochs=[",
        "metric={name: accuracy, goal: minimize}",
        "parameters.device=cpu",
        "parameters.loader.batch_size={values: [8, 8]}",
    ]
    flags = [word for override in overrides for word in ("--set", override)]
    files = ("missing.yaml", "empty.yaml", "cut.yaml", "tab.yaml")
    parts = [run_launch(folder, "faulty.yaml"), run_launch(folder, "sweep.yaml", *flags)]
    return "\n".join([*parts, *(run_launch(folder, file) for file in files)])


def tradeoff(folder: Path) -> str:
    """Returns table 1 with its notes and recommendation, for every sweep of SWEEPS."""
    tracking, texts = RunLogger(f"sqlite:///{folder}/{DATABASE}", "speech"), []
    for name in SWEEPS:
        plant_sweep(tracking, name)
        runs = sweep_runs(name, tracking.uri)
        texts += [*tradeoff_table.tables(runs), *recommendation.sentences(runs)]
    return "\n\n".join(texts) + "\n"


def shm(folder: Path) -> str:
    """Returns the /dev/shm table of the sweep of tests/test_shm_table.py."""
    tracking = RunLogger(f"sqlite:///{folder}/{DATABASE}", "speech")
    return "\n\n".join(shm_table.tables(plant_shm_sweep(tracking, TRIALS))) + "\n"


def transcript(folder: Path) -> str:
    """Returns a session at the command line: the help page, dry runs and refused commands."""
    write_tones(folder / "tones")
    parts = [
        run_launch(folder, "--help"),
        f"$ cat sweep.yaml\n{(folder / 'sweep.yaml').read_text()}",
        run_launch(folder, "sweep.yaml", "--dry-run"),
    ]
    plant_calibrations(folder)
    parts += [
        run_launch(folder, "sweep.yaml", "--dry-run", "--set", "method=forecast"),
        run_launch(folder, "sweep.yaml", "--dry-run", "--rerun", "first"),
        run_launch(folder, "sweep.yaml", "--json"),
    ]
    return "\n".join(parts)


PAGES = {"config_errors": config_errors, "tradeoff_table": tradeoff, "shm_table": shm}
PAGES |= {"transcript": transcript}


def render(page: str, folder: Path) -> str:
    """Returns a page as the product prints it now; `folder` serves this page only."""
    folder = folder.resolve()
    for name in ("sweep.yaml", "faulty.yaml"):
        shutil.copy(GOLDEN / name, folder)
    return replace_machine(PAGES[page](folder), folder)


def replace_machine(text: str, folder: Path) -> str:
    """Returns a text with placeholders for the folder and the trial ids.

    An id depends on the clips, which another processor may compute with other last bits. Lines on
    the CPU limits of this machine are removed.
    """
    text = text.replace(str(folder), "<folder>")
    text = re.sub(r"^CPU (quota|weight): .*\n", "", text, flags=re.MULTILINE)
    for number, trial_id in enumerate(dict.fromkeys(re.findall(r"\b[0-9a-f]{12}\b", text)), 1):
        text = text.replace(trial_id, f"<trial id{number:>2}>")  # as wide as an id
    return text


def run_launch(folder: Path, *words: str) -> str:
    """Returns a command line of launch.py, what it prints, and its exit code unless that is 0.

    The command inherits no variable that changes its output, and does not write to a terminal.
    """
    variables = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    variables |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, ROOT / "launch.py", *words],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    code = f"(exit code {done.returncode})\n" if done.returncode else ""
    return f"$ {shlex.join(['python', 'launch.py', *words])}\n{done.stdout}{code}"


def plant_sweep(tracking: RunLogger, name: str) -> None:
    """Writes a sweep of SWEEPS to the tracker."""
    trials = [
        ({"loader.num_workers": workers, "loader.shm_size": size}, repeat, result)
        for (workers, size), results in SWEEPS[name].items()
        for repeat, result in enumerate(results, 1)
    ]
    plan = [row("workers", swept, repeat) for swept, repeat, _ in trials]
    for planned, (swept, _, result) in zip(plan, trials, strict=True):
        if result == FORECAST:
            planned |= {"measured": False, "config": flatten(CONFIG) | swept}
            planned |= {"forecast": {"forecast_epoch_s": 1.61}}
    parent = tracking.start_sweep(name, "", plan, "")
    for swept, repeat, result in trials:
        if result in (NOT_RUN, FORECAST):
            continue
        workers, size = swept.values()
        outcome, summary = "shm_exhausted", {}
        if result != OVERFLOW:
            outcome, summary = "completed", figures(workers, repeat) | {"epoch_s": result}
            # At 0 workers, the cores ran at two speeds
            if workers == 0:
                batch_cpu_s = 0.04 + 0.02 * (repeat == 2)
                summary |= {"batch_cpu_min_s": batch_cpu_s, "batch_cpu_max_s": batch_cpu_s}
            summary |= {"throttled_fraction": 0.04 * workers} if name == "notes" else {}
        attempts = DISTURBED.get((workers, size, repeat)) if name == "notes" else None
        for disturbed in attempts or [None]:
            tags = SIMULATED | {"disturbed": disturbed}
            plant_trial(tracking, parent, swept, repeat, outcome, tags=tags, **summary)


def plant_calibrations(folder: Path) -> None:
    """Writes the calibration of tests/planted_calibrations.py for the trials of block workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        config, node = load("sweep.yaml"), Node.local()
        found = prepare_forecasts(config, print)
        trials = [trial for trial in found.plan.trials if trial.block == "workers"]
        runtimes = {trial.trial_id: default_runtime(node, config) for trial in trials}
        for request in found.required_calibrations(runtimes, node).values():
            save_calibration(request.name, planted(StepCosts(wait_s=0.05)))


if __name__ == "__main__":
    for page in PAGES:
        with tempfile.TemporaryDirectory() as scratch:
            (GOLDEN / f"{page}.txt").write_text(render(page, Path(scratch)), "utf-8")
