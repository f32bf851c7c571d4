"""What the report says of the article's table, against planted cells whose differences are plain; and the YAML's own arithmetic."""

import re
from pathlib import Path

import pytest

from analysis.article import BLOCKS, costs, most_times, report
from analysis.runs import sweep_runs
from speech.synthetic import SHARES
from sweeps.config import load
from sweeps.plan import plan
from tests.conftest import trial_key

ROOT = Path(__file__).parent.parent
MB = 1 << 20
BATCHES, SIZE = 256, 16
PACED = {"device": "paced", "device_name": "paced: 5 ms a step", "cpu_name": "Planted CPU", "batch_bytes": 9 * MB}


def epoch(seconds, step_s=0.005, fill_s=0.025, **more):
    """Figures of an epoch of 256 batches of 16."""
    step = BATCHES * step_s
    spans = {"fill_s": fill_s, "wait_s": seconds - step - fill_s, "step_s": step}
    return {"epoch_s": seconds, "clips_per_s": BATCHES * SIZE / seconds} | spans | more


@pytest.fixture
def say(tracking, plant):
    """say([(block, workers, keys, figures or an outcome), ...]): the report on these trials, a paragraph an item."""

    def said(trials, tags=PACED):
        repeats: dict[tuple, int] = {}
        cells = []
        for block, workers, keys, ended in trials:
            repeats[block, workers] = repeats.get((block, workers), 0) + 1
            swept = {"loader.num_workers": workers, "loader.batch_size": SIZE, "loader.shm_size": 2048 * MB} | keys
            cells.append((block, swept, repeats[block, workers], ended))
        parent = tracking.start_sweep("article", "", [{"key": trial_key(block, swept, repeat)} for block, swept, repeat, _ in cells], "")
        for block, swept, repeat, ended in cells:
            outcome, figures = ("completed", ended) if isinstance(ended, dict) else (ended, {})
            known = tags | {"forecast_fit": "depends" if swept["loader.shm_size"] == 64 * MB else "fits"}
            plant(parent, swept, repeat, outcome, block=block, tags=known, **figures)
        return report(sweep_runs("article", tracking.uri))

    return said


def ratio_block(over=(1.2, 1.2, 1.2), block="ratio", step_s=0.005, repeats=3):
    """0 workers take 30 ms a step, 8 half of it, 64 `over` times what 8 take."""
    trials = []
    for drift, times in list(zip((1.0, 1.02, 0.98), over, strict=True))[:repeats]:
        alone = BATCHES * (0.025 + step_s) * drift
        trials.append((block, 0, {}, epoch(alone, step_s)))
        trials.append((block, 8, {}, epoch(alone / 2, step_s, fill_s=0.2)))
        trials.append((block, 64, {}, epoch(alone / 2 * times, step_s, fill_s=1.4, shm_peak_bytes=1000 * MB)))
    return trials


def about(texts, *words):
    """The one paragraph that holds all words."""
    (text,) = [text for text in texts if all(word in text for word in words)]
    return text


def test_workers_gain_at_most_one_more_than_compute_at_once() -> None:
    assert most_times(8, cores=2, ratio=1.0) == pytest.approx(3.0)
    assert most_times(8, cores=8, ratio=1.0) == pytest.approx(9.0)
    assert max(most_times(64, cores=2, ratio=r / 100) for r in range(1, 1000)) == pytest.approx(3.0)
    # a step of a tenth of the preparation: 1.1 becomes 0.5 on two cores; of ten times, 11 becomes 10
    assert most_times(8, cores=2, ratio=0.2) == pytest.approx(2.2)
    assert most_times(1, cores=2, ratio=20.0) == pytest.approx(1.1)


def test_the_articles_r_follows_from_its_own_figures(say) -> None:
    text = about(say(ratio_block()), "The article:")
    assert "80 min an epoch without workers, 3.2 with 8, -96% or 25 times as fast" in text
    assert "s / (b·c) is at most 1/24 and r = s·C / (b·c) at most C/24" in text
    assert "0.33 on 8 cores" in text
    assert "2 and 32 cores" in text


def test_the_cut_the_loss_and_their_intervals(say) -> None:
    texts = say(ratio_block())
    cut = about(texts, "8 workers against none", "At r")
    # 25 ms to prepare and 5 ms a step on 2 cores: r 0.4; 30 ms become 12.5 at best
    assert cut == (
        "At r = 0.4, 8 workers against none: 7.68 s -> 3.84 s, -50% (-50% to -50%). 8 workers that prepare a batch as fast as the "
        "loop did could cut 58 % on 2 cores."
    )
    loss = about(texts, "64 workers against 8")
    assert loss == (
        "At r = 0.4, 64 workers against 8: 3.84 s -> 4.61 s, +20% (+20% to +20%). 64 lose, as in the article. The first batch comes after "
        "0.20 s with 8 and 1.40 s with 64, +1.20 s, where the epoch takes +0.77 s."
    )


@pytest.mark.parametrize(
    ("over", "words"),
    [((1.1, 0.9, 1.0), "The two are not told apart"), ((0.8, 0.8, 0.8), "64 win, unlike in the article")],
)
def test_whichever_way_it_went(say, over, words) -> None:
    assert words in about(say(ratio_block(over)), "64 workers against 8")


def test_a_single_repeat_has_no_interval_and_proves_nothing(say) -> None:
    texts = say(ratio_block(block="fourfold", step_s=0.02, repeats=1))
    assert "-50% (1 pair; an interval needs 3)." in about(texts, "At 4r = 1.6, 8 workers against none")
    assert "Whether 64 lose is not shown by so few." in about(texts, "At 4r", "64 workers against 8")


def test_what_is_not_there_is_said_to_be_missing(say) -> None:
    texts = say([trial for trial in ratio_block() if trial[1] != 64])
    assert "Missing: block" in texts[0]
    assert all(block in texts[0] for block in set(BLOCKS) - {"ratio"})
    assert about(texts, "64 workers against 8") == "At r = 0.4, 64 workers against 8: missing, no trial with 64 workers has a time."
    assert "Missing: r/4 and 4r." in about(texts, "r here")
    assert "missing" in about(texts, "A slow drive without workers")


def test_without_a_baseline_there_is_no_r(say) -> None:
    texts = say([trial for trial in ratio_block() if trial[1] != 0])
    assert about(texts, "r here").startswith("r here: missing")
    assert "missing, no trial with 0 workers has a time." in about(texts, "At r, 8 workers against none")


def test_the_overflow_in_the_small_one(say) -> None:
    small = {"loader.shm_size": 64 * MB}
    trials = [("small", 1, small, epoch(6.0)), ("small", 2, small, epoch(4.0))]
    trials += [("small", workers, small, "shm_exhausted") for workers in (4, 64)] + [("small", 8, small, "timeout")]
    texts = say([*ratio_block(), ("between", 2, {}, epoch(4.608)), *trials])
    text = about(texts, "In 64M of /dev/shm")
    assert "1 and 2 workers ran through; 4 and 64 workers overflowed; 8 workers timed out." in text
    assert "to depend on rates: 1, 2, 4, 8 and 64" in text
    assert "64 workers took 1,000.0 MiB of /dev/shm at most" in about(texts, "A batch is 9.0 MiB")
    table = about(texts, "Milliseconds a step")
    assert re.search(r"^ +4 .*overflowed", table, re.MULTILINE)
    assert re.search(r"^ +0 +30\.0 ", table, re.MULTILINE)
    assert re.search(r"^ +2 +18\.0 +15\.6$", table, re.MULTILINE)


def test_a_slow_drive_and_a_cold_one_add_what_they_add(say) -> None:
    network, cold = {"corpus.read_latency_s": 0.01}, {"corpus.cache": "cold"}
    trials = [("network", 0, network, epoch(48.0)), ("network", 8, network, epoch(6.0)), ("cold", 0, cold, epoch(9.6, read_bytes=100 * MB))]
    texts = say([*ratio_block(), *trials])
    assert "7.68 s -> 48.00 s, +525%" in about(texts, "Each read waits 10 ms, 0 workers, against the same without")
    cut = about(texts, "Each read waits 10 ms, 8 workers against none")
    assert "48.0 s -> 6.0 s, -88%" in cut.replace("48.00", "48.0").replace("6.00", "6.0")
    assert "would cut at most 89 %" in cut
    assert "7.68 s -> 9.60 s, +25%" in about(texts, "Files dropped from the page cache, 0 workers")
    assert "100.0 MiB came from the drive" in about(texts, "Files dropped from the page cache, 0 workers")
    assert "48.00 s -> 3.84 s, -92%" in about(texts, "Reads that wait and no workers")


def test_costs_are_those_without_workers(tracking, plant) -> None:
    parent = tracking.start_sweep("article", "", [{"key": "a"}, {"key": "b"}], "")
    for key, workers in (("a", 0), ("b", 8)):
        swept = {"loader.num_workers": workers, "loader.batch_size": SIZE}
        plant(parent, swept, key=key, block="ratio", tags=PACED, **epoch(7.68 / (1 + workers)))
    found = costs(sweep_runs("article", tracking.uri))
    assert found == pytest.approx((0.005, 0.025, SIZE, 2))
    assert found.ratio == pytest.approx(0.4)


def test_a_sweep_of_other_blocks_or_of_more_than_workers_is_refused(say) -> None:
    with pytest.raises(LookupError, match=r"no block of sweeps/examples/article\.yaml .* there are workers"):
        say([("workers", 0, {}, epoch(1.0))])
    with pytest.raises(LookupError, match="block ratio holds trials that differ in more than workers and /dev/shm"):
        say([*ratio_block(), ("ratio", 2, {"corpus.cache": "cold"}, epoch(1.0))])


def test_times_of_two_machines_are_not_compared(tracking, plant) -> None:
    parent = tracking.start_sweep("article", "", [{"key": "a"}, {"key": "b"}], "")
    plant(parent, {"loader.num_workers": 0}, key="a", block="ratio", tags=PACED, **epoch(1.0))
    plant(parent, {"loader.num_workers": 0}, key="b", block="quarter", tags=PACED | {"cpu_name": "Another"}, **epoch(1.0))
    with pytest.raises(LookupError, match="its blocks ran on 2 machines"):
        report(sweep_runs("article", tracking.uri))


def test_the_yaml_has_epochs_twice_as_long_as_the_widest_window() -> None:
    trials = plan(load(ROOT / "sweeps/examples/article.yaml"), lambda corpus: corpus.which()).trials
    assert {trial.block for trial in trials} == set(BLOCKS)
    keys = [trial.config.loader for trial in trials]
    widest = max(each.num_workers * each.prefetch_factor for each in keys)
    (corpus,) = {trial.config.corpus.clips for trial in trials}
    of_a_word = corpus // 10
    training = 10 * (of_a_word - sum(round(share * of_a_word) for share in SHARES.values()))
    assert training // 16 >= 2 * widest == 256
    steps = {trial.block: trial.config.device.step_s for trial in trials}
    assert steps["quarter"] * 4 == steps["ratio"] == steps["fourfold"] / 4
