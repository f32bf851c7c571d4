"""Tests variables of the environment: a program and its children get those of the table, and
hostile values change no result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sweeps import environment
from sweeps.config.overruled import overruled_by_sweep
from sweeps.environment_variables import DEFAULT, PASS, REMOVE, RULES, SET
from sweeps.execution.ray_variables import JOINED_RAY, OWN_RAY
from tests.trees import ROOT, can_isolate

DANGEROUS = {
    "PYTHONHOME",
    "PYTHONPLATLIBDIR",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "GLIBC_TUNABLES",
    "PYTHONDUMPREFSFILE",
    "PYTHONMALLOC",
}
VALUES = {  # where any word would keep Python from starting
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
    "PYTHONINSPECT": "1",
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "ascii",
    "PYTHONHASHSEED": "3",
    "PYTHONTRACEMALLOC": "1",
    "PYTHONPATH": "/no/such/folder",
    "PYTHONPYCACHEPREFIX": "/no/such/folder",
    "LC_ALL": "C",
    "LANG": "C.UTF-8",
    "PYTHONINTMAXSTRDIGITS": "0",
    "PYTHON_GIL": "1",
}
# What people have in their terminals: of notebooks, job scripts, containers, debugging sessions
HOSTILE = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MATPLOTLIBRC": "/no/such/file",
    "MLFLOW_TRACKING_URI": "http://10.255.255.1:5000",
    "MLFLOW_EXPERIMENT_NAME": "other",
    "MLFLOW_EXPERIMENT_ID": "77",
    "MLFLOW_RUN_ID": "0123456789abcdef0123456789abcdef",
    "MLFLOW_REGISTRY_URI": "http://10.255.255.1:5000",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "nonsense",
    "MLFLOW_SQLALCHEMYSTORE_ECHO": "true",
    "RAY_ADDRESS": "10.255.255.1:6379",
    "RAY_TMPDIR": "/no/such/folder",
    "RAY_RUNTIME_ENV_HOOK": "no.such.hook",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"pip": ["x"]}}',
    "RAY_NAMESPACE": "other",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "/no/such/file",
    "RAY_LOGGER_LEVEL": "debug",
    "RAY_USE_TLS": "1",
    "RAY_BACKEND_LOG_LEVEL": "debug",
    "RAY_gcs_server_request_timeout_seconds": "nonsense",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "TUNE_RESULT_DIR": "/no/such/folder",
    "TUNE_MAX_PENDING_TRIALS_PG": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "0",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "LC_ALL": "POSIX",
    "PYTHONINSPECT": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONHASHSEED": "7",
    "PYTHONDEVMODE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "active",
    "OMP_PROC_BIND": "true",
    "OMP_DISPLAY_ENV": "true",
    "MKL_NUM_THREADS": "1",
    "MKL_VERBOSE": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "TORCH_LOGS": "+all",
    "TORCH_SHOW_CPP_STACKTRACES": "1",
    "CUDA_LAUNCH_BLOCKING": "1",
    "MALLOC_PERTURB_": "85",
    "MALLOC_CHECK_": "3",
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "grpc_proxy": "http://127.0.0.1:9",
    "COLUMNS": "0",
    "LINES": "0",
    "TTY_COMPATIBLE": "1",
    "FORCE_COLOR": "1",
    "GIT_DIR": "/no/such/folder",
    "PANDAS_COPY_ON_WRITE": "0",
    "TERM": "nonsense",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "cpp",
    "OTEL_TRACES_EXPORTER": "nonsense",
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
}
SWEEP = """
name: planted
calibrate: false
seed: 7
resources: {{exclusive_node: false, cpus: 1}}
parameters:
  corpus: {{name: folder, path: {tones}, words: [low, high]}}
  features: {{n_mels: 16, hop_ms: 25.0}}
  sgdr: {{epochs: 2}}
  loader: {{batch_size: 4, num_workers: 1, shm_size: 64M}}
blocks:
  workers: {{parameters: {{device: {{prefer: [simulated], step_s: 0.01}}}}}}
  cycles: {{metric: {{name: ensemble_accuracy, goal: maximize}}, parameters: {{device: cpu, loader: {{batch_size: 12}}}}}}
"""
NAMES = [
    (name.replace("*", "X"), rule)
    for rules in (RULES, OWN_RAY, JOINED_RAY)
    for rule in rules
    for name in rule.names.split()
]


def environment_of_a_program(folder: Path, given: dict[str, str], *flags: str) -> dict:
    """Returns the variables after `prepare` of a program with these variables and flags."""
    file = folder / "program.py"
    file.write_text(
        f"import json, os, sys; sys.path.insert(0, {str(ROOT)!r})\nfrom sweeps import"
        " environment\nif __name__ == '__main__':\n environment.prepare()\n"
        " print(json.dumps([dict(os.environ), environment.user_environment(),\n"
        " [sys.flags.optimize, sys.flags.inspect, sys.flags.dev_mode, sys.warnoptions],"
        " sys.argv[1:], sys.stdout.encoding]))\n"
    )
    done = subprocess.run(
        [sys.executable, *flags, file, "a", "-O"],
        env=given,
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    variables, users, interpreter, words, encoding = json.loads(done.stdout.splitlines()[-1])
    return {
        "variables": variables,
        "users": users,
        "interpreter": interpreter,
        "words": words,
        "encoding": encoding,
    }


@pytest.fixture(scope="module")
def hostile_program(tmp_path_factory) -> tuple[dict[str, str], dict]:
    """Starts a program with a value for every name of the table. Returns the values that it was
    given, and those that it has."""
    given = {
        name: VALUES.get(name, "given")
        for name, rule in NAMES
        if name not in DANGEROUS and not name.startswith(("RAY_", "TUNE_", "__RAY"))
    }
    given = {"PATH": os.environ["PATH"], "SOMETHING_ELSE": "given"} | given
    return given, environment_of_a_program(tmp_path_factory.mktemp("program"), given)


def test_the_table_is_what_a_program_has(hostile_program) -> None:
    given, there = hostile_program
    # of several rules the first decides
    decided = [(name, rule) for name, rule in reversed(NAMES) if rule in RULES and name in given]
    expected = {
        name: {PASS: given[name], REMOVE: None, SET: rule.value, DEFAULT: given[name]}[rule.action]
        for name, rule in decided
    }
    assert len(expected) > 150
    assert {name: there["variables"].get(name) for name in expected} == expected


def test_what_the_table_does_not_name_is_passed_on_and_the_user_s_own_is_kept(
    hostile_program,
) -> None:
    given, there = hostile_program
    assert there["variables"]["SOMETHING_ELSE"] == "given"
    assert there["users"] == given
    assert there["interpreter"] == [0, 0, False, []]
    assert there["encoding"] == "ascii", "what the user has chosen for this program's output"


def test_defaults_are_set_where_nothing_is(tmp_path) -> None:
    there = environment_of_a_program(tmp_path, {"PATH": os.environ["PATH"]})["variables"]
    assert {
        name: there[name] for name, rule in NAMES if rule in RULES and rule.action in (SET, DEFAULT)
    } == {
        name: rule.value for name, rule in NAMES if rule in RULES and rule.action in (SET, DEFAULT)
    }


@pytest.mark.parametrize(
    "flags", [["-OO"], ["-BO"], ["-W", "error"], ["-Werror", "-X", "utf8"], ["-i", "-O"]]
)
def test_flags_of_python_act_as_little_as_its_variables(tmp_path, flags: list[str]) -> None:
    there = environment_of_a_program(tmp_path, {"PATH": os.environ["PATH"]}, *flags)
    assert [there["interpreter"][0], there["interpreter"][3], there["words"]] == [
        0,
        [],
        ["a", "-O"],
    ]


def test_files_are_utf_8_in_a_locale_that_is_not_and_output_stays_in_its_encoding(tmp_path) -> None:
    there = environment_of_a_program(
        tmp_path,
        {
            "PATH": os.environ["PATH"],
            "LC_ALL": "POSIX",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
    )
    assert there["encoding"] == "ascii"
    assert there["variables"]["PYTHONUTF8"] == "1"
    assert "PYTHONIOENCODING" not in there["users"].keys() | there["variables"].keys()


@pytest.mark.parametrize(
    ("rules", "kept"),
    [(OWN_RAY, set()), (JOINED_RAY, {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_USE_TLS", "RAY_TMPDIR"})],
)
def test_a_ray_of_our_own_takes_nothing_of_another_and_a_cluster_keeps_its_address(
    rules, kept: set[str]
) -> None:
    variables = dict(HOSTILE)
    environment.apply(*rules, variables=variables)
    ray = {name: value for name, value in variables.items() if name.startswith(("RAY_", "TUNE_"))}
    assert ray.items() >= environment.fixed_variables(rules).items()
    assert kept <= ray.keys()
    assert (
        not {
            "RAY_RUNTIME_ENV_HOOK",
            "RAY_JOB_CONFIG_JSON_ENV_VAR",
            "RAY_NAMESPACE",
            "TUNE_RESULT_DIR",
        }
        & ray.keys()
    )
    assert (ray.keys() == environment.fixed_variables(rules).keys()) == (rules is OWN_RAY)


def test_a_home_is_found_without_home_and_without_a_temporary_folder(monkeypatch) -> None:
    def nothing(*_: object) -> str:
        raise FileNotFoundError

    def nobody(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr("tempfile.gettempdir", nothing)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert Path(environment._with_home({})["HOME"]).is_absolute()


def test_this_machine_is_not_asked_through_a_proxy() -> None:
    for given in ({"NO_PROXY": "a.example,b"}, {"no_proxy": "a.example", "NO_PROXY": "b"}):
        variables = {"https_proxy": "http://proxy:3128", **given}
        environment.apply(variables=variables)
        assert variables["no_proxy"] == variables["NO_PROXY"]
        assert set(variables["no_proxy"].split(",")) == {
            "a.example",
            "b",
            "localhost",
            "127.0.0.1",
            "::1",
        }
    variables = {"PATH": "/bin"}
    environment.apply(variables=variables)
    assert "no_proxy" not in variables


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    given = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=given,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def told(text: str) -> set[str]:
    """Returns the variables that lines report as overruled."""
    return {line.partition("=")[0] for line in text.splitlines() if " is overruled: " in line}


def without(text: str) -> list[str]:
    """Returns the other lines, with ornaments as they are written in ASCII."""
    plain = text.replace("·", "-").replace("±", "+-")
    return [
        line
        for line in plain.splitlines()
        if " is overruled: " not in line and not line.startswith("reading ")
    ]


@pytest.mark.slow
def test_a_dry_run_and_the_tables_are_the_same_under_hostile_variables(
    tones, tmp_path, first_look
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tones=tones))
    for words, names in (
        ((str(ROOT / "launch.py"), "sweep.yaml", "--dry-run"), {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID",
                                                                "RAY_ADDRESS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}),
        (("-m", "analysis", "first-look", "--uri", first_look.uri), {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"}),
    ):  # fmt: skip
        hostile = (
            HOSTILE
            if words[0] != "-m"
            else {name: value for name, value in HOSTILE.items() if name != "PYTHONSAFEPATH"}
        )
        clean, there = run(tmp_path, *words), run(tmp_path, *words, **hostile)
        assert (clean.returncode, clean.stderr, told(clean.stdout)) == (0, "", set())
        assert (there.returncode, without(there.stderr)) == (0, []), there.stderr
        assert without(there.stdout) == without(clean.stdout)
        assert told(there.stdout + there.stderr) == names


def test_settings_of_the_file_are_not_reported_and_passwords_never_are(monkeypatch) -> None:
    from sweeps.config.config import SweepConfig

    monkeypatch.setitem(
        environment._user_values, "MLFLOW_TRACKING_URI", "http://me:secret@host:5000"
    )
    (line,) = overruled_by_sweep(SweepConfig.model_validate({"name": "a", "blocks": {}} | BLOCK))
    assert line.startswith("MLFLOW_TRACKING_URI=")
    assert " sqlite:///mlflow.db," in line
    assert "tracking.uri" in line
    assert "secret" not in line
    config = SweepConfig.model_validate(
        {"name": "a", "tracking": {"uri": "sqlite:///mlflow.db"}} | BLOCK
    )
    assert overruled_by_sweep(config) == []


BLOCK = {"blocks": {"a": {"parameters": {"sgdr": {"lr": {"values": [0.1, 0.2]}}}}}}


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif(not can_isolate(), reason="this machine forbids mount namespaces")
def test_a_launch_is_the_same_under_hostile_variables_and_listens_on_loopback_only(
    tones, tmp_path
) -> None:
    found = []
    for name, hostile in (("clean", {}), ("hostile", HOSTILE)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sweep.yaml").write_text(SWEEP.format(tones=tones))
        given = os.environ | hostile
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            running = psutil.Popen([sys.executable, ROOT / "launch.py", "sweep.yaml"], cwd=folder, env=given, stdout=out, stderr=err,
                                   stdin=subprocess.DEVNULL)  # fmt: skip
            listening: dict[str, set[str]] = {}
            while running.poll() is None:
                look_at_sockets(running, listening)
                try:
                    running.wait(0.3)
                except psutil.TimeoutExpired:
                    continue
        assert running.returncode == 0, (folder / "out").read_text() + (folder / "err").read_text()
        assert without((folder / "err").read_text()) == []
        assert {"gcs_server", "raylet"} <= listening.keys()
        assert set.union(*listening.values()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening
        assert (folder / "mlartifacts").is_dir()
        found.append(figures(folder))
        assert "No report" not in (folder / "err").read_text()
    assert found[0] == found[1]


def look_at_sockets(launch: psutil.Popen, listening: dict[str, set[str]]) -> None:
    """Adds the addresses that processes of the launch listen on, by the name of the process."""
    try:
        processes = [launch, *launch.children(recursive=True)]
    except psutil.Error:
        return
    for process in processes:
        try:
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN or (socket.type == 2 and not socket.raddr):
                    listening.setdefault(process.name(), set()).add(socket.laddr.ip)
        except psutil.Error:
            continue


def figures(folder: Path) -> list[tuple]:
    """Returns the figures of each trial that do not depend on the clock."""
    from analysis.runs import sweep_runs

    trials = sweep_runs("planted", f"sqlite:///{folder}/mlflow.db").trials
    columns = ["block", "outcome", "trial_id", "accuracy", "ensemble_accuracy"]
    return sorted(tuple(map(str, row)) for row in trials[columns].to_numpy())
