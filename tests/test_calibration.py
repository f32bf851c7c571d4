"""Tests which calibrations trials need, what the cache keeps of them, and the real task."""

import errno
import json
import os
from pathlib import Path

import pytest

from speech.cache_folder import cache_dir
from speech.calibration.costs import Calibration
from speech.config import RuntimeSettings
from speech.shm_usage import ShmUsage
from sweeps.config.config import Metric
from sweeps.config.plan import TrialSpec
from sweeps.forecast import calibration
from sweeps.forecast.calibration import (
    CalibrationRequest,
    calibration_name,
    load_cached,
    measure_all,
    required_calibrations,
    save_calibration,
)
from sweeps.host.node import Node, PreflightError
from sweeps.sandbox.isolation import ForkServer
from tests.busy import busy_processes
from tests.planted_calibrations import planted
from tests.trees import ROOT, can_isolate

NODE = Node((), (0, 1))
PINNED = RuntimeSettings(threads=2, cpus=[0, 1])
SIMULATED = {"prefer": ["simulated"], "step_s": 0.01}


NAMED = "wav, batches of 4"  # the calibration of the tests below, as messages name it


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spec(key: str, config) -> TrialSpec:
    return TrialSpec(key, "b", 1, 1, config, {}, Metric(name="epoch_s", goal="minimize"), 0, 60.0)


def name(config, pinned=PINNED, fingerprint="f00d", node=NODE) -> str:
    return calibration_name(config, pinned, fingerprint, node)


SHARED = [
    {"loader": {"num_workers": 8}}, {"loader": {"prefetch_factor": 4}}, {"loader": {"shm_size": 1 << 30}},
    {"loader": {"persistent_workers": False}}, {"sgdr": {"epochs": 7}}, {"sgdr": {"lr": 0.5}}, {"optimizer": {"momentum": 0.1}},
    {"model": {"weights": "imagenet"}}, {"corpus": {"words": ["high", "low"]}},
]  # fmt: skip
DECIDING = [
    {"loader": {"format": "packed"}}, {"loader": {"batch_size": 3}}, {"loader": {"start_method": "spawn"}},
    {"features": {"n_mels": 20}}, {"features": {"kinds": ["mfcc"]}}, {"augment": {"freq_mask": 2}}, {"augment": {"shift_ms": 100.0}},
    {"corpus": {"seconds": 0.5}}, {"corpus": {"cache": "cold"}}, {"corpus": {"read_latency_s": 0.1}},
    {"device": {"prefer": ["cpu"]}},
]  # fmt: skip


@pytest.mark.parametrize("groups", SHARED, ids=str)
def test_trials_that_prepare_the_same_batches_share_a_calibration(tone_trial, groups) -> None:
    assert name(tone_trial(**{"device": SIMULATED} | groups)) == name(tone_trial(device=SIMULATED))


@pytest.mark.parametrize("groups", DECIDING, ids=str)
def test_what_decides_the_cost_of_a_batch_has_a_calibration_of_its_own(tone_trial, groups) -> None:
    assert name(tone_trial(**{"device": SIMULATED} | groups)) != name(tone_trial(device=SIMULATED))


def test_another_machine_torch_or_corpus_has_a_calibration_of_its_own(
    tone_trial, monkeypatch
) -> None:
    config = tone_trial(device=SIMULATED)
    names = [
        name(config),
        name(config, fingerprint="beef"),
        name(config, PINNED.model_copy(update={"threads": 1})),
    ]
    names += [
        name(config, PINNED.model_copy(update={"cpus": [0]})),
        name(config, PINNED.model_copy(update={"precision": "bfloat16"})),
    ]
    for thing, value in [("cpu_model", lambda: "another"), ("_package_versions", lambda: ["9.9"])]:
        with monkeypatch.context() as patch:
            patch.setattr(calibration, thing, value)
            names.append(name(config))
    with monkeypatch.context() as patch:
        patch.setattr(calibration.platform, "release", lambda: "9.9.9-another-kernel")
        names.append(name(config))
    assert len(set(names)) == len(names)
    assert name(config, PINNED.model_copy(update={"cpus": [2, 3]})) == name(config), (
        "which two cores is all one"
    )
    assert name(config, node=Node(("some GPU",), (0, 1))) == name(config), (
        "a simulated accelerator doesn't care"
    )


def test_a_calibration_on_a_gpu_is_that_of_the_gpu_and_of_its_copies(tone_trial) -> None:
    def name_on(gpu: str, **keys) -> str:
        trial = spec("on a GPU", tone_trial(**{"device": "auto"} | keys))
        prints = {trial.config.corpus.selection_key(): "f00d"}
        node = Node((gpu,), NODE.cpus)
        (request,) = required_calibrations([trial], {trial.trial_id: PINNED}, prints, node).values()
        return request.name

    pinned = {"loader": {"pin_memory": True}}
    assert len({name_on("one"), name_on("another"), name_on("one", **pinned)}) == 3
    both = {"device": {"prefer": ["cuda"], "sync_every_step": True}}
    assert name_on("one", **both) == name_on("one"), "how the loop waits is no cost of a step"


def test_trials_that_learn_on_several_ranks_are_uncalibrated(tone_trial) -> None:
    """Needs no calibration, since the exchange of gradients is not measured."""
    learning = spec("learns", tone_trial(device={"prefer": ["cpu"], "ranks": 2}))
    device = {"prefer": ["simulated"], "step_s": 0.1, "ranks": 2}
    simulated = spec("simulated", tone_trial(device=device))
    prints = {learning.config.corpus.selection_key(): "f00d"}
    runtimes = {trial.trial_id: PINNED for trial in (learning, simulated)}
    found = required_calibrations([learning, simulated], runtimes, prints, NODE)
    assert found.keys() == {"simulated"}


def test_a_trial_that_is_not_pinned_needs_none(tone_trial) -> None:
    config = tone_trial(device=SIMULATED)
    trials = [
        spec("a", config),
        spec("b", tone_trial(device=SIMULATED, loader={"num_workers": 4})),
        spec("c", config),
    ]
    found = required_calibrations(
        trials, {"a": PINNED, "b": PINNED}, {config.corpus.selection_key(): "f00d"}, NODE
    )
    assert found.keys() == {"a", "b"}
    assert found["a"].name == found["b"].name == name(config)
    assert str(found["a"]) == NAMED


def test_what_is_saved_is_found_again_and_a_broken_file_is_none(cache) -> None:
    made = planted(shared=[(2, 1.04), (4, 1.1)])
    save_calibration("abc", made)
    assert load_cached(["abc", "def"]) == {"abc": made}
    (file,) = (cache_dir() / "calibrations").iterdir()
    assert file.name == "abc.json"
    for text in (
        "",
        "{",
        file.read_text()[:-9],
        '{"loader": {}}',
        json.dumps(json.loads(file.read_text()) | {"new": 1}),
    ):
        file.write_text(text)
        assert load_cached(["abc"]) == {}


@pytest.fixture(scope="module")
def failing():
    """Returns a fork server whose calibrations are planted, or fail as model.weights says."""
    made = ForkServer(ROOT, tasks="tests.planted_calibrations")
    yield made
    made.close()


def ask(
    template: ForkServer, tone_trial, tmp_path: Path, way: str
) -> tuple[dict[str, Calibration], list[str]]:
    config = tone_trial(device=SIMULATED, model={"weights": way})
    lines: list[str] = []
    each = CalibrationRequest(
        "abc", config, RuntimeSettings(threads=1, cpus=[min(os.sched_getaffinity(0))])
    )
    return (
        measure_all(template, [each], can_isolate(), tmp_path / "calibration.log", lines.append),
        lines,
    )


def test_a_calibration_is_logged_before_and_after_cached_and_leaves_no_log_file(
    cache, failing, tone_trial, tmp_path
) -> None:
    found, lines = ask(failing, tone_trial, tmp_path, "planted")
    before, after = lines
    assert before.startswith(f"calibrating {NAMED}")
    assert after.startswith(f"calibrated {NAMED}")
    assert after.endswith(" 20 s")
    assert found == {"abc": planted()}
    assert load_cached(["abc"]) == found
    assert not (tmp_path / "calibration.log").exists()
    (cache_dir() / "calibrations" / "abc.json").write_text("{")
    assert ask(failing, tone_trial, tmp_path, "planted") == (found, lines)
    assert load_cached(["abc"]) == found


def test_on_a_busy_machine_there_is_no_calibration_and_the_line_names_the_program(
    cache, failing, tone_trial, tmp_path
) -> None:
    with busy_processes(1) as (pid,):
        found, (_, line) = ask(failing, tone_trial, tmp_path, "busy")
    assert found == {}
    assert load_cached(["abc"]) == {}
    assert NAMED in line
    assert "uncalibrated" in line
    assert "50 %" in line
    assert f"process {pid}" in line


def test_figures_that_contradict_are_neither_used_nor_cached(
    cache, failing, tone_trial, tmp_path
) -> None:
    found, (_, line) = ask(failing, tone_trial, tmp_path, "contradicts")
    assert (found, load_cached(["abc"])) == ({}, {})
    assert NAMED in line
    assert "815.0 ms" in line


def test_a_dev_shm_too_small_for_it_leaves_trials_uncalibrated_and_the_sweep_going(
    cache, failing, tone_trial, tmp_path
) -> None:
    found, (_, line) = ask(failing, tone_trial, tmp_path, "no space")
    assert found == {}
    assert NAMED in line
    assert "uncalibrated" in line
    assert os.strerror(errno.ENOSPC) in line
    assert load_cached(["abc"]) == {}


def test_where_the_machines_dev_shm_has_no_room_for_it_nothing_is_started(
    cache, monkeypatch, tone_trial, tmp_path
) -> None:
    monkeypatch.setattr(
        calibration,
        "shm_usage",
        lambda: ShmUsage(limit_bytes=64 << 20, used_bytes=(64 << 20) - 4096),
    )
    lines: list[str] = []
    each = CalibrationRequest("abc", tone_trial(device=SIMULATED), PINNED)
    assert measure_all(None, [each], False, tmp_path / "log", lines.append) == {}  # type: ignore[arg-type]
    (line,) = lines
    assert line.startswith(f"{NAMED} ")
    assert "4K is free" in line


def test_one_without_an_end_leaves_trials_uncalibrated(
    cache, monkeypatch, failing, tone_trial, tmp_path
) -> None:
    monkeypatch.setattr(calibration, "TIMEOUT_S", 0.5)
    found, lines = ask(failing, tone_trial, tmp_path, "asleep")
    assert found == {}
    assert [NAMED in line for line in lines] == [True, True]
    assert "uncalibrated" in lines[1]
    assert lines[1].endswith(" after 0 s")


@pytest.mark.parametrize(
    ("way", "why"),
    [("raise", "KeyError: 'planted'"), ("killed", "killed by signal 9"), ("bad clip", "low/a.wav")],
)
def test_any_other_error_is_a_preflight_error_that_names_it(
    cache, failing, tone_trial, tmp_path, way: str, why: str
) -> None:
    with pytest.raises(PreflightError) as caught:
        ask(failing, tone_trial, tmp_path, way)
    assert why in str(caught.value)
    assert NAMED in str(caught.value)
    assert str(tmp_path / "calibration.log") in str(caught.value)
    assert "calibrate: false" in str(caught.value)
    assert (tmp_path / "calibration.log").exists()


@pytest.mark.slow
def test_the_real_task_measures_what_a_forecast_needs(cache, tone_trial, tmp_path) -> None:
    template = ForkServer(ROOT)
    try:
        config = tone_trial(device=SIMULATED, loader={"batch_size": 2, "num_workers": 4})
        each = CalibrationRequest(
            "real", config, RuntimeSettings(threads=1, cpus=sorted(os.sched_getaffinity(0)))
        )
        found = measure_all(template, [each], can_isolate(), tmp_path / "calibration.log", print)[
            "real"
        ]
    finally:
        template.close()
    assert found.loader.batch_size == 2
    assert found.loader.cores == len(os.sched_getaffinity(0))
    assert found.loader.prepare_s > 0
    assert {processes for processes, _ in found.loader.shared} >= {1, 2}
    assert dict(found.loader.shared)[1] == pytest.approx(1.0)
    assert 0 < found.took_s < 60
