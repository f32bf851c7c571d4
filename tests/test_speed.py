"""Tests the probe of the machine's speed, on tones."""

import math
import os

import pytest
import torch

from speech import corpora
from speech.calibration.costs import Speed
from speech.calibration.speed import probe_speed
from speech.config import RuntimeSettings, Trial
from speech.train import fit
from tests.busy import CORES, busy_processes

SIMULATED = {"prefer": ["simulated"], "step_s": 0.01}


def trial_of(config, folder, **more) -> Trial:
    runtime = RuntimeSettings(threads=1, cpus=sorted(os.sched_getaffinity(0)))
    return Trial(config=config, seed=1, runtime=runtime, folder=str(folder), **more)


def test_slower_cores_are_told_apart_by_kind_of_work() -> None:
    before, now = Speed(prepare_s=0.02, step_s=0.1), Speed(prepare_s=0.03, step_s=0.11)
    slowdown = now.slowdown(before)
    assert (slowdown.prepare, slowdown.step) == (pytest.approx(1.5), pytest.approx(1.1))
    assert now.slowdown(Speed(prepare_s=0.02)).step == 1.0


@pytest.mark.quiet
def test_a_probe_measures_preparation_and_a_step_on_the_host(tone_trial, tmp_path) -> None:
    config = tone_trial(loader={"num_workers": 2})
    corpus = corpora.prepare_corpus(config.corpus)
    on_cpu = probe_speed(trial_of(config, tmp_path), corpus)
    simulated = tone_trial(device=SIMULATED)
    elsewhere = probe_speed(trial_of(simulated, tmp_path), corpus)
    assert on_cpu
    assert elsewhere
    assert on_cpu.step_s
    assert elsewhere.step_s is None
    assert on_cpu.prepare_s == pytest.approx(elsewhere.prepare_s, rel=0.6)
    assert not list(tmp_path.iterdir())


@pytest.mark.quiet
def test_beside_busy_processes_there_is_no_speed(tone_trial, tmp_path) -> None:
    config = tone_trial(device=SIMULATED)
    corpus = corpora.prepare_corpus(config.corpus)
    with busy_processes(CORES):
        assert probe_speed(trial_of(config, tmp_path), corpus) is None


def test_a_probe_changes_nothing_that_a_trial_computes(tone_trial, tmp_path) -> None:
    config = tone_trial(sgdr={"epochs": 2, "cycle_epochs": 2, "lr": 0.02})
    losses = []
    for probe in (False, True):
        records: list[dict] = []
        folder = tmp_path / f"{probe}"
        folder.mkdir()
        torch.manual_seed(99)
        fit(trial_of(config, folder, probe_speed=probe), records.append)
        losses.append(
            [each["metrics"]["loss/training"] for each in records if each["kind"] == "epoch"]
        )
    assert losses[0] == losses[1]
    assert all(math.isfinite(loss) for loss in losses[0])
