"""The house itself: which way imports point, that the README's list of files is true, and that what is shipped loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.config import load
from sweeps.plan import plan

ROOT = Path(__file__).parent.parent
ROOMS = {"speech", "sweeps", "analysis"}
ARROWS = {"launch": {"sweeps", "analysis"}, "sweeps": {"speech"}, "speech": set(), "analysis": {"sweeps"}}
# The names under which figures are kept, and nothing else
ANALYSIS_READS = {"sweeps.tracker", "sweeps.tracking", "sweeps.metrics", "sweeps.names"}
FORBIDDEN = {"speech": {"ray", "mlflow", "pandas"}, "analysis": {"ray", "torch"}}
SOURCES = [path for room in sorted(ROOMS) for path in sorted((ROOT / room).glob("*.py"))] + [ROOT / "launch.py"]


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever in it, names of `from x import y` as x.y where y is a module of ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = {f"{node.module}.{alias.name}" for alias in node.names if (ROOT / node.module / f"{alias.name}.py").exists()}
            found |= modules or {node.module}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.parent.name if path.parent != ROOT else "launch"
    ours = {module for module in imported(path) if module.split(".")[0] in ROOMS}
    assert {module.split(".")[0] for module in ours} <= ARROWS[room] | {room}
    assert not {module.split(".")[0] for module in imported(path)} & FORBIDDEN.get(room, set())
    if room == "analysis":
        assert {module for module in ours if module.startswith("sweeps")} <= ANALYSIS_READS


def test_only_what_runs_trials_knows_ray() -> None:
    knowing = {path.name for path in SOURCES if any(module.split(".")[0] == "ray" for module in imported(path))}
    assert knowing == {"runner.py", "joining.py", "cluster.py"}


def test_the_readmes_list_of_files_is_true() -> None:
    section = (ROOT / "README.md").read_text().split("## The house")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\s*(\w+\.py) {2,}", section, re.MULTILINE))
    there = {path.name for path in SOURCES if path.name not in ("__init__.py", "__main__.py")}
    assert listed == there


def test_links_of_the_readme_resolve() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert all((ROOT / link).exists() for link in links if not link.startswith("http"))


def test_make_targets_of_the_readme_exist() -> None:
    named = set(re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {a or b for a, b in named} <= targets


@pytest.mark.parametrize(
    "path",
    [ROOT / "sweep.yaml", ROOT / "tests/benchmarks/accuracy.yaml", *(ROOT / "sweeps/examples").glob("*.yaml")],
    ids=lambda path: path.name,
)
def test_shipped_sweeps_load_and_plan(path: Path) -> None:
    assert plan(load(path), lambda corpus: corpus.name).trials


def test_the_override_that_the_readme_shows_acts_on_the_default_sweep() -> None:
    trials = plan(load(ROOT / "sweep.yaml", ["parameters.sgdr.epochs=5"]), lambda corpus: corpus.name).trials
    assert {trial.config.sgdr.epochs for trial in trials if trial.block == "workers"} == {5}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_exact_and_say_why(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("-r ")]
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+ +# \S.*", line) for line in lines)


def test_planning_imports_neither_torch_nor_ray_nor_mlflow() -> None:
    code = "import sys, sweeps.plan; sys.exit(bool({'torch', 'ray', 'mlflow', 'pandas'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
