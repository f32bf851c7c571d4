"""The command line: which parser a first word chooses, what goes together, and what help shows."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from sweeps.commands.arguments import (
    build_advise_parser,
    build_predict_parser,
    build_schema_parser,
    build_sweep_parser,
    parse_arguments,
)

PAGE = Path(__file__).parent.parent / "docs/cli.md"
PARSERS = {
    "launch.py": build_sweep_parser,
    "launch.py advise": build_advise_parser,
    "launch.py predict": build_predict_parser,
    "launch.py schema": build_schema_parser,
}
every_parser = pytest.mark.parametrize(("name", "build"), PARSERS.items(), ids=PARSERS)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["sweep.yaml"], "sweep"),
        (["--dry-run", "sweep.yaml"], "sweep"),
        (["--set", "a=b", "sweep.yaml", "--dry-run"], "sweep"),
        (["-", "--json", "--dry-run"], "sweep"),
        (["advise", "a:b"], "advise"),
        (["predict", "words", "a.wav"], "predict"),
        (["schema"], "schema"),
    ],
)
def test_the_first_word_chooses_the_command(words: list[str], command: str) -> None:
    assert parse_arguments(words).command == command


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["./advise", "--dry-run"], "./advise"),
        (["--dry-run", "advise"], "advise"),
        (["--", "schema"], "schema"),
        (["--set", "schema", "a.yaml"], "a.yaml"),
    ],
)
def test_a_file_with_the_name_of_a_command_is_reached(words: list[str], file: str) -> None:
    flags = parse_arguments(words)
    assert (flags.command, flags.sweep) == ("sweep", Path(file))


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["advise", "a:b", "--", "--data", "x", "--", "y"], ["--data", "x", "--", "y"]),
        (["advise", "a:b", "--"], []),
        (["advise", "a:b", "--step-s", "1"], []),
    ],
)
def test_what_follows_two_dashes_is_the_modules(words: list[str], left: list[str]) -> None:
    flags = parse_arguments(words)
    assert (flags.target, flags.arguments) == ("a:b", left)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["advise"],
        ["schema", "a.yaml"],
        ["a.yaml", "--json"],
        ["a.yaml", "--debug", "a", "--rerun", "all"],
        ["a.yaml", "--dry-run", "--evaluate-test"],
        ["a.yaml", "--step-s", "1"],
        ["a.yaml", "--evaluate"],
        ["advise", "a:b", "--evaluate-test"],
        ["advise", "a:b", "--step", "a:c", "--step-s", "1"],
        ["advise", "a:b", "--batch-size", "0"],
        ["advise", "a:b", "--run-ahead", "2"],
        ["advise", "a:b", "--step-s", "1", "--run-ahead", "-1"],
        *(["advise", "a:b", "--step-s", seconds] for seconds in ("nan", "inf", "-1")),
        ["predict", "words"],
        ["predict", "words", "a.wav", "--top", "0"],
        ["predict", "words", "a.wav", "--uri", "mlruns"],
    ],
)
def test_what_does_not_go_together_is_refused_at_once(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@every_parser
@pytest.mark.parametrize("columns", [80, 100])
def test_help_is_as_wide_as_the_terminal(
    name: str, build: Callable[[], argparse.ArgumentParser], columns: int, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.argv", ["launch.py"])
    text = build().format_help()
    assert text.startswith(f"usage: {name} ")
    assert max(map(len, text.splitlines())) <= columns


@every_parser
def test_the_page_on_the_command_line_lists_every_flag(
    name: str, build: Callable[[], argparse.ArgumentParser]
) -> None:
    (section,) = (
        section
        for section in PAGE.read_text("utf-8").split("\n## ")[1:]
        if section.partition("\n")[0] == name
    )
    listed = set(re.findall(r"^\| `(--[\w-]+)", section, re.MULTILINE))
    assert listed == {
        flag for action in build()._actions for flag in action.option_strings if flag[:2] == "--"
    } - {"--help"}
