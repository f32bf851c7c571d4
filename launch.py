"""Runs a sweep and prints its tables: python launch.py sweep.yaml.

`python launch.py advise module:make_loader` measures a loader of another project instead, and
recommends its number of workers. `predict` and `schema` are the other commands. This module calls
the command that the arguments name, and returns its exit code; the work is done in sweeps/ and
analysis/.

Exit codes: 0 every trial is settled; 1 some trial failed, or its records wait for the tracker;
2 faults in the YAML or in the value of a flag; 3 preflight failed, or another launch runs the
sweep; 130 interrupted. For a dry run and for the commands: 141 the reader of the output has closed
it, 1 the output could not be written. A launch continues without a reader.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # With PYTHONSAFEPATH, Python does not search this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from sweeps import environment, output
from sweeps.commands.arguments import parse_arguments
from sweeps.config.config import SweepConfig
from sweeps.config.overruled import overruled_by_sweep
from sweeps.config.sweep_file import load_text
from sweeps.config.yaml_source import read_text
from sweeps.output import exit_code, mask_passwords
from sweeps.user_error import UserError

if TYPE_CHECKING:
    from sweeps.execution.sweep import Sweep
    from sweeps.tracking.mlflow_runs import Report


def run() -> None:
    """Runs this program, with an environment and standard streams that it controls; exits.

    Ray, MLflow and PyTorch read the environment when they are imported, which happens later.
    """
    environment.prepare()
    output.protect_streams()
    sys.exit(main())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        match flags.command:
            case "advise":
                return exit_code(advise(flags))
            case "predict":
                return exit_code(predict(flags))
            case "schema":
                return exit_code(print_schema())
        return run_sweep_command(flags)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        hint = " Settled trials are not run again; the same command runs the rest."
        print(f"\nInterrupted.{hint if flags.command == 'sweep' else ''}", file=sys.stderr)
        return 130


def run_sweep_command(flags: argparse.Namespace) -> int:
    """Reads a sweep file, and launches, debugs or lists its trials; returns the exit code."""
    # Read once: a pipe can be read only once, and a file may change in the meantime
    yaml_text = read_text(flags.sweep)
    config = load_text(yaml_text, flags.sweep.name, flags.set)
    for line in overruled_by_sweep(config):
        print(line, file=sys.stderr if flags.json else sys.stdout)
    if flags.debug is not None:
        return debug_trial(config, flags.debug)
    if flags.dry_run:
        return exit_code(dry_run(config, flags.rerun, flags.json))
    text = text_with_overrides(yaml_text, flags.set)
    return launch(config, text, flags.rerun, flags.evaluate_test)


def text_with_overrides(yaml_text: str, overrides: list[str]) -> str:
    """Returns the text that is stored with the runs: the sweep file and the overrides.

    Passwords of a tracker are masked.
    """
    comments = [
        f"# --set {line}" if n == 0 else f"#   {line}"
        for override in overrides
        for n, line in enumerate(override.splitlines())
    ]
    return mask_passwords("\n".join([yaml_text.rstrip("\n"), *comments, ""]))


def advise(flags: argparse.Namespace) -> int:
    """Measures another project's loader and prints the advice; returns the exit code.

    The loader's module is imported from the current folder.
    """
    from sweeps.commands.advise.advise import AdviceRequest, print_advice

    print_advice(
        AdviceRequest(
            flags.target,
            str(Path.cwd()),
            flags.batch_size,
            flags.step,
            flags.step_s,
            flags.run_ahead or 0,
            flags.arguments,
        ),
        print,
    )
    return 0


def predict(flags: argparse.Namespace) -> int:
    """Predicts the word in wav files and prints it; returns the exit code."""
    from sweeps.commands.predict import predict_clips

    return predict_clips(flags.name, flags.clips, flags.top, flags.uri, flags.experiment)


def print_schema() -> int:
    """Prints the JSON Schema of sweep files; returns the exit code."""
    from sweeps.config.schema import build_schema

    print(json.dumps(build_schema(), indent=1))
    return 0


def debug_trial(config: SweepConfig, trial_id: str) -> int:
    """Runs one trial in this process; returns the exit code.

    Errors of the trial are not caught, so that a debugger can stop at them. Without a debugger,
    Python prints them and exits with code 1.
    """
    from sweeps.commands.debug import debug

    debug(config, trial_id, print)
    return 0


def dry_run(config: SweepConfig, rerun: list[str], as_json: bool) -> int:
    """Prints what a launch of a checked sweep would do; returns the exit code."""
    from sweeps.commands.dry_run import build_dry_run, document, print_dry_run

    result = build_dry_run(
        config, rerun, functools.partial(print, file=sys.stderr) if as_json else print
    )
    if as_json:
        # ASCII, which is the same in every encoding
        print(json.dumps(document(result), indent=1, allow_nan=False))
    else:
        print_dry_run(result, print)
    return 0


def launch(config: SweepConfig, text: str, rerun: list[str], evaluate_test: bool) -> int:
    """Runs a checked sweep and prints its tables; returns the exit code.

    `text` is the YAML that is stored with the runs.
    """
    # Imported late, so that a faulty file is reported within a second, without MLflow
    from analysis.runs import join_sweep_runs
    from analysis.tables import rebuild_command, render_runs
    from sweeps.commands import test_split
    from sweeps.execution import interrupt, retries, sweep
    from sweeps.execution.ray_session import RayEnded
    from sweeps.tracking.mlflow_runs import digest
    from sweeps.tracking.tracker_errors import TrackerUnavailable, translate_tracker_errors

    source = config.name, config.tracking.uri, config.tracking.experiment
    status, tables, page = "KILLED", None, None
    try:
        opening = sweep.open_sweep(
            config, text, rebuild_command([config.name], *source[1:]), rerun, print
        )
        with interrupt.handle_interrupts(config.time_budget), opening as opened:
            try:
                if evaluate_test:
                    test_split.check(opened)
                print(sweep.heading(opened))
                failed = retries.run(opened, print)
                with translate_tracker_errors(config.tracking.uri):
                    runs = join_sweep_runs([config.name], *source[1:])
                    status, tables = (
                        ("FAILED" if failed else "KILLED" if opened.unsettled else "FINISHED"),
                        render_runs(runs, *source[1:], markdown=True),
                    )
                    print("\n" + render_runs(runs, *source[1:]))
                    shown = digest(tables, text)
                    if not opened.tracking.has_report(opened.parent, shown):
                        page = _report(source, shown)
                if evaluate_test:
                    _evaluate_test(opened)
            finally:
                sweep.finish(opened, status, tables, page)
    except (RayEnded, TrackerUnavailable):
        print(file=sys.stderr)  # sets the message of this error off from the lines of the trials
        raise
    except interrupt.BudgetPassed:
        print("\ntime_budget has passed before any trial could start. Run the same command again.")
        return 0
    return 1 if failed else 0


def _evaluate_test(opened: "Sweep") -> None:
    """Prints the accuracy on the test split, or that some trials are not settled yet."""
    from sweeps.commands import test_split
    from sweeps.tracking.tracker_errors import translate_tracker_errors

    if opened.unsettled:
        print(
            "--evaluate-test has not read the test split: first every trial must be settled,"
            " since any of them may have the best ensemble."
        )
        return
    with translate_tracker_errors(opened.config.tracking.uri):
        test_split.evaluate(opened, print)


def _report(source: tuple[str, str, str], digest: str) -> "Report | None":
    """Returns the report of a sweep, or None if it cannot be built.

    The launch prints that error and continues. `source` is the name of the sweep, the tracker's URI
    and the experiment; `digest` identifies what the report shows.
    """
    from analysis.report import build_report
    from sweeps.tracking.mlflow_runs import Report
    from sweeps.tracking.tracker_errors import TrackerUnavailable, translate_tracker_errors

    try:
        with translate_tracker_errors(source[1]):
            return Report(build_report(*source), digest)
    except TrackerUnavailable:
        raise
    except Exception as problem:
        print(
            f"No report: {type(problem).__name__}: {problem}. The tables above are complete, and"
            " all data is in MLflow.",
            file=sys.stderr,
        )
        return None


if __name__ == "__main__":
    run()
