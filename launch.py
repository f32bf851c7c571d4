"""python launch.py sweep.yaml: runs a sweep and prints its tables. Flags and exit codes; the work is in sweeps/ and analysis/.

Exit codes: 0 every trial settled; 1 some trial failed; 2 faults in the YAML; 3 preflight, or another launch holds the sweep;
130 interrupted.
"""

import argparse
import io
import sys
from pathlib import Path

from sweeps.config import ConfigFaults, SweepConfig, load


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a sweep of audio classifiers and print its tables.")
    parser.add_argument("sweep", type=Path, help="the sweep's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as parameters.sgdr.epochs=3")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--dry-run", action="store_true", help="print every trial and what it needs of /dev/shm; start nothing")
    way.add_argument("--test", action="store_true", help="read the test split once, with the best ensemble on validation")
    flags = parser.parse_args(arguments)
    try:
        config = load(flags.sweep, flags.set)
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return 2
    text = "\n".join([flags.sweep.read_text("utf-8").rstrip("\n"), *(f"# --set {override}" for override in flags.set), ""])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line a trial also where the output is a file or a pipe
    try:
        return dry_run(config) if flags.dry_run else launch(config, text, flags.test)
    except KeyboardInterrupt:
        print("\nInterrupted. Settled trials are kept; the same command runs the rest.", file=sys.stderr)
        return 130


def dry_run(config: SweepConfig) -> int:
    """Prints what a checked sweep would do; returns the exit code."""
    from sweeps.dry_run import tell
    from sweeps.preflight import PreflightError

    try:
        tell(config, print)
    except PreflightError as problem:
        print(problem, file=sys.stderr)
        return 3
    return 0


def launch(config: SweepConfig, text: str, test: bool) -> int:
    """Runs a checked sweep to its tables; returns the exit code. `text`: the YAML, kept with the runs."""
    # Imported here: a faulty file is answered in a second, without MLflow
    from analysis.tables import rebuild_command, render
    from sweeps import holdout, sweep
    from sweeps.preflight import PreflightError
    from sweeps.runner import RayEnded

    where = config.name, config.tracking.uri, config.tracking.experiment
    status, tables = "KILLED", None
    try:
        with sweep.opened(config, text, rebuild_command(*where), print) as opened:
            try:
                if test:
                    holdout.check(opened)
                print(sweep.heading(opened))
                failed = sweep.run(opened, print)
                status, tables = "FAILED" if failed else "FINISHED", render(*where, markdown=True)
                print("\n" + render(*where))
                if test and failed:
                    print("--test waits until every trial is settled: the best ensemble may be among those that failed.")
                elif test:
                    holdout.read(opened, print)
            finally:
                opened.tracking.finish_sweep(opened.parent, status, tables)
    except PreflightError as problem:
        print(problem, file=sys.stderr)
        return 3
    except RayEnded as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
