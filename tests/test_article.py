"""What the report says of the article's table, against planted cells whose differences are plain;
and the YAML's own arithmetic."""

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
    """Figures of an epoch of 256 batches of 16."""
    step = BATCHES * step_s
    spans = {
        "first_batch_s": first_batch_s,
        "data_wait_s": seconds - step - first_batch_s,
        "step_s": step,
    }
    return {"epoch_s": seconds, "clips_per_s": BATCHES * SIZE / seconds} | spans | more


@pytest.fixture
def say(tracking, plant):
    """say([(block, workers, keys, figures or an outcome), ...]): the report on these trials, a
    paragraph an item."""

    def said(trials, tags=SIMULATED):
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

    return said


def ratio_block(over=(1.2, 1.2, 1.2), block="ratio", step_s=0.005, repeats=3):
    """0 workers take 30 ms a step, 8 half of it, 64 `over` times what 8 take."""
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
    """The one paragraph that holds all words."""
    (text,) = [text for text in texts if all(word in text for word in words)]
    return text


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


def test_the_articles_r_follows_from_its_own_figures(say) -> None:
    text = about(say(ratio_block()), "The article:")
    assert "80 min an epoch without workers, 3.2 with 8, -96% or 25 times as fast" in text
    assert "s / (b·c) is at most 1/24 and r = s·C / (b·c) at most C/24" in text
    assert "On 8 cores" in text
    assert "r is 0.33" in text
    assert "2 and 32 cores" in text


def test_the_cut_the_loss_and_their_intervals(say) -> None:
    texts = say(ratio_block())
    cut = about(texts, "8 workers against none", "At r")
    # 25 ms to prepare and 5 ms a step on 2 cores: r 0.4; 30 ms become 12.5 at best
    assert cut.startswith("At r = 0.4, ")
    assert "7.68 s -> 3.84 s, -50% (-50% to -50%)." in cut
    assert "58 % on 2 cores" in cut
    loss = about(texts, "64 workers against 8")
    assert "3.84 s -> 4.61 s, +20% (+20% to +20%)." in loss
    assert "slower, as in the article" in loss
    assert "0.20 s with 8 and 1.40 s with 64, +1.20 s" in loss
    assert "+0.77 s" in loss


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ((1.1, 0.9, 1.0), "not distinguishable"),
        ((0.8, 0.8, 0.8), "faster, unlike in the article"),
    ],
)
def test_whichever_way_it_went(say, over, words) -> None:
    assert words in about(say(ratio_block(over)), "64 workers against 8")


def test_a_single_repeat_has_no_interval_and_proves_nothing(say) -> None:
    texts = say(ratio_block(block="fourfold", step_s=0.02, repeats=1))
    assert "-50% (1 pair;" in about(texts, "At 4r = 1.6, 8 workers against none")
    assert "Too few repeats" in about(texts, "At 4r", "64 workers against 8")


def test_what_is_not_there_is_said_to_be_missing(say) -> None:
    texts = say([trial for trial in ratio_block() if trial[1] != 64])
    assert "Missing: block" in texts[0]
    assert all(block in texts[0] for block in set(BLOCKS) - {"ratio"})
    assert "missing, no trial with 64" in about(texts, "64 workers against 8")
    assert "Missing: r/4 and 4r" in about(texts, "Measured r")
    assert "missing" in about(texts, "A slow drive without workers")


def test_without_a_baseline_there_is_no_r(say) -> None:
    texts = say([trial for trial in ratio_block() if trial[1] != 0])
    assert about(texts, "Measured r").startswith("Measured r: missing")
    assert "missing, no trial with 0" in about(texts, "At r, 8 workers against none")


def test_the_overflow_in_the_small_one(say) -> None:
    small = {"loader.shm_size": 64 * MB}
    trials = [("small", 1, small, epoch(6.0)), ("small", 2, small, epoch(4.0))]
    trials += [("small", workers, small, "shm_exhausted") for workers in (4, 64)] + [
        ("small", 8, small, "timeout")
    ]
    texts = say([*ratio_block(), ("between", 2, {}, epoch(4.608)), *trials])
    text = about(texts, "In 64M of /dev/shm")
    assert "1 and 2 workers completed; 4 and 64 workers overflowed; 8 workers timed out." in text
    assert "depends on rates with 1, 2, 4, 8 and 64" in text
    assert "at most 1,000.0 MiB of /dev/shm" in about(texts, "A batch is 9.0 MiB")
    table = about(texts, "Milliseconds a step")
    assert re.search(r"^ +4 .*overflowed", table, re.MULTILINE)
    assert re.search(r"^ +0 +30\.0 ", table, re.MULTILINE)
    assert re.search(r"^ +2 +18\.0 +15\.6$", table, re.MULTILINE)


def test_a_slow_drive_and_a_cold_one_add_what_they_add(say) -> None:
    network, cold = {"corpus.read_latency_s": 0.01}, {"corpus.cache": "cold"}
    trials = [
        ("network", 0, network, epoch(48.0)),
        ("network", 8, network, epoch(6.0)),
        ("cold", 0, cold, epoch(9.6, read_bytes=100 * MB)),
    ]
    texts = say([*ratio_block(), *trials])
    assert "7.68 s -> 48.00 s, +525%" in about(
        texts, "Reads delayed by 10 ms, 0 workers, against no delay"
    )
    cut = about(texts, "Reads delayed by 10 ms, 8 workers against none")
    assert "48.0 s -> 6.0 s, -88%" in cut.replace("48.00", "48.0").replace("6.00", "6.0")
    assert "at most 89 %" in cut
    assert "7.68 s -> 9.60 s, +25%" in about(texts, "Page cache emptied, 0 workers")
    assert "100.0 MiB came from the drive" in about(texts, "Page cache emptied, 0 workers")
    assert "48.00 s -> 3.84 s, -92%" in about(texts, "Delayed reads without workers")


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


def test_a_sweep_of_other_blocks_or_of_more_than_workers_is_refused(say) -> None:
    with pytest.raises(LookupError, match=r"article\.yaml .*: workers$"):
        say([("workers", 0, {}, epoch(1.0))])
    with pytest.raises(LookupError, match=r"block ratio.*cache="):
        say([*ratio_block(), ("ratio", 2, {"corpus.cache": "cold"}, epoch(1.0))])


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
