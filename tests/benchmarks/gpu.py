"""make gpu: the GPU-marked tests, a small sweep on a real ResNet34, and a dated row in
docs/benchmarks.md.

On a machine without a CUDA GPU it says so and fails, and writes nothing: no figure about CUDA is
ever from anything but a GPU.
"""

import datetime
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from analysis.runs import sweep_runs

ROOT = Path(__file__).parent.parent.parent
SWEEP = ROOT / "sweeps" / "examples" / "gpu.yaml"
PAGE = ROOT / "docs" / "benchmarks.md"
HEADER = "| date | GPU | fastest | clips/s | busy | ahead | reads loss | error | worst | commit |"


def main() -> int:
    if not torch.cuda.is_available():
        print(
            "make gpu needs a CUDA GPU, and torch finds none here: nothing was run and nothing"
            " written.",
            file=sys.stderr,
        )
        return 1
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], cwd=ROOT, check=False)
    if tests.returncode:
        print("GPU tests failed: no row is written.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"sqlite:///{scratch}/mlflow.db"
        swept = subprocess.run(
            [sys.executable, ROOT / "launch.py", SWEEP, "--set", f"tracking.uri={uri}"],
            cwd=scratch,
            check=False,
        )
        if swept.returncode:
            print("The sweep did not run to its end: no row is written.", file=sys.stderr)
            return 1
        line = row(sweep_runs("gpu", uri).trials, f"{datetime.date.today()}")
    PAGE.write_text(append_row(PAGE.read_text("utf-8"), line), "utf-8")
    print(f"\nAppended to {PAGE.relative_to(ROOT)}:\n{HEADER}\n{line}")
    return 0


def row(frame: pd.DataFrame, date: str) -> str:
    """Returns the sweep in a line: its fastest completed cell, the best that the training process
    manages alone with either loop, and the errors of the planned forecasts.
    """
    done = frame[(frame["outcome"] == "completed") & (frame["device"] == "cuda")]
    best = done.loc[done["epoch_s"].idxmin()]
    alone = done[done["loader.num_workers"] == 0]
    rates = [
        alone.loc[alone["device.sync_every_step"] == reads_loss, "clips_per_s"].max()
        for reads_loss in (False, True)
    ]
    errors = (done["forecast_epoch_s"] / done["epoch_s"] - 1).abs().dropna()
    fastest = f"{best['loader.format']}, {best['loader.num_workers']} workers"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    cells = [
        date,
        best["device_name"],
        fastest,
        f"{best['clips_per_s']:,.0f}",
        f"{best['busy_fraction']:.0%}",
        *("-" if math.isnan(rate) else f"{rate:,.0f}" for rate in rates),
        *([f"{errors.median():.1%}", f"{errors.max():.1%}"] if len(errors) else ["-", "-"]),
        commit or "-",
    ]
    return "| " + " | ".join(cells) + " |"


def append_row(page: str, line: str) -> str:
    """Returns the page with one more row at the end of its GPU table.

    Raises ValueError if the page has no such table.
    """
    lines = page.splitlines(keepends=True)
    try:
        at = lines.index(HEADER + "\n")
    except ValueError:
        raise ValueError(f"{PAGE.name} has no table that begins with {HEADER}") from None
    while at < len(lines) and lines[at].startswith("|"):
        at += 1
    return "".join([*lines[:at], line + "\n", *lines[at:]])


if __name__ == "__main__":
    sys.exit(main())
