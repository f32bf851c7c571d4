"""Random sweeps for property tests: trials of any outcome, with or without each figure, on one
machine or two, planned and not run.

`sweeps()` draws one; `runs_of` makes of it the SweepRuns that `runs.sweep_runs` would, from MLflow's
own entities without a database.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag

from analysis.runs import SweepRuns, build_sweep_runs
from sweeps.metrics import SUMMARY
from sweeps.names import flatten
from sweeps.tracking.mlflow_runs import MLFLOW_STATUS
from sweeps.tracking.run_queries import PARENT_TAG
from tests.conftest import CONFIG, HARDWARE, make_trial_id

MB = 1 << 20
OUTCOMES = (*MLFLOW_STATUS, "running")
SIZES = (None, 64 * MB, 1024 * MB)


class Drawn(NamedTuple):
    """A trial: what it is, how it ended, its figures and tags. outcome None: it is planned and has
    no run."""

    block: str
    swept: dict[str, Any]
    repeat: int
    outcome: str | None
    summary: dict[str, float]
    tags: dict[str, Any]

    @property
    def trial_id(self) -> str:
        return make_trial_id(self.block, self.swept, self.repeat)

    @property
    def row(self) -> dict[str, Any]:
        return {
            "trial_id": self.trial_id,
            "block": self.block,
            "repeat": self.repeat,
            "swept": self.swept,
        }


_ACCURACIES = ("accuracy", "ensemble_accuracy", "best_snapshot_accuracy")
_OF_LOADER = ("main_cpu_s", "worker_cpu_s", "clips_per_s", "max_gap_s", "stall_steps", "train_s")
_FORECASTS = [
    f"forecast_{name}"
    for name in ("epoch_s", "epoch_low_s", "epoch_high_s", "closed_form_s", "first_batch_s")
]
_figures = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("busy_fraction", "prefetch_hit_rate", "wait_fraction", *_ACCURACIES), st.floats(0, 1)
        ),
        **dict.fromkeys(_OF_LOADER, st.floats(0.001, 100)),
        **dict.fromkeys(
            ("shm_peak_bytes", "read_bytes", "forecast_shm_max_bytes"),
            st.integers(0, 1 << 34).map(float),
        ),
    },
)


@st.composite
def _summary(draw: st.DrawFn, outcome: str | None) -> dict[str, float]:
    """Epochs and their parts together, as a trial that ended one has them; or, where none ended,
    neither."""
    found = draw(_figures)
    if draw(st.booleans()):  # a forecast has all of its figures, or there is none
        found |= {name: draw(st.floats(0.001, 100)) for name in _FORECASTS}
    if outcome == "completed" or draw(st.integers(0, 4)) == 0:
        spans = {
            name: draw(st.floats(0, 50))
            for name in ("start_s", "first_batch_s", "data_wait_s", "step_s", "other_s")
        }
        found |= {"epoch_s": sum(spans.values()) or 0.001}
        found |= spans if draw(st.booleans()) else {}
    return found


@st.composite
def _trial(draw: st.DrawFn, block: str, swept: dict[str, Any], repeat: int) -> Drawn:
    outcome = draw(st.one_of(st.just("completed"), st.sampled_from([*OUTCOMES, None])))
    tags = {
        "cores": draw(st.sampled_from([2, 2, 2, 4])),
        "device": draw(st.sampled_from(["cpu", "simulated", "cuda"]))
        if block == "mixed"
        else "cpu",
        "forecast_fit": draw(st.sampled_from([None, "fits", "depends", "overflows"])),
        "disturbed": draw(st.sampled_from([None, None, None, "a compiler"])),
        "validation_clips": draw(st.sampled_from([None, 270])),
        "batch_bytes": draw(st.sampled_from([None, 18 * MB])),
    }
    if draw(st.integers(0, 9)) == 0:  # it died before it knew where it ran
        tags |= dict.fromkeys(("cores", "device", "threads", "precision", "device_name"))
    return Drawn(block, swept, repeat, outcome, draw(_summary(outcome)), tags)


_workers = st.fixed_dictionaries(
    {"loader.num_workers": st.integers(0, 4), "loader.shm_size": st.sampled_from(SIZES)}
)
_forms = st.fixed_dictionaries({"loader.format": st.sampled_from(["png", "wav", "packed"])})
_cycles = st.fixed_dictionaries({"sgdr.cycle_epochs": st.sampled_from([None, 2, 4, 8, "[2, 6]"])})
BLOCKS = {"workers": _workers, "mixed": _workers, "formats": _forms, "cycles": _cycles}


@st.composite
def sweeps(draw: st.DrawFn, most: int = 12) -> list[Drawn]:
    """Up to `most` trials in up to three blocks, no key twice."""
    found: dict[str, Drawn] = {}
    for block in draw(st.lists(st.sampled_from(sorted(BLOCKS)), max_size=3, unique=True)):
        for swept in draw(st.lists(BLOCKS[block], min_size=1, max_size=4)):
            for repeat in range(1, draw(st.integers(1, 4)) + 1):
                trial = draw(_trial(block, swept, repeat))
                found.setdefault(trial.trial_id, trial)
    return list(found.values())[:most]


def runs_of(trials: Sequence[Drawn]) -> SweepRuns:
    """Of one sweep called random."""
    runs = [_run(at, trial) for at, trial in enumerate(trials) if trial.outcome]
    plan = [trial.row for trial in trials] if runs else []
    return build_sweep_runs("random", runs[::-1], plan, "sqlite:////nowhere.db")


def _run(at: int, trial: Drawn) -> Run:
    config = flatten(CONFIG) | {
        path: value for path, value in trial.swept.items() if value is not None
    }
    tags = (
        HARDWARE
        | trial.tags
        | {
            "kind": "trial",
            "trial_id": trial.trial_id,
            "block": trial.block,
            "repeat": trial.repeat,
            PARENT_TAG: "parent",
        }
    )
    if trial.outcome != "running":
        tags |= {"outcome": trial.outcome, "evidence": f"planted <{trial.outcome}>"}
    status = MLFLOW_STATUS.get(str(trial.outcome), "RUNNING")
    info = RunInfo(run_id=f"{at:032x}", experiment_id="1", user_id="", status=status, start_time=at, end_time=at, lifecycle_stage="active",
                   run_name=f"{trial.block} {at}")  # fmt: skip
    assert trial.summary.keys() <= SUMMARY.keys()
    metrics = [Metric(name, value, 0, 0) for name, value in trial.summary.items()]
    params = [
        Param(name, value if isinstance(value, str) else json.dumps(value))
        for name, value in config.items()
    ]
    return Run(
        info,
        RunData(
            metrics,
            params,
            [RunTag(name, str(value)) for name, value in tags.items() if value is not None],
        ),
    )
