"""Applies the rules on environment variables to this program and to the processes it starts.

The sweep file and the flags define a sweep. In addition, the libraries read a few hundred
variables, of which a launch inherits some from a notebook, a job script or a Docker image. The
rules in sweeps/environment_variables.py decide on every variable.

A program of this project calls `prepare` first. By then Python and the C library have read some
variables. Only a restart of the program, in the same process, corrects these. Processes that a
launch starts inherit the result; those of a cluster apply the rules themselves. With advise the
measured code is the user's, and so is its environment: `user_environment` restores it.
"""

import json
import locale
import os
import pwd
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path

from sweeps.environment_variables import DEFAULT, RECORDED, REMOVE, RULES, SET, Rule
from sweeps.output import mask_passwords

ROOT = str(Path(__file__).resolve().parent.parent)
CHANGES_VARIABLE = "SPEECH_SWEEPS_ENVIRONMENT"  # carries the changes to the restarted program
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_user_values: dict[str, str | None] = {}  # user's values of the changed variables; None: not set


def prepare() -> None:
    """Applies the rules to this program.

    If Python or the C library has already acted on a variable, this restarts the program.
    """
    global _user_values
    carried = os.environ.pop(CHANGES_VARIABLE, None)
    if carried is not None:
        _user_values = json.loads(carried)
        os.environ.pop("PYTHONIOENCODING", None)  # set below, for the streams of this program only
        apply()
        return
    acted_on = [
        name
        for name, rule in _match_rules(os.environ, RULES)
        if rule.at_start and rule.action is REMOVE
    ]
    is_not_utf8 = not sys.flags.utf8_mode and "utf" not in locale.getencoding().lower()
    encoding = getattr(sys.stdout, "encoding", None)
    apply()
    if (
        not (acted_on or is_not_utf8 or sys.flags.optimize or sys.warnoptions)
        or not sys.orig_argv[1:]
    ):
        return
    if not (Path(sys.argv[0]).is_file() or sys.argv[0] == "-m"):
        return  # the source comes from a pipe or the command line, and can't be read again
    encoding_variable = {"PYTHONIOENCODING": encoding} if encoding else {}
    variables = os.environ | encoding_variable | {CHANGES_VARIABLE: json.dumps(_user_values)}
    os.execve(
        sys.executable, [sys.executable, *_remove_interpreter_options(sys.orig_argv[1:])], variables
    )


def _remove_interpreter_options(words: list[str]) -> list[str]:
    """Returns the command line without Python's options -O and -W.

    They have the effects of PYTHONOPTIMIZE and PYTHONWARNINGS, which the rules remove.
    """
    remaining: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "-W":
            next(rest, None)
        elif word.startswith("-W"):
            continue
        elif word in ("-X", "--check-hash-based-pycs"):
            remaining += [word, next(rest, "")]
        elif re.fullmatch(r"-[bBdEhiIOPqsSuvVx?]+m?", word):
            if (letters := word[1:].replace("O", "")) != "":
                remaining.append(f"-{letters}")
            if word.endswith("m"):
                break
        else:
            remaining.append(word)
            break
    return [*remaining, *rest]


def apply(*rules: Rule, variables: MutableMapping[str, str] = os.environ) -> None:
    """Removes and sets variables according to `rules`, or by default all rules except Ray's.

    By default it also lets requests to this machine bypass a proxy, and sets a missing HOME.
    Former values of changed variables of this process are recorded for `user_environment`.
    """
    changes: dict[str, str | None] = {}
    for name, rule in _match_rules(variables, rules or RULES):
        if rule.action is REMOVE:
            changes[name] = None
        elif rule.action is SET or (rule.action is DEFAULT and name not in variables):
            changes[name] = rule.value
    if not rules:
        changes |= _bypass_proxy(variables) | _with_home(variables)
    for name, value in changes.items():
        if variables is os.environ and variables.get(name) != value:
            _user_values.setdefault(name, variables.get(name))
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value


def _match_rules(variables: Mapping[str, str], rules: Iterable[Rule]) -> Iterator[tuple[str, Rule]]:
    """Yields every variable that is set or is to be set, with the rule that applies to it."""
    rules = tuple(rules)
    settable = [
        name for rule in rules if rule.action in (SET, DEFAULT) for name in rule.names.split()
    ]
    for name in dict.fromkeys([*variables, *settable]):
        rule = next((rule for rule in rules if rule.matches(name)), None)
        if rule:
            yield name, rule


def _bypass_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns no_proxy in both spellings with this machine added, or nothing without a proxy.

    Requests to a tracker or a Ray on this machine must not go through the proxy.
    """
    if not any(
        name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in variables
    ):
        return {}
    hosts = [
        host.strip()
        for name in ("no_proxy", "NO_PROXY")
        for host in variables.get(name, "").split(",")
    ]
    value = ",".join(dict.fromkeys([*filter(None, hosts), *LOOPBACK]))
    return {"no_proxy": value, "NO_PROXY": value}


def _with_home(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns HOME as a folder among the temporary files, if the user has no home folder.

    That is the case for a user unknown to the system, in a container without HOME. MLflow needs a
    home folder when it is imported.
    """
    try:
        if not variables.get("HOME"):
            pwd.getpwuid(os.getuid())
        return {}
    except KeyError:
        try:
            folder = tempfile.gettempdir()
        except FileNotFoundError:  # no folder is writable, which preflight reports
            folder = "/tmp"
        return {"HOME": os.path.join(folder, f"speech-sweeps-{os.getuid()}")}


def with_project(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables with this project's packages on PYTHONPATH, for use from any folder."""
    paths = [
        path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", ROOT)
    ]
    return {**variables, "PYTHONPATH": os.pathsep.join([ROOT, *paths])}


def user_environment() -> dict[str, str]:
    """Returns the environment with which the user started this program, for the user's code."""
    return {
        name: value
        for name, value in (dict(os.environ) | _user_values).items()
        if value is not None
    }


def user_value(name: str) -> str | None:
    """Returns the user's original value of a variable, or None if it was unset or empty."""
    return user_environment().get(name) or None


def recorded_variables() -> dict[str, str]:
    """Returns the variables that are passed on and may change the duration of a trial."""
    return {name: os.environ[name] for name in RECORDED if os.environ.get(name)}


def fixed_variables(rules: Iterable[Rule]) -> dict[str, str]:
    """Returns the variables that `rules` always set, with their values."""
    return {name: rule.value for rule in rules if rule.action is SET for name in rule.names.split()}


def overruled_messages(variable: str, holds: str, description: str, key: str) -> list[str]:
    """Returns one line if the user's value of a variable differs from the value that `holds`.

    `description` introduces the value, such as 'figures go to'. `key` names the setting in which
    the user can write another value. Equal values give no line.
    """
    value = user_value(variable)
    if value is None or value == holds:
        return []
    return [
        f"{variable}={mask_passwords(value)} is overruled: {description} {holds}, the default of"
        f" {key}."
    ]


def overruled_by_flags(
    uri: str | None, experiment: str | None, default_uri: str, default_experiment: str
) -> list[str]:
    """Returns the lines of `overruled_messages` for a program that reads figures.

    `uri` and `experiment` are the values of the flags, or None for an absent flag.
    """
    lines = (
        []
        if uri
        else overruled_messages(
            "MLFLOW_TRACKING_URI", default_uri, "figures are read from", "--uri"
        )
    )
    if not experiment:
        for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            lines += overruled_messages(
                name, default_experiment, "runs are read from the experiment", "--experiment"
            )
    return lines
