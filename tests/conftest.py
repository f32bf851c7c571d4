"""A real tracker for each test that asks for one, and a way to plant runs in it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sweeps.tracking import Tracking, connect

HARDWARE = {"device": "cpu", "device_name": "Planted CPU", "node": "box-1", "threads": 2, "precision": "float32"}
CONFIG = {
    "corpus": {"name": "synthetic", "words": ["yes", "no"]},
    "loader": {"num_workers": 0, "shm_size": None, "form": "wav"},
    "sgdr": {"epochs": 8, "cycle_epochs": None, "cycle_factor": 1, "lr": 0.01},
}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a row: making them takes a second, so they are made once and copied."""
    file = tmp_path_factory.mktemp("tracker") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def tracking(tmp_path: Path, empty_database: Path) -> Tracking:
    """A tracker of its own, at sqlite:///<tmp_path>/mlflow.db."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Tracking(f"sqlite:///{tmp_path}/mlflow.db", "speech")


@pytest.fixture
def plant(tracking: Tracking) -> Callable[..., str]:
    """plant(parent, {'loader.num_workers': 4}, epoch_s=3.0): writes a trial as the runner does and returns its run id."""

    def plant_trial(
        parent: str,
        swept: Mapping[str, Any],
        repeat: int = 1,
        outcome: str = "completed",
        block: str = "workers",
        key: str | None = None,
        tags: Mapping[str, Any] | None = None,
        **summary: float,
    ) -> str:
        config = {group: dict(values) for group, values in CONFIG.items()}
        for path, value in swept.items():
            group, _, leaf = path.partition(".")
            config[group][leaf] = value
        run = tracking.start_trial(
            parent,
            key=key or trial_key(block, swept, repeat),
            block=block,
            repeat=repeat,
            seed=41 + repeat,
            swept=swept,
            config=config,
            tags=HARDWARE | dict(tags or {}),
        )
        tracking.finish_trial(run, outcome, "planted", summary)
        return run

    return plant_trial


def trial_key(block: str, swept: Mapping[str, Any], repeat: int) -> str:
    return f"{block} {sorted(swept.items())} {repeat}"
