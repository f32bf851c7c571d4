"""Tests reading sweep.yaml as a SweepConfig: all faults at once, each at its line; overrides; and
the rules between a trial and its sweep."""

import re
import time

import pytest

from sweeps.config.config_errors import ConfigFaults
from sweeps.config.sweep_file import load

CORPUS = "  corpus: {name: synthetic, words: [yes, no, on, off]}\n"


@pytest.fixture
def sweep(tmp_path):
    """Returns sweep(text, *overrides): the SweepConfig of a file with this text."""

    def write(text, *overrides):
        (tmp_path / "sweep.yaml").write_text(text)
        return load(tmp_path / "sweep.yaml", overrides)

    return write


@pytest.fixture
def faults_of(sweep):
    """Returns faults_of(text, *overrides): the printed lines of the faults, without the heading."""

    def read(text, *overrides):
        with pytest.raises(ConfigFaults) as caught:
            sweep(text, *overrides)
        return [line.strip() for line in str(caught.value).splitlines()[1:]]

    return read


def parameters(text):
    return f"name: test\nparameters:\n{CORPUS}{text}"


FAULTY = """\
name: first look
metric: {name: epoch_secs, goal: minimize}
repeats: many
warmup_epochs: 1
trial_timeout: 20 potatoes
parameters:
  corpus: {name: synthetic, words: [yes, no, 1]}
  loader:
    num_worker: 3
    pin_memory: yes
    format: pgn
    shm_size:
      values:
        - 64M
        - 64 potatoes
blocks:
  cycles:
    parameters:
      sgdr: {epochs: 8, cycle_epochs: {values: [4, 3]}}
colour: red
"""

METRICS = (
    "epoch_s, first_batch_s, wait_fraction, clips_per_s, shm_peak_bytes, train_s, accuracy,"
    " ensemble_accuracy"
)
KEYS = (
    "name, method, calibrate, metric, order, seed, repeats, parameters, blocks, exclude, resources,"
    " threads, warmup_epochs, trial_timeout, max_restarts, on_failure, run_cap, time_budget,"
    " snapshots, tracking, ray"
)
# place, key, and the faulty value, the legal ones and what to write, in order
FAULTS = [
    (1, "name", ["'first look'", "100", "'.', '_' or '-'"]),
    (2, "metric.name", ["'epoch_secs'", METRICS, "mean epoch_s?"]),
    (3, "repeats", ["'many'", "whole number"]),
    (5, "trial_timeout", ["'20 potatoes'", "20m, 90s or 2h"]),
    (7, "parameters.corpus.words[2]", ["1 ", "text", "'1'"]),
    (9, "parameters.loader.num_worker", ["unknown key", "mean num_workers?"]),
    (10, "parameters.loader.pin_memory", ["'yes'", "true or false", "Write true"]),
    (11, "parameters.loader.format", ["'pgn'", "wav, png, packed, on_device", "mean png?"]),
    (15, "parameters.loader.shm_size", ["'64 potatoes'", "64M or 2G"]),
    (19, "blocks.cycles.parameters.sgdr.cycle_epochs", ["[3, 3, 3]", "8", "epochs: 6 or 9"]),
    (20, "colour", ["unknown key", KEYS]),
    ("--set resources.cpus", "resources.cpus", ["0 ", "too small", "1"]),
]


def test_all_faults_are_reported_at_once_each_with_its_place(sweep):
    with pytest.raises(ConfigFaults) as caught:
        sweep(FAULTY, "resources.cpus=0")
    found = caught.value.faults
    assert [(fault.where, fault.key) for fault in found] == [fault[:2] for fault in FAULTS]
    for fault, (*_, facts) in zip(found, FAULTS, strict=True):
        assert re.search(".*".join(map(re.escape, facts)), fault.text), (facts, fault.text)
    heading, *lines = str(caught.value).splitlines()
    assert heading.startswith("sweep.yaml ")
    assert re.findall(r"\d+", heading) == ["12"]
    for fault, line in zip(found, lines, strict=True):
        place, text = line.split(f"{fault.key}: ", 1)
        assert re.fullmatch(rf"(line +)?{fault.where}", place.strip())
        assert text == fault.text
    starts = {line.index(f"{fault.key}: ") for fault, line in zip(found, lines, strict=True)}
    assert len(starts) == 1, "keys stand in a column"


def test_yaml_words_and_numbers(sweep):
    config = sweep(parameters("  optimizer: {weight_decay: 1e-4}\n  loader: {shm_size: 64M}\n"))
    assert config.parameters["corpus"]["words"] == ["yes", "no", "on", "off"]
    assert config.parameters["optimizer"]["weight_decay"] == 1e-4


def test_a_fault_of_the_shared_parameters_is_reported_once(faults_of):
    (fault,) = faults_of(parameters("  loader: {format: gif}\n") + "blocks:\n  a: {}\n  b: {}\n")
    place, _, text = fault.partition(": ")
    assert place == "line 4  parameters.loader.format"
    assert {"gif", "wav", "png", "packed", "on_device"} <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("  loader: {num_workers: {values: []}}\n", 4, "parameters.loader.num_workers", ["values"]),
        (
            "  loader: {shm_size: {values: [64M, 1G, 67108864]}}\n",
            4,
            "parameters.loader.shm_size",
            ["67108864", "'64M'"],
        ),
        (
            "  loader: {num_workers: {values: [0], max: 3}}\n",
            4,
            "parameters.loader.num_workers.max",
            ["{values: [...]}"],
        ),
        (
            "  device: {values: [cpu, gpu]}\n",
            4,
            "parameters.device",
            ["'gpu'", "cuda, cpu, simulated", "mean cpu?"],
        ),
        ("  values: [1]\n", 2, "parameters", ["loader: {num_workers: {values: [0, 2]}}"]),
        (
            "exclude:\n  - {loader.num_workers: 0}\n  - {loader.num_workers: 3}\n",
            4,
            "exclude",
            ["every point", "block trials"],
        ),
        (
            "exclude: [{loader.num_worker: 3}]\n",
            4,
            "exclude[0].loader.num_worker",
            ["mean num_workers?"],
        ),
        (
            "exclude: [{loader.num_workers: 3}]\n",
            4,
            "exclude[0]",
            ["loader.num_workers: 3", "no point"],
        ),
        ("metric: {name: accuracy, goal: minimize}\n", 4, "metric", ["goal: maximize"]),
        (
            "  sgdr: {epochs: {values: [1, 2]}}\n",
            4,
            "parameters.sgdr.epochs",
            ["1 is too few", "epoch_s", "epochs: 2 or more", "warmup_epochs: 0"],
        ),
        (
            (
                "  device: {prefer: [cuda, simulated], step_s: 0.1}\nmetric: {name:"
                " ensemble_accuracy, goal: maximize}\n"
            ),
            4,
            "parameters.device",
            ["block trials", "ensemble_accuracy", "auto, cuda or cpu"],
        ),
        (
            "  loader: {shm_size: {values: [64M, 1G]}}\nresources: {shm: host}\n",
            4,
            "parameters.loader.shm_size",
            ["resources.shm: private"],
        ),
        (
            "  device: {prefer: [simulated], step_s: 1, run_ahead: 2, sync_every_step: true}\n",
            4,
            "parameters.device",
            ["run_ahead: 0", "sync_every_step: false"],
        ),
        ("resources: {gpus: 2}\n", 4, "resources.gpus", ["2 GPUs", "use 1", "gpus: auto"]),
        (
            "  device: {prefer: [simulated], step_s: 1, ranks: 4}\nresources: {gpus: 0.5}\n",
            5,
            "resources.gpus",
            ["0.5 GPUs", "no trial", "gpus: auto"],
        ),
        (
            "  device: {prefer: [cuda], ranks: 2}\nresources: {gpus: 1}\n",
            4,
            "parameters.device",
            ["2 ranks", "resources.gpus is 1", "gpus: auto"],
        ),
        (
            "method: forecast\ncalibrate: false\n",
            4,
            "method",
            ["calibrate: true", "method: grid"],
        ),
        ("seed: 1\nseed: 2\n", 5, "seed", ["line 4"]),
        ("blocks: {a.b: {}}\n", 4, "blocks.a.b", ["'a.b'", "letters, digits, '_' or '-'"]),
        (
            "  features: {n_mels: {values: ["
            + ", ".join(map(str, range(8, 208)))
            + "]}}\nrepeats: 1000\n",
            2,
            "parameters",
            ["200,000", "100,000"],
        ),
    ],
)
def test_single_faults(faults_of, text: str, line: int, key: str, words: list[str]):
    found = faults_of(parameters(text))
    assert any(
        fault.startswith(f"line {line}  {key}: ") and all(word in fault for word in words)
        for fault in found
    ), found
    # there the second entry matches nothing, and is reported as well
    assert len(found) == 1 + ("every point" in words)


def test_gpus_that_some_trials_ranks_use_are_no_fault(sweep):
    sweep(parameters("  device: {prefer: [cuda], ranks: {values: [1, 2]}}\nresources: {gpus: 2}\n"))
    sweep(parameters("resources: {gpus: 0.5}\n"))


def test_an_excluded_point_is_not_checked(sweep, faults_of):
    swept = "  loader: {format: {values: [wav, png]}}\n  augment: {shift_ms: {values: [0, 100]}}\n"
    (fault,) = faults_of(parameters(swept))
    assert fault.startswith("line 4  parameters.loader.format: ")
    assert "png" in fault
    assert "augment.shift_ms" in fault
    assert "format: wav" in fault
    sweep(parameters(swept) + "exclude: [{loader.format: png, augment: {shift_ms: 100}}]\n")


def test_an_exclude_of_the_sweep_need_match_in_one_block_only(sweep):
    sweep(
        parameters("")
        + "exclude: [{loader.num_workers: 2}]\nblocks:\n  a: {}\n  b: {parameters: {loader:"
        " {num_workers: {values: [0, 2]}}}}\n"
    )


def test_overrides_are_checked_like_the_file(sweep, faults_of):
    text = parameters("  sgdr: {epochs: {values: [4, 8]}}\n")
    assert sweep(text, "parameters.sgdr.epochs=3").parameters["sgdr"]["epochs"] == 3
    assert sweep(text, "parameters.loader.num_workers={values: [0, 2]}").parameters["loader"] == {
        "num_workers": {"values": [0, 2]}
    }
    few, unknown = faults_of(
        text, "parameters.loader.num_workers={values: [0, -2]}", "parameters.sgdr.epoch=3"
    )
    assert few.startswith("--set parameters.loader.num_workers  parameters.loader.num_workers: ")
    assert re.findall(r"-?\d+", few.rpartition(": ")[2]) == ["-2", "0"]
    assert "too small" in few
    assert unknown.startswith("--set parameters.sgdr.epoch          parameters.sgdr.epoch: ")
    assert "unknown key" in unknown
    assert "mean epochs?" in unknown


def test_an_override_reaches_into_a_block(sweep):
    config = sweep(
        parameters("") + "blocks:\n  workers: {repeats: 2}\n",
        "blocks.workers.parameters.loader.num_workers={values: [0, 2]}",
    )
    assert config.resolved_blocks[0].parameters["loader"] == {"num_workers": {"values": [0, 2]}}


def test_an_override_without_effect_is_a_fault(sweep, faults_of):
    text = parameters("") + "blocks:\n  a: {repeats: 2, parameters: {sgdr: {epochs: 4}}}\n"
    epochs, repeats = faults_of(text, "parameters.sgdr.epochs=3", "repeats=1")
    assert epochs.startswith("--set parameters.sgdr.epochs  parameters.sgdr.epochs: ")
    assert "--set blocks.a.parameters.sgdr.epochs=..." in epochs
    assert repeats.startswith("--set repeats                 repeats: ")
    assert "--set blocks.a.repeats=..." in repeats
    assert sweep(text + "  b: {}\n", "parameters.sgdr.epochs=3").resolved_blocks[1].parameters[
        "sgdr"
    ] == {"epochs": 3}
    assert sweep(text, "parameters.sgdr={lr: 0.1}").resolved_blocks[0].parameters["sgdr"] == {
        "lr": 0.1,
        "epochs": 4,
    }


def test_a_faulty_key_causes_no_other_faults(faults_of):
    (fault,) = faults_of("name: test\nparameters: [1]\n")
    assert fault.startswith("line 2  parameters: [1] ")
    text = (
        parameters("  sgdr: {epochs: 1}\n")
        + "metric: {name: accurracy, goal: maximize}\nblocks: {a b: {}, c: {}}\n"
    )
    assert [fault.split(":")[0] for fault in faults_of(text)] == [
        "line 5  metric.name",
        "line 6  blocks.a b",
    ]


def test_a_thousand_combinations_are_checked_in_two_seconds(sweep, faults_of):
    ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
    text = parameters(
        f"  loader: {{num_workers: {{values: {ten}}}, batch_size: {{values: {ten}}},"
        f" prefetch_factor: {{values: {ten}}}}}\n"
    )
    start = time.perf_counter()
    sweep(text)
    assert (
        len(faults_of(text, "parameters.loader.format=gif", "parameters.sgdr.cycle_epochs=3")) == 2
    )
    assert time.perf_counter() - start < 4  # two checks
