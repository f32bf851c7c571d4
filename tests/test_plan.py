"""Tests the plan of a sweep: which trials, in which order, with which keys."""

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from speech.config import TrialConfig
from sweeps.config.plan import corpora, plan
from sweeps.config.sweep_file import load

TEXT = """\
name: test
seed: 7
repeats: 2
parameters:
  corpus: {name: synthetic, words: [yes, no]}
  loader: {num_workers: {values: [0, 2, 4]}, shm_size: {values: [64M, 1G]}}
"""


@pytest.fixture
def planned(tmp_path):
    """Returns planned(text, *overrides): the Plan, in which the name of a corpus is its content."""

    def write(text, *overrides, fingerprint="f00d"):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return plan(load(path, overrides), lambda corpus: f"{fingerprint}-{corpus.name}")

    return write


def cells(trials):
    return [(trial.swept["loader.num_workers"], trial.swept["loader.shm_size"]) for trial in trials]


def test_each_repeat_is_a_complete_pass_with_one_seed(planned):
    trials = planned(TEXT).trials
    every = sorted(itertools.product([0, 2, 4], [64 << 20, 1 << 30]))
    first, second = trials[:6], trials[6:]
    assert sorted(cells(first)) == sorted(cells(second)) == every
    assert cells(first) != cells(second)
    assert {(trial.repeat, trial.seed) for trial in first} == {(1, 7)}
    assert {(trial.repeat, trial.seed) for trial in second} == {(2, 8)}


def test_listed_order_is_the_files(planned):
    assert cells(planned(TEXT, "order=listed", "repeats=1").trials) == list(
        itertools.product([0, 2, 4], [64 << 20, 1 << 30])
    )


def test_a_trial_carries_what_its_runner_needs(planned):
    trial = planned(TEXT, "trial_timeout=90s", "warmup_epochs=2").trials[0]
    assert (trial.block, trial.warmup_epochs, trial.trial_timeout_s, trial.metric.name) == (
        "trials",
        2,
        90,
        "epoch_s",
    )
    assert trial.config.loader.num_workers == trial.swept["loader.num_workers"]


def test_blocks_follow_the_file_and_share_no_key(planned):
    trials = planned(TEXT + "blocks:\n  z: {}\n  a: {repeats: 1}\n").trials
    assert [trial.block for trial in trials] == ["z"] * 12 + ["a"] * 6
    assert len({trial.trial_id for trial in trials}) == 18


def test_order_and_keys_are_the_same_in_every_process(planned, tmp_path):
    here = [trial.trial_id for trial in planned(TEXT).trials]
    script = (
        "import sys; from sweeps.config.sweep_file import load; from sweeps.config.plan import"
        " plan\nprint(*[trial.trial_id for trial in plan(load(sys.argv[1]), lambda corpus:"
        " f'f00d-{corpus.name}').trials])"
    )
    for hash_seed in ("0", "1"):
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "sweep.yaml")],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.split() == here


def test_the_key_is_pinned(planned):
    """Compares the key with a literal. A new literal means that no earlier trial counts as settled
    any more, so change it on purpose only."""
    trial = planned(TEXT, "order=listed").trials[0]
    assert trial.trial_id == "b3f48dec1bb8"


def test_the_key_does_not_see_how_the_file_is_written(planned):
    rewritten = """\
# the same, otherwise laid out
parameters:
  loader:
    shm_size: {values: [65536K, 1024m]}
    num_workers:
      values:
        - 0
        - 0x2
        - 4
    batch_size: 32
  corpus: {words: ["yes", 'no'], name: synthetic}
repeats: 2
seed: 7
name: another-name
trial_timeout: 3h
order: listed
"""
    assert {trial.trial_id for trial in planned(rewritten).trials} == {
        trial.trial_id for trial in planned(TEXT).trials
    }


DECIDING = [
    "corpus.name=speech_commands", "corpus.seconds=0.5", "corpus.cache=cold", "corpus.read_latency_s=0.01", "features.kinds=[mfcc]",
    "features.n_mels=40", "features.window_ms=30", "features.hop_ms=12.5", "augment.shift_ms=100", "augment.speed=0.1",
    "augment.noise=0.5", "augment.noise_snr_db=[0,30]", "augment.freq_mask=8", "augment.time_mask=8", "augment.mixup=0.2",
    "loader.num_workers=1", "loader.shm_size=2G", "loader.batch_size=16", "loader.prefetch_factor=4", "loader.persistent_workers=false",
    "loader.pin_memory=true", "loader.start_method=spawn", "loader.format=png", "model.weights=imagenet", "optimizer.momentum=0.8",
    "optimizer.weight_decay=0", "optimizer.label_smoothing=0.1", "sgdr.epochs=4", "sgdr.cycle_epochs=2",
    "sgdr.lr=0.02", "sgdr.lr_min=0.001", "device.prefer=[cpu]", "device.step_s=0.1", "device.host_cpu_s=0.1",
    "device.ranks=2", "device.run_ahead=2", "device.sync_every_step=true", "precision=float32",
]  # fmt: skip
STANDING_FOR_THEIR_CLIPS = {  # the fingerprint names what these keys choose
    f"corpus.{key}"
    for key in (
        "path",
        "version",
        "words",
        "unknown",
        "silence",
        "speaker",
        "clips",
        "on_bad_clip",
        "split",
        "duplicates",
    )
}
PLAIN = TEXT.replace("{values: [0, 2, 4]}", "2") + "  device: {prefer: [cuda, cpu]}\n"


@pytest.mark.parametrize("override", DECIDING)
def test_the_key_sees_every_parameter(planned, override):
    before, after = planned(PLAIN), planned(PLAIN, f"parameters.{override}")
    assert not {trial.trial_id for trial in before.trials} & {
        trial.trial_id for trial in after.trials
    }


def test_every_parameter_is_tried_above():
    groups = {
        name: field.annotation
        for name, field in TrialConfig.model_fields.items()
        if name != "precision"
    }
    every = {f"{name}.{key}" for name, group in groups.items() for key in group.model_fields}
    tried = {override.split("=")[0] for override in DECIDING}
    # which acts on cycle_epochs alone
    assert every | {"precision"} == tried | STANDING_FOR_THEIR_CLIPS | {"sgdr.cycle_factor"}


def test_the_corpus_is_in_the_key_by_its_fingerprint(planned):
    def keys(*overrides, **given):
        return {trial.trial_id for trial in planned(PLAIN, *overrides, **given).trials}

    assert keys("parameters.corpus.on_bad_clip=skip") == keys(), (
        "the same clips by other means are the same corpus"
    )
    assert not keys() & keys(fingerprint="beef")


def test_the_same_cycles_written_differently_are_one_trial(planned):
    trials = planned(
        PLAIN, "parameters.sgdr.cycle_epochs={values: [null, 8, 4, [4, 4]]}", "repeats=1"
    )
    assert [
        trial.config.sgdr.cycles()
        for trial in trials.trials
        if trial.config.loader.shm_size == 64 << 20
    ] in (
        [[8], [4, 4]],
        [[4, 4], [8]],
    )
    (removed,) = trials.removed
    assert "repeat" in removed.reason
    assert Counter(str(point["sgdr.cycle_epochs"]) for point in removed.points) == {
        "8": 2,
        "[4, 4]": 2,
    }


def test_weights_from_a_file_are_in_the_key_by_content(planned, tmp_path):
    weights = tmp_path / "w.pt"
    keys = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        keys.append(planned(PLAIN, f"parameters.model.weights={weights}").trials[0].trial_id)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    "override",
    [
        "seed=9",
        "warmup_epochs=2",
        "threads=1",
        "resources.exclusive_node=false",
        "resources.cpus=2",
    ],
)
def test_the_key_sees_what_else_decides_the_measurement(planned, override):
    assert not {trial.trial_id for trial in planned(PLAIN).trials} & {
        trial.trial_id for trial in planned(PLAIN, override).trials
    }


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "trial_timeout=1h",
        "snapshots.keep=all",
        "tracking.experiment=x",
        "order=listed",
        "calibrate=false",
        "method=forecast",
        "resources.price_per_hour=2.5",
    ],
)
def test_the_key_does_not_see_what_decides_nothing(planned, override):
    assert {trial.trial_id for trial in planned(PLAIN).trials} == {
        trial.trial_id for trial in planned(PLAIN, override).trials
    }


def test_the_key_sees_the_corpus_fingerprint(planned):
    assert not {trial.trial_id for trial in planned(TEXT).trials} & {
        trial.trial_id for trial in planned(TEXT, fingerprint="beef").trials
    }


def test_a_repeat_added_keeps_the_keys_of_the_others(planned):
    assert {trial.trial_id for trial in planned(TEXT).trials} < {
        trial.trial_id for trial in planned(TEXT, "repeats=3").trials
    }


def test_excluded_points_are_counted(planned):
    made = planned(
        TEXT
        + "exclude: [{loader.num_workers: 0, loader.shm_size: 64M}, {loader.num_workers: [0, 4]}]\n"
    )
    assert Counter(cells(made.trials)) == {(2, 64 << 20): 2, (2, 1 << 30): 2}
    removed = [
        ("{loader.num_workers: 0, loader.shm_size: 64M}", ["num_workers=0 shm_size=64M"]),
        (
            "{loader.num_workers: [0, 4]}",
            [
                "num_workers=0 shm_size=1G",
                "num_workers=4 shm_size=64M",
                "num_workers=4 shm_size=1G",
            ],
        ),
    ]
    for found, (condition, points) in zip(made.removed, removed, strict=True):
        assert (found.block, found.reason) == ("trials", f"exclude {condition}")
        assert len(found.points) == len(points)
        assert str(found).startswith(f"{len(points)} point")
        assert str(found).endswith(f"{condition} ({', '.join(points)})")


def test_points_that_differ_in_meaningless_keys_run_once(planned):
    made = planned(
        TEXT,
        "parameters.loader.prefetch_factor={values: [4, 2, 8]}",
        "parameters.loader.shm_size=null",
        "order=listed",
        "repeats=1",
    )
    assert [(t.swept["loader.num_workers"], t.swept["loader.prefetch_factor"]) for t in made.trials] == [
        (0, 4), (2, 4), (2, 2), (2, 8), (4, 4), (4, 2), (4, 8),
    ]  # fmt: skip
    (removed,) = made.removed
    assert (removed.block, len(removed.points)) == ("trials", 2)
    assert removed.reason.startswith("prefetch_factor ")
    assert "0 workers" in removed.reason
    names = "num_workers=0 prefetch_factor=2, num_workers=0 prefetch_factor=8"
    assert str(removed).endswith(f"({names})")


def test_meaningless_keys_do_not_change_the_key(planned):
    zero = "parameters.loader.num_workers=0"
    plain, other = (
        planned(TEXT, zero),
        planned(
            TEXT,
            zero,
            "parameters.loader.prefetch_factor=8",
            "parameters.loader.start_method=spawn",
        ),
    )
    assert [trial.trial_id for trial in plain.trials] == [trial.trial_id for trial in other.trials]


def test_swept_groups_and_several_corpora(planned, tmp_path):
    text = """\
name: test
order: listed
parameters:
  corpus: {values: [{name: synthetic, words: [yes, no]}, {name: speech_commands, words: [up, down]}]}
  device: {values: [cpu, {prefer: [cuda, simulated], step_s: 0.1}]}
"""
    trials = planned(text).trials
    assert [(trial.config.corpus.name, trial.config.device.prefer) for trial in trials] == [
        ("synthetic", ["cpu"]), ("synthetic", ["cuda", "simulated"]), ("speech_commands", ["cpu"]), ("speech_commands", ["cuda", "simulated"]),
    ]  # fmt: skip
    assert trials[1].swept["device"] == {
        "prefer": ["cuda", "simulated"],
        "step_s": 0.1,
        "host_cpu_s": 0.0,
        "ranks": 1,
        "run_ahead": 0,
        "sync_every_step": False,
    }
    assert [corpus.name for corpus in corpora(load(tmp_path / "sweep.yaml"))] == [
        "synthetic",
        "speech_commands",
    ]


def test_each_corpus_is_fingerprinted_once(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT)
    asked = []
    plan(load(path), lambda corpus: asked.append(corpus) or "print")
    assert len(asked) == 1


def test_a_loaded_sweep_is_planned_without_a_second_check(tmp_path, monkeypatch):
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT + "exclude: [{loader.num_workers: 0}]\n")
    config = load(path)
    monkeypatch.setattr("sweeps.config.grid.points", None)
    monkeypatch.setattr(TrialConfig, "model_validate", None)
    made = plan(config, lambda corpus: corpus.name)
    assert (len(made.trials), [len(removed.points) for removed in made.removed]) == (8, [2])


def test_a_thousand_trials_are_planned_in_two_seconds(planned):
    ten = "{values: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}"
    start = time.perf_counter()
    made = planned(
        TEXT,
        f"parameters.loader.num_workers={ten}",
        f"parameters.loader.batch_size={ten}",
        "parameters.sgdr.lr=1e-3",
        "repeats=5",
    )
    assert time.perf_counter() - start < 2
    assert len(made.trials) == len({trial.trial_id for trial in made.trials}) == 1000


def test_a_trial_is_plain_data(planned):
    trial = planned(TEXT).trials[0]
    assert set(asdict(trial)) >= {
        "trial_id",
        "block",
        "repeat",
        "seed",
        "config",
        "swept",
        "metric",
    }
    assert len(trial.trial_id) == 12
    assert int(trial.trial_id, 16) >= 0
