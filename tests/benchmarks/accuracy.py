"""make bench-accuracy: how well one configuration tells ten words and `unknown` apart, on real
speech.

Trains tests/benchmarks/accuracy.yaml (at most 25 minutes on 2 cores) and reads the test split with
its ensemble, once: where the trial is settled, only the record is printed. Last line: the figures
as one JSON object.
"""

import json
import subprocess
import sys
from pathlib import Path

from scipy.stats import binomtest
from tabulate import tabulate

from analysis.runs import sweep_runs
from sweeps.tracking.mlflow_client import connect
from tests.benchmarks.report import at_least, print_report

FOLDER = Path(__file__).parent
CORPUS = Path("../shared/data/speech_commands_subset")
ARTICLE = 0.904  # accuracy that the source article reports, on another split


def main() -> int:
    if not CORPUS.is_dir():
        print(
            f"skipped: {CORPUS} is absent. It is a subset of Speech Commands in the official"
            " layout; put one there, or edit accuracy.yaml."
        )
        print(json.dumps({"benchmark": "accuracy", "skipped": f"no {CORPUS}"}))
        return 0
    subprocess.run(
        [sys.executable, "launch.py", str(FOLDER / "accuracy.yaml"), "--evaluate-test"], check=True
    )
    runs = sweep_runs("bench-accuracy")
    trials = runs.planned
    trial = trials[trials["test_ensemble_accuracy"].notna()].iloc[0]
    tags = connect(runs.uri).get_run(trial["run_id"]).data.tags
    clips = {"validation": int(trial["validation_clips"]), "test": int(trial["test_clips"])}
    rows = [
        _row("validation", "last snapshot", trial["accuracy"], clips["validation"]),
        _row("validation", "ensemble", trial["ensemble_accuracy"], clips["validation"]),
        _row("test", "last snapshot", trial["test_accuracy"], clips["test"]),
        _row("test", "ensemble", trial["test_ensemble_accuracy"], clips["test"]),
    ]
    print("\n" + tabulate(rows, headers="keys", floatfmt=".1f"))
    print(
        f"training took {trial['train_s'] / 60:.1f} min; the source article reports"
        f" {100 * ARTICLE:.1f} %"
    )
    print_report(
        "accuracy",
        rows,
        [at_least("ensemble, test accuracy", 100 * ARTICLE, rows[-1]["accuracy %"], "{:.1f} %")],
        train_s=trial["train_s"],
        trained_on={
            "cpu": trial["cpu_name"],
            "cores": int(trial["cores"]),
            "threads": int(trial["threads"]),
            "precision": trial["precision"],
            "versions": json.loads(tags["versions"]),
            "git_commit": tags.get("git_commit"),
        },
    )
    return 0


def _row(split: str, network: str, accuracy: float, clips: int) -> dict[str, str | float | int]:
    low, high = binomtest(round(accuracy * clips), clips).proportion_ci(method="wilson")
    return {
        "split": split,
        "network": network,
        "accuracy %": 100 * accuracy,
        "95 % from": 100 * low,
        "to": 100 * high,
        "clips": clips,
    }


if __name__ == "__main__":
    sys.exit(main())
