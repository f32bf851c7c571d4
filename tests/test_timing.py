import itertools

import pytest

from speech.timing import Gauge, Timeline, accelerator_metrics, watch_batches


def test_the_spans_partition_the_epoch() -> None:
    times = iter([10.0, 10.5, 12.5, 13.0, 13.25, 14.0, 16.0, 16.125])
    timeline = Timeline(clock=lambda: next(times))
    for span in ("start", "first_batch", "step", "other", "data_wait", "step", "other"):
        timeline.lap(span)
    assert timeline.metrics() == {
        "time/epoch_s": 6.125,
        "time/start_s": 0.5,
        "time/first_batch_s": 2.0,
        "time/data_wait_s": 0.75,
        "time/step_s": 2.5,
        "time/other_s": 0.375,
    }
    assert timeline.laps["step"] == [0.5, 2.0]


def test_a_lap_tells_when_it_began_and_ended() -> None:
    times = itertools.count(0.0, 1.5)
    timeline = Timeline(clock=lambda: next(times))
    assert timeline.lap("start") == (0.0, 1.5)
    assert timeline.lap("first_batch") == (1.5, 3.0)


def test_an_unknown_span_is_an_error() -> None:
    with pytest.raises(KeyError):
        Timeline().lap("nap")


def test_the_accelerators_axis() -> None:
    # pauses of 0.5 ms, 500 ms and 2 ms
    busy = [(1.0, 2.0), (2.0005, 3.0), (3.5, 4.5), (4.502, 5.0)]
    metrics = accelerator_metrics(busy, epoch_s=5.0)
    assert metrics["stall/steps"] == 2
    assert metrics["stall/max_gap_s"] == pytest.approx(0.5)
    assert metrics["accelerator/busy_fraction"] == pytest.approx((1 + 0.9995 + 1 + 0.498) / 5)


def test_the_gauge_knows_when_the_loop_waits() -> None:
    told: list[str] = []

    class Told(Gauge):
        def begin_wait(self) -> None:
            told.append("begin_wait")

        def end_wait(self) -> None:
            told.append("end_wait")

    for batch in watch_batches(["a", "b"], Told()):
        told.append(batch)
    assert told == ["begin_wait", "end_wait", "a", "begin_wait", "end_wait", "b"]
