import json
import math
import subprocess

import pytest
import torch

from speech import corpora
from speech.config import Pinned, Trial, cache_dir
from speech.evaluation import read_test_split
from speech.fetches import occupancy
from speech.learner import Learner
from speech.loading import make_loader, prepare_forms
from speech.model import WeightsError
from speech.train import fit


def records_of(config, folder, seed: int = 1, warmup: int = 0, threads: int = 1, **pinned) -> list[dict]:
    records: list[dict] = []
    fit(Trial(config=config, seed=seed, warmup_epochs=warmup, pinned=Pinned(threads=threads, **pinned), folder=str(folder)), records.append)
    return records


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record for record in records if record["kind"] == kind]


def losses(records: list[dict]) -> list[float]:
    return [record["metrics"]["loss/training"] for record in of_kind(records, "epoch")]


AUGMENTED = {"shift_ms": 50.0, "noise": 0.5, "freq_mask": 4, "time_mask": 4, "mixup": 0.4}


@pytest.fixture(scope="module")
def learned(tone_trial, tmp_path_factory):
    """Twenty epochs in two cycles on two tones, and the folder with the snapshots."""
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
        parts = [metrics[f"time/{span}_s"] for span in ("start", "fill", "wait", "step", "other")]
        assert sum(parts) == pytest.approx(metrics["time/epoch_s"])
        assert len(record["steps"]["wait_s"]) == len(record["steps"]["step_s"]) == 3
        assert sum(record["steps"]["wait_s"]) == pytest.approx(metrics["time/fill_s"] + metrics["time/wait_s"], abs=3e-6)


def test_the_summary_is_the_median_of_warm_epochs(learned) -> None:
    _, _, records = learned
    epochs = sorted(record["metrics"]["time/epoch_s"] for record in of_kind(records, "epoch")[1:])
    assert records[-1]["summary"]["epoch_s"] == epochs[9]
    assert records[-1]["summary"]["train_s"] == pytest.approx(sum(r["metrics"]["time/epoch_s"] for r in of_kind(records, "epoch")))
    assert [record["warmup"] for record in of_kind(records, "epoch")] == [True] + [False] * 19


def test_each_snapshot_file_holds_the_weights_at_its_cycles_end(learned) -> None:
    """Loaded anew, they give the validation loss and accuracy that training noted at that moment."""
    config, folder, records = learned
    corpus = corpora.prepare(config.corpus)
    loader, _ = make_loader(config, corpus, "validation", 1)
    learner = Learner(config, Pinned(threads=1), "cpu", labels=2, channels=1)
    for snapshot in of_kind(records, "snapshot"):
        learner.model.load_state_dict(torch.load(folder / snapshot["file"], weights_only=True))
        _, _, loss = learner.predict(loader)
        noted = of_kind(records, "epoch")[snapshot["epoch"]]["metrics"]
        assert loss == pytest.approx(noted["loss/validation"], rel=1e-4)
        assert snapshot["metrics"]["snapshot/accuracy"] == noted["accuracy/validation"]
    assert [snapshot["epoch"] for snapshot in of_kind(records, "snapshot")] == [9, 19]


def test_the_test_split_is_read_by_all_members(learned) -> None:
    config, folder, _ = learned
    result = read_test_split(Trial(config=config, seed=1, pinned=Pinned(threads=1), folder=str(folder)))
    assert result == {"clips": 6, "correct": 6, "accuracy": 1.0, "ensemble_accuracy": 1.0}
    (folder / "snapshot-0.pt").rename(folder / "gone.pt")
    with pytest.raises(WeightsError, match=r"snapshot-0\.pt does not exist"):
        read_test_split(Trial(config=config, seed=1, pinned=Pinned(threads=1), folder=str(folder)))
    (folder / "gone.pt").rename(folder / "snapshot-0.pt")


@pytest.mark.parametrize("workers", [2, 8])
def test_the_loss_curve_is_bit_for_bit_the_same_at_any_number_of_workers(tone_trial, tmp_path, workers: int) -> None:
    alone = tone_trial(augment=AUGMENTED, sgdr={"epochs": 2})
    shared = tone_trial(augment=AUGMENTED, sgdr={"epochs": 2}, loader={"num_workers": workers})
    curves = [losses(records_of(config, tmp_path, threads=2)) for config in (alone, shared)]
    assert curves[0] == curves[1]
    assert curves[0] != losses(records_of(alone, tmp_path, seed=2, threads=2))


def test_bfloat16_and_channels_last_learn_too(tone_trial, tmp_path) -> None:
    records = records_of(tone_trial(sgdr={"epochs": 6, "lr": 0.02}), tmp_path, precision="bfloat16", channels_last=True)
    assert losses(records)[-1] < 0.7 * losses(records)[0]
    assert records[0]["precision"] == "bfloat16"


def test_the_paced_device_times_an_epoch_and_claims_no_accuracy(tone_trial, tmp_path) -> None:
    device = {"first_of": ["paced"], "step_s": 0.05, "host_s": 0.01}
    records = records_of(tone_trial(device=device), tmp_path)
    metrics = of_kind(records, "epoch")[0]["metrics"]
    assert metrics["time/step_s"] >= 3 * 0.06
    assert metrics["accelerator/busy_fraction"] >= 3 * 0.05 / metrics["time/epoch_s"] * 0.99
    assert not any("accuracy" in name or "loss" in name for name in metrics.keys() | records[-1]["summary"].keys())
    assert records[0]["device_name"] == "paced: 50 ms a step, 10 ms of host CPU"


def test_an_epochs_raw_steps_explain_its_figures(tone_trial, tmp_path) -> None:
    config = tone_trial(loader={"num_workers": 2, "form": "png"}, device={"first_of": ["paced"], "step_s": 0.05}, sgdr={"epochs": 2})
    prepare_forms(config, corpora.prepare(config.corpus), print)
    records = records_of(config, tmp_path)
    for epoch in of_kind(records, "epoch"):
        metrics, steps, busy, fetches = (epoch[name] for name in ("metrics", "steps", "busy", "fetches"))
        ends = [sum(parts) for parts in zip(*(steps[name] for name in ("ask_s", "wait_s", "step_s", "other_s")), strict=True)]
        assert steps["ask_s"][0] == pytest.approx(metrics["time/start_s"], abs=2e-6)
        assert [*steps["ask_s"][1:], metrics["time/epoch_s"]] == pytest.approx(ends, abs=1e-5), "a step lasts until the next one"
        assert sum(busy["end_s"]) - sum(busy["begin_s"]) >= 3 * 0.05
        assert sorted(fetches["step"]) == [0, 1, 2]
        came = [ask + wait for ask, wait in zip(steps["ask_s"], steps["wait_s"], strict=True)]
        assert all(end < came[step] for step, end in zip(fetches["step"], fetches["end_s"], strict=True)), "made before it came"
        assert metrics["loader/occupancy"] == occupancy(fetches, steps["ask_s"])
        assert metrics["cpu/worker_s"] == pytest.approx(sum(fetches["cpu_s"]), abs=0.02), "between looks or between batches"
        assert len(steps["shm_bytes"]) == 3
    first, second = (epoch["began_s"] for epoch in of_kind(records, "epoch"))
    assert 0 <= first < second
    assert second - first >= of_kind(records, "epoch")[0]["metrics"]["time/epoch_s"]


@pytest.mark.parametrize("form", ["wav", "png", "packed"])
def test_a_cold_epoch_reads_from_storage_and_a_warm_one_from_memory(tone_trial, tmp_path, form: str) -> None:
    device = {"first_of": ["paced"], "step_s": 0.001}
    read = {}
    for cache in ("cold", "warm"):
        config = tone_trial(corpus={"cache": cache}, loader={"form": form, "num_workers": 2}, device=device, sgdr={"epochs": 3})
        corpus = corpora.prepare(config.corpus)
        prepare_forms(config, corpus, print)
        if (kind := in_memory(cache_dir() if form != "wav" else corpus.root)) is not None:
            pytest.skip(f"the corpus lies on a {kind}")
        read[cache] = [epoch["metrics"]["io/read_bytes"] for epoch in of_kind(records_of(config, tmp_path), "epoch")]
        held = sum(file.stat().st_size for file in make_loader(config, corpus, "training", 0)[0].dataset.files())
    assert min(read["cold"]) >= 0.4 * held, "half of a packed file is other splits'"
    assert read["warm"][1:] == [0, 0]


def in_memory(folder) -> str | None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    return kind if kind in ("tmpfs", "ramfs") else None


def test_a_diverging_trial_runs_to_its_end_and_says_so(tone_trial, tmp_path) -> None:
    records = records_of(tone_trial(sgdr={"epochs": 4, "lr": 100.0}), tmp_path)
    assert records[-1]["kind"] == "end"
    assert any(not math.isfinite(loss) or loss > 5 for loss in losses(records))


def test_batch_bytes_are_whole_pages_of_its_tensors(tone_trial, tmp_path) -> None:
    setup = records_of(tone_trial(), tmp_path)[0]
    assert setup["batch_bytes"] == 4096 * math.ceil(4 * 16 * 41 * 4 / 4096) + 4096


def test_weights_that_are_missing_end_the_trial_with_their_name(tone_trial, tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"model\.weights: /no/such\.pt does not exist"):
        records_of(tone_trial(model={"weights": "/no/such.pt"}), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_learns_and_times_its_own_axis(tone_trial, tmp_path) -> None:
    config = tone_trial(device="cuda", sgdr={"epochs": 4, "lr": 0.02}, loader={"num_workers": 2, "pin_memory": True})
    records = records_of(config, tmp_path)
    assert losses(records)[-1] < losses(records)[0]
    assert 0 < of_kind(records, "epoch")[-1]["metrics"]["accelerator/busy_fraction"] <= 1
