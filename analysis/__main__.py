"""Prints the tables of a sweep again, or writes its report, its tables as CSV or its timelines.

Everything is read from the tracker alone. Commands: `python -m analysis NAME`,
`python -m analysis timeline NAME` and `python -m analysis article`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

# must run before the import of libraries that read the environment
if __name__ == "__main__":
    from sweeps import environment, output

    environment.prepare()
    output.protect_streams()

from analysis import article, timeline_command
from analysis.filters import filter_trials
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, join_sweep_runs
from analysis.tables import SUBCOMMANDS, body, render, write_csv
from sweeps.environment import overruled_by_flags
from sweeps.output import exit_code
from sweeps.tracking.mlflow_client import TrackerUnavailable, resolve_uri, translate_tracker_errors

EPILOG = """\
other commands, by the first word:
  timeline NAME [KEY=VALUE ...]   draws an epoch of each selected trial on a time axis
  article [NAME ...]              compares a sweep with the article's table
For a sweep with such a name, write two dashes first: python -m analysis -- timeline"""

# Returns the exit code; raises LookupError and TrackerUnavailable.
Action = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Exits with 2 for a LookupError or if no picture was drawn, and with 1 for TrackerUnavailable.
    """
    words = sys.argv[1:] if arguments is None else arguments
    command = words[0] if words and words[0] in SUBCOMMANDS else ""
    parser, action = build_parser(command)
    flags = parser.parse_args(words[1:] if command else words)
    for line in overruled_by_flags(flags.uri, flags.experiment, DEFAULT_URI, DEFAULT_EXPERIMENT):
        print(line, file=sys.stderr)
    flags.uri, flags.experiment = flags.uri or DEFAULT_URI, flags.experiment or DEFAULT_EXPERIMENT
    try:
        resolve_uri(flags.uri)
    except ValueError as error:
        parser.error(str(error))
    try:
        code = action(flags)
    except LookupError as error:
        parser.exit(2, f"{error.args[0]}\n")
    except TrackerUnavailable as error:
        parser.exit(1, f"{error}\n")
    if code:
        parser.exit(code)


def build_parser(command: str) -> tuple[argparse.ArgumentParser, Action]:
    """Returns the parser of a subcommand, or of the tables for '', and what the command does."""
    description, add_flags, action = {
        "timeline": (
            "Draws an epoch of each selected trial on a time axis.",
            timeline_command.add_flags,
            timeline_command.draw_epochs,
        ),
        "article": (
            "Compares a sweep of sweeps/examples/article.yaml with the article's table.",
            add_article_flags,
            print_article,
        ),
        "": (
            "Prints the tables of a sweep again, from the tracker alone.",
            add_table_flags,
            write_output,
        ),
    }[command]
    parser = argparse.ArgumentParser(
        f"python -m analysis {command}".rstrip(),
        description=description,
        epilog=None if command else EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    parser.add_argument("--uri", metavar="URI", help=f"the tracker (default: {DEFAULT_URI})")
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help=f"MLflow experiment that holds the sweep (default: {DEFAULT_EXPERIMENT})",
    )
    return parser, action


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the tables."""
    parser.add_argument(
        "name",
        nargs="+",
        help="name of the sweep, as in its YAML; several names print their tables together",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="use only matching trials: block=workers, num_workers=8",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="DIR",
        help="write each table as a tidy CSV file instead, and print their names",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write report.html instead: tables, pictures and their origins",
    )


def add_article_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the article's report."""
    parser.add_argument(
        "name",
        nargs="*",
        default=[article.SWEEP],
        help=f"name of the sweep, as in its YAML (default: {article.SWEEP})",
    )


def write_output(flags: argparse.Namespace) -> int:
    """Prints the tables, or writes the report or the CSV files, as the flags select.

    Files are written outside the translation of tracker errors, so a full disk is not reported as
    an unavailable tracker. Returns the exit code. Raises LookupError if the sweep or trial does not
    exist, and TrackerUnavailable if the tracker does not answer.
    """
    place = flags.uri, flags.experiment
    if flags.out:
        from analysis import report  # with matplotlib, which tables do without

        with translate_tracker_errors(flags.uri):
            page = report.build_report(flags.name, *place, flags.where)
        print(report.write_report(page, flags.out))
    if flags.csv:
        with translate_tracker_errors(flags.uri):
            trials = filter_trials(join_sweep_runs(flags.name, *place), flags.where)
        print(*write_csv(trials, flags.csv), sep="\n")
    if not flags.out and not flags.csv:
        with translate_tracker_errors(flags.uri):
            text = render_text(flags)
        print(text, end="")
    return 0


def print_article(flags: argparse.Namespace) -> int:
    """Prints the article's report and returns the exit code. Raises as `write_output` does."""
    with translate_tracker_errors(flags.uri):
        text = article.render(join_sweep_runs(flags.name, flags.uri, flags.experiment))
    print(text, end="")
    return 0


def render_text(flags: argparse.Namespace) -> str:
    """Returns the selected tables as text that ends with a newline."""
    place = flags.uri, flags.experiment
    if flags.where or len(flags.name) > 1:
        runs = filter_trials(join_sweep_runs(flags.name, *place), flags.where)
        return body(runs, flags.markdown) + "\n"
    return render(flags.name[0], *place, flags.markdown)


if __name__ == "__main__":
    main()
    sys.exit(exit_code(0))
