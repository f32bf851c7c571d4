"""Trials killed for real and continued, against one that ran through: equal to the last bit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from speech import corpora
from speech.config import RuntimeSettings, Trial, TrialConfig
from speech.continuation import Continuation, Progress
from speech.learner import make_learner
from sweeps.sandbox.isolation import ForkServer, Task
from tests.trees import ROOT

AUGMENTED = {"shift_ms": 50.0, "noise": 0.5, "freq_mask": 4, "time_mask": 4, "mixup": 0.4}


@pytest.fixture(scope="module")
def template():
    made = ForkServer(ROOT, tasks="tests.killed")
    yield made
    made.close()


@pytest.fixture(scope="module")
def config(tone_trial):
    """Four epochs of two steps in two cycles."""
    return tone_trial(
        augment=AUGMENTED,
        loader={"batch_size": 6},
        sgdr={"epochs": 4, "cycle_epochs": 2, "lr": 0.02},
    )


def trial_of(config: TrialConfig, folder: Path) -> Trial:
    return Trial(
        config=config,
        seed=3,
        warmup_epochs=1,
        runtime=RuntimeSettings(threads=1),
        folder=str(folder),
        continues=True,
    )


def attempt(template: ForkServer, config: TrialConfig, folder: Path, kill: str = "") -> list[dict]:
    """The records of one attempt in `folder`, without the exit record."""
    if kill:
        (folder / "kill").write_text(kill)
    task = Task("train", trial_of(config, folder).model_dump(), private=False)
    *records, ending = template.run(task, folder / "log", timeout_s=120)
    assert ending["status"] == (-9 if kill else 0), (folder / "log").read_text()
    assert not (folder / "kill").exists()
    return records


@pytest.fixture(scope="module")
def through(template, config, tmp_path_factory):
    """The trial that nothing interrupts: its folder and its records."""
    folder = tmp_path_factory.mktemp("through")
    return folder, attempt(template, config, folder)


def figures(records: list[dict]) -> list[tuple]:
    """Of every epoch and snapshot, what must not depend on whether the trial was interrupted: all
    that no clock has measured."""
    kinds = ("loss/", "accuracy/", "snapshot/", "lr")
    told = [record for record in records if record["kind"] in ("epoch", "snapshot")]
    return [
        (
            record["kind"],
            record.get("epoch"),
            record.get("warmup"),
            {k: v for k, v in record["metrics"].items() if k.startswith(kinds)},
        )
        for record in told
    ]


def assert_equal(
    folder: Path, records: list[dict], other: Path, others: list[dict], workers: int = 0
) -> None:
    assert figures(records) == figures(others)
    ends = [
        next(record for record in each if record["kind"] == "end") for each in (records, others)
    ]
    for name in ("accuracy", "best_snapshot_accuracy", "ensemble_accuracy"):
        assert ends[0]["summary"][name] == ends[1]["summary"][name]
    assert ends[0]["confusion"] == ends[1]["confusion"]
    for name in ("snapshot-0.pt", "snapshot-1.pt", "learned-4.pt"):
        one, two = (torch.load(place / name) for place in (folder, other))
        if workers:
            one.pop("random", None)  # each start of workers draws from it; what is learned does not
            two.pop("random", None)
        same(one, two)


def same(one, other) -> None:
    """Equal to the last bit, whatever it is made of."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("workers", "kills", "continued"),
    [
        (0, ["progress 1"], 2),
        (2, ["epoch 3"], 2),
        pytest.param(0, ["epoch 1"], None, marks=pytest.mark.slow),
        pytest.param(0, ["epoch 2"], 2, marks=pytest.mark.slow),
        pytest.param(0, ["learned 1"], 2, marks=pytest.mark.slow),
        pytest.param(0, ["end 0"], 4, marks=pytest.mark.slow),
        pytest.param(0, ["progress 0", "epoch 3", "snapshot 1"], 2, marks=pytest.mark.slow),
        pytest.param(2, ["learned 1", "progress 1"], 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_killed_trial_ends_as_one_that_ran_through(
    template, config, through, tmp_path, workers, kills, continued
) -> None:
    config = config.model_copy(
        update={"loader": config.loader.model_copy(update={"num_workers": workers})}
    )
    for kill in kills:
        attempt(template, config, tmp_path, kill)
    records = attempt(template, config, tmp_path)
    assert records[0].get("continued_epoch") == continued
    assert "started_over" not in records[0]
    assert_equal(tmp_path, records, *through, workers)
    again = [record for record in records if record.get("replayed")]
    assert [record["epoch"] for record in again if record["kind"] == "epoch"] == list(
        range(continued or 0)
    )
    assert not any("steps" in record or "began_s" in record for record in again)


@pytest.fixture(scope="module")
def interrupted(template, config, tmp_path_factory):
    """A trial that was killed in its second cycle: its folder and its records."""
    folder = tmp_path_factory.mktemp("interrupted")
    return folder, attempt(template, config, folder, "epoch 3")


def test_an_attempt_tells_the_times_of_the_one_before_as_they_were(
    template, config, interrupted, tmp_path
) -> None:
    folder, before = interrupted
    records = attempt(template, config, shutil.copytree(folder, tmp_path / "copy"))
    again = [record for record in records if record.get("replayed")]
    assert [record["metrics"] for record in again] == [record["metrics"] for record in before[1:4]]
    epochs = [record["metrics"]["time/epoch_s"] for record in records if record["kind"] == "epoch"]
    assert records[-1]["summary"]["train_s"] == pytest.approx(sum(epochs))
    assert len(epochs) == 4


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    """One bit in the middle, which torch.load does not look for."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def of_another_torch(file: Path) -> None:
    kept = json.loads(file.read_text())
    kept["whose"]["torch"] = "1.0.0"
    file.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("name", "harm", "why"),
    [
        ("progress.json", cut, r"progress\.json .*corrupt"),
        (
            "progress.json",
            lambda file: file.write_text("null"),
            r"progress\.json .*corrupt",
        ),
        ("progress.json", of_another_torch, r"another torch$"),
        ("learned-2.pt", flip, r"^learned-2\.pt .*corrupt"),
        ("snapshot-0.pt", cut, r"^snapshot-0\.pt .*corrupt"),
        ("snapshot-0.pt", Path.unlink, r"^snapshot-0\.pt .*corrupt"),
    ],
    ids=["cut", "null", "torch", "flipped", "snapshot cut", "snapshot gone"],
)
def test_what_is_torn_or_of_another_torch_is_not_used(
    config, interrupted, tmp_path, name: str, harm, why: str
) -> None:
    shutil.copytree(interrupted[0], tmp_path, dirs_exist_ok=True)
    harm(tmp_path / name)
    progress = taken_up(trial_of(config, tmp_path))
    assert progress.origin().keys() == {"started_over"}
    assert re.search(why, progress.origin()["started_over"])
    assert not progress.records
    assert not (tmp_path / "progress.json").exists(), (
        "nothing rests on it while its files are written anew"
    )


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"config": {"sgdr": {"lr": 0.03}}}, "parameters"),
        ({"seed": 4}, "seed"),
        ({"warmup_epochs": 0}, "warmup_epochs"),
        ({"runtime": RuntimeSettings(threads=1, precision="bfloat16")}, "runtime"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_another_trial_has_kept_is_not_used(
    config, interrupted, tmp_path, other: dict, what: str
) -> None:
    shutil.copy(interrupted[0] / "progress.json", tmp_path)
    if "config" in other:
        other = {
            "config": config.model_copy(
                update={"sgdr": config.sgdr.model_copy(update=other["config"]["sgdr"])}
            )
        }
    progress = taken_up(trial_of(config, tmp_path).model_copy(update=other))
    assert progress.started_over is not None
    assert progress.started_over.endswith(f" another {what}")


def test_where_the_clips_lie_does_not_matter(config, interrupted, tones, tmp_path) -> None:
    corpus = config.corpus.model_copy(
        update={"path": str(shutil.copytree(tones, tmp_path / "moved"))}
    )
    folder = shutil.copytree(interrupted[0], tmp_path / "copy")
    assert taken_up(trial_of(config.model_copy(update={"corpus": corpus}), folder)).origin() == {
        "continued_epoch": 2
    }


def test_rank_0_alone_removes_a_state_with_a_defect(config, interrupted, tmp_path) -> None:
    folder = shutil.copytree(interrupted[0], tmp_path / "copy")
    flip(folder / "learned-2.pt")
    trial = trial_of(config, folder)
    found = [taken_up(trial, rank).origin() for rank in (1, 1, 0)]
    assert found[0]["started_over"].startswith("learned-2.pt ")
    assert found[0] == found[1] == found[2]
    assert taken_up(trial, 1).origin() == {}, "rank 0 has removed it"


def taken_up(trial: Trial, rank: int = 0) -> Progress:
    corpus = corpora.prepare_corpus(trial.config.corpus)
    return Continuation(trial, corpus, "cpu", make_learner(trial, corpus, "cpu")).restore(rank)


@pytest.mark.slow
@pytest.mark.beside
def test_a_trial_that_starts_over_says_so_and_ends_as_any_other(
    template, config, through, interrupted, tmp_path
) -> None:
    folder = shutil.copytree(interrupted[0], tmp_path / "copy")
    flip(folder / "learned-2.pt")
    records = attempt(template, config, folder)
    assert records[0]["started_over"].startswith("learned-2.pt ")
    assert_equal(folder, records, *through)


def test_nothing_is_kept_of_a_trial_that_is_not_to_be_continued(template, config, tmp_path) -> None:
    trial = trial_of(config, tmp_path).model_copy(update={"continues": False})
    *_, ending = template.run(
        Task("train", trial.model_dump(), private=False), tmp_path / "log", timeout_s=120
    )
    assert ending["status"] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "log",
        "snapshot-0.pt",
        "snapshot-1.pt",
    ]
