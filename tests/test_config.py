"""A sweep file as data: defaults, durations, and blocks laid over the sweep."""

import pickle

import pytest

from sweeps.config.config import MetricName, SweepConfig
from sweeps.config.sweep_file import load

CORPUS = "  corpus: {name: synthetic, words: [yes, no, on, off]}\n"


@pytest.fixture
def sweep(tmp_path):
    """sweep(text, *overrides) -> SweepConfig of a file that holds the text."""

    def write(text, *overrides):
        (tmp_path / "sweep.yaml").write_text(text)
        return load(tmp_path / "sweep.yaml", overrides)

    return write


def parameters(text):
    return f"name: test\nparameters:\n{CORPUS}{text}"


def test_defaults(sweep):
    config = sweep(parameters(""))
    (block,) = config.resolved_blocks
    assert (block.name, block.repeats, block.metric.name, block.order, config.trial_timeout) == (
        "trials",
        1,
        "epoch_s",
        "shuffled",
        1200,
    )


@pytest.mark.parametrize(
    ("written", "seconds"), [("20m", 1200), ("90s", 90), ("2h", 7200), ("1.5m", 90), ("45", 45)]
)
def test_durations(sweep, written, seconds):
    assert sweep(parameters("") + f"trial_timeout: {written}\n").trial_timeout == seconds


def test_blocks_lay_theirs_over_the_sweeps(sweep):
    config = sweep(
        parameters(
            "  loader: {batch_size: 16, num_workers: {values: [0, 2]}, prefetch_factor: 4}\n"
        )
        + "repeats: 3\nblocks:\n  a: {}\n  b:\n    repeats: 1\n    order: listed\n    metric:"
        " {name: accuracy, goal: maximize}\n"
        + "    parameters: {loader: {num_workers: 2, prefetch_factor: {values: [1, 2]}}}\n"
    )
    a, b = config.resolved_blocks
    assert a.parameters == config.parameters
    assert b.parameters["loader"] == {
        "batch_size": 16,
        "num_workers": 2,
        "prefetch_factor": {"values": [1, 2]},
    }
    assert [(block.name, block.repeats, block.metric.name, block.order) for block in (a, b)] == [
        ("a", 3, "epoch_s", "shuffled"),
        ("b", 1, "accuracy", "listed"),
    ]


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


def test_points_are_left_out_of_a_pickle_and_expanded_again(sweep) -> None:
    config = sweep(parameters("  loader: {num_workers: {values: [0, 2]}}\n"))
    sent = pickle.loads(pickle.dumps(config))
    assert "resolved_blocks" in vars(config)
    assert "resolved_blocks" not in vars(sent)
    assert sent == config
    assert sent.resolved_blocks == config.resolved_blocks
