"""python -m analysis NAME: prints the tables of a sweep again, from the tracker alone; or writes its report, or the tables as CSV."""

import argparse
from pathlib import Path

from analysis import article
from analysis.filters import matching
from analysis.runs import DEFAULT_EXPERIMENT, DEFAULT_URI, joined_runs
from analysis.tables import body, render, write_csv
from sweeps.tracker import TrackerAway, asked, resolve_uri


def main(arguments: list[str] | None = None) -> None:
    parser = parsed()
    given = parser.parse_args(arguments)
    try:
        resolve_uri(given.uri)
    except ValueError as error:
        parser.error(str(error))
    try:
        answer(given)
    except LookupError as error:
        parser.exit(2, f"{error.args[0]}\n")
    except TrackerAway as error:
        parser.exit(1, f"{error}\n")


def parsed() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m analysis", description="Prints the tables of a sweep again, from the tracker alone.")
    parser.add_argument("name", nargs="+", help="name of the sweep, as in its YAML; of several their tables stand beside each other")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only such trials: block=workers, num_workers=8")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write each table as a tidy CSV file instead, and print their names")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write report.html instead: tables, pictures and all they rest on")
    parser.add_argument("--uri", default=DEFAULT_URI, help="the tracker (default: %(default)s)")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT, help="MLflow experiment that holds the sweep (default: %(default)s)")
    parser.add_argument("--article", action="store_true", help="what became of the article's table instead, of a sweep of its blocks")
    return parser


def answer(given: argparse.Namespace) -> None:
    """Prints or writes what was asked for. LookupError: there is no such sweep or trial. TrackerAway: nobody answers.

    What is written is not asked for: a full disk here is no tracker that is away.
    """
    place = given.uri, given.experiment
    if given.out:
        from analysis import report  # with matplotlib, which tables do without

        with asked(given.uri):
            page = report.report(given.name, *place, given.where)
        print(report.write(page, given.out))
    if given.csv:
        with asked(given.uri):
            trials = matching(joined_runs(given.name, *place), given.where)
        print(*write_csv(trials, given.csv), sep="\n")
    if not given.out and not given.csv:
        with asked(given.uri):
            text = printed(given)
        print(text, end="")


def printed(given: argparse.Namespace) -> str:
    """The tables, with a newline at the end."""
    place = given.uri, given.experiment
    if given.article:
        return article.render(joined_runs(given.name, *place))
    if given.where or len(given.name) > 1:
        return body(matching(joined_runs(given.name, *place), given.where), given.markdown) + "\n"
    return render(given.name[0], *place, given.markdown)


if __name__ == "__main__":
    main()
