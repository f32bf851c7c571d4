"""The house itself: the direction of imports, what its pages state, and that what is shipped loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sweeps.config import reference
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load, load_text
from sweeps.trial_states import Outcome, ShmVerdict

ROOT = Path(__file__).parent.parent
# -> what it imports
PACKAGES = {
    "launch": {"sweeps", "analysis"},
    "sweeps": {"speech"},
    "speech": set(),
    "analysis": {"sweeps"},
}
# Folders of sweeps/, each of which imports from those before it only; "" holds the modules that all
# share
ORDER = (
    ("",),
    ("config", "sandbox"),
    ("host",),
    ("tracking",),
    ("forecast",),
    ("execution",),
    ("commands",),
)
# The names under which figures are kept, how an accuracy is written, and how a program of ours
# starts and ends; nothing else
ANALYSIS_READS = {
    "sweeps.accuracy", "sweeps.environment", "sweeps.metrics", "sweeps.names", "sweeps.output", "sweeps.tracking.mlflow_client",
    "sweeps.tracking.run_queries", "sweeps.trial_states",
}  # fmt: skip
FORBIDDEN = {"speech": {"ray", "mlflow", "pandas"}, "analysis": {"ray", "torch"}}
SOURCES = [
    *(
        path
        for package in ("analysis", "speech", "sweeps")
        for path in sorted((ROOT / package).rglob("*.py"))
    ),
    ROOT / "launch.py",
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# printed by the product: their lines and dates stay as they were
SHIPPED_OUTPUTS = ("first-look.md", "article.md")
NOT_OURS = ("pdb", "pytest", "venv")  # modules that pages name and that are not in the tree


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever in it, names of `from x import y` as x.y where y is a
    module of ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists()
            }
            found |= modules or {node.module}
    return found


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = package_of(path)
    ours = {module for module in imported(path) if module.split(".")[0] in PACKAGES}
    assert {module.split(".")[0] for module in ours} <= PACKAGES[package] | {package}
    assert not {module.split(".")[0] for module in imported(path)} & FORBIDDEN.get(package, set())
    if package == "analysis":
        assert {module for module in ours if module.startswith("sweeps")} <= ANALYSIS_READS
    if package == "sweeps":
        own = path.relative_to(ROOT / "sweeps").parts[0] if path.parent.name != "sweeps" else ""
        allowed = {
            own,
            *(
                folder
                for level in ORDER[: next(n for n, level in enumerate(ORDER) if own in level)]
                for folder in level
            ),
        }
        assert {
            module.split(".")[1] if module.count(".") > 1 else ""
            for module in ours
            if module.startswith("sweeps.")
        } <= allowed


def test_only_the_folder_execution_knows_ray() -> None:
    knowing = {
        path for path in SOURCES if any(module.split(".")[0] == "ray" for module in imported(path))
    }
    assert {str(path.parent.relative_to(ROOT)) for path in knowing} == {"sweeps/execution"}


def test_the_list_of_files_is_true() -> None:
    listed = set()
    for section in (ROOT / "docs/architecture.md").read_text().split("\n## ")[1:]:
        folder = section.partition("\n")[0]
        listed |= {folder + name for name in re.findall(r"^(\w+\.py) {2,}", section, re.MULTILINE)}
    there = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name not in ("__init__.py", "__main__.py", "launch.py")
    }
    assert listed == there


def prose(text: str) -> str:
    """Returns a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> str:
    """Returns the code of a page, a line a piece: its fenced and indented blocks and its code
    spans."""
    fenced = "\n".join(re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^    +(\S.*)$", prose(text), re.MULTILINE))
    spans = "\n".join(re.findall(r"`([^`]+)`", prose(text)))
    return "\n".join([fenced, indented, spans])


def name_of(page: Path) -> str:
    return page.name


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@every_page
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@every_page
def test_named_make_targets_exist(page: Path) -> None:
    # Both `make sweep` and `make PYTHON=python3.12 sweep`
    named = re.findall(
        r"^make (?:[A-Z]+=\S+ )*([a-z][\w-]*)", commands(page.read_text("utf-8")), re.MULTILINE
    )
    assert set(named) <= set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )


@every_page
def test_named_modules_exist(page: Path) -> None:
    for module in re.findall(r"python3? -m ([\w.]+)", page.read_text("utf-8")):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert (
            module in NOT_OURS
            or path.with_suffix(".py").exists()
            or (path / "__main__.py").exists()
        ), module


@every_page
def test_named_files_of_sweeps_exist(page: Path) -> None:
    for file in re.findall(r"launch\.py ([\w/.-]+\.yaml)", commands(page.read_text("utf-8"))):
        # the name that README gives the reader's own file
        assert (ROOT / file).exists() or file == "my.yaml", file


@every_page
def test_pages_are_narrow(page: Path) -> None:
    text = page.read_text("utf-8")
    if reference.BEGIN in text:
        text = text.partition(reference.BEGIN)[0] + text.partition(reference.END)[2]
    wide = [line for line in text.splitlines() if len(line) > 100]
    assert not wide or page.name in SHIPPED_OUTPUTS


@every_page
def test_dated_figures_stand_in_one_page(page: Path) -> None:
    dates = re.findall(r"\b20\d\d-\d\d-\d\d\b", page.read_text("utf-8"))
    assert not dates or page.name in (*SHIPPED_OUTPUTS, "benchmarks.md")


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} <= set(
        re.findall(r"\]\((docs/[\w-]+\.md)", text)
    )


def test_a_launch_and_its_actors_do_not_import_torch() -> None:
    """Imports what a launch and a Ray actor run; torch belongs to the fork server alone."""
    code = (
        "import sys, sweeps.execution.retries, sweeps.execution.ray_tune;"
        " sys.exit(' '.join({'torch', 'torchvision'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@every_page
def test_manifests_in_pages_are_yaml(page: Path) -> None:
    """Reads the fences that are YAML of other programs, whose language is `yml`."""
    text = page.read_text("utf-8")
    for manifest in re.findall(r"^```yml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert isinstance(YAML(typ="safe").load(manifest), dict)


def test_the_glossary_defines_every_outcome_and_verdict() -> None:
    defined = {word for words in re.findall(r"^- (\*\*.+?\*\*)[^*\n]*:", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
               for word in re.findall(r"\*\*([^*]+)\*\*", words)}  # fmt: skip
    assert {*Outcome, *ShmVerdict} <= defined


YAML_BLOCKS = [
    pytest.param(text, id=f"{page.name}-{n}")
    for page in PAGES
    for n, text in enumerate(
        re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    )
]


def test_pages_show_sweep_files() -> None:
    assert {block.id for block in YAML_BLOCKS} >= {"README.md-0", "sweep-file.md-0"}


@pytest.mark.parametrize("text", YAML_BLOCKS)
def test_sweep_files_in_pages_load_and_plan(text: str) -> None:
    assert plan(load_text(text, "page"), lambda corpus: corpus.name).trials


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "sweep.yaml",
        ROOT / "tests/benchmarks/accuracy.yaml",
        *(ROOT / "sweeps/examples").glob("*.yaml"),
    ],
    ids=lambda path: path.name,
)
def test_shipped_sweeps_load_and_plan(path: Path) -> None:
    assert plan(load(path), lambda corpus: corpus.name).trials


def test_the_override_that_the_pages_show_acts_on_the_default_sweep() -> None:
    shown = {
        override
        for page in PAGES
        for override in re.findall(r"--set (parameters\.\S+?=\w+)", page.read_text("utf-8"))
    }
    assert shown == {"parameters.sgdr.epochs=5"}
    trials = plan(
        load(ROOT / "sweep.yaml", ["parameters.sgdr.epochs=5"]), lambda corpus: corpus.name
    ).trials
    assert {trial.config.sgdr.epochs for trial in trials if trial.block == "workers"} == {5}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_exact_and_say_why(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("-r ")]
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+ +# \S.*", line) for line in lines)


def test_planning_imports_neither_torch_nor_ray_nor_mlflow() -> None:
    code = (
        "import sys, sweeps.config.plan; sys.exit(bool({'torch', 'ray', 'mlflow', 'pandas'} &"
        " sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
