"""Checks the report on the article's table against planted trials with known differences, and the
arithmetic of the sweep file."""

import re
from pathlib import Path

import pytest

from analysis.article import BLOCKS, report
from analysis.article_model import costs, max_speedup
from analysis.runs import sweep_runs
from speech.synthetic import SHARES
from sweeps.config.plan import plan
from sweeps.config.sweep_file import load
from tests.conftest import make_trial_id

ROOT = Path(__file__).parent.parent
MB = 1 << 20
BATCHES, SIZE = 256, 16
SIMULATED = {
    "device": "simulated",
    "device_name": "simulated accelerator: 5 ms a step",
    "cpu_name": "Planted CPU",
    "batch_bytes": 9 * MB,
}


def epoch(seconds, step_s=0.005, first_batch_s=0.025, **more):
    """Returns the figures of an epoch of 256 batches of 16."""
    step = BATCHES * step_s
    spans = {
        "first_batch_s": first_batch_s,
        "data_wait_s": seconds - step - first_batch_s,
        "step_s": step,
    }
    return {"epoch_s": seconds, "clips_per_s": BATCHES * SIZE / seconds} | spans | more


@pytest.fixture
def make_report(tracking, plant):
    """Returns a function from trials to the paragraphs of their report.

    A trial is (block, workers, keys, figures or an outcome).
    """

    def make(trials, tags=SIMULATED):
        repeats: dict[tuple, int] = {}
        cells = []
        for block, workers, keys, ended in trials:
            repeats[block, workers] = repeats.get((block, workers), 0) + 1
            swept = {
                "loader.num_workers": workers,
                "loader.batch_size": SIZE,
                "loader.shm_size": 2048 * MB,
            } | keys
            cells.append((block, swept, repeats[block, workers], ended))
        parent = tracking.start_sweep(
            "article",
            "",
            [
                {"trial_id": make_trial_id(block, swept, repeat)}
                for block, swept, repeat, _ in cells
            ],
            "",
        )
        for block, swept, repeat, ended in cells:
            outcome, figures = ("completed", ended) if isinstance(ended, dict) else (ended, {})
            known = tags | {
                "forecast_fit": "depends" if swept["loader.shm_size"] == 64 * MB else "fits"
            }
            plant(parent, swept, repeat, outcome, block=block, tags=known, **figures)
        return report(sweep_runs("article", tracking.uri))

    return make


def ratio_block(over=(1.2, 1.2, 1.2), block="ratio", step_s=0.005, repeats=3):
    """Returns trials: 0 workers take 30 ms a step, 8 half of it, 64 `over` times what 8 take."""
    trials = []
    for drift, times in list(zip((1.0, 1.02, 0.98), over, strict=True))[:repeats]:
        alone = BATCHES * (0.025 + step_s) * drift
        trials.append((block, 0, {}, epoch(alone, step_s)))
        trials.append((block, 8, {}, epoch(alone / 2, step_s, first_batch_s=0.2)))
        trials.append(
            (
                block,
                64,
                {},
                epoch(alone / 2 * times, step_s, first_batch_s=1.4, shm_peak_bytes=1000 * MB),
            )
        )
    return trials


def about(texts, *words):
    """Returns the one paragraph that contains all words."""
    (text,) = [text for text in texts if all(word in text for word in words)]
    return text


def numbers(text):
    """Returns the numbers in a text, in order, with sign, divisor and percent sign."""
    return re.findall(r"[-+]?(?:[1C]/)?\d+(?:,\d{3})*(?:\.\d+)?%?", text)


def test_workers_gain_at_most_one_more_than_compute_at_once() -> None:
    assert max_speedup(8, cores=2, ratio=1.0) == pytest.approx(3.0)
    assert max_speedup(8, cores=8, ratio=1.0) == pytest.approx(9.0)
    assert max(max_speedup(64, cores=2, ratio=r / 100) for r in range(1, 1000)) == pytest.approx(
        3.0
    )
    # a step of a tenth of the preparation: 1.1 becomes 0.5 on two cores; of ten times, 11 becomes
    # 10
    assert max_speedup(8, cores=2, ratio=0.2) == pytest.approx(2.2)
    assert max_speedup(1, cores=2, ratio=20.0) == pytest.approx(1.1)


def test_the_articles_r_follows_from_its_own_figures(make_report) -> None:
    text = about(make_report(ratio_block()), "The article:")
    assert numbers(text.partition(". ")[0]) == ["80", "3.2", "8", "-96%", "25"]
    assert {"1/24", "C/24"} <= set(numbers(text))
    assert numbers(text)[-6:] == ["8", "0.33", "4", "4", "2", "32"]  # 8 cores, r, r/4, 4r, cores


def test_the_cut_the_loss_and_their_intervals(make_report) -> None:
    texts = make_report(ratio_block())
    cut = about(texts, "8 workers against none", "At r")
    # 25 ms to prepare and 5 ms a step on 2 cores: r 0.4; 30 ms become 12.5 at best
    assert cut.startswith("At r = 0.4, ")
    assert "7.68 s -> 3.84 s, -50% (-50% to -50%)." in cut
    assert "58 % on 2 cores" in cut
    loss = about(texts, "64 workers against 8")
    assert "3.84 s -> 4.61 s, +20% (+20% to +20%)." in loss
    assert "workers are slower" in loss
    assert re.search(r"0\.20 s .*\b8 .* 1\.40 s .*\b64, \+1\.20 s; .* \+0\.77 s", loss)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ((1.1, 0.9, 1.0), "not distinguishable"),
        ((0.8, 0.8, 0.8), "workers are faster"),
    ],
)
def test_the_result_of_many_workers_follows_from_its_interval(make_report, over, words) -> None:
    assert words in about(make_report(ratio_block(over)), "64 workers against 8")


def test_a_single_repeat_has_no_interval_and_proves_nothing(make_report) -> None:
    texts = make_report(ratio_block(block="fourfold", step_s=0.02, repeats=1))
    assert "-50% (1 pair;" in about(texts, "At 4r = 1.6, ", " 8 workers against none")
    assert "Too few repeats" in about(texts, "At 4r", "64 workers against 8")


def test_absent_blocks_and_trials_are_reported_as_missing(make_report) -> None:
    texts = make_report([trial for trial in ratio_block() if trial[1] != 64])
    assert "Missing: block" in texts[0]
    assert all(block in texts[0] for block in set(BLOCKS) - {"ratio"})
    assert re.search(r"missing.* 64 workers", about(texts, "64 workers against 8"))
    assert "Missing: r/4 and 4r" in about(texts, "Measured r")
    assert "missing" in about(texts, "slow drive")


def test_without_a_baseline_there_is_no_r(make_report) -> None:
    texts = make_report([trial for trial in ratio_block() if trial[1] != 0])
    assert about(texts, "Measured r").startswith("Measured r: missing")
    assert re.search(r"missing.* 0 workers", about(texts, "At r, 8 workers"))


def test_outcomes_in_a_small_shm_are_listed_by_workers(make_report) -> None:
    small = {"loader.shm_size": 64 * MB}
    trials = [("small", 1, small, epoch(6.0)), ("small", 2, small, epoch(4.0))]
    trials += [("small", workers, small, "shm_exhausted") for workers in (4, 64)] + [
        ("small", 8, small, "timeout")
    ]
    texts = make_report([*ratio_block(), ("between", 2, {}, epoch(4.608)), *trials])
    text = about(texts, "In 64M of /dev/shm")
    ends = re.findall(r"(\d[\d, and]*) workers (\w+)", text)
    assert {end: numbers(counts) for counts, end in ends} == {
        "completed": ["1", "2"],
        "overflowed": ["4", "64"],
        "timed": ["8"],
    }
    assert re.search(r"depends .*\b1, 2, 4, 8 and 64\b", text)
    assert numbers(about(texts, "9.0 MiB")) == ["9.0", "64", "1,000.0"]
    table = about(texts, "Milliseconds a step")
    assert re.search(r"^ +4 .*overflowed", table, re.MULTILINE)
    assert re.search(r"^ +0 +30\.0 ", table, re.MULTILINE)
    assert re.search(r"^ +2 +18\.0 +15\.6$", table, re.MULTILINE)


def test_slow_reads_and_a_cold_cache_are_compared_with_the_warm_one(make_report) -> None:
    network, cold = {"corpus.read_latency_s": 0.01}, {"corpus.cache": "cold"}
    trials = [
        ("network", 0, network, epoch(48.0)),
        ("network", 8, network, epoch(6.0)),
        ("cold", 0, cold, epoch(9.6, read_bytes=100 * MB)),
    ]
    texts = make_report([*ratio_block(), *trials])
    assert "7.68 s -> 48.00 s, +525%" in about(texts, "10 ms, 0 workers,")
    cut = about(texts, "10 ms, 8 workers against")
    assert "48.0 s -> 6.0 s, -88%" in cut.replace("48.00", "48.0").replace("6.00", "6.0")
    assert "at most 89 %" in cut
    cold_epochs = about(texts, "emptied, 0 workers")
    assert "7.68 s -> 9.60 s, +25%" in cold_epochs
    assert "100.0 MiB" in cold_epochs
    assert "48.00 s -> 3.84 s, -92%" in about(texts, "Delayed reads")


def test_costs_are_those_without_workers(tracking, plant) -> None:
    parent = tracking.start_sweep("article", "", [{"trial_id": "a"}, {"trial_id": "b"}], "")
    for key, workers in (("a", 0), ("b", 8)):
        swept = {"loader.num_workers": workers, "loader.batch_size": SIZE}
        plant(
            parent,
            swept,
            trial_id=key,
            block="ratio",
            tags=SIMULATED,
            **epoch(7.68 / (1 + workers)),
        )
    found = costs(sweep_runs("article", tracking.uri).trials)
    assert found == pytest.approx((0.005, 0.025, SIZE, 2))
    assert found.ratio == pytest.approx(0.4)


def test_a_sweep_of_other_blocks_or_of_more_than_workers_is_refused(make_report) -> None:
    with pytest.raises(LookupError, match=r"article\.yaml .*: workers$"):
        make_report([("workers", 0, {}, epoch(1.0))])
    with pytest.raises(LookupError, match=r"block ratio.*cache="):
        make_report([*ratio_block(), ("ratio", 2, {"corpus.cache": "cold"}, epoch(1.0))])


def test_times_of_two_machines_are_not_compared(tracking, plant) -> None:
    parent = tracking.start_sweep("article", "", [{"trial_id": "a"}, {"trial_id": "b"}], "")
    plant(
        parent, {"loader.num_workers": 0}, trial_id="a", block="ratio", tags=SIMULATED, **epoch(1.0)
    )
    plant(
        parent,
        {"loader.num_workers": 0},
        trial_id="b",
        block="quarter",
        tags=SIMULATED | {"cpu_name": "Another"},
        **epoch(1.0),
    )
    with pytest.raises(LookupError, match="2 machines"):
        report(sweep_runs("article", tracking.uri))


def test_the_yaml_has_epochs_twice_as_long_as_the_widest_window() -> None:
    trials = plan(
        load(ROOT / "sweeps/examples/article.yaml"), lambda corpus: corpus.selection_key()
    ).trials
    assert {trial.block for trial in trials} == set(BLOCKS)
    keys = [trial.config.loader for trial in trials]
    widest = max(each.num_workers * each.prefetch_factor for each in keys)
    (corpus,) = {trial.config.corpus.clips for trial in trials}
    of_a_word = corpus // 10
    training = 10 * (of_a_word - sum(round(share * of_a_word) for share in SHARES.values()))
    assert training // 16 >= 2 * widest == 256
    steps = {trial.block: trial.config.device.step_s for trial in trials}
    assert steps["quarter"] * 4 == steps["ratio"] == steps["fourfold"] / 4
