"""Parses the command line of launch.py: a sweep file with its flags, or a command by its name.

The first word chooses the parser: `advise`, `predict` and `schema` name commands, and everything
else is the command line of a sweep. Its flags may stand before or after the file.
"""

import argparse
import math
import sys
from pathlib import Path

from sweeps.config.config import TrackingConfig
from sweeps.environment import overruled_by_flags

COMMANDS = """\
other commands:
  advise MODULE:NAME      the recommended number of workers for any DataLoader
  predict SWEEP clip.wav  the word in wav files, by a sweep's best ensemble
  schema                  the JSON Schema of sweep files, for editors

Each command has a help page: %(prog)s advise --help
A sweep file with the name of a command is written ./advise
"""
MODULE_ARGUMENTS = "Arguments after -- are the command line that the module reads."


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parses the words after the program's name; exits with code 2 if they have faults.

    `command` of the result is advise, predict, schema or sweep.
    """
    match words:
        case ["advise", *rest]:
            return _parse_advise(rest)
        case ["predict", *rest]:
            return _parse_predict(rest)
        case ["schema", *rest]:
            return build_schema_parser().parse_args(rest)
    return _parse_sweep(words)


def build_sweep_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line of a sweep."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [flags] sweep.yaml\n       %(prog)s {advise,predict,schema} ...",
        description="Runs a sweep of audio classifiers and prints its tables.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command="sweep")
    parser.add_argument(
        "sweep",
        metavar="sweep.yaml",
        type=Path,
        help="the sweep's file, or - for the standard input",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value that replaces the file's, as in parameters.sgdr.epochs=3; repeatable",
    )
    parser.add_argument(
        "--rerun",
        action="append",
        default=[],
        metavar="failed|all|ID",
        help="the only trials to run: failed ones, all, or the one whose id begins with ID;"
        " repeatable",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--dry-run",
        action="store_true",
        help="a list of all trials with state, forecast and /dev/shm; nothing is started",
    )
    parser.add_argument(
        "--json", action="store_true", help="with --dry-run: one JSON document instead of lines"
    )
    mode.add_argument(
        "--evaluate-test",
        action="store_true",
        help="one evaluation on the test split, of the best ensemble on validation",
    )
    mode.add_argument(
        "--debug",
        metavar="ID",
        help="one trial in this process, where pdb works: the one whose id begins with ID",
    )
    return parser


def build_advise_parser() -> argparse.ArgumentParser:
    """Returns the parser of `launch.py advise`."""
    parser = _command_parser(
        "advise",
        usage=(
            "%(prog)s MODULE:NAME [--batch-size N]\n"
            "           [--step MODULE:NAME | --step-s SECONDS [--run-ahead STEPS]]\n"
            "           [-- ARGUMENT ...]"
        ),
        description=(
            "Measures the DataLoader of another project on this machine and recommends its number"
            " of workers. It takes about a minute."
        ),
        epilog=MODULE_ARGUMENTS,
    )
    parser.add_argument(
        "target",
        metavar="MODULE:NAME",
        help="a function that returns a DataLoader, a Dataset, or a (Dataset, batch size) pair;"
        " the current folder is searched first for its module",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="batch size for a Dataset (default: 32)"
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument(
        "--step",
        metavar="MODULE:NAME",
        help="a training step, called with a batch and timed",
    )
    step.add_argument(
        "--step-s",
        type=float,
        metavar="SECONDS",
        help="duration of a training step on the accelerator",
    )
    parser.add_argument(
        "--run-ahead",
        type=int,
        metavar="STEPS",
        help=(
            "with --step-s: steps that may be queued on the accelerator when the loop goes on"
            " (default: 0, as of a loop that reads the loss of every step)"
        ),
    )
    return parser


def build_predict_parser() -> argparse.ArgumentParser:
    """Returns the parser of `launch.py predict`."""
    default = TrackingConfig()
    parser = _command_parser(
        "predict", description="Predicts the word in wav files, with the best ensemble of a sweep."
    )
    parser.add_argument("name", metavar="SWEEP", help="name of the sweep, as in its file")
    parser.add_argument(
        "clips",
        metavar="clip.wav",
        nargs="+",
        type=Path,
        help="wav files of 1 kHz to 1 MHz and any depth, length and number of channels",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=3,
        metavar="N",
        help="number of likeliest labels for each clip (default: %(default)s)",
    )
    parser.add_argument("--uri", metavar="URI", help=f"the tracker (default: {default.uri})")
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help=f"MLflow experiment of the sweep (default: {default.experiment})",
    )
    return parser


def build_schema_parser() -> argparse.ArgumentParser:
    """Returns the parser of `launch.py schema`."""
    return _command_parser(
        "schema",
        description=(
            "Prints the JSON Schema of sweep files. With it, an editor completes and checks them."
        ),
    )


def _command_parser(
    command: str, description: str, usage: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Returns a parser without arguments for the command of this name."""
    parser = argparse.ArgumentParser(
        f"{Path(sys.argv[0]).name} {command}", usage, description, epilog, allow_abbrev=False
    )
    parser.set_defaults(command=command)
    return parser


def _parse_sweep(words: list[str]) -> argparse.Namespace:
    """Parses the command line of a sweep."""
    parser = build_sweep_parser()
    flags = parser.parse_args(words)
    if flags.json and not flags.dry_run:
        parser.error("--json requires --dry-run")
    if flags.debug is not None and flags.rerun:
        parser.error("--debug ID already selects the trial; remove --rerun")
    return flags


def _parse_advise(words: list[str]) -> argparse.Namespace:
    """Parses what follows `advise`; `arguments` of the result are the words after the first --."""
    parser = build_advise_parser()
    end = words.index("--") if "--" in words else len(words)
    flags = parser.parse_args(words[:end], argparse.Namespace(arguments=words[end + 1 :]))
    if flags.batch_size is not None and flags.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if flags.step_s is not None and not 0 <= flags.step_s < math.inf:
        parser.error("--step-s must be a number of seconds, at least 0")
    if flags.run_ahead is not None and (flags.step_s is None or flags.run_ahead < 0):
        parser.error("--run-ahead needs --step-s, and a number of steps, at least 0")
    return flags


def _parse_predict(words: list[str]) -> argparse.Namespace:
    """Parses what follows `predict`, and reports variables that --uri or --experiment overrules."""
    from sweeps.tracking.database import resolve_uri

    parser, default = build_predict_parser(), TrackingConfig()
    flags = parser.parse_args(words)
    if flags.top < 1:
        parser.error("--top must be at least 1")
    for line in overruled_by_flags(flags.uri, flags.experiment, default.uri, default.experiment):
        print(line, file=sys.stderr)
    flags.uri, flags.experiment = flags.uri or default.uri, flags.experiment or default.experiment
    try:
        resolve_uri(flags.uri)
    except ValueError as error:
        parser.error(str(error))
    return flags
