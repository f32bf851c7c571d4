"""Runs one command of the product in strange surroundings, and reports what came of it.

    python -m tests.surroundings --cases 300 --seed 1        make fuzz
    python -m tests.surroundings --only 17 --show            one case again, with all that it printed

A case is a command (a launch, a dry run, the tables) and a few twists drawn from its seed:
environment variables, read-only places, limits, odd folder names, a project that was copied,
strange but whole clips, odd outputs. It ends in the result of the undisturbed run or in one clear
error with exit code 2 or 3. A traceback, a hang, a process that stays, and a figure that differs
are findings.

Each case runs in a mount and PID namespace of its own, with its own /tmp, which needs root.
"""

import argparse
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tones import write_tones
from tests.trees import ROOT

LIMIT_S = 240.0  # a launch takes 15 to 30 s on a quiet machine
LOSS_TOLERANCE = 1e-3  # the same network in another memory format
USERS = {"root": 0, "ordinary user": 65534, "user without a name": 12345}

SWEEP = """
name: tiny
calibrate: false
threads: 1
warmup_epochs: 0
parameters:
  corpus: {name: folder, path: ../tones, words: [low, high]}
  features: {n_mels: 16, hop_ms: 25.0}
  loader: {batch_size: 4, shm_size: 64M, num_workers: {values: [0, 1]}}
  device: cpu
  precision: float32
  sgdr: {epochs: 1}
metric: {name: ensemble_accuracy, goal: maximize}
"""


@dataclass
class Case:
    """A command and its surroundings. Twists change it before it runs."""

    seed: int
    command: str  # launch, dry run, tables
    folder: Path  # its own, empty but for what twists put there
    user: str = "root"
    project: str = "project"  # name of the project's folder, below `folder`
    finished: bool = False  # the project holds the finished sweep
    # clips hold other bytes than when it ran: another corpus, of which no trial has run
    altered: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)  # variables
    # shell lines, run as root in the case's mount namespace
    setup: list[str] = field(default_factory=list)
    # words before the command, as `prlimit --nofile=256`
    limits: list[str] = field(default_factory=list)
    output: str = "pipe"
    twists: list[str] = field(default_factory=list)
    may_refuse: bool = False  # an error with exit code 2 or 3 is a right end
    must_refuse: bool = False

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def where(self) -> Path:
        return self.folder / self.project


@dataclass(frozen=True)
class Ending:
    """What came of a case."""

    code: int | None  # exit status; None: it hung and was killed
    stdout: str
    stderr: str
    seconds: float
    stayed: list[str]  # names of processes that were there three seconds after it had ended
    figures: Any  # what the command's result is compared by


HOSTILE = {
    "MPLBACKEND": ("module://matplotlib_inline.backend_inline", "TkAgg", "nonsense"),
    "MPLCONFIGDIR": ("/proc/none",),
    "MATPLOTLIBRC": ("/nonexistent",),
    "RAY_ADDRESS": ("auto", "127.0.0.1:9", "ray://127.0.0.1:9"),
    "RAY_TMPDIR": ("/nonexistent/ray",),
    "RAY_RUNTIME_ENV_HOOK": ("ray._private.runtime_env.uv_runtime_env_hook.hook", "no.such.hook"),
    "RAY_JOB_CONFIG_JSON_ENV_VAR": ("{", '{"runtime_env": {"pip": ["nonsense"]}}'),
    "RAY_NAMESPACE": ("somebody",),
    "RAY_LOG_TO_STDERR": ("1",),
    "RAY_BACKEND_LOG_LEVEL": ("debug",),
    "RAY_AUTH_MODE": ("token", "disabled"),
    "RAY_memory_usage_threshold": ("0.01",),
    "RAY_CHDIR_TO_TRIAL_DIR": ("0",),
    "RAY_AIR_NEW_OUTPUT": ("1",),
    "RAY_TQDM": ("0",),
    "TUNE_MAX_PENDING_TRIALS_PG": ("1",),
    "TUNE_RESULT_BUFFER_LENGTH": ("1000",),
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": ("0",),
    "TUNE_GLOBAL_CHECKPOINT_S": ("0",),
    "TUNE_DISABLE_SIGINT_HANDLER": ("0",),
    "MLFLOW_TRACKING_URI": (
        "http://127.0.0.1:9",
        "sqlite:////nonexistent/x.db",
        "file:///tmp/runs",
    ),
    "MLFLOW_REGISTRY_URI": ("http://127.0.0.1:9",),
    "MLFLOW_RUN_ID": ("0123456789abcdef0123456789abcdef",),
    "MLFLOW_EXPERIMENT_ID": ("77",),
    "MLFLOW_EXPERIMENT_NAME": ("another",),
    "MLFLOW_ENABLE_ASYNC_LOGGING": ("true",),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": ("soon",),
    "MLFLOW_LOGGING_LEVEL": ("DEBUG",),
    "MLFLOW_SQLALCHEMYSTORE_ECHO": ("true",),
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": ("true",),
    "PYTHONOPTIMIZE": ("1", "2"),
    "PYTHONWARNINGS": ("error", "always"),
    "PYTHONIOENCODING": ("ascii", "latin-1"),
    "PYTHONUTF8": ("0",),
    "PYTHONHASHSEED": ("0",),
    "PYTHONSAFEPATH": ("1",),
    "PYTHONUNBUFFERED": ("1",),
    "PYTHONDEVMODE": ("1",),
    "PYTHONSTARTUP": ("/nonexistent",),
    "PYTHONINSPECT": ("1",),
    "PYTHONBREAKPOINT": ("no.such",),
    "PYTHONNOUSERSITE": ("1",),
    "LC_ALL": ("C", "xx_YY.nonsense"),
    "LANG": ("tr_TR.ISO-8859-9",),
    "TZ": ("Nowhere/Nope", "Pacific/Kiritimati"),
    "OMP_NUM_THREADS": ("64", "many"),
    "OMP_WAIT_POLICY": ("active", "passive"),
    "OMP_PROC_BIND": ("true",),
    "OMP_DYNAMIC": ("true",),
    "GOMP_CPU_AFFINITY": ("0",),
    "KMP_AFFINITY": ("compact",),
    "MKL_NUM_THREADS": ("64",),
    "OPENBLAS_NUM_THREADS": ("0",),
    "TORCH_LOGS": ("+all",),
    "TORCH_HOME": ("/nonexistent",),
    "TORCH_SHOW_CPP_STACKTRACES": ("1",),
    "TORCH_CPP_LOG_LEVEL": ("INFO",),
    "CUDA_VISIBLE_DEVICES": ("", "7"),
    "CUDA_LAUNCH_BLOCKING": ("1",),
    "http_proxy": ("http://127.0.0.1:9",),
    "HTTPS_PROXY": ("http://127.0.0.1:9",),
    "ALL_PROXY": ("socks5://127.0.0.1:9",),
    "COLUMNS": ("10", "0", "wide"),
    "LINES": ("0",),
    "TERM": ("dumb", "nonsense"),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
    "GIT_DIR": ("/nonexistent",),
    "MALLOC_PERTURB_": ("165",),
    "SLURM_JOB_ID": ("77",),
    "WORLD_SIZE": ("4",),
    "DISPLAY": (":99",),
    "SQLALCHEMY_WARN_20": ("1",),
}
NAMES = (
    "50% #1?",
    "with space",
    "it's",
    'say "hi"',
    "a&b;c",
    "söund",
    "%20",
    "[x]{y}",
    "$HOME",
    "~",
    "-rf",
    "a:b",
    "trailing ",
    "new\nline",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the product in strange surroundings.")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first case that is run"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of single cases")
    parser.add_argument("--show", action="store_true", help="print what each case printed")
    flags = parser.parse_args()
    numbers = range(flags.first, flags.cases) if flags.only is None else flags.only
    ends: Counter[str] = Counter()
    found = []
    with Stage() as stage:
        for number in numbers:
            case, ending = stage.run(flags.seed, number)
            verdict = stage.judge(case, ending)
            ends["finding" if verdict else f"exit {ending.code}"] += 1
            print(
                f"{number:4}  {case.command:8} {ending.seconds:5.1f} s  exit {ending.code!s:5}"
                f" {'; '.join(case.twists)}",
                flush=True,
            )
            if flags.show:
                print(ending.stdout + ending.stderr)
            if verdict:
                found.append(number)
                print(f"      FINDING: {verdict}\n{_tail(ending)}", flush=True)
    print(json.dumps({"cases": len(numbers), "seed": flags.seed, "ends": ends, "findings": found}))
    return 1 if found else 0


class Stage:
    """The undisturbed results, and a folder for the cases. A context manager that removes the
    folder."""

    def __enter__(self) -> "Stage":
        self.folder = Path(tempfile.mkdtemp(prefix="surroundings-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        write_tones(self.folder / "tones")
        plain = self._case(0, "launch", "reference")
        ending = self._perform(plain)
        if ending.code != 0:
            raise RuntimeError(
                f"the undisturbed launch ended with exit code {ending.code}:\n{_tail(ending)}"
            )
        self.reference, self.expected = plain.where, {"launch": ending.figures}
        for command in ("dry run", "tables"):
            case = self._case(0, command, f"reference {command}", finished=True)
            self._copy_reference(case)
            self.expected[command] = self._perform(case).figures
        fresh = self._case(0, "dry run", "reference fresh")
        self.expected["fresh dry run"] = self._perform(fresh).figures
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, seed: int, number: int) -> tuple[Case, Ending]:
        """Makes and runs one case; its folder is removed."""
        rng = random.Random(f"{seed}/{number}")
        command = rng.choices(["launch", "dry run", "tables"], [1, 4, 3])[0]
        finished = command == "tables" or (command == "dry run" and rng.random() < 0.5)
        case = self._case(number, command, f"case {number}", finished=finished)
        draw_twists(case, rng)
        if case.finished:
            self._copy_reference(case)
        ending = self._perform(case)
        shutil.rmtree(case.folder, ignore_errors=True)
        return case, ending

    def judge(self, case: Case, ending: Ending) -> str:
        """What is wrong with an ending; empty where nothing is."""
        printed = ending.stdout + ending.stderr
        if ending.code is None:
            return f"hung for {LIMIT_S:.0f} s"
        if "Traceback (most recent call last)" in printed:
            return "a traceback"
        if ending.stayed:
            return f"left processes behind: {', '.join(ending.stayed)}"
        refused = ending.code in (2, 3)
        if refused and not (case.may_refuse or case.must_refuse):
            return f"refused with exit code {ending.code} what could be done"
        if refused:
            return (
                "" if ending.stderr.strip() or case.output != "pipe" else "refused without a word"
            )
        if case.must_refuse:
            return f"exit code {ending.code} where it could not be right"
        if ending.code == 141 and case.output == "head":
            return ""  # who reads the output has read enough, and the same command goes on
        if ending.code == 1 and case.output == "full" and case.command != "launch":
            return "" if "No space left" in ending.stderr else "exit code 1 without a word"
        if ending.code != 0:
            return f"exit code {ending.code}"
        expected = self.expected[
            (
                "fresh dry run"
                if case.command == "dry run" and (case.altered or not case.finished)
                else case.command
            )
        ]
        if case.command == "tables" and "PYTHONIOENCODING" in case.variables:
            return ""  # its letters are others, as they are to be
        if case.output == "pipe" or case.command == "launch":
            return differences(expected, ending.figures)
        return ""

    def _case(self, number: int, command: str, folder: str, finished: bool = False) -> Case:
        case = Case(number, command, self.folder / folder.replace(" ", "-"), finished=finished)
        case.home.mkdir(parents=True)
        shutil.copytree(self.folder / "tones", case.folder / "tones")
        return case

    def _copy_reference(self, case: Case) -> None:
        shutil.copytree(self.reference, case.where, dirs_exist_ok=True)

    def _perform(self, case: Case) -> Ending:
        case.where.mkdir(exist_ok=True)
        (case.where / "sweep.yaml").write_text(SWEEP)
        for each in (case.folder / "repo", case.folder / "venv", case.folder / "python"):
            each.mkdir(exist_ok=True)
        if case.user != "root":
            _give_away(case.folder, USERS[case.user])
        script = case.folder / "inside.sh"
        script.write_text(_script(case))
        whole = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
            "sh",
            str(script),
        ]
        began = time.monotonic()
        process = subprocess.Popen(
            whole, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=LIMIT_S)
            code = _read_code(case)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            code = None
        stayed = case.folder / "stayed"
        names = stayed.read_text().split() if stayed.exists() else []
        return Ending(code, stdout, stderr, time.monotonic() - began, names, _figures(case, stdout))


def draw_twists(case: Case, rng: random.Random) -> None:
    """Changes the case by one to four twists, each of another kind."""
    kinds: list[Callable[[Case, random.Random], str]] = [
        variables,
        variables,
        places,
        limits,
        names,
        clips,
        outputs,
        users,
    ]
    for twist in rng.sample(kinds, rng.randint(1, 4)):
        if text := twist(case, rng):
            case.twists.append(text)


def variables(case: Case, rng: random.Random) -> str:
    drawn = {
        name: rng.choice(HOSTILE[name]) for name in rng.sample(sorted(HOSTILE), rng.randint(2, 6))
    }
    case.variables |= drawn
    return " ".join(f"{name}={value}" for name, value in drawn.items())


def places(case: Case, rng: random.Random) -> str:
    kind = rng.choice(["home unset", "home read-only", "home missing", "cache read-only", "cache a file", "tmp read-only", "tmp missing",
                       "folder read-only", "disk of the folder full", "no /sys/fs/cgroup", "no /proc/pressure"])  # fmt: skip
    where, home = _quoted(case.where), _quoted(case.home)
    match kind:
        case "home unset":
            case.removed.add("HOME")
            case.may_refuse = True  # a user without an entry in /etc/passwd has none then
        case "home read-only":
            case.setup.append(f"mount --bind {home} {home} && mount -o remount,bind,ro {home}")
            case.may_refuse = True
        case "home missing":
            case.variables["HOME"] = "/nonexistent"
            case.may_refuse = True
        case "cache read-only":
            case.variables["XDG_CACHE_HOME"] = "/proc/cache"
            case.may_refuse = True
        case "cache a file":
            case.variables["XDG_CACHE_HOME"] = "/etc/passwd"
            case.may_refuse = True
        case "tmp read-only":
            case.setup += [f"mkdir -m 777 {home}/tmp", "mount -o remount,ro /tmp"]
            case.variables["TMPDIR"] = str(case.home / "tmp")
        case "tmp missing":
            case.variables["TMPDIR"] = "/nonexistent"
            case.may_refuse = True
        case "folder read-only":
            case.setup.append(f"mount --bind {where} {where} && mount -o remount,bind,ro {where}")
            case.must_refuse = case.command == "launch"
        case "disk of the folder full":
            if case.command != "launch":
                return ""
            case.setup.append(
                f"cp -a {where} {home}/kept && mount -t tmpfs -o size=1m,mode=777 tmpfs {where}"
            )
            case.setup.append(f"cp -a {home}/kept/sweep.yaml {where}/")
            case.may_refuse = True
        case "no /sys/fs/cgroup":
            case.setup.append("mount -t tmpfs tmpfs /sys/fs/cgroup")
        case "no /proc/pressure":
            case.setup.append("[ ! -d /proc/pressure ] || mount -t tmpfs tmpfs /proc/pressure")
    return kind


def limits(case: Case, rng: random.Random) -> str:
    kind = rng.choice(
        ["nofile=256", "nofile=64", "core=0", "stack=1048576", "one core", "nproc=150", "nice"]
    )
    match kind:
        case "one core":
            case.limits = ["taskset", "-c", "0"]
        case "nice":
            case.limits = ["nice", "-n", "10"]
        case "nproc=150":
            case.user = "ordinary user"  # root is not bound by it
            case.limits = ["prlimit", "--nproc=150"]
            case.may_refuse = True
        case _:
            case.limits = ["prlimit", f"--{kind}"]
            case.may_refuse = kind in ("nofile=64", "stack=1048576")
    return kind


def names(case: Case, rng: random.Random) -> str:
    case.project = rng.choice(NAMES)
    return f"folder {case.project!r}"


def clips(case: Case, rng: random.Random) -> str:
    """Changes what is around the samples of some clips, and the lists; never what is learnt."""
    tones = case.folder / "tones"
    kind = rng.choice(["riff size of the file", "sizes of a pipe", "zero sizes", "lists with a byte order mark", "lists with CRLF",
                       "hidden files", "a readme beside the words", "a chunk after the samples"])  # fmt: skip
    files = sorted(tones.glob("[!_]*/*.wav"))
    match kind:
        case "lists with a byte order mark" | "lists with CRLF":
            for file in tones.glob("*_list.txt"):
                text = file.read_text()
                file.write_bytes(
                    ("\ufeff" + text if "mark" in kind else text.replace("\n", "\r\n")).encode()
                )
        case "hidden files":
            for folder in tones.glob("[!_]*/"):
                (folder / ".DS_Store").write_bytes(b"\0" * 100)
                (folder / "._speaker0_nohash_0.wav").write_bytes(b"\0" * 100)
        case "a readme beside the words":
            (tones / "README.md").write_text("tones")
            (tones / "LICENSE").write_text("free")
        case _:
            for file in rng.sample(files, len(files) // 2):
                content = bytearray(file.read_bytes())
                if kind == "riff size of the file":
                    content[4:8] = len(content).to_bytes(4, "little")
                elif kind == "sizes of a pipe":
                    content[4:8], content[40:44] = (
                        (0x7FFFF024).to_bytes(4, "little"),
                        (0x7FFFF000).to_bytes(4, "little"),
                    )
                elif kind == "zero sizes":
                    content[4:8], content[40:44] = b"\xff" * 4, b"\xff" * 4
                else:
                    content += b"LIST" + (4).to_bytes(4, "little") + b"INFO"
                    content[4:8] = (len(content) - 8).to_bytes(4, "little")
                file.write_bytes(content)
            case.altered = True
    return f"clips: {kind}"


def outputs(case: Case, rng: random.Random) -> str:
    case.output = rng.choice(["closed", "full", "head", "no stdin", "stderr closed"])
    return f"output {case.output}"


def users(case: Case, rng: random.Random) -> str:
    case.user = rng.choice(sorted(USERS))
    return case.user


def differences(expected: Any, found: Any) -> str:
    """What differs between two results, in a line; empty where nothing does."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if expected.keys() != found.keys():
            return f"differs: {sorted(map(str, expected))} against {sorted(map(str, found))}"
        return next(filter(None, (differences(expected[key], found[key]) for key in expected)), "")
    if isinstance(expected, float) and isinstance(found, float):
        return (
            ""
            if abs(expected - found) <= LOSS_TOLERANCE * abs(expected)
            else f"differs: {found} where {expected} was right"
        )
    return (
        ""
        if expected == found
        else f"differs: {str(found)[-300:]!r} where {str(expected)[-300:]!r} was right"
    )


def _figures(case: Case, stdout: str) -> Any:
    """What a command's result is compared by: all that surroundings may not change."""
    match case.command:
        case "launch":
            return _learnt(case.where / "mlflow.db")
        case "tables":
            return re.sub(r"`[^`]*`|python -m analysis.*", "", stdout)  # commands hold paths
        case _:
            try:
                document = json.loads(stdout)
            except ValueError:
                return None
            return {
                str(trial["swept"]): [
                    *(trial[name] for name in ("block", "repeat", "state", "outcome", "runs")),
                    trial["fit"]["verdict"],
                ]
                for trial in document["trials"]
            }


def _learnt(database: Path) -> dict[str, Any]:
    """Outcome, losses and accuracy of each trial, read from the database as it is."""
    if not database.exists():
        return {}
    learnt: dict[str, Any] = {}
    with sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True) as connection:
        for run, swept, outcome in connection.execute(
            "SELECT a.run_uuid, a.value, b.value FROM tags a LEFT JOIN tags b ON a.run_uuid ="
            " b.run_uuid AND b.key = 'outcome' WHERE a.key = 'swept'"
        ):
            query = (
                "SELECT key, value FROM metrics WHERE run_uuid = ? AND key IN ('loss/training',"
                " 'loss/validation', 'ensemble_accuracy')"
            )
            learnt[swept] = {"outcome": outcome} | dict(connection.execute(query, (run,)))
    return learnt


def _script(case: Case) -> str:
    """What root does inside the namespaces before the command and after it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    seen = {ROOT: "repo", sys.prefix: "venv", sys.base_prefix: "python"}
    seen = {source: _quoted(case.folder / name) for source, name in seen.items()}
    base = {
        "HOME": str(case.home),
        "PATH": f"{case.folder / 'python' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(case.folder / "python" / "lib"),
        "PYTHONPATH": (
            f"{case.folder / 'repo'}:{case.folder / 'venv' / 'lib' / version / 'site-packages'}"
        ),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    settings = {
        name: value for name, value in (base | case.variables).items() if name not in case.removed
    }
    user = USERS[case.user]
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    program = {
        "launch": [f"{case.folder}/repo/launch.py", "sweep.yaml"],
        "dry run": [f"{case.folder}/repo/launch.py", "sweep.yaml", "--dry-run", "--json"],
        "tables": ["-m", "analysis", "tiny"],
    }[case.command]
    words = [
        *case.limits,
        *become,
        "env",
        "-i",
        *(f"{name}={value}" for name, value in settings.items()),
        version,
        *program,
    ]
    redirect = {
        "pipe": "", "closed": ">&-", "full": ">/dev/full", "head": "| head -c 100", "no stdin": "<&-", "stderr closed": "2>&-",
    }[case.output]  # fmt: skip
    done = _quoted(case.folder / "code")
    return "\n".join(
        [
            "mount -t tmpfs -o mode=1777 tmpfs /tmp",
            *(f"mount --rbind {_quoted(source)} {target}" for source, target in seen.items()),
            f"cd {_quoted(case.where)}",
            *case.setup,
            f"cd {_quoted(case.where)}",
            f"{{ {' '.join(map(_quoted, words))}; echo $? >{done}; }} {redirect}",
            (
                "for second in 1 2 3; do [ $(ls -d /proc/[0-9]* | wc -l) -le 3 ] && break; sleep 1;"
                " done"
            ),
            (
                "for each in /proc/[0-9]*; do read name <$each/comm; case $name in"
                " sh|ls|wc|sleep|head) ;; *) echo $name;; esac; done"
                f" >{_quoted(case.folder / 'stayed')} 2>/dev/null"
            ),
            "",
        ]
    )


def _quoted(text: object) -> str:
    return "'" + str(text).replace("'", "'\\''") + "'"


def _read_code(case: Case) -> int:
    file = case.folder / "code"
    return int(file.read_text()) if file.exists() and file.read_text().strip() else -1


def _give_away(folder: Path, user: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user, user, follow_symlinks=False)


def _tail(ending: Ending) -> str:
    lines = (ending.stdout + "\n" + ending.stderr).strip().splitlines()[-25:]
    return "\n".join(f"      | {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
