import json
import math
import re
import statistics
import subprocess

import pytest
import torch

from speech import corpora
from speech.audio import BadClip
from speech.cache_folder import cache_dir
from speech.config import RuntimeSettings, Trial
from speech.cpu import usable_cores
from speech.evaluation import evaluate_test_split
from speech.fetches import prefetch_hit_rate
from speech.learner import Learner
from speech.loading import make_loader, prepare_forms
from speech.model import WeightsError
from speech.train import fit
from speech.usage import external_limit


def records_of(
    config, folder, seed: int = 1, warmup: int = 0, threads: int = 1, **pinned
) -> list[dict]:
    records: list[dict] = []
    fit(
        Trial(
            config=config,
            seed=seed,
            warmup_epochs=warmup,
            runtime=RuntimeSettings(threads=threads, **pinned),
            folder=str(folder),
        ),
        records.append,
    )
    return records


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record for record in records if record["kind"] == kind]


def losses(records: list[dict]) -> list[float]:
    return [record["metrics"]["loss/training"] for record in of_kind(records, "epoch")]


AUGMENTED = {"shift_ms": 50.0, "noise": 0.5, "freq_mask": 4, "time_mask": 4, "mixup": 0.4}


@pytest.fixture(scope="module")
def learned(tone_trial, tmp_path_factory):
    """Trains twenty epochs in two cycles on two tones.

    Returns the configuration, the folder with the snapshots and the records.
    """
    folder = tmp_path_factory.mktemp("learned")
    config = tone_trial(sgdr={"epochs": 20, "cycle_epochs": 10, "lr": 0.02})
    return config, folder, records_of(config, folder, warmup=1)


def test_two_tones_are_learned(learned) -> None:
    _, _, records = learned
    summary = records[-1]["summary"]
    assert losses(records)[-1] < 0.5 * losses(records)[0]
    assert summary["ensemble_accuracy"] == 1.0


def test_records_come_in_order_and_are_plain_json(learned) -> None:
    _, _, records = learned
    kinds = [record["kind"] for record in records]
    cycle = ["epoch"] * 10 + ["snapshot"]
    assert kinds == ["setup", *cycle, *cycle, "end"]
    assert json.loads(json.dumps(records[1])) == records[1]


def test_the_spans_of_an_epoch_sum_to_it_and_raw_steps_are_kept(learned) -> None:
    _, _, records = learned
    for record in of_kind(records, "epoch"):
        metrics = record["metrics"]
        parts = [
            metrics[f"time/{span}_s"]
            for span in ("start", "first_batch", "data_wait", "step", "other")
        ]
        assert sum(parts) == pytest.approx(metrics["time/epoch_s"])
        assert len(record["steps"]["data_wait_s"]) == len(record["steps"]["step_s"]) == 3
        assert sum(record["steps"]["data_wait_s"]) == pytest.approx(
            metrics["time/first_batch_s"] + metrics["time/data_wait_s"], abs=3e-6
        )


def test_the_summary_is_the_median_of_undisturbed_warm_epochs(learned) -> None:
    _, _, records = learned
    warm = [record["metrics"] for record in of_kind(records, "epoch")[1:]]
    quiet = [
        metrics
        for metrics in warm
        if metrics["cpu/external_fraction"] <= external_limit(usable_cores())
    ]
    assert records[-1]["summary"]["epoch_s"] == statistics.median(
        metrics["time/epoch_s"] for metrics in quiet or warm
    )
    assert records[-1]["summary"]["disturbed_epochs"] == len(warm) - len(quiet)
    assert records[-1]["summary"]["train_s"] == pytest.approx(
        sum(r["metrics"]["time/epoch_s"] for r in of_kind(records, "epoch"))
    )
    assert [record["warmup"] for record in of_kind(records, "epoch")] == [True] + [False] * 19


def test_each_snapshot_file_holds_the_weights_at_its_cycles_end(learned) -> None:
    """Reloaded weights give the validation loss and accuracy that training recorded for them."""
    config, folder, records = learned
    corpus = corpora.prepare_corpus(config.corpus)
    loader, _ = make_loader(config, corpus, "validation", 1)
    learner = Learner(config, RuntimeSettings(threads=1), "cpu", labels=2, channels=1)
    for snapshot in of_kind(records, "snapshot"):
        learner.model.load_state_dict(torch.load(folder / snapshot["file"], weights_only=True))
        _, _, loss = learner.predict(loader)
        noted = of_kind(records, "epoch")[snapshot["epoch"]]["metrics"]
        assert loss == pytest.approx(noted["loss/validation"], rel=1e-4)
        assert snapshot["metrics"]["snapshot/accuracy"] == noted["accuracy/validation"]
    assert [snapshot["epoch"] for snapshot in of_kind(records, "snapshot")] == [9, 19]


def test_the_test_split_is_read_by_all_members(learned) -> None:
    config, folder, _ = learned
    result = evaluate_test_split(
        Trial(config=config, seed=1, runtime=RuntimeSettings(threads=1), folder=str(folder))
    )
    assert result == {
        "clips": 6,
        "accuracy": 1.0,
        "ensemble_accuracy": 1.0,
        "largest_label_fraction": 0.5,
    }
    (folder / "snapshot-0.pt").rename(folder / "gone.pt")
    with pytest.raises(WeightsError, match=r"snapshot-0\.pt .*exist"):
        evaluate_test_split(
            Trial(config=config, seed=1, runtime=RuntimeSettings(threads=1), folder=str(folder))
        )
    (folder / "gone.pt").rename(folder / "snapshot-0.pt")


@pytest.mark.parametrize("workers", [2, 8])
def test_the_loss_curve_is_bit_for_bit_the_same_at_any_number_of_workers(
    tone_trial, tmp_path, workers: int
) -> None:
    alone = tone_trial(augment=AUGMENTED, sgdr={"epochs": 2})
    shared = tone_trial(augment=AUGMENTED, sgdr={"epochs": 2}, loader={"num_workers": workers})
    curves = [losses(records_of(config, tmp_path, threads=2)) for config in (alone, shared)]
    assert curves[0] == curves[1]
    assert curves[0] != losses(records_of(alone, tmp_path, seed=2, threads=2))


def test_bfloat16_and_channels_last_learn_too(tone_trial, tmp_path) -> None:
    records = records_of(
        tone_trial(sgdr={"epochs": 6, "lr": 0.02}),
        tmp_path,
        precision="bfloat16",
        channels_last=True,
    )
    assert losses(records)[-1] < 0.7 * losses(records)[0]
    assert records[0]["precision"] == "bfloat16"


def test_the_simulated_device_times_an_epoch_and_claims_no_accuracy(tone_trial, tmp_path) -> None:
    device = {"prefer": ["simulated"], "step_s": 0.05, "host_cpu_s": 0.01}
    records = records_of(tone_trial(device=device), tmp_path)
    metrics = of_kind(records, "epoch")[0]["metrics"]
    assert metrics["time/step_s"] >= 3 * 0.06
    assert metrics["accelerator/busy_fraction"] >= 3 * 0.05 / metrics["time/epoch_s"] * 0.99
    assert not any(
        "accuracy" in name or "loss" in name
        for name in metrics.keys() | records[-1]["summary"].keys()
    )
    name = records[0]["device_name"]
    assert name.startswith("simulated")
    assert re.findall(r"\d+ ms", name) == ["50 ms", "10 ms"]


def test_an_epochs_raw_steps_explain_its_figures(tone_trial, tmp_path) -> None:
    config = tone_trial(
        loader={"num_workers": 2, "format": "png"},
        device={"prefer": ["simulated"], "step_s": 0.05},
        sgdr={"epochs": 2},
    )
    prepare_forms(config, corpora.prepare_corpus(config.corpus), print)
    records = records_of(config, tmp_path)
    for epoch in of_kind(records, "epoch"):
        metrics, steps, busy, fetches = (
            epoch[name] for name in ("metrics", "steps", "busy", "fetches")
        )
        ends = [
            sum(parts)
            for parts in zip(
                *(steps[name] for name in ("request_s", "data_wait_s", "step_s", "other_s")),
                strict=True,
            )
        ]
        assert steps["request_s"][0] == pytest.approx(metrics["time/start_s"], abs=2e-6)
        assert steps["request_s"][1:] == pytest.approx(ends[:-1], abs=1e-5), (
            "a step lasts until the next one"
        )
        assert metrics["time/epoch_s"] == pytest.approx(ends[-1], abs=1e-3), (
            "at the end nothing is queued"
        )
        busy_s = sum(busy["end_s"]) - sum(busy["begin_s"])
        assert busy_s >= 3 * 0.05 - 1e-5, "records are rounded to a microsecond"
        assert sorted(fetches["step"]) == [0, 1, 2]
        came = [
            ask + wait for ask, wait in zip(steps["request_s"], steps["data_wait_s"], strict=True)
        ]
        assert all(
            end < came[step] for step, end in zip(fetches["step"], fetches["end_s"], strict=True)
        ), "made before it came"
        assert metrics["loader/prefetch_hit_rate"] == prefetch_hit_rate(fetches, steps["request_s"])
        assert metrics["cpu/worker_s"] == pytest.approx(sum(fetches["cpu_s"]), abs=0.02), (
            "between looks or between batches"
        )
        assert len(steps["shm_bytes"]) == 3
    first, second = (epoch["began_s"] for epoch in of_kind(records, "epoch"))
    assert 0 <= first < second
    assert second - first >= of_kind(records, "epoch")[0]["metrics"]["time/epoch_s"]


@pytest.mark.parametrize("form", ["wav", "png", "packed"])
def test_a_cold_epoch_reads_from_storage_and_a_warm_one_from_memory(
    tone_trial, tmp_path, form: str
) -> None:
    device = {"prefer": ["simulated"], "step_s": 0.001}
    read = {}
    for cache in ("cold", "warm"):
        config = tone_trial(
            corpus={"cache": cache},
            loader={"format": form, "num_workers": 2},
            device=device,
            sgdr={"epochs": 3},
        )
        corpus = corpora.prepare_corpus(config.corpus)
        prepare_forms(config, corpus, print)
        if (kind := in_memory(cache_dir() if form != "wav" else corpus.root)) is not None:
            pytest.skip(f"the corpus lies on a {kind}")
        read[cache] = [
            epoch["metrics"]["io/read_bytes"]
            for epoch in of_kind(records_of(config, tmp_path), "epoch")
        ]
        held = sum(
            file.stat().st_size
            for file in make_loader(config, corpus, "training", 0)[0].dataset.files()
        )
    assert min(read["cold"]) >= 0.4 * held, "half of a packed file is other splits'"
    assert read["warm"][1:] == [0, 0]


def in_memory(folder) -> str | None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True
    ).stdout.strip()
    return kind if kind in ("tmpfs", "ramfs") else None


WILD = {
    "optimizer": {"momentum": 0.99, "weight_decay": 1.0},
    "sgdr": {"epochs": 4, "cycle_epochs": 1, "lr": 100.0},
}
OF_LEARNING = {"accuracy", "best_snapshot_accuracy", "ensemble_accuracy"}


@pytest.mark.parametrize("timed", [False, True])
def test_a_trial_that_diverges_says_so_and_has_no_accuracy(
    tone_trial, tmp_path, timed: bool
) -> None:
    """Training stops at the divergence, unless the trial's epoch times are needed."""
    config, records = tone_trial(**WILD), []
    fit(
        Trial(config=config, seed=1, warmup_epochs=0, folder=str(tmp_path), timed=timed),
        records.append,
    )
    end, epochs = records[-1], of_kind(records, "epoch")
    assert end["kind"] == "end"
    assert "epoch" in end["diverged"]
    assert end["cycles_without_member"] == [0, 1, 2, 3]
    assert (len(epochs) == 4) == timed
    assert not math.isfinite(losses(records)[-1]) or not math.isfinite(
        epochs[-1]["metrics"]["loss/validation"]
    )
    assert "epoch_s" in end["summary"]
    assert not OF_LEARNING & end["summary"].keys()
    assert "confusion" not in end
    told = [
        value
        for record in records
        for name, value in record.get("metrics", {}).items()
        if "accuracy" in name
    ]
    assert not any(map(math.isnan, told))


def test_a_cycle_whose_predictions_are_no_numbers_leaves_the_others_their_ensemble(
    tone_trial, tmp_path, monkeypatch
) -> None:
    """Plants NaN predictions in the second of three epochs.

    Statistics of a BatchNorm may overflow for one epoch and recover.
    """
    calls, predict = [], Learner.predict

    def spoilt(learner, batches):
        scores, labels, loss = predict(learner, batches)
        calls.append(scores)
        return (
            (torch.full_like(scores, math.nan), labels, math.nan)
            if len(calls) == 2
            else (scores, labels, loss)
        )

    monkeypatch.setattr(Learner, "predict", spoilt)
    config = tone_trial(sgdr={"epochs": 3, "cycle_epochs": 1, "lr": 0.02})
    records = records_of(config, tmp_path)
    monkeypatch.undo()
    end, labels = records[-1], torch.tensor([0, 0, 0, 1, 1, 1])
    mean = (calls[0] + calls[2]) / 2
    assert end["cycles_without_member"] == [1]
    assert end["summary"]["diverged_snapshots"] == 1
    assert end["summary"]["ensemble_accuracy"] == (mean.argmax(1) == labels).double().mean().item()
    assert end["summary"]["accuracy"] == (calls[2].argmax(1) == labels).double().mean().item()
    assert "2 of 3 snapshots" in end["diverged"]
    assert [
        "snapshot/accuracy" in record["metrics"] for record in of_kind(records, "snapshot")
    ] == [True, False, True]
    trial = Trial(config=config, seed=1, runtime=RuntimeSettings(threads=1), folder=str(tmp_path))
    (tmp_path / "snapshot-1.pt").unlink()
    assert evaluate_test_split(trial, members=[0, 2])["clips"] == 6
    with pytest.raises(WeightsError, match="diverged"):
        evaluate_test_split(trial, members=[])


def test_snapshots_of_nan_are_refused_wherever_they_are_read(tone_trial, tmp_path) -> None:
    """Snapshots like those of an earlier version give an error instead of an accuracy."""
    config = tone_trial(sgdr={"epochs": 2, "cycle_epochs": 1})
    records_of(config, tmp_path)
    trial = Trial(config=config, seed=1, runtime=RuntimeSettings(threads=1), folder=str(tmp_path))
    for cycle, readable in ((0, True), (1, False)):
        weights = torch.load(tmp_path / f"snapshot-{cycle}.pt", weights_only=True)
        for value in weights.values():
            if value.is_floating_point():
                value.fill_(math.nan)
        torch.save(weights, tmp_path / f"snapshot-{cycle}.pt")
        if readable:
            assert 0 <= evaluate_test_split(trial)["ensemble_accuracy"] <= 1
        else:
            with pytest.raises(WeightsError, match="diverged"):
                evaluate_test_split(trial)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_clip_whose_picture_is_not_finite_is_named(
    tone_trial, tmp_path, monkeypatch, split: str
) -> None:
    config = tone_trial(sgdr={"epochs": 2})
    corpus = corpora.prepare_corpus(config.corpus)
    make_loader(config, corpus, "training", 1)  # the statistics are of sound clips
    bad, read = corpus.split(split)[3], corpora.PreparedCorpus.read

    def spoilt(self, clip, samples):
        return read(self, clip, samples) * (math.nan if clip == bad else 1)

    monkeypatch.setattr(corpora.PreparedCorpus, "read", spoilt)
    with pytest.raises(BadClip) as told:
        records_of(config, tmp_path)
    assert str(told.value).startswith(str(corpus.root / bad.path))


def test_batch_bytes_are_whole_pages_of_its_tensors(tone_trial, tmp_path) -> None:
    setup = records_of(tone_trial(), tmp_path)[0]
    assert setup["batch_bytes"] == 4096 * math.ceil(4 * 16 * 41 * 4 / 4096) + 4096


def test_weights_that_are_missing_end_the_trial_with_their_name(tone_trial, tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"model\.weights: /no/such\.pt"):
        records_of(tone_trial(model={"weights": "/no/such.pt"}), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_learns_and_times_its_own_axis(tone_trial, tmp_path) -> None:
    config = tone_trial(
        device="cuda", sgdr={"epochs": 4, "lr": 0.02}, loader={"num_workers": 2, "pin_memory": True}
    )
    records = records_of(config, tmp_path)
    assert losses(records)[-1] < losses(records)[0]
    assert 0 < of_kind(records, "epoch")[-1]["metrics"]["accelerator/busy_fraction"] <= 1


def test_clips_that_changed_since_the_launch_are_another_corpus(tone_trial, tmp_path):
    config = tone_trial()
    trial = Trial(config=config, seed=1, folder=str(tmp_path), fingerprint="0" * 64)
    for read in (lambda: fit(trial, lambda record: None), lambda: evaluate_test_split(trial)):
        with pytest.raises(corpora.CorpusError, match="changed"):
            read()
