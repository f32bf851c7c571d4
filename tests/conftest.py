"""A real tracker for each test that asks for one, and a way to plant runs in it."""

import functools
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from speech.config import TrialConfig
from sweeps.tracking.mlflow_client import connect
from sweeps.tracking.mlflow_runs import RunLogger, TrialDescription
from tests.launches import SWEEP, launch
from tests.tones import write_tones
from tests.trees import can_isolate

HARDWARE = {
    "device": "cpu",
    "device_name": "Planted CPU",
    "cores": 2,
    "threads": 2,
    "precision": "float32",
}
CONFIG = {
    "corpus": {"name": "synthetic", "words": ["yes", "no"]},
    "loader": {"num_workers": 0, "shm_size": None, "format": "wav"},
    "sgdr": {"epochs": 8, "cycle_epochs": None, "cycle_factor": 1, "lr": 0.01},
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes its background jobs ignore Ctrl-C, and all that they start. Tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a row: making them takes a second, so they are made once and copied."""
    file = tmp_path_factory.mktemp("tracker") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def tracking(tmp_path: Path, empty_database: Path) -> RunLogger:
    """A tracker of its own, at sqlite:///<tmp_path>/mlflow.db."""
    return tracking_in(tmp_path, empty_database)


@pytest.fixture
def plant(tracking: RunLogger) -> Callable[..., str]:
    """plant(parent, {'loader.num_workers': 4}, epoch_s=3.0): `plant_trial` in the test's own
    tracker."""
    return functools.partial(plant_trial, tracking)


@pytest.fixture(scope="session")
def first_look(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> RunLogger:
    """The sweep of tests/planted_sweep.py in a tracker that is only read."""
    from tests.planted_sweep import plant_first_look  # which plants with what stands here

    tracking = tracking_in(tmp_path_factory.mktemp("first-look"), empty_database)
    plant_first_look(tracking)
    return tracking


def tracking_in(folder: Path, empty_database: Path) -> RunLogger:
    shutil.copy(empty_database, folder / "mlflow.db")
    return RunLogger(f"sqlite:///{folder}/mlflow.db", "speech")


def plant_trial(
    tracking: RunLogger,
    parent: str,
    swept: Mapping[str, Any],
    repeat: int = 1,
    outcome: str = "completed",
    block: str = "workers",
    trial_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    **summary: float,
) -> str:
    """Writes a trial as the runner does, with `summary` as its figures, and returns its run id."""
    config = {group: dict(values) for group, values in CONFIG.items()}
    for path, value in swept.items():
        group, _, leaf = path.partition(".")
        config[group][leaf] = value
    run = tracking.start_trial(
        parent,
        TrialDescription(
            trial_id=trial_id or make_trial_id(block, swept, repeat),
            block=block,
            repeat=repeat,
            seed=41 + repeat,
            swept=swept,
            config=config,
            tags=HARDWARE | dict(tags or {}),
        ),
    )
    tracking.finish_trial(run, outcome, "planted", summary)
    return run


def make_trial_id(block: str, swept: Mapping[str, Any], repeat: int) -> str:
    return f"{block} {sorted(swept.items())} {repeat}"


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests prepare lies in a cache that ends with them, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted corpus of tests/tones.py: 2 words, 12 clips each, 6 + 3 + 3."""
    return write_tones(tmp_path_factory.mktemp("corpus") / "tones")


@pytest.fixture(scope="session")
def tone_trial(tones: Path) -> Callable[..., TrialConfig]:
    """tone_trial(loader={'num_workers': 2}): a small trial on the planted corpus, groups overridden
    key by key."""

    def config(**groups: Any) -> TrialConfig:
        small: dict[str, Any] = {
            "corpus": {"name": "folder", "path": str(tones), "words": ["low", "high"]},
            "features": {"n_mels": 16, "hop_ms": 25.0},
            "loader": {"batch_size": 4},
            "sgdr": {"epochs": 1},
            "device": "cpu",
        }
        for name, value in groups.items():
            small[name] = (
                small.get(name, {}) | value
                if isinstance(value, dict) and name != "device"
                else value
            )
        return TrialConfig.model_validate(small)

    return config


@pytest.fixture(scope="session")
def launched(
    tones: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess]:
    """The planted sweep, run once with --evaluate-test: its folder, and what was printed."""
    if not can_isolate():
        pytest.skip("this machine forbids mount namespaces")
    folder = tmp_path_factory.mktemp("launched")
    (folder / "sweep.yaml").write_text(SWEEP.format(tones=tones, repeats=1))
    done = launch(folder, "--evaluate-test")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done
