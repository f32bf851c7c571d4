"""python -m analysis NAME: prints the tables of a sweep again, from the tracker alone."""

import argparse

from analysis import article
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, sweep_runs
from analysis.tables import render
from sweeps.tracking import resolve_uri


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m analysis", description="Prints the tables of a sweep again, from the tracker alone.")
    parser.add_argument("name", help="name of the sweep, as in its YAML")
    parser.add_argument("--uri", default=DEFAULT_URI, help="the tracker (default: %(default)s)")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT, help="MLflow experiment that holds the sweep (default: %(default)s)")
    parser.add_argument("--article", action="store_true", help="what became of the article's table instead, of a sweep of its blocks")
    given = parser.parse_args(arguments)
    try:
        resolve_uri(given.uri)
    except ValueError as error:
        parser.error(str(error))
    try:
        if given.article:
            print(article.render(sweep_runs(given.name, given.uri, given.experiment)), end="")
        else:
            print(render(given.name, given.uri, given.experiment), end="")
    except LookupError as error:
        parser.exit(2, f"{error.args[0]}\n")


if __name__ == "__main__":
    main()
