"""sweep.yaml -> SweepConfig: all faults at once, each at its line; blocks, overrides and the rules between a trial and its sweep."""

import time

import pytest

from sweeps.config import MetricName, SweepConfig, load
from sweeps.faults import ConfigFaults

CORPUS = "  corpus: {name: synthetic, words: [yes, no, on, off]}\n"


@pytest.fixture
def sweep(tmp_path):
    """sweep(text, *overrides) -> SweepConfig of a file that holds the text."""

    def write(text, *overrides):
        (tmp_path / "sweep.yaml").write_text(text)
        return load(tmp_path / "sweep.yaml", overrides)

    return write


@pytest.fixture
def faults_of(sweep):
    """faults_of(text, *overrides) -> the faults as the user reads them, without the heading."""

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
    form: pgn
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

BLOCK = """\
sweep.yaml has 12 faults:
  line  1               name: 'first look' can't name a file. Write up to 100 letters, digits, '.', '_' or '-', a letter or digit first.
  line  2               metric.name: 'epoch_secs' is not one of epoch_s, fill_s, wait_fraction, clips_per_s, shm_peak_bytes, train_s, \
accuracy, ensemble_accuracy. Did you mean epoch_s?
  line  3               repeats: 'many' is not a whole number.
  line  5               trial_timeout: '20 potatoes' is not a duration. Write 20m, 90s or 2h.
  line  7               parameters.corpus.words[2]: 1 is not text. Write '1', in quotes.
  line  9               parameters.loader.num_worker: unknown key. Did you mean num_workers?
  line 10               parameters.loader.pin_memory: 'yes' is not true or false. Write true.
  line 11               parameters.loader.form: 'pgn' is not one of wav, png, packed, device. Did you mean png?
  line 15               parameters.loader.shm_size: '64 potatoes' is not a size. Write 64M or 2G.
  line 19               blocks.cycles.parameters.sgdr.cycle_epochs: cycles of [3, 3, 3] epochs do not fill 8 epochs exactly. \
Write epochs: 6 or 9.
  line 20               colour: unknown key. Legal here: name, method, calibrate, metric, order, seed, repeats, parameters, blocks, \
exclude, resources, threads, warmup_epochs, trial_timeout, max_restarts, on_failure, run_cap, time_budget, snapshots, tracking, ray.
  --set resources.cpus  resources.cpus: 0 is too small. Write at least 1."""


def test_all_faults_stand_in_one_block(sweep):
    with pytest.raises(ConfigFaults) as caught:
        sweep(FAULTY, "resources.cpus=0")
    assert str(caught.value) == BLOCK


def test_yaml_words_and_numbers(sweep):
    config = sweep(parameters("  optimizer: {weight_decay: 1e-4}\n  loader: {shm_size: 64M}\n"))
    assert config.parameters["corpus"]["words"] == ["yes", "no", "on", "off"]
    assert config.parameters["optimizer"]["weight_decay"] == 1e-4


def test_defaults(sweep):
    config = sweep(parameters(""))
    (block,) = config.resolved()
    assert (block.name, block.repeats, block.metric.name, block.order, config.trial_timeout) == ("trials", 1, "epoch_s", "shuffled", 1200)


@pytest.mark.parametrize(("written", "seconds"), [("20m", 1200), ("90s", 90), ("2h", 7200), ("1.5m", 90), ("45", 45)])
def test_durations(sweep, written, seconds):
    assert sweep(parameters("") + f"trial_timeout: {written}\n").trial_timeout == seconds


def test_blocks_lay_theirs_over_the_sweeps(sweep):
    config = sweep(
        parameters("  loader: {batch_size: 16, num_workers: {values: [0, 2]}, prefetch_factor: 4}\n")
        + "repeats: 3\nblocks:\n  a: {}\n  b:\n    repeats: 1\n    order: listed\n    metric: {name: accuracy, goal: maximize}\n"
        + "    parameters: {loader: {num_workers: 2, prefetch_factor: {values: [1, 2]}}}\n"
    )
    a, b = config.resolved()
    assert a.parameters == config.parameters
    assert b.parameters["loader"] == {"batch_size": 16, "num_workers": 2, "prefetch_factor": {"values": [1, 2]}}
    assert [(block.name, block.repeats, block.metric.name, block.order) for block in (a, b)] == [
        ("a", 3, "epoch_s", "shuffled"),
        ("b", 1, "accuracy", "listed"),
    ]


def test_a_fault_of_the_shared_parameters_is_told_once(faults_of):
    assert faults_of(parameters("  loader: {form: gif}\n") + "blocks:\n  a: {}\n  b: {}\n") == [
        "line 4  parameters.loader.form: 'gif' is not one of wav, png, packed, device."
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("  loader: {num_workers: {values: []}}\n", "line 4  parameters.loader.num_workers: values is empty. Write at least one value."),
        (
            "  loader: {shm_size: {values: [64M, 1G, 67108864]}}\n",
            "line 4  parameters.loader.shm_size: 67108864 is the same as '64M'. Remove one.",
        ),
        (
            "  loader: {num_workers: {values: [0], max: 3}}\n",
            "line 4  parameters.loader.num_workers.max: stands beside values. A swept value is {values: [...]} and nothing else.",
        ),
        ("  device: {values: [cpu, gpu]}\n", "line 4  parameters.device: 'gpu' is not one of cuda, cpu, paced. Did you mean cpu?"),
        (
            "  values: [1]\n",
            "line 2  parameters: values stands for one parameter or group: write it under its key, "
            "as loader: {num_workers: {values: [0, 2]}}.",
        ),
        (
            "exclude:\n  - {loader.num_workers: 0}\n  - {loader.num_workers: 3}\n",
            "line 4  exclude: removes every point of block trials. Exclude fewer, or remove the block.",
        ),
        ("exclude: [{loader.num_worker: 3}]\n", "line 4  exclude[0].loader.num_worker: unknown key. Did you mean num_workers?"),
        ("exclude: [{loader.num_workers: 3}]\n", "line 4  exclude[0]: loader.num_workers: 3 matches no point. Mend or remove it."),
        (
            "metric: {name: accuracy, goal: minimize}\n",
            "line 4  metric: the worst trial would win: write goal: maximize for accuracy.",
        ),
        (
            "  sgdr: {epochs: {values: [1, 2]}}\n",
            "line 4  parameters.sgdr.epochs: 1 is too few: after 1 of warm-up none is left for epoch_s. "
            "Write epochs: 2 or more, or warmup_epochs: 0.",
        ),
        (
            "  device: {first_of: [cuda, paced], step_s: 0.1}\nmetric: {name: ensemble_accuracy, goal: maximize}\n",
            "line 4  parameters.device: paced learns nothing, so block trials can't compare ensemble_accuracy. "
            "Write auto, cuda or cpu, or metric epoch_s.",
        ),
        (
            "  loader: {shm_size: {values: [64M, 1G]}}\nresources: {shm: host}\n",
            "line 4  parameters.loader.shm_size: the node's own /dev/shm has one size. Write resources.shm: private, or a single size.",
        ),
        (
            "method: forecast\ncalibrate: false\n",
            "line 4  method: forecast needs what a calibration measures. Write calibrate: true, or method: grid.",
        ),
        ("seed: 1\nseed: 2\n", "line 5  seed: written twice; first on line 4. Keep one."),
        ("blocks: {a.b: {}}\n", "line 4  blocks.a.b: 'a.b' can't name a block. Write letters, digits, '_' or '-'."),
        (
            "  features: {n_mels: {values: [" + ", ".join(map(str, range(8, 208))) + "]}}\nrepeats: 1000\n",
            "line 2  parameters: the sweep spans 200,000 trials. Sweep fewer values: at most 100,000.",
        ),
    ],
)
def test_single_faults(faults_of, text, fault):
    found = faults_of(parameters(text))
    assert fault in found
    assert len(found) == 1 + ("removes every" in fault)  # there the second entry matches nothing, and is told as well


def test_an_excluded_point_is_not_checked(sweep, faults_of):
    swept = "  loader: {form: {values: [wav, png]}}\n  augment: {shift_ms: {values: [0, 100]}}\n"
    (fault,) = faults_of(parameters(swept))
    assert fault.startswith("line 4  parameters.loader.form: form png reads finished pictures")
    sweep(parameters(swept) + "exclude: [{loader.form: png, augment: {shift_ms: 100}}]\n")


def test_an_exclude_of_the_sweep_need_match_in_one_block_only(sweep):
    sweep(
        parameters("")
        + "exclude: [{loader.num_workers: 2}]\nblocks:\n  a: {}\n  b: {parameters: {loader: {num_workers: {values: [0, 2]}}}}\n"
    )


def test_overrides_are_checked_like_the_file(sweep, faults_of):
    text = parameters("  sgdr: {epochs: {values: [4, 8]}}\n")
    assert sweep(text, "parameters.sgdr.epochs=3").parameters["sgdr"]["epochs"] == 3
    assert sweep(text, "parameters.loader.num_workers={values: [0, 2]}").parameters["loader"] == {"num_workers": {"values": [0, 2]}}
    assert faults_of(text, "parameters.loader.num_workers={values: [0, -2]}", "parameters.sgdr.epoch=3") == [
        "--set parameters.loader.num_workers  parameters.loader.num_workers: -2 is too small. Write at least 0.",
        "--set parameters.sgdr.epoch          parameters.sgdr.epoch: unknown key. Did you mean epochs?",
    ]


def test_an_override_reaches_into_a_block(sweep):
    config = sweep(parameters("") + "blocks:\n  workers: {repeats: 2}\n", "blocks.workers.parameters.loader.num_workers={values: [0, 2]}")
    assert config.resolved()[0].parameters["loader"] == {"num_workers": {"values": [0, 2]}}


def test_an_override_without_effect_is_a_fault(sweep, faults_of):
    text = parameters("") + "blocks:\n  a: {repeats: 2, parameters: {sgdr: {epochs: 4}}}\n"
    assert faults_of(text, "parameters.sgdr.epochs=3", "repeats=1") == [
        "--set parameters.sgdr.epochs  parameters.sgdr.epochs: has no effect, as every block sets its own. "
        "Write --set blocks.a.parameters.sgdr.epochs=... for each block.",
        "--set repeats                 repeats: has no effect, as every block sets its own. "
        "Write --set blocks.a.repeats=... for each block.",
    ]
    assert sweep(text + "  b: {}\n", "parameters.sgdr.epochs=3").resolved()[1].parameters["sgdr"] == {"epochs": 3}
    assert sweep(text, "parameters.sgdr={lr: 0.1}").resolved()[0].parameters["sgdr"] == {"lr": 0.1, "epochs": 4}


def test_a_faulty_key_draws_no_other_faults_with_it(faults_of):
    assert faults_of("name: test\nparameters: [1]\n") == ["line 2  parameters: [1] is not a group of keys."]
    text = parameters("  sgdr: {epochs: 1}\n") + "metric: {name: accurracy, goal: maximize}\nblocks: {a b: {}, c: {}}\n"
    assert [fault.split(":")[0] for fault in faults_of(text)] == ["line 5  metric.name", "line 6  blocks.a b"]


def test_every_key_of_the_sweep_is_described():
    models = [SweepConfig]
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                models.append(field.annotation)
    assert len(models) == 6


def test_metric_names_are_those_of_the_summary():
    from sweeps.metrics import SUMMARY

    assert set(MetricName.__args__) <= set(SUMMARY)


def test_a_thousand_combinations_are_checked_in_two_seconds(sweep, faults_of):
    ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
    text = parameters(f"  loader: {{num_workers: {{values: {ten}}}, batch_size: {{values: {ten}}}, prefetch_factor: {{values: {ten}}}}}\n")
    start = time.perf_counter()
    sweep(text)
    assert len(faults_of(text, "parameters.loader.form=gif", "parameters.sgdr.cycle_epochs=3")) == 2
    assert time.perf_counter() - start < 4  # two checks
