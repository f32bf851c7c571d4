"""python launch.py sweep.yaml: runs a sweep and prints its tables. Flags and exit codes; the work is in sweeps/ and analysis/.

python launch.py --advise module:make_loader measures a loader of another project instead, and says how many workers it should have.

Exit codes: 0 every trial settled; 1 some trial failed, or its records wait for the tracker; 2 faults in the YAML, or in what a flag was
given; 3 preflight, or another launch holds the sweep; 130 interrupted; 141 what reads the output has read enough.
"""

import argparse
import functools
import io
import json
import os
import sys
from pathlib import Path

from sweeps.config import ConfigFaults, SweepConfig, load


def main(arguments: list[str] | None = None) -> int:
    flags = parsed(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line a trial also where the output is a file or a pipe
    if flags.schema:
        return print_schema()
    if flags.advise:
        return advise(flags.advise, flags.batch_size, flags.step, flags.step_s)
    try:
        config = load(flags.sweep, flags.set)
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return 2
    text = "\n".join([flags.sweep.read_text("utf-8").rstrip("\n"), *(f"# --set {override}" for override in flags.set), ""])
    try:
        if flags.debug is not None:
            return debug_trial(config, flags.debug)
        return dry_run(config, flags.rerun, flags.json) if flags.dry_run else launch(config, text, flags.rerun, flags.test)
    except KeyboardInterrupt:
        print("\nInterrupted. Settled trials are kept; the same command runs the rest.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
        return 141


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a sweep of audio classifiers and print its tables, or advise on any DataLoader.")
    parser.add_argument("sweep", type=Path, nargs="?", help="the sweep's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as parameters.sgdr.epochs=3")
    parser.add_argument("--rerun", action="append", default=[], metavar="failed|all|KEY",
                        help="run only the failed trials, or all again, or the one whose key begins with KEY; may be repeated")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="with --dry-run: one JSON document instead of lines")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--dry-run", action="store_true", help="print every trial, its state, its forecast and its /dev/shm; start nothing")
    way.add_argument("--test", action="store_true", help="read the test split once, with the best ensemble on validation")
    way.add_argument("--debug", metavar="KEY", help="run the one trial whose key begins with KEY in this process, where pdb works")
    way.add_argument("--schema", action="store_true", help="no sweep: print the JSON Schema of sweep files, for editors")
    way.add_argument("--advise", metavar="MODULE:NAME", help="no sweep: how many workers the loader should have that this function returns")
    advising = parser.add_argument_group("with --advise")
    advising.add_argument("--batch-size", type=int, metavar="N", help="where the function returns a Dataset; 32 if not given")
    step = advising.add_mutually_exclusive_group()
    step.add_argument("--step", metavar="MODULE:NAME", help="a training step to be timed, called with a batch")
    step.add_argument("--step-s", type=float, metavar="SECONDS", help="what a training step takes on the accelerator")
    flags = parser.parse_args(arguments)
    if (flags.advise or flags.schema) and (flags.sweep or flags.set or flags.rerun):
        parser.error("--advise and --schema take no sweep file, no --set and no --rerun")
    if flags.json and not flags.dry_run:
        parser.error("--json goes with --dry-run")
    if flags.debug is not None and flags.rerun:
        parser.error("--debug KEY names its trial; it takes no --rerun")
    if not flags.advise and not flags.schema and not flags.sweep:
        parser.error("name a sweep's YAML file, or a loader: --advise module:make_loader")
    if not flags.advise and (flags.batch_size is not None or flags.step or flags.step_s is not None):
        parser.error("--batch-size, --step and --step-s go with --advise; a sweep's file holds its own")
    if (flags.batch_size is not None and flags.batch_size < 1) or (flags.step_s is not None and flags.step_s < 0):
        parser.error("--batch-size is at least 1, and --step-s at least 0")
    return flags


def print_schema() -> int:
    from sweeps.schema import schema

    print(json.dumps(schema(), indent=1))
    return 0


def advise(target: str, batch_size: int | None, step: str | None, step_s: float | None) -> int:
    """Measures another project's loader, found from the current folder, and prints the advice; returns the exit code."""
    from sweeps.advise import AdviceError, Request, tell
    from sweeps.preflight import PreflightError

    try:
        tell(Request(target, str(Path.cwd()), batch_size, step, step_s), print)
    except (AdviceError, PreflightError) as problem:
        print(problem, file=sys.stderr)
        return 2 if isinstance(problem, AdviceError) else 3
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


def debug_trial(config: SweepConfig, key: str) -> int:
    """Runs one trial in this process; returns the exit code. What it raises is for the debugger, else Python prints it and exits with 1."""
    from sweeps.debug import debug
    from sweeps.preflight import PreflightError
    from sweeps.rerun import UnknownKey

    try:
        debug(config, key, print)
    except UnknownKey as problem:
        print(f"--debug {problem}", file=sys.stderr)
        return 2
    except PreflightError as problem:
        print(problem, file=sys.stderr)
        return 3
    return 0


def dry_run(config: SweepConfig, rerun: list[str], as_json: bool) -> int:
    """Prints what a checked sweep would do; returns the exit code."""
    from sweeps.dry_run import document, look, tell
    from sweeps.preflight import PreflightError
    from sweeps.rerun import UnknownKey

    try:
        seen = look(config, rerun, functools.partial(print, file=sys.stderr) if as_json else print)
    except UnknownKey as problem:
        print(f"--rerun {problem}", file=sys.stderr)
        return 2
    except PreflightError as problem:
        print(problem, file=sys.stderr)
        return 3
    if as_json:
        print(json.dumps(document(seen), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        tell(seen, print)
    return 0


def launch(config: SweepConfig, text: str, rerun: list[str], test: bool) -> int:
    """Runs a checked sweep to its tables; returns the exit code. `text`: the YAML, kept with the runs."""
    # Imported here: a faulty file is answered in a second, without MLflow
    from analysis.tables import rebuild_command, render
    from sweeps import holdout, interrupt, rounds, sweep
    from sweeps.away import TrackerAway, asked
    from sweeps.preflight import PreflightError
    from sweeps.rerun import UnknownKey
    from sweeps.runner import RayEnded

    where = config.name, config.tracking.uri, config.tracking.experiment
    status, tables, page = "KILLED", None, None
    try:
        opening = sweep.opened(config, text, rebuild_command([config.name], *where[1:]), rerun, print)
        with interrupt.interruptible(config.time_budget), opening as opened:
            try:
                if test:
                    holdout.check(opened)
                print(sweep.heading(opened))
                failed = rounds.run(opened, print)
                with asked(config.tracking.uri):
                    status, tables = "FAILED" if failed else "KILLED" if opened.unsettled else "FINISHED", render(*where, markdown=True)
                    print("\n" + render(*where))
                    page = _report(where)
                if test and opened.unsettled:
                    print("--test waits until every trial is settled: the best ensemble may be among those that are not.")
                elif test:
                    with asked(config.tracking.uri):
                        holdout.read(opened, print)
            finally:
                sweep.finish(opened, status, tables, page)
    except UnknownKey as problem:
        print(f"--rerun {problem}", file=sys.stderr)
        return 2
    except PreflightError as problem:
        print(problem, file=sys.stderr)
        return 3
    except (RayEnded, TrackerAway) as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except interrupt.BudgetPassed:
        print("\ntime_budget has passed before any trial could start: the same command begins anew.")
        return 0
    return 1 if failed else 0


def _report(where: tuple[str, str, str]) -> str | None:
    """The report of the sweep, or None: a picture that can't be drawn is told, and costs the launch nothing else."""
    from analysis.report import report
    from sweeps.away import TrackerAway, asked

    try:
        with asked(where[1]):
            return report(*where)
    except TrackerAway:
        raise
    except Exception as problem:
        print(f"No report: {type(problem).__name__}: {problem}. Its tables are above, and all it rests on is in MLflow.", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
